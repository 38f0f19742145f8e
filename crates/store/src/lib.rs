//! What a member keeps on its disk: the replicated log, the newest snapshot, and small durable
//! records such as the host's fences.
//!
//! One [`Batch`] is one durable transaction: it is on the disk as a whole, or not at all, when
//! [`LogStore::write`] returns. Every stored record carries a version and a checksum of our own
//! ([`encoding`] draws them byte by byte). A damaged store is moved aside and reported, never
//! repaired; a write that failed poisons the store, because after a failed sync nobody knows what
//! is on the disk, and a later sync that succeeds proves nothing.
//!
//! This crate must never know what the entries mean, which consensus library reads them, or that
//! a network exists. It starts no thread and reads no clock.
//!
//! Start reading at [`LogStore`], then [`Image`] (the log as everybody reads it), then
//! [`RedbStore`]. [`MemoryStore`] and [`FaultyStore`] are its twins for tests and simulation.
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
/// All reads come from the [`Image`] in memory, which is exactly what the store has reported as
/// durable. The log is kept short by snapshots, so that the image fits in memory.
pub trait LogStore {
    /// What is durable, as of the last successful [`write`](Self::write).
    fn image(&self) -> &Image;

    /// Makes the batch durable as one transaction; afterwards [`image`](Self::image) shows it.
    ///
    /// # Errors
    /// [`StoreError::Write`] when the batch could not be made durable, and from then on
    /// [`StoreError::Poisoned`] for every later call: the write is never tried again, and the
    /// process must stop. [`StoreError::BadBatch`] when the batch does not fit the log; nothing is
    /// written then.
    fn write(&mut self, batch: &Batch) -> Result<(), StoreError>;
}
