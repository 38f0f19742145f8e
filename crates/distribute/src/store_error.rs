//! Why the artifact store refuses.

use std::io;
use std::path::PathBuf;

use cohort_artifact::UnitError;
use cohort_base::FileError;
use cohort_core::ids::Digest;

/// Why an artifact cannot be stored. Always the fault of the environment, never of the release.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk is too full. Detected before the first byte is fetched.
    #[error(
        "not enough free space in {path}: {needed} bytes needed ({reserve} of them stay free), \
         {free} are free; remove files there or give the agent another data_dir"
    )]
    NoSpace { path: PathBuf, needed: u64, reserve: u64, free: u64 },
    /// The space of an artifact was free when checked, and no longer is.
    #[error(
        "cannot allocate {length} bytes for {path}: something else took the space, or a quota is \
         exhausted; remove files there, raise the quota, or give the agent another data_dir"
    )]
    Taken {
        path: PathBuf,
        length: u64,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    File(#[from] FileError),
    /// Another fetch, or a collection, holds the artifact.
    #[error("artifact {digest} is being fetched already")]
    InFlight { digest: Digest },
    #[error("artifact {digest} is not whole: {held} of {count} units are here")]
    NotWhole { digest: Digest, held: u32, count: u32 },
    #[error("artifact {digest} cannot be {length} bytes long")]
    Length { digest: Digest, length: u64 },
    #[error("artifact {digest}: wrong bytes")]
    Bytes {
        digest: Digest,
        #[source]
        source: UnitError,
    },
    #[error("artifact {digest} is not here")]
    Absent { digest: Digest },
}
