//! A store on a simulated disk with lost, lying, failed and torn writes, for tests and simulations.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::StoreError;
use crate::image::{Batch, Changes, Damage, Image, LogStore};
use crate::types::Index;

/// What happens to the next write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteFault {
    /// It is durable when the call returns.
    #[default]
    None,
    /// The sync fails, and a crash loses the batch.
    FailLost,
    /// The sync fails, yet the batch survives a crash.
    FailKept,
    /// The sync reports success, but the next crash loses the batch (a lying disk).
    Lie,
}

/// A simulated disk. It outlives the stores opened on it.
///
/// It stores records as bytes, like a real disk, so that the same checksums detect a flipped bit or
/// a torn record.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    inner: Arc<Mutex<DiskState>>,
}

#[derive(Clone, Debug, Default)]
struct Records {
    named: BTreeMap<&'static str, Vec<u8>>,
    entries: BTreeMap<Index, Vec<u8>>,
}

#[derive(Debug, Default)]
struct DiskState {
    /// What the running process sees.
    written: Records,
    /// What survives a crash; `None`: the same.
    synced: Option<Records>,
    fault: WriteFault,
}

impl Disk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the outcome of the next write. [`WriteFault::Lie`] stays in force until reset.
    pub fn set_fault(&self, fault: WriteFault) {
        self.inner.lock().fault = fault;
    }

    /// Power failure: unsynced data is lost. Drop stores that are still open on the disk.
    pub fn crash(&self) {
        let mut state = self.inner.lock();
        state.fault = WriteFault::None;
        if let Some(synced) = state.synced.take() {
            state.written = synced;
        }
    }

    /// A disk with the same content, like one restored from an image taken now.
    #[must_use]
    pub fn image(&self) -> Disk {
        let written = self.inner.lock().written.clone();
        let inner = DiskState { written, ..DiskState::default() };
        Disk { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Loses the last entry and keeps everything else, like a disk that reported a write as durable
    /// too early.
    pub fn lose_last_entry(&self) {
        self.inner.lock().written.entries.pop_last();
    }

    /// Zeroes the second half of the last entry, like a disk that loses a page after reporting it
    /// as written. Returns whether there was an entry.
    pub fn tear_last_entry(&self) -> bool {
        let mut state = self.inner.lock();
        let Some(mut last) = state.written.entries.last_entry() else { return false };
        let record = last.get_mut();
        let half = record.len() / 2;
        record[half..].fill(0);
        true
    }
}

impl Records {
    fn apply(&mut self, changes: Changes) {
        for index in changes.removed {
            self.entries.remove(&index);
        }
        self.entries.extend(changes.added);
        self.named.extend(changes.records);
    }

    fn load(&self) -> Result<Image, Damage> {
        let entries = self.entries.iter().map(|(index, bytes)| Ok((index.0, bytes.clone())));
        Image::restore(|name| Ok(self.named.get(name).cloned()), entries)
    }
}

/// A [`LogStore`] over a [`Disk`]. A clone shares the disk.
#[derive(Clone, Debug)]
pub struct FaultyStore {
    disk: Disk,
    image: Image,
    poisoned: bool,
}

fn name() -> PathBuf {
    PathBuf::from("simulated disk")
}

impl FaultyStore {
    /// Opens the disk's store, which is empty on an empty disk.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a record is torn or has flipped bits.
    pub fn open(disk: &Disk) -> Result<Self, StoreError> {
        let image = disk.inner.lock().written.load();
        let image = image.map_err(|damage| StoreError::Damaged {
            path: name(),
            moved_to: name(),
            source: damage.into(),
        })?;
        Ok(FaultyStore { disk: disk.clone(), image, poisoned: false })
    }
}

impl FaultyStore {
    /// Its disk.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }
}

impl LogStore for FaultyStore {
    fn image(&self) -> &Image {
        &self.image
    }

    fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.poisoned {
            return Err(StoreError::Poisoned { path: name() });
        }
        self.image.check(batch)?;
        let changes = self.image.changes(batch);
        let mut disk = self.disk.inner.lock();
        let fault = disk.fault;
        if fault != WriteFault::Lie {
            disk.fault = WriteFault::None;
        }
        match fault {
            WriteFault::None => {
                // A successful sync also writes out everything before it.
                disk.written.apply(changes);
                disk.synced = None;
            }
            WriteFault::Lie => {
                let before = disk.written.clone();
                disk.synced.get_or_insert(before);
                disk.written.apply(changes);
            }
            WriteFault::FailLost | WriteFault::FailKept => {
                if fault == WriteFault::FailKept {
                    disk.written.apply(changes);
                }
                self.poisoned = true;
                let source = io::Error::other("simulated sync failure");
                return Err(StoreError::Write { path: name(), source });
            }
        }
        drop(disk);
        self.image.apply(batch);
        Ok(())
    }
}

#[cfg(test)]
#[path = "testing_test.rs"]
mod testing_test;
