use cohort_base::events;

use super::{Followed, Line};

#[test]
fn a_line_has_a_time_an_event_and_fields() {
    let text = "2026-05-04T10:00:00.250000Z  INFO granted event=\"granted\" app=web \
                reason=\"two words\" attempt=2\n";
    let line = Line::parse(text).expect("a line with a time");
    assert!(line.at_ms.rem_euclid(1000.0) == 250.0, "{}", line.at_ms);
    assert!(line.is(events::GRANTED));
    assert!(!line.is(events::PHASE));
    assert_eq!(line.field("app"), Some("web"));
    assert_eq!(line.field("reason"), Some("two words"));
    assert_eq!(line.field("attempt"), Some("2"));
    assert_eq!(line.field("server"), None);
    assert_eq!(Line::parse("thread 'main' panicked at src/x.rs"), None);
}

#[test]
fn a_line_is_read_once_and_when_it_is_complete() {
    let path = std::env::temp_dir().join(format!("cohort-logs-test-{}", std::process::id()));
    let mut file = Followed { path: path.clone(), offset: 0, rest: Vec::new() };
    assert!(file.lines().is_empty(), "the file does not exist yet");
    std::fs::write(&path, "one\ntw").expect("a file");
    assert_eq!(file.lines(), ["one"]);
    std::fs::write(&path, "one\ntwo\nthree\n").expect("a file");
    assert_eq!(file.lines(), ["two", "three"]);
    assert!(file.lines().is_empty());
    std::fs::remove_file(&path).expect("removed");
}
