//! An I/O error that names its file.

use std::io;
use std::path::{Path, PathBuf};

/// An operation on a file or directory failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}", path.display())]
pub struct FileError {
    /// A verb: `read`, `write`, `create folder`.
    pub doing: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

/// Adds the file's name to an I/O error: `fs::read(&path).on_path("read", &path)?`.
pub trait OnPath<T> {
    /// Adds the operation and the file.
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
