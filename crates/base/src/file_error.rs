//! An I/O error that says which file it is about.

use std::io;
use std::path::{Path, PathBuf};

/// The system refused to do something with a file or folder.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}", path.display())]
pub struct FileError {
    /// A verb: `read`, `write`, `create folder`.
    pub doing: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

/// Names the file in an I/O error: `fs::read(&path).on_path("read", &path)?`.
pub trait OnPath<T> {
    /// Adds what was done to which file.
    ///
    /// # Errors
    /// The same error, with the file.
    fn on_path(self, doing: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T> OnPath<T> for io::Result<T> {
    fn on_path(self, doing: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError { doing, path: path.to_owned(), source })
    }
}
