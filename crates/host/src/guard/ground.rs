//! The directory that a guard works in, as long as it is its own.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use cohort_base::{FileError, OnPath as _, disk};

const LOCK: &str = "guard.lock";

/// Held by the one guard of a directory.
#[derive(Debug)]
pub(crate) struct Ground {
    path: PathBuf,
    lock: File,
    mark: String,
}

impl Ground {
    /// Takes the directory; `None` if another guard has it.
    pub(crate) fn take(folder: &Path) -> Result<Option<Self>, FileError> {
        let path = folder.join(LOCK);
        let Some(mut lock) = disk::lock(&path).on_path("lock", &path)? else { return Ok(None) };
        lock.set_len(0)
            .and_then(|()| lock.write_all(format!("{}\n", std::process::id()).as_bytes()))
            .on_path("write", &path)?;
        let metadata = lock.metadata().on_path("inspect", &path)?;
        let made = metadata.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let made_ns = made.map_or(0, |at| at.as_nanos());
        let mark = format!("{}:{}:{made_ns}", metadata.dev(), metadata.ino());
        Ok(Some(Ground { path, lock, mark }))
    }

    /// Distinguishes this directory from any other, also from one that was in its place: by the
    /// lock's inode and, because those are reused, its creation time.
    pub(crate) fn mark(&self) -> &str {
        &self.mark
    }

    /// Checks that the directory is still there: somebody may have removed it or moved it away, and
    /// another guard may work in what is in its place.
    pub(crate) fn check(&self) -> io::Result<()> {
        if disk::names(&self.path, &self.lock)? {
            return Ok(());
        }
        let gone = "the guard's directory was removed, or another one is in its place";
        Err(io::Error::new(io::ErrorKind::NotFound, gone))
    }
}
