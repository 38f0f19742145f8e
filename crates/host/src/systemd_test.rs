use super::*;

#[test]
fn the_record() {
    let record =
        |invocation| UnitRecord { key: "1.4".to_owned(), release: "ab".repeat(32), invocation };
    let records = [record(None), record(Some(vec![7; 16]))];
    cohort_base::golden::hold(&crate::testing::golden("unit.jsonl"), &records);
}

#[test]
fn only_the_run_that_we_started_is_ours() {
    let seen = |activity| Seen { activity, restarting: false, invocation: vec![7] };
    let record = |invocation: Option<Vec<u8>>| UnitRecord {
        key: "1.1".to_owned(),
        release: "d".to_owned(),
        invocation,
    };
    let up = seen(Activity::Up);
    assert!(up.runs_under("1.1", Some(&record(Some(vec![7])))));
    assert!(up.runs_under("1.1", Some(&record(None))), "interrupted after asking");
    assert!(!up.runs_under("1.1", Some(&record(Some(vec![6])))), "somebody restarted it");
    assert!(!up.runs_under("1.2", Some(&record(Some(vec![7])))));
    assert!(!up.runs_under("1.1", None));
    assert!(!seen(Activity::Changing).runs_under("1.1", Some(&record(None))));
}
