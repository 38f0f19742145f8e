//! Why the store of artifacts refuses.

use std::io;
use std::path::{Path, PathBuf};

use cohort_artifact::UnitError;
use cohort_core::ids::Digest;

/// Why an artifact cannot be kept. All of it is the surroundings' fault, never the release's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk is too full. Told before the first byte is fetched.
    #[error(
        "not enough free space in {path}: {needed} bytes are needed ({reserve} of them stay free), \
         {free} are free; remove files there or give the agent another data_dir"
    )]
    NoSpace {
        /// The folder of artifacts.
        path: PathBuf,
        /// Bytes that must be free, the reserve included.
        needed: u64,
        /// Bytes that have to stay free.
        reserve: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The space of an artifact was free when it was looked for, and is not any more.
    #[error(
        "the {length} bytes of {path} cannot be claimed: something else took the space, or a quota \
         ends; remove files there, raise the quota, or give the agent another data_dir"
    )]
    Taken {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
        /// What the disk says.
        #[source]
        source: io::Error,
    },
    /// A file cannot be read or written.
    #[error("{doing} {path} failed")]
    File {
        /// What was tried, such as "syncing".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody is fetching it already.
    #[error("artifact {digest} is being fetched already")]
    InFlight {
        /// The artifact.
        digest: Digest,
    },
    /// The artifact is not whole yet.
    #[error("artifact {digest} is not whole: {held} of {count} units are there")]
    NotWhole {
        /// The artifact.
        digest: Digest,
        /// Units that are there.
        held: u32,
        /// All units.
        count: u32,
    },
    /// The length is not one that an artifact can have.
    #[error("artifact {digest} cannot be {length} bytes long")]
    Length {
        /// The artifact.
        digest: Digest,
        /// The length in bytes.
        length: u64,
    },
    /// Bytes are not the signed ones.
    #[error("artifact {digest}: wrong bytes")]
    Bytes {
        /// The artifact.
        digest: Digest,
        /// Which.
        #[source]
        source: UnitError,
    },
    /// There is no such artifact here.
    #[error("artifact {digest} is not here")]
    Absent {
        /// The artifact.
        digest: Digest,
    },
}

impl StoreError {
    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }
}
