//! Mirrors of the repository: a folder that is served as it is, a cache that fetches what it is
//! asked for, and a bucket of an object store that is written to.
//!
//! **What it is.** [`static_files`] serves a repository's folder (the hub uses it as well).
//! [`Cache`] is a pull-through cache: it asks origins for what it does not have, checks every unit
//! of an artifact against the artifact's name before serving it, and keeps it on a bounded disk.
//! [`push`] copies a repository into a [`Bucket`], which a cache can have as an origin.
//!
//! **What it must never know.** Keys, servers, groups, rollouts: a mirror is trusted with nothing
//! and trusts nobody; whoever reads from it checks everything again.
//!
//! **Where to start reading.** [`CacheConfig`], then `cache.rs` (what runs), `blob.rs` (one
//! artifact, unit by unit), `store.rs` (artifacts on disk), `files.rs` (signed metadata). For
//! buckets `bucket/plan.rs` (the order of writes).

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

/// Why a mirror cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MirrorError {
    /// The configuration contradicts itself.
    #[error("invalid configuration: {reason}")]
    Config {
        /// Which value is wrong, and what would be right.
        reason: String,
    },
    /// A folder cannot be made or used.
    #[error("cannot use folder {}", path.display())]
    Folder {
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another mirror uses the folder.
    #[error("folder {} is in use by another process", path.display())]
    InUse { path: PathBuf },
    /// A port is taken, or the address is not ours.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No client to ask origins with.
    #[error("no client for origins")]
    Client(#[source] FetchError),
    /// Not the address of an origin.
    #[error("origin cannot be used")]
    Origin(#[source] AddressError),
    /// An origin that is a bucket cannot be opened.
    #[error("origin cannot be used")]
    Bucket(#[source] BucketError),
    /// The server has panicked.
    #[error("the mirror's server failed")]
    Part(#[source] tokio::task::JoinError),
}
