//! Mirrors of the repository: a folder that is served as it is, a cache that fetches what it is
//! asked for, and a bucket of an object store that is written to.
//!
//! **What it is.** [`static_files`] serves a repository's folder (the hub uses it as well).
//! [`Cache`] is a pull-through cache: it asks origins for what it has not got, checks every unit of
//! an artifact against the artifact's name before anybody gets it, and keeps it on a bounded disk.
//! [`push`] brings a repository into a [`Bucket`], from where a cache can take it.
//!
//! **What it must never know.** Keys, servers, groups, rollouts: a mirror is trusted with nothing,
//! trusts nobody, and who reads from it checks everything again.
//!
//! **Where to start reading.** [`CacheConfig`], then `cache.rs` (what runs), `blob.rs` (one artifact,
//! unit by unit), `store.rs` (the bounded disk), `files.rs` (signed metadata). For buckets
//! `bucket/plan.rs` (the order of writes).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod answer;
mod artifacts;
mod blob;
mod bucket;
mod cache;
mod config;
mod files;
mod fill;
mod flights;
mod folder;
mod metrics;
mod origins;
mod recent;
mod request;
mod shared;
mod static_files;
mod store;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::net::TcpListener;

pub use bucket::{Bucket, BucketError, BucketSettings, Pushed, push, push_file};
pub use cache::{Cache, run_cache};
pub use config::{CACHE_BYTES_MIN, CacheConfig, CacheLimits, ORIGINS_MAX};
pub use folder::{MirrorConfig, run_mirror};
pub use static_files::static_files;

/// Connections of one address: a whole site may come from one address.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 2048;

/// Why a mirror cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MirrorError {
    /// The configuration contradicts itself.
    #[error("mirror's configuration is refused: {reason}")]
    Config {
        /// What, and why.
        reason: String,
    },
    /// A folder cannot be made or used.
    #[error("mirror's folder {} cannot be used", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another mirror uses the folder.
    #[error("mirror's folder {} is used by another process", path.display())]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// A port is taken, or the address is not ours.
    #[error("mirror cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No HTTP client can be made.
    #[error("mirror has no client to ask origins with")]
    Client(#[source] reqwest::Error),
    /// An origin that is a bucket cannot be opened.
    #[error("mirror's origin cannot be used")]
    Bucket(#[source] BucketError),
    /// The server has ended by a panic.
    #[error("mirror's server has failed")]
    Part(#[source] tokio::task::JoinError),
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), MirrorError> {
    let failed = |source| MirrorError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Tells the service manager, if there is one, that readers can come.
fn tell_ready() {
    if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "readiness cannot be told to the service manager");
    }
}
