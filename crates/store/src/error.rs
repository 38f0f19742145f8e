//! A store's errors.

use std::io;
use std::path::PathBuf;

use cohort_base::Cause;

use crate::types::Identity;

/// Why creating, opening or writing a store failed. `path` is the store's file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("store {} already exists", path.display())]
    Exists { path: PathBuf },
    #[error("store {} does not exist", path.display())]
    Missing { path: PathBuf },
    /// Another process, or another handle in this one, has the store open.
    #[error("store {} is in use by another process", path.display())]
    InUse { path: PathBuf },
    /// The store belongs to another group, incarnation or member. It is unchanged.
    #[error("store {} belongs to {found}, not to {expected}", path.display())]
    WrongIdentity { path: PathBuf, found: Box<Identity>, expected: Box<Identity> },
    /// The store is damaged. It is moved aside for inspection and nothing in it is used; the server
    /// must rejoin under a new member number.
    #[error(
        "store {} is damaged; moved to {}; this server must rejoin its group as a new member",
        path.display(), moved_to.display()
    )]
    Damaged { path: PathBuf, moved_to: PathBuf, source: Cause },
    /// A later version of Cohort wrote the store. It is unchanged.
    #[error("store {} has schema {found}; this version supports up to {supported}", path.display())]
    NewerSchema { path: PathBuf, found: u8, supported: u8 },
    /// The file system or redb failed. An existing store is unchanged.
    #[error("cannot open store {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    /// A batch may not be durable. The content on disk is unknown; the process must stop.
    #[error(
        "write to store {} failed; its content is unknown, this process must stop", path.display()
    )]
    Write { path: PathBuf, source: io::Error },
    #[error("store {} is read-only after a failed write; this process must stop", path.display())]
    Poisoned { path: PathBuf },
    /// The batch does not fit the log: a gap, or entries before the snapshot. A bug in the caller.
    #[error("batch does not fit the log: {what}")]
    BadBatch { what: String },
}
