//! What can go wrong with a store.

use std::io;
use std::path::PathBuf;

use crate::Identity;

/// Why a store could not be made, opened or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is already a store where a new one was to be made.
    #[error("store {path} exists already")]
    Exists {
        /// The store's file.
        path: PathBuf,
    },
    /// There is no store to open.
    #[error("store {path} does not exist")]
    Missing {
        /// The store's file.
        path: PathBuf,
    },
    /// Another process, or another handle of this one, holds the store.
    #[error("store {path} is in use by another process")]
    InUse {
        /// The store's file.
        path: PathBuf,
    },
    /// The store belongs to another group, incarnation or member; it was left as it is.
    #[error("store {path} belongs to {found}, not to {expected}")]
    WrongIdentity {
        /// The store's file.
        path: PathBuf,
        /// Whom it belongs to.
        found: Box<Identity>,
        /// Who wanted to open it.
        expected: Box<Identity>,
    },
    /// The store is damaged. It was moved aside for inspection and nothing of it is used; the
    /// server has to join again under a new member number.
    #[error(
        "store {path} is damaged ({what}); moved to {moved_to}; this server must join its group again as a new member"
    )]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// Where it is now.
        moved_to: PathBuf,
        /// What was found.
        what: String,
    },
    /// The store was written by a later version of this program; it was left as it is.
    #[error("store {path} has schema {found}; this program reads up to {supported}")]
    NewerSchema {
        /// The store's file.
        path: PathBuf,
        /// Its schema.
        found: u8,
        /// The newest schema that is understood here.
        supported: u8,
    },
    /// The store could not be opened or made; it was left as it is.
    #[error("open store {path}")]
    Open {
        /// The store's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A batch could not be made durable. What is on the disk is unknown; the process must stop.
    #[error("write to store {path} failed; what is on the disk is unknown, this process must stop")]
    Write {
        /// The store's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An earlier write failed, so that nothing is written any more.
    #[error(
        "store {path} takes no more writes because an earlier one failed; this process must stop"
    )]
    Poisoned {
        /// The store's file.
        path: PathBuf,
    },
    /// The batch does not fit the log: a gap, or entries before the snapshot. A bug in the caller.
    #[error("batch does not fit the log: {what}")]
    BadBatch {
        /// What does not fit.
        what: String,
    },
}
