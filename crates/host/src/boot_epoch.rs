//! The number of this start of the agent.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use cohort_base::OnPath as _;
use cohort_core::ids::BootEpoch;
use cohort_store::{DurableFile, DurableFileError};

/// The highest first boot epoch, a day in 2105. Connections are numbered by a boot epoch of 32
/// bits: whatever a wrong clock says, 2^24 starts are left.
const FIRST_BOOT_EPOCH_MAX: u64 = (1 << 32) - (1 << 24);

/// Raises the counter of the agent's starts and returns it. Durable before it returns.
///
/// The first one is the time in seconds since 1970: a group that knew a server of this name before
/// its disk was replaced only listens to higher numbers.
///
/// # Errors
/// When it cannot be read or written. Without it, reports of two starts could be mixed up.
pub fn next_boot_epoch(state_dir: &Path) -> Result<BootEpoch, DurableFileError> {
    let path = state_dir.join("boot-epoch");
    std::fs::create_dir_all(state_dir)
        .on_path("create folder", state_dir)
        .map_err(DurableFileError::Write)?;
    let (mut file, epoch) = DurableFile::<BootEpoch>::open(path)?;
    let epoch = epoch.map_or_else(|| first_boot_epoch(SystemTime::now()), BootEpoch::next);
    file.save(&epoch)?;
    Ok(epoch)
}

fn first_boot_epoch(now: SystemTime) -> BootEpoch {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    BootEpoch(seconds.clamp(1, FIRST_BOOT_EPOCH_MAX))
}

#[cfg(test)]
mod boot_epoch_test {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use super::{first_boot_epoch, next_boot_epoch};

    #[test]
    fn starts_are_counted_from_the_time_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().join("state");
        let first = next_boot_epoch(&state_dir).unwrap().0;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(first <= now && now - first < 600, "{first} {now}");
        for n in 1..=3 {
            assert_eq!(next_boot_epoch(&state_dir).unwrap().0, first + n);
        }
    }

    #[test]
    fn connections_can_be_numbered_whatever_the_clock_says() {
        let far = UNIX_EPOCH + Duration::from_secs(1 << 50);
        assert_eq!(first_boot_epoch(far).0 + (1 << 24), 1 << 32);
        assert_eq!(first_boot_epoch(UNIX_EPOCH - Duration::from_secs(9)).0, 1);
    }
}
