use super::*;

#[test]
fn lines() {
    let event = |event, exit| Event {
        version: 1,
        boot_ms: 12_345,
        boot_id: "b".into(),
        service: "web".into(),
        key: "1.4".into(),
        pid: 7,
        event,
        exit,
    };
    let events = [
        event(EventKind::Started, None),
        event(EventKind::Adopted, None),
        event(EventKind::Exited, Some(Exit::Status(1))),
        event(EventKind::Stopped, Some(Exit::Signal(15))),
    ];
    cohort_base::golden::hold(&crate::testing::golden("guard-events.jsonl"), &events);
}
