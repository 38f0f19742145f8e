//! The file of an app's record, and the errors after which only an agent restart helps.

use std::path::Path;

use cohort_core::steps::AppRecord;
use cohort_store::{DurableFile, DurableFileError};

/// The version of the record.
const VERSION: u32 = 1;

/// Opens the record of one app: `<state_dir>/apps/<app>/record`.
pub(crate) fn open(
    folder: &Path,
    app: &str,
) -> Result<(DurableFile<AppRecord>, AppRecord), HostError> {
    let unreadable = |source| HostError::Record { app: app.to_owned(), source };
    let (file, record) = DurableFile::open(folder.join("record"), VERSION).map_err(unreadable)?;
    Ok((file, record.unwrap_or_default()))
}

/// Why nothing more can be done for an app until the agent restarts.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("cannot read or write the record of app {app}")]
    Record { app: String, source: DurableFileError },
    #[error("cannot use the directories of app {app}")]
    Folders { app: String, source: crate::trusted_folder::UntrustedFolder },
    /// A test's fault point was hit.
    #[cfg(test)]
    #[error("cut by a test")]
    Cut,
}

/// Fault points: a test stops the work at the n-th one, like a crash.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cuts {
    #[cfg(test)]
    left: Option<std::sync::Arc<std::sync::atomic::AtomicI64>>,
}

impl Cuts {
    /// Passes, unless a test stops here.
    #[cfg_attr(
        not(test),
        expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests need it")
    )]
    pub(crate) fn point(&self) -> Result<(), HostError> {
        #[cfg(test)]
        if let Some(left) = &self.left
            && left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) <= 0
        {
            return Err(HostError::Cut);
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn at(n: i64) -> Self {
        Cuts { left: Some(std::sync::Arc::new(std::sync::atomic::AtomicI64::new(n))) }
    }
}

#[cfg(test)]
#[path = "record_test.rs"]
mod record_test;
