//! The number of this start of the agent.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use cohort_base::{OnPath as _, durable};
use cohort_core::ids::BootEpoch;
use cohort_store::{DurableFile, DurableFileError};

/// The version of the record.
const VERSION: u32 = 1;

/// Increments the counter of the agent's starts, persists it and returns it. Afterwards only the
/// owner can access `state_dir`: the agent's keys are in it.
///
/// The first epoch is the Unix time in seconds: a group that knew a server of this name before its
/// disk was replaced accepts only higher numbers.
///
/// # Errors
/// If the counter cannot be read or written. Without it, reports of two starts could be mixed up.
pub fn next_boot_epoch(state_dir: &Path) -> Result<BootEpoch, DurableFileError> {
    let path = state_dir.join("boot-epoch");
    durable::private_folder(state_dir)
        .on_path("create directory", state_dir)
        .map_err(DurableFileError::Write)?;
    let (mut file, epoch) = DurableFile::<BootEpoch>::open(path, VERSION)?;
    let epoch = epoch.map_or_else(|| first_boot_epoch(SystemTime::now()), BootEpoch::next);
    file.save(&epoch)?;
    Ok(epoch)
}

/// Makes the next start of the agent a later one than `epoch`, which the group has heard of.
///
/// # Errors
/// If the counter cannot be read or written.
pub fn pass_boot_epoch(state_dir: &Path, epoch: BootEpoch) -> Result<(), DurableFileError> {
    let path = state_dir.join("boot-epoch");
    let (mut file, own) = DurableFile::<BootEpoch>::open(path, VERSION)?;
    if own < Some(epoch) { file.save(&epoch) } else { Ok(()) }
}

fn first_boot_epoch(now: SystemTime) -> BootEpoch {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    BootEpoch(seconds.clamp(1, BootEpoch::FIRST_MAX.0))
}

#[cfg(test)]
#[path = "boot_epoch_test.rs"]
mod boot_epoch_test;
