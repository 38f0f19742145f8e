//! The library's view of the durable log.

use std::cell::Cell;

use cohort_store::{Index, LogStore, RaftId};
use raft::eraftpb;
use raft::{Error, GetEntriesContext, RaftState, Result, StorageError};

use crate::convert;

/// Bytes counted for an entry in a message, on top of its data.
const ENTRY_OVERHEAD_BYTES: u64 = 24;

/// What the library reads: the store, and whether to hide its snapshot.
pub(crate) struct View<S> {
    pub(crate) store: S,
    /// The position of the last membership change applied here.
    pub(crate) configuration_index: Index,
    /// Set when a peer needs a snapshot that this store cannot serve.
    pub(crate) snapshot_wanted: Cell<bool>,
}

impl<S: LogStore> raft::Storage for View<S> {
    fn initial_state(&self) -> Result<RaftState> {
        let image = self.store.image();
        let configuration = image.snapshot().map(|s| s.configuration.clone()).unwrap_or_default();
        Ok(RaftState::new(
            convert::hard_state_in(image.hard_state()),
            convert::configuration_in(&configuration),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<eraftpb::Entry>> {
        let image = self.store.image();
        if low < image.first_index().0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > image.last_index().0 + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut bytes = 0u64;
        let mut entries = Vec::new();
        for entry in image.entries(Index(low), Index(high)) {
            bytes = bytes.saturating_add(entry.data.len() as u64 + ENTRY_OVERHEAD_BYTES);
            if !entries.is_empty() && bytes > limit {
                break;
            }
            entries.push(
                convert::entry_in(entry)
                    .map_err(|cause| Error::Store(StorageError::Other(cause)))?,
            );
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64> {
        let image = self.store.image();
        match image.term(Index(index)) {
            Some(term) => Ok(term.0),
            None if index < image.first_index().0 => Err(Error::Store(StorageError::Compacted)),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.store.image().first_index().0)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.store.image().last_index().0)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> Result<eraftpb::Snapshot> {
        // Trap: a snapshot older than the last membership change or than the log's base loops
        // forever, and the receiver silently ignores one whose configuration lacks it. Serve
        // neither; request a fresh one instead.
        let image = self.store.image();
        match image.snapshot() {
            Some(snapshot)
                if snapshot.index >= self.configuration_index
                    && snapshot.index >= image.base().0
                    && snapshot.index.0 >= request_index
                    && snapshot.configuration.contains(RaftId(to)) =>
            {
                Ok(convert::snapshot_in(snapshot))
            }
            _ => {
                self.snapshot_wanted.set(true);
                Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}
