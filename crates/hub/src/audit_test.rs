use std::fs;

use cohort_wire::audit::ChainEnd;

use super::{AuditError, AuditLog, Author, note, noting};

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
async fn a_note_belongs_to_its_request() {
    note("nobody's");
    let (one, two) = tokio::join!(
        noting(async { note("one") }),
        noting(async { tokio::task::yield_now().await })
    );
    assert_eq!((one.1.as_deref(), two.1), (Some("one"), None));
}
