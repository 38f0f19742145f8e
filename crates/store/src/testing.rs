//! A store over a simulated disk that loses, lies, fails and tears: for tests and the simulation.

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
    /// The sync fails, and nothing of the batch will be there after a crash.
    FailLost,
    /// The sync fails, yet the batch turns out to be there after a crash.
    FailKept,
    /// The sync reports success, and the batch is lost at the next crash (a disk that lies).
    Lie,
}

/// A simulated disk. It outlives the stores opened on it.
///
/// It keeps records as bytes, as a real disk does, so that the same checksums find a flipped bit
/// or a torn record.
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
    /// What a crash leaves; `None`: the same.
    synced: Option<Records>,
    fault: WriteFault,
}

impl Disk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what happens to the next write. [`WriteFault::Lie`] stays in force until reset.
    pub fn set_fault(&self, fault: WriteFault) {
        self.inner.lock().fault = fault;
    }

    /// Power failure: what was not synced is gone. Stores still open on the disk must be dropped.
    pub fn crash(&self) {
        let mut state = self.inner.lock();
        state.fault = WriteFault::None;
        if let Some(synced) = state.synced.take() {
            state.written = synced;
        }
    }

    /// Zeroes the second half of the last entry, like a disk that lost a page it had reported as
    /// written. Returns whether there was an entry.
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
    /// Opens the disk's store; an empty disk has an empty one.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when a record is torn or flipped.
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
                let source = io::Error::other("simulated failure of sync");
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
