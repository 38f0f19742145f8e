use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{first_boot_epoch, next_boot_epoch};

#[test]
fn the_agents_starts_are_counted_from_the_time() {
    let folder = tempfile::tempdir().unwrap();
    let state_dir = folder.path().join("state");
    let first = next_boot_epoch(&state_dir).unwrap().0;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(first <= now && now - first < 600, "{first} {now}");
    for n in 1..=3 {
        assert_eq!(next_boot_epoch(&state_dir).unwrap().0, first + n);
    }
    // Those of an earlier kind count on.
    std::fs::remove_dir_all(&state_dir).unwrap();
    std::fs::create_dir_all(&state_dir).unwrap();
    let (mut file, _) = cohort_store::DurableFile::open(state_dir.join("boot-epoch")).unwrap();
    file.save(&cohort_core::ids::BootEpoch(7)).unwrap();
    drop(file);
    assert_eq!(next_boot_epoch(&state_dir).unwrap().0, 8);
}

#[test]
fn whatever_the_clock_says_connections_can_be_numbered() {
    let far = UNIX_EPOCH + Duration::from_secs(1 << 50);
    assert_eq!(first_boot_epoch(far).0 + (1 << 24), 1 << 32);
    assert_eq!(first_boot_epoch(UNIX_EPOCH - Duration::from_secs(9)).0, 1);
}
