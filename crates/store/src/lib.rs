//! What a member stores on disk: the replicated log, the newest snapshot, and small durable records
//! such as the host's fences.
//!
//! **What it is.** A [`Batch`] is one durable transaction: when [`LogStore::write`] returns, all of
//! it is on disk, or nothing. Every record has a version and a checksum ([`encoding`] draws them
//! byte by byte). The store moves a damaged file aside and reports it, and never repairs it. A
//! failed write poisons the store: after a failed sync the content of the disk is unknown, and a
//! later sync that succeeds proves nothing.
//!
//! **What it must never know.** What the entries mean, which consensus library reads them, the
//! network. It starts no threads and reads no clocks.
//!
//! **Where to start reading.** [`LogStore`], then [`Image`] (the log in memory), then
//! [`RedbStore`]. In tests and simulations (feature `testing`), `FaultyStore` replaces it.
//! [`DurableFile`] is independent of all of them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod durable_file;
pub mod encoding;
mod error;
mod image;
mod redb_store;
#[cfg(any(test, feature = "testing"))]
mod testing;
mod types;

pub use durable_file::{DurableFile, DurableFileError};
pub use error::StoreError;
pub use image::{Batch, Image, LogStore};
pub use redb_store::{RedbStore, STORE_FILE};
#[cfg(any(test, feature = "testing"))]
pub use testing::{Disk, FaultyStore, WriteFault};
pub use types::{
    Configuration, Entry, EntryKind, HardState, Identity, Index, Mark, RaftId, Snapshot, Term,
};

#[cfg(test)]
mod durable_file_test;
#[cfg(test)]
mod encoding_test;
#[cfg(test)]
mod golden_test;
#[cfg(test)]
mod image_test;
