//! The file of an app's record, and the errors after which only an agent restart helps.

use std::path::Path;

use cohort_core::steps::AppRecord;
use cohort_store::{DurableFile, DurableFileError};
use serde::{Deserialize, Serialize};

/// The version of the record's format.
const SCHEMA: u32 = 1;

/// The record of one app: `<state_dir>/apps/<app>/record`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostRecord {
    schema: u32,
    pub(crate) app: AppRecord,
}

impl HostRecord {
    pub(crate) fn open(
        folder: &Path,
        app: &str,
    ) -> Result<(DurableFile<HostRecord>, HostRecord), HostError> {
        let unreadable = |source| HostError::Record { app: app.to_owned(), source };
        let (file, record) = DurableFile::open(folder.join("record")).map_err(unreadable)?;
        let record: HostRecord =
            record.unwrap_or(HostRecord { schema: SCHEMA, app: AppRecord::default() });
        if record.schema != SCHEMA {
            return Err(HostError::Schema { app: app.to_owned(), found: record.schema });
        }
        Ok((file, record))
    }
}

/// Why nothing more can be done for an app until the agent restarts.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("cannot read or write the record of app {app}")]
    Record { app: String, source: DurableFileError },
    #[error("the record of app {app} has schema {found}; this agent reads {SCHEMA}")]
    Schema { app: String, found: u32 },
    #[error("cannot use the directories of app {app}")]
    Folders { app: String, source: cohort_base::FileError },
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
