//! Files put in place one after another, with points where tests simulate a crash.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::layout::METADATA_DIR;
use crate::metadata::Ready;
use crate::repository::RepositoryError;
use cohort_base::OnPath as _;
use cohort_base::durable::{READABLE, create_folders, put_in_place, unfinished};

/// One file to put in place.
pub(crate) struct Step {
    path: PathBuf,
    content: Content,
}

enum Content {
    Bytes(Vec<u8>),
    File(NamedTempFile),
}

impl From<Ready> for Step {
    fn from(ready: Ready) -> Self {
        Self::metadata(&ready.name, ready.bytes)
    }
}

impl Step {
    pub(crate) fn bytes(path: PathBuf, bytes: Vec<u8>) -> Self {
        Self { path, content: Content::Bytes(bytes) }
    }

    /// A file written next to its final place.
    pub(crate) fn file(path: PathBuf, file: NamedTempFile) -> Self {
        Self { path, content: Content::File(file) }
    }

    pub(crate) fn metadata(name: &str, bytes: Vec<u8>) -> Self {
        Self::bytes(Path::new(METADATA_DIR).join(name), bytes)
    }

    pub(crate) fn write(self, dir: &Path, faults: &Faults) -> Result<(), RepositoryError> {
        let path = dir.join(&self.path);
        let write = || -> io::Result<()> {
            faults.point()?;
            let file = match self.content {
                Content::File(file) => file,
                Content::Bytes(bytes) => {
                    // At the top of the repository, which the next publisher sweeps.
                    create_folders(path.parent().unwrap_or(dir))?;
                    let mut file = unfinished(dir)?;
                    io::Write::write_all(&mut file, &bytes)?;
                    file
                }
            };
            // A crash here leaves the unfinished file behind.
            if let Err(error) = faults.point() {
                file.keep()?;
                return Err(error);
            }
            put_in_place(file, &path, READABLE)?;
            faults.point()
        };
        Ok(write().on_path("write", &path)?)
    }
}

/// Points where a test makes the publisher fail.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    #[cfg(test)]
    pub(crate) points_left: Option<std::sync::Arc<std::sync::atomic::AtomicU32>>,
}

impl Faults {
    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests use both")]
    pub(crate) fn point(&self) -> io::Result<()> {
        Ok(())
    }
}
