//! The directory that a guard works in, as long as it is its own.

use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use cohort_base::{FileError, OnPath as _, disk};

const LOCK: &str = "guard.lock";

/// Held by the one guard of a directory.
#[derive(Debug)]
pub(crate) struct Ground {
    path: PathBuf,
    lock: File,
}

impl Ground {
    /// Takes the directory; `None` if another guard has it.
    pub(crate) fn take(folder: &Path) -> Result<Option<Self>, FileError> {
        let path = folder.join(LOCK);
        let Some(mut lock) = disk::lock(&path).on_path("lock", &path)? else { return Ok(None) };
        lock.set_len(0)
            .and_then(|()| lock.write_all(format!("{}\n", std::process::id()).as_bytes()))
            .on_path("write", &path)?;
        Ok(Some(Ground { path, lock }))
    }

    /// Checks that the directory is still there: somebody may have removed it or moved it away, and
    /// another guard may work in what is in its place.
    pub(crate) fn check(&self) -> io::Result<()> {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let there = std::fs::metadata(&self.path).map(identity)?;
        if there == self.lock.metadata().map(identity)? {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "another guard's directory is in its place"))
    }
}
