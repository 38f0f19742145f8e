use std::fs;
use std::time::Duration;

use cohort_core::ids::ServerId;
use cohort_identity::{LIFETIME, UnixTime};

use super::Removed;

fn at(s: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(s))
}

#[test]
fn a_removal_is_known_until_the_last_certificate_of_before_has_expired() {
    let folder = tempfile::tempdir().unwrap();
    let open = |now| Removed::open(&folder.path().join("removed"), at(now)).unwrap();
    let [a, b] = ["a-1", "b-1"].map(|name| ServerId::new(name).unwrap());
    let removed = open(1_000);
    removed.add(&a, at(1_000)).unwrap();
    let late = 1_000 + LIFETIME.as_secs() - 1;
    let removed = open(late);
    assert_eq!((removed.removed_at(&a), removed.removed_at(&b)), (Some(1_000), None));
    // Its content is damaged, or of a later version: it counts.
    fs::write(folder.path().join("removed/b-1.json"), "{").unwrap();
    let removed = open(late + 1);
    assert_eq!((removed.removed_at(&a), removed.removed_at(&b)), (None, Some(late + 1)));
    assert!(!folder.path().join("removed/a-1.json").exists());
}

#[test]
fn the_file_of_a_removal() {
    let folder = tempfile::tempdir().unwrap();
    let removed = Removed::open(folder.path(), at(0)).unwrap();
    removed.add(&ServerId::new("web-1").unwrap(), at(1_800_000_000)).unwrap();
    let text = fs::read_to_string(folder.path().join("web-1.json")).unwrap();
    assert_eq!(text, r#"{"version":1,"removed_at":1800000000}"#);
}
