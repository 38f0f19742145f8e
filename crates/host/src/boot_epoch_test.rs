use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cohort_core::ids::BootEpoch;

use super::{first_boot_epoch, next_boot_epoch, pass_boot_epoch};

#[test]
fn starts_are_counted_from_the_time_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let state_dir = folder.path().join("state");
    std::fs::create_dir(&state_dir).unwrap();
    std::fs::set_permissions(&state_dir, Permissions::from_mode(0o755)).unwrap();
    let first = next_boot_epoch(&state_dir).unwrap().0;
    let mode = std::fs::metadata(&state_dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "an open folder is closed");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(first <= now && now - first < 600, "{first} {now}");
    for n in 1..=3 {
        assert_eq!(next_boot_epoch(&state_dir).unwrap().0, first + n);
    }
}

#[test]
fn the_file() {
    let folder = tempfile::tempdir().unwrap();
    let golden = |n: u64, crc: &str| format!("cohort-durable 1 version=1 crc32={crc} len=2\n{n}\n");
    let path = folder.path().join("boot-epoch");
    std::fs::write(&path, golden(1, "102e138b")).unwrap();
    assert_eq!(next_boot_epoch(folder.path()).unwrap().0, 2);
    assert_eq!(std::fs::read_to_string(path).unwrap(), golden(2, "3b034048"));
}

#[test]
fn connections_can_be_numbered_whatever_the_clock_says() {
    let far = UNIX_EPOCH + Duration::from_secs(1 << 50);
    assert_eq!(first_boot_epoch(far).0 + (1 << 24), 1 << 32);
    assert_eq!(first_boot_epoch(UNIX_EPOCH - Duration::from_secs(9)).0, 1);
}

#[test]
fn a_start_after_those_that_the_group_has_heard_of() {
    let folder = tempfile::tempdir().unwrap();
    let first = next_boot_epoch(folder.path()).unwrap();
    pass_boot_epoch(folder.path(), BootEpoch(first.0 + 10)).unwrap();
    pass_boot_epoch(folder.path(), first).unwrap();
    assert_eq!(next_boot_epoch(folder.path()).unwrap(), BootEpoch(first.0 + 11));
}
