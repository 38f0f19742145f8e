use std::time::{Duration, Instant};

use cohort_artifact::client::{ClientLimits, MirrorClient};

use crate::mirrors::{MirrorError, MirrorList, MirrorRecord, rank};

fn list(urls: &[&str]) -> Result<MirrorList, MirrorError> {
    let mirrors = urls.iter().map(|url| url.parse().unwrap()).collect();
    MirrorList::new(mirrors, MirrorClient::new(ClientLimits::default()).unwrap())
}

fn record(ms: u64, failures: u32) -> MirrorRecord {
    let first_byte = (ms > 0).then(|| Duration::from_millis(ms));
    MirrorRecord { first_byte, failures, ..MirrorRecord::default() }
}

#[test]
fn mirrors_are_ranked_by_failures_then_by_measured_time_then_as_configured() {
    assert_eq!(rank(&[], None), Vec::<usize>::new());
    assert_eq!(rank(&[record(0, 0), record(0, 0)], None), [0, 1]);
    assert_eq!(rank(&[record(0, 0), record(90, 0), record(30, 0)], None), [2, 1, 0]);
    assert_eq!(rank(&[record(10, 2), record(90, 0), record(30, 1)], None), [1, 2, 0]);
}

#[test]
fn the_mirror_in_use_is_left_only_for_one_that_is_much_better() {
    assert_eq!(rank(&[record(10, 0), record(20, 0)], Some(1)), [1, 0]);
    assert_eq!(rank(&[record(10, 0), record(21, 0)], Some(1)), [0, 1]);
    assert_eq!(rank(&[record(10, 0), record(5, 1)], Some(1)), [0, 1]);
    assert_eq!(rank(&[record(10, 0)], Some(7)), [0]);
}

#[test]
fn what_happens_moves_the_ranking() {
    let list = list(&["http://a.test", "http://b.test/x"]).unwrap();
    assert_eq!(list.ranked(), [0, 1]);
    let before = Instant::now();
    list.failed(0);
    assert_eq!(list.ranked(), [1, 0]);
    list.answered(1, Duration::from_millis(5));
    list.delivered(1, Instant::now());
    list.delivered(0, before);
    assert_eq!(list.ranked(), [1, 0], "it failed since that request began");
    list.delivered(0, Instant::now());
    list.answered(0, Duration::from_millis(4));
    assert_eq!(list.ranked(), [0, 1], "in use, and as good");
    list.failed(99);
    list.answered(99, Duration::ZERO);
    list.delivered(99, before);
    assert_eq!(list.ranked(), [0, 1]);
}

#[test]
fn a_list_has_an_end() {
    assert!(matches!(list(&["http://a.test"; 65]), Err(MirrorError::TooMany { count: 65 })));
    let list = list(&["https://user:secret@a.test/deep"]).unwrap();
    assert_eq!(list.name(0), "https://a.test/deep/", "no password in what people see");
}
