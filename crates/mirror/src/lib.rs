//! Mirrors of the repository: a directory served as is, a pull-through cache, and uploads to an
//! object-store bucket.
//!
//! **What it is.** [`static_files`] serves a repository's directory (the hub uses it too).
//! [`Cache`] is a pull-through cache: it asks origins for what it lacks, checks every unit of an
//! artifact against the artifact's name before serving it, and stores it on bounded disk space.
//! [`push`] copies a repository into a [`Bucket`], which a cache can have as an origin.
//!
//! **What it must never know.** Keys, servers, groups, rollouts: a mirror is not trusted with
//! anything and trusts no one; every reader verifies everything again.
//!
//! **Where to start reading.** [`CacheConfig`], then `cache.rs` (what runs), `blob.rs` (one
//! artifact, unit by unit), `store.rs` (artifacts on disk), `files.rs` (signed metadata). For
//! buckets, `bucket/plan.rs` (the order of writes).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod answer;
mod artifacts;
mod blob;
mod bounded;
mod bucket;
mod cache;
mod config;
mod files;
mod fill;
#[cfg(feature = "testing")]
pub mod fuzzing;
mod joint;
mod metrics;
mod origins;
mod request;
mod server;
mod static_files;
mod store;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use cohort_artifact::client::{AddressError, FetchError};

pub use bucket::{Bucket, BucketError, BucketSettings, Pushed, push, push_file};
pub use cache::{Cache, run_cache};
pub use config::{CACHE_BYTES_MIN, CacheConfig, CacheLimits, ORIGINS_MAX};
pub use server::{MirrorConfig, run_mirror};
pub use static_files::static_files;

/// Why a mirror could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MirrorError {
    #[error("invalid configuration: {reason}")]
    Config { reason: String },
    #[error("cannot use directory {}", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("directory {} is in use by another process", path.display())]
    InUse { path: PathBuf },
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot create a client for origins")]
    Client(#[source] FetchError),
    #[error("cannot use origin")]
    Origin(#[source] AddressError),
    #[error("cannot use origin")]
    Bucket(#[source] BucketError),
    #[error("the mirror's server failed")]
    Part(#[source] tokio::task::JoinError),
}
