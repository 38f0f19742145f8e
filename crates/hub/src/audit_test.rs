use std::fs;

use cohort_wire::audit::ChainEnd;

use std::sync::Arc;

use cohort_wire::audit::AuditEntry;

use super::{AuditError, AuditLog, Author, Recorder, record};

fn author() -> Author {
    Author { by: "operator `ada`".into(), proof: "certificate".into(), from: "10.0.0.1".into() }
}

fn add(log: &AuditLog, count: usize) {
    for nth in 0..count {
        log.add(author(), format!("change {nth}"), 7).unwrap();
    }
}

/// Follows the whole trail; returns its end.
fn follow(log: &AuditLog) -> ChainEnd {
    let mut end = ChainEnd::default();
    loop {
        let page = log.after(end.seq).unwrap();
        if page.lines.is_empty() {
            assert_eq!(end.seq, page.last);
            return end;
        }
        for line in &page.lines {
            end = end.follow(line).unwrap().0;
        }
    }
}

#[test]
fn the_chain_goes_on_after_a_restart_and_over_pages() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path()).unwrap();
    assert_eq!(follow(&log), ChainEnd::default());
    add(&log, 700);
    let end = follow(&log);
    drop(log);
    let log = AuditLog::open(dir.path()).unwrap();
    assert_eq!(follow(&log), end);
    add(&log, 1);
    assert_eq!(follow(&log).seq, 701);
}

#[test]
fn half_a_line_was_never_acknowledged_and_a_damaged_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path()).unwrap();
    add(&log, 3);
    let end = follow(&log);
    drop(log);
    let path = dir.path().join("00000000000000000001.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.clone() + "{\"seq\":4,").unwrap();
    let log = AuditLog::open(dir.path()).unwrap();
    assert_eq!(follow(&log), end);
    add(&log, 1);
    assert_eq!(follow(&log).seq, 4);
    drop(log);
    fs::write(&path, whole + "nonsense\n").unwrap();
    let damaged = AuditLog::open(dir.path());
    assert!(matches!(damaged, Err(AuditError::Damaged { .. })), "{damaged:?}");
}

#[test]
fn what_is_changed_or_left_out_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path()).unwrap();
    add(&log, 4);
    let lines = log.after(0).unwrap().lines;
    let holds = |lines: &[String]| {
        let followed = lines
            .iter()
            .try_fold(ChainEnd::default(), |end, line| end.follow(line).map(|(end, _)| end));
        followed.is_ok()
    };
    assert!(holds(&lines));
    let mut changed = lines.clone();
    changed[1] = changed[1].replace("ada", "eve");
    assert!(!holds(&changed));
    let mut left_out = lines.clone();
    left_out.remove(2);
    assert!(!holds(&left_out));
    let mut swapped = lines;
    swapped.swap(1, 2);
    assert!(!holds(&swapped));
}

#[test]
fn a_full_file_is_followed_by_another() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path()).unwrap();
    for _ in 0..10 {
        log.add(author(), "x".repeat(1 << 20), 7).unwrap();
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    let end = follow(&log);
    assert_eq!(end.seq, 10);
    drop(log);
    assert_eq!(follow(&AuditLog::open(dir.path()).unwrap()), end);
}

#[tokio::test]
async fn an_entry_stands_before_the_change_and_a_failure_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(AuditLog::open(dir.path()).unwrap());
    let what = || -> Vec<String> {
        let entries = log.after(0).unwrap().lines;
        entries.iter().map(|line| serde_json::from_str::<AuditEntry>(line).unwrap().what).collect()
    };
    let request = async |change: &str, fails: bool| {
        let work = async {
            record(change).await.unwrap();
            assert_eq!(what().last().unwrap(), change);
            tokio::task::yield_now().await;
        };
        let recorder = Recorder::new(&log, author());
        recorder.around(work, |()| fails.then(|| "409".to_owned())).await;
    };
    request("one", false).await;
    request("two", true).await;
    assert_eq!(what(), ["one", "two", "entry 2 failed: 409"]);
    // A reader changes nothing, so nothing is said of what it is refused.
    Recorder::new(&log, author()).around(async {}, |()| Some("403".to_owned())).await;
    assert_eq!(what().len(), 3);
}

#[tokio::test]
async fn what_cannot_be_recorded_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let trail = dir.path().join("audit");
    let log = Arc::new(AuditLog::open(&trail).unwrap());
    fs::remove_dir(&trail).unwrap();
    let recorder = Recorder::new(&log, author());
    let done = recorder.around(async { record("change").await }, |_| None).await;
    assert_eq!(done.unwrap_err().0.status, 503);
    fs::create_dir(&trail).unwrap();
    add(&log, 1);
    assert_eq!(follow(&log).seq, 1);
}
