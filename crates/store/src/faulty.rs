//! A store over a simulated disk that loses, lies, fails and tears.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::encoding::{self, DecodeError};
use crate::{Batch, Image, Index, LogStore, StoreError};

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

/// A simulated disk; it outlives the stores that are opened on it.
///
/// It keeps records as the bytes that a real disk would keep, so that a flipped bit or a torn
/// record is found by the same checksums.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    inner: Arc<Mutex<DiskState>>,
}

#[derive(Clone, Debug, Default)]
struct Records {
    hard_state: Option<Vec<u8>>,
    snapshot: Option<Vec<u8>>,
    base: Option<Vec<u8>>,
    entries: BTreeMap<Index, Vec<u8>>,
}

#[derive(Debug, Default)]
struct DiskState {
    /// As the running process sees it.
    written: Records,
    /// As it is after a crash; `None` when nothing is at risk.
    synced: Option<Records>,
    fault: WriteFault,
    writes: u64,
    damaged: Option<String>,
}

impl Disk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, DiskState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happens to the next write. It holds for one write, except [`WriteFault::Lie`], which
    /// holds until it is taken back.
    pub fn set_fault(&self, fault: WriteFault) {
        self.lock().fault = fault;
    }

    /// How many writes were tried.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// The machine loses power: what was not synced is gone. Stores that are still open on the
    /// disk must not be used any more.
    pub fn crash(&self) {
        let mut state = self.lock();
        state.fault = WriteFault::None;
        if let Some(synced) = state.synced.take() {
            state.written = synced;
        }
    }

    /// Tears the last entry in two, as a disk does that lost a page it had reported as written.
    /// Returns whether there was an entry.
    pub fn tear_last_entry(&self) -> bool {
        let mut state = self.lock();
        let Some(mut last) = state.written.entries.last_entry() else { return false };
        let record = last.get_mut();
        let half = record.len() / 2;
        record[half..].fill(0);
        true
    }

    /// Flips one bit of the entry at `index`. Returns whether there was such an entry.
    pub fn flip_bit(&self, index: Index, bit: usize) -> bool {
        let mut state = self.lock();
        let Some(record) = state.written.entries.get_mut(&index) else { return false };
        let at = (bit / 8) % record.len();
        record[at] ^= 1 << (bit % 8);
        true
    }

    /// What the damaged disk was reported with, if it was.
    #[must_use]
    pub fn damaged(&self) -> Option<String> {
        self.lock().damaged.clone()
    }
}

impl Records {
    fn apply(&mut self, batch: &Batch, before: &Image) {
        if let Some(snapshot) = &batch.snapshot {
            if batch.replace_log {
                self.entries.clear();
            }
            self.snapshot = Some(encoding::seal_snapshot(snapshot));
        }
        if let Some(first) = batch.entries.first() {
            self.entries.split_off(&first.index);
        }
        for entry in &batch.entries {
            self.entries.insert(entry.index, encoding::seal_entry(entry));
        }
        if let Some(hard_state) = batch.hard_state {
            self.hard_state = Some(encoding::seal_hard_state(hard_state));
        }
        let (base, _) = before.bounds_after(batch);
        if base != before.base() || self.base.is_none() {
            self.base = Some(encoding::seal_base(base));
            self.entries = self.entries.split_off(&base.0.next());
        }
    }

    fn load(&self) -> Result<Image, DecodeError> {
        let mut image = Image::default();
        if let Some(record) = &self.hard_state {
            image.hard_state = encoding::unseal_hard_state(record)?;
        }
        if let Some(record) = &self.snapshot {
            image.snapshot = Some(encoding::unseal_snapshot(record)?);
        }
        if let Some(record) = &self.base {
            image.base = encoding::unseal_base(record)?;
        }
        for record in self.entries.values() {
            let entry = encoding::unseal_entry(record)?;
            image.entries_bytes += entry.data.len();
            image.entries.push_back(entry);
        }
        Ok(image)
    }
}

/// A [`LogStore`] over a [`Disk`].
#[derive(Debug)]
pub struct FaultyStore {
    disk: Disk,
    image: Image,
    poisoned: bool,
}

fn name() -> PathBuf {
    PathBuf::from("simulated disk")
}

impl FaultyStore {
    /// Opens what is on the disk.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when a record is torn or flipped; the disk remembers it.
    pub fn open(disk: &Disk) -> Result<Self, StoreError> {
        let loaded = disk.lock().written.load();
        let whole = loaded
            .map_err(|error| error.to_string())
            .and_then(|image| image.check_whole().map(|()| image));
        match whole {
            Ok(image) => Ok(FaultyStore { disk: disk.clone(), image, poisoned: false }),
            Err(what) => {
                disk.lock().damaged = Some(what.clone());
                Err(StoreError::Damaged { path: name(), moved_to: name(), what })
            }
        }
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
        let mut disk = self.disk.lock();
        disk.writes += 1;
        let fault = disk.fault;
        if fault != WriteFault::Lie {
            disk.fault = WriteFault::None;
        }
        match fault {
            WriteFault::None => {
                // A sync that succeeds writes out everything before it as well.
                disk.written.apply(batch, &self.image);
                disk.synced = None;
            }
            WriteFault::Lie => {
                let before = disk.written.clone();
                disk.synced.get_or_insert(before);
                disk.written.apply(batch, &self.image);
            }
            WriteFault::FailLost | WriteFault::FailKept => {
                if fault == WriteFault::FailKept {
                    disk.written.apply(batch, &self.image);
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
