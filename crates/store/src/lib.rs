//! What a member keeps on disk: the replicated log, the newest snapshot, and small durable records
//! such as the host's fences.
//!
//! **What it is.** A [`Batch`] is one durable transaction: when [`LogStore::write`] returns, it is
//! on disk as a whole or not at all. Every record has a version and a checksum ([`encoding`] draws
//! them byte by byte). A damaged store is moved aside and reported, never repaired. A failed write
//! poisons the store: after a failed sync the content of the disk is unknown, and a later sync that
//! succeeds proves nothing.
//!
//! **What it must never know.** What the entries mean, which consensus library reads them, the
//! network. It starts no thread and reads no clock.
//!
//! **Where to start reading.** [`LogStore`], then [`Image`] (the log in memory), then
//! [`RedbStore`]. [`MemoryStore`] and [`FaultyStore`] replace it in tests and simulation.
//! [`DurableFile`] is independent of all of them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod durable_file;
pub mod encoding;
mod error;
mod faulty;
mod image;
mod memory;
mod redb_store;
mod types;

pub use durable_file::{DurableFile, DurableFileError};
pub use error::StoreError;
pub use faulty::{Disk, FaultyStore, WriteFault};
pub use image::{Batch, Image};
pub use memory::MemoryStore;
pub use redb_store::{RedbStore, STORE_FILE};
pub use types::{
    Configuration, Entry, EntryKind, HardState, Identity, Index, RaftId, Snapshot, Term,
};

#[cfg(test)]
mod durable_file_test;
#[cfg(test)]
mod encoding_test;
#[cfg(test)]
mod faulty_test;
#[cfg(test)]
mod image_test;

/// A durable log: the newest snapshot, the entries after it, and the member's vote.
///
/// All reads come from the [`Image`] in memory, which is exactly what was reported as durable.
/// Snapshots keep the log short enough for that.
pub trait LogStore {
    /// What is durable since the last successful [`write`](Self::write).
    fn image(&self) -> &Image;

    /// Makes the batch durable as one transaction; afterwards [`image`](Self::image) shows it.
    ///
    /// # Errors
    /// [`StoreError::Write`] when the batch may not be durable, and [`StoreError::Poisoned`] for
    /// every later call: the write is never retried, and the process must stop.
    /// [`StoreError::BadBatch`] when the batch does not fit the log; nothing is written then.
    fn write(&mut self, batch: &Batch) -> Result<(), StoreError>;
}
