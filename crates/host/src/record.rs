//! What the host writes down about one app, and the fault points around every write.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use cohort_core::ids::BootEpoch;
use cohort_core::steps::AppRecord;
use cohort_store::{DurableFile, DurableFileError};
use serde::{Deserialize, Serialize};

/// The version of the record's form.
const SCHEMA: u32 = 1;

/// The record of one app: `<state_dir>/apps/<app>/record`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostRecord {
    schema: u32,
    pub(crate) app: AppRecord,
}

impl Default for HostRecord {
    fn default() -> Self {
        HostRecord { schema: SCHEMA, app: AppRecord::default() }
    }
}

/// Why nothing more can be done for an app until the agent has been restarted.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// What happened cannot be made durable: nothing may be done any more.
    #[error("the record of app {app} cannot be kept")]
    Record {
        /// The app.
        app: String,
        /// Why not.
        #[source]
        source: DurableFileError,
    },
    /// The record was written by a newer agent.
    #[error("the record of app {app} has schema {found}; this agent reads up to {SCHEMA}")]
    Schema {
        /// The app.
        app: String,
        /// What was found.
        found: u32,
    },
    /// The app's folders cannot be used.
    #[error("the folders of app {app} cannot be used")]
    Folders {
        /// The app.
        app: String,
        /// Why not.
        #[source]
        source: crate::releases::ReleasesError,
    },
    /// A fault point of a test was reached.
    #[cfg(test)]
    #[error("cut by a test")]
    Cut,
}

impl HostRecord {
    pub(crate) fn open(
        folder: &Path,
        app: &str,
    ) -> Result<(DurableFile<HostRecord>, HostRecord), HostError> {
        let fail = |source| HostError::Record { app: app.to_owned(), source };
        let (file, record) = DurableFile::open(folder.join("record")).map_err(fail)?;
        let record: HostRecord = record.unwrap_or_default();
        if record.schema > SCHEMA {
            return Err(HostError::Schema { app: app.to_owned(), found: record.schema });
        }
        Ok((file, record))
    }
}

/// The highest boot epoch that a first start begins with, a day in 2105: connections are numbered by
/// a boot epoch of 32 bits, and whatever a wrong clock says, 2^24 starts are left.
const FIRST_BOOT_EPOCH_MAX: u64 = (1 << 32) - (1 << 24);

/// Raises the counter of the agent's starts and returns it; durable before it returns.
///
/// The first is the time, in seconds since 1970: a group that knew a server of this name before its
/// disk was replaced listens to higher numbers only.
///
/// # Errors
/// When it cannot be read or written: without it reports of two starts could be mixed up.
pub fn next_boot_epoch(state_dir: &Path) -> Result<BootEpoch, DurableFileError> {
    let path = state_dir.join("boot-epoch");
    std::fs::create_dir_all(state_dir)
        .map_err(|source| DurableFileError::Write { path: path.clone(), source })?;
    let (mut file, epoch) = DurableFile::<BootEpoch>::open(path)?;
    let epoch = epoch.map_or_else(|| first_boot_epoch(SystemTime::now()), BootEpoch::next);
    file.save(&epoch)?;
    Ok(epoch)
}

fn first_boot_epoch(now: SystemTime) -> BootEpoch {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    BootEpoch(seconds.clamp(1, FIRST_BOOT_EPOCH_MAX))
}

/// Fault points: a test cuts the work at the n-th of them, as a crash would.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cuts {
    #[cfg(test)]
    left: Option<std::sync::Arc<std::sync::atomic::AtomicI64>>,
}

impl Cuts {
    /// Passes, unless a test cuts here.
    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests need it")]
    #[expect(clippy::unnecessary_wraps, reason = "tests need it")]
    pub(crate) fn point(&self) -> Result<(), HostError> {
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn point(&self) -> Result<(), HostError> {
        use std::sync::atomic::Ordering;
        match &self.left {
            Some(left) if left.fetch_sub(1, Ordering::SeqCst) <= 0 => Err(HostError::Cut),
            _ => Ok(()),
        }
    }

    #[cfg(test)]
    pub(crate) fn at(n: i64) -> Self {
        Cuts { left: Some(std::sync::Arc::new(std::sync::atomic::AtomicI64::new(n))) }
    }
}

#[cfg(test)]
#[path = "record_test.rs"]
mod record_test;
