//! An artifact being received: a preallocated file into which verified units are written in place.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cohort_artifact::{UNIT_BYTES, UnitError, UnitHashes};
use cohort_base::{FileError, OnPath as _, disk};
use cohort_core::ids::ServerId;
use cohort_transfer::{UnitRun, UnitSet};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::frame::Frame;
use crate::store_error::StoreError;

/// Newest units kept in memory for the children, per artifact: 1 MiB. A child that keeps up never
/// causes a read of the file.
const RECENT_UNITS_MAX: usize = 16;

/// Bytes claimed per step: units that arrive meanwhile wait for some milliseconds.
const CLAIM_BYTES: u64 = 8 << 20;

/// A longer pause between two units says nothing about their rate.
const INTERVAL_MAX: Duration = Duration::from_millis(100);

/// An open `.part` file. All calls block.
///
/// Which units are here is known only in memory. After a crash the file is hashed again, so that a
/// unit lost before it reached the disk is never trusted.
#[derive(Debug)]
pub struct Part {
    path: PathBuf,
    file: File,
    hashes: Arc<UnitHashes>,
    here: Mutex<Here>,
    /// Number of units on disk; changes with every new one.
    arrivals: watch::Sender<u32>,
}

/// The units on disk, and their senders.
#[derive(Debug)]
struct Here {
    have: UnitSet,
    /// Per unit: 0 for a mirror or the disk, else 1 + the index in `senders`.
    origins: Vec<u8>,
    senders: Vec<ServerId>,
    /// The newest, oldest first: at most [`RECENT_UNITS_MAX`].
    recent: VecDeque<(u32, Bytes)>,
    /// When the newest arrived, and the smoothed time between two.
    newest: Option<Instant>,
    interval: Duration,
    /// The disk was too full, and the space without units was released.
    given_back: bool,
}

/// Why a unit was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The bytes do not match the unit hashes; nothing was written.
    #[error("refused")]
    Wrong(#[source] UnitError),
    /// The disk is full or fails.
    #[error(transparent)]
    Disk(#[from] StoreError),
}

impl Part {
    /// Opens or creates the file, and hashes what an earlier try left. Does not yet claim its
    /// space.
    pub(crate) fn open(path: PathBuf, hashes: Arc<UnitHashes>) -> Result<Self, StoreError> {
        let length = hashes.length();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).on_path("open", &path)?;
        let left = file.metadata().on_path("read the length of", &path)?.len();
        let have = if left == 0 {
            UnitSet::empty(hashes.count())
        } else {
            rehash(&file, &hashes).on_path("hash", &path)?
        };
        file.set_len(length).on_path("set the length of", &path)?;
        let arrivals = watch::Sender::new(have.held());
        let origins = vec![0; hashes.count() as usize];
        let here = Mutex::new(Here {
            have,
            origins,
            senders: Vec::new(),
            recent: VecDeque::new(),
            newest: None,
            interval: Duration::ZERO,
            given_back: false,
        });
        Ok(Self { path, file, hashes, here, arrivals })
    }

    /// Claims the space of the whole file, a slice at a time, while units are written to it. File
    /// systems that zero what they allocate (in-memory ones do) would otherwise take longer than
    /// the first bytes. Stops when the part is dropped.
    ///
    /// # Errors
    /// If the disk is full or fails. Space without units is then released, so that it does not keep
    /// the disk full, and no more units are accepted.
    pub(crate) fn claim_space(part: &Weak<Part>) -> Result<(), StoreError> {
        let mut start = 0;
        while let Some(part) = part.upgrade() {
            let length = part.hashes.length().saturating_sub(start).min(CLAIM_BYTES);
            if length == 0 {
                break;
            }
            match disk::preallocate(&part.file, start, length) {
                Ok(true) => start += length,
                Ok(false) => break,
                Err(error) => {
                    part.give_back();
                    return Err(part.refused(error));
                }
            }
        }
        Ok(())
    }

    /// Distinguishes a full disk from a broken one.
    fn refused(&self, source: io::Error) -> StoreError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let (path, length) = (self.path.clone(), self.hashes.length());
                StoreError::Taken { path, length, source }
            }
            _ => FileError { doing: "preallocate", path: self.path.clone(), source }.into(),
        }
    }

    /// Truncates the file after the last unit.
    fn give_back(&self) {
        let mut here = self.here.lock();
        here.given_back = true;
        let end = here.have.runs(usize::MAX).last().map_or(0, |run| u64::from(run.end()));
        let end = (end * u64::from(UNIT_BYTES)).min(self.hashes.length());
        if let Err(error) = self.file.set_len(end) {
            tracing::warn!(path = %self.path.display(), %error, "cannot free claimed disk space");
        }
    }

    /// The hashes that every unit is checked against.
    #[must_use]
    pub fn hashes(&self) -> &Arc<UnitHashes> {
        &self.hashes
    }

    /// The verified units on disk.
    #[must_use]
    pub fn have(&self) -> UnitSet {
        self.here.lock().have.clone()
    }

    /// Number of verified units on disk.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.here.lock().have.held()
    }

    /// Whether a unit is on disk, verified.
    #[must_use]
    pub fn has(&self, index: u32) -> bool {
        self.here.lock().have.contains(index)
    }

    /// Verifies a unit and writes it in place. Returns whether it was missing.
    ///
    /// # Errors
    /// If the bytes are wrong (then nothing is written), or the disk fails.
    pub fn write(&self, index: u32, bytes: &[u8]) -> Result<bool, WriteError> {
        self.put(index, bytes, None, None)
    }

    /// The same for a unit in a frame, which is kept in memory for the children. Remembers the
    /// server that sent it: the unit is never sent back there.
    ///
    /// # Errors
    /// As [`Part::write`].
    pub(crate) fn write_frame(
        &self,
        frame: &Frame,
        sender: Option<&ServerId>,
    ) -> Result<bool, WriteError> {
        self.put(frame.index(), frame.unit(), sender, Some(frame.bytes()))
    }

    fn put(
        &self,
        index: u32,
        unit: &[u8],
        sender: Option<&ServerId>,
        frame: Option<&Bytes>,
    ) -> Result<bool, WriteError> {
        self.hashes.verify_unit(index, unit).map_err(WriteError::Wrong)?;
        if self.has(index) {
            return Ok(false);
        }
        let (start, _) = self.hashes.span(index).map_err(WriteError::Wrong)?;
        let written = self.file.write_all_at(unit, start);
        written.on_path("write", &self.path).map_err(StoreError::File)?;
        let (new, held) = {
            let mut here = self.here.lock();
            if here.given_back {
                return Err(self.refused(io::ErrorKind::StorageFull.into()).into());
            }
            let new = here.have.insert(index);
            if new && let Some(sender) = sender {
                here.remember(index, sender);
            }
            if new && let Some(frame) = frame {
                here.keep(index, frame);
                here.came(Instant::now());
            }
            (new, here.have.held())
        };
        self.arrivals.send_replace(held);
        Ok(new)
    }

    /// The recent time between two units; zero at first.
    pub(crate) fn interval(&self) -> Duration {
        self.here.lock().interval
    }

    /// The frame of a recent unit.
    pub(crate) fn recent(&self, index: u32) -> Option<Bytes> {
        let here = self.here.lock();
        let found = here.recent.iter().rev().find(|(known, _)| *known == index);
        found.map(|(_, frame)| frame.clone())
    }

    /// Changes with every unit that arrives.
    pub(crate) fn arrivals(&self) -> watch::Receiver<u32> {
        self.arrivals.subscribe()
    }

    /// The next run of units that are here and that a server lacks; removed from `wanted`, together
    /// with units that this server itself sent.
    pub(crate) fn next_wanted(
        &self,
        wanted: &mut UnitSet,
        by: &str,
        count_max: u32,
    ) -> Option<UnitRun> {
        let here = self.here.lock();
        let mut from = 0;
        loop {
            let first = wanted.first_common_from(from, &here.have)?;
            from = first;
            let mut run = UnitRun { first, count: 0 };
            while run.count < count_max
                && wanted.contains(run.end())
                && here.have.contains(run.end())
            {
                if here.sender(run.end()).is_some_and(|sender| sender.as_str() == by) {
                    break;
                }
                run.count += 1;
            }
            if run.count > 0 {
                wanted.remove_run(run);
                return Some(run);
            }
            wanted.remove(first);
        }
    }

    /// A handle for reading units that are here.
    pub(crate) fn reader(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        Ok(self.file.sync_all().on_path("sync", &self.path)?)
    }
}

impl Here {
    /// The newest interval weighs an eighth: units come in pairs while two requests run.
    fn came(&mut self, now: Instant) {
        if let Some(before) = self.newest.replace(now) {
            let took = now.saturating_duration_since(before).min(INTERVAL_MAX);
            self.interval = (self.interval * 7 + took) / 8;
        }
    }

    fn keep(&mut self, index: u32, frame: &Bytes) {
        if self.recent.len() == RECENT_UNITS_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((index, frame.clone()));
    }

    /// Senders beyond 255 are not remembered: they get back what they sent, once.
    fn remember(&mut self, index: u32, sender: &ServerId) {
        let known = self.senders.iter().position(|known| known == sender);
        let place = known.or_else(|| {
            self.senders.push(sender.clone());
            Some(self.senders.len() - 1)
        });
        let Some(place) = place.and_then(|place| u8::try_from(place + 1).ok()) else {
            self.senders.truncate(usize::from(u8::MAX));
            return;
        };
        if let Some(origin) = self.origins.get_mut(index as usize) {
            *origin = place;
        }
    }

    fn sender(&self, index: u32) -> Option<&ServerId> {
        let origin = self.origins.get(index as usize).copied().unwrap_or(0);
        self.senders.get(usize::from(origin).checked_sub(1)?)
    }
}

/// The units of a file that match the hashes.
pub(crate) fn rehash(mut file: &File, hashes: &UnitHashes) -> io::Result<UnitSet> {
    let mut have = UnitSet::empty(hashes.count());
    let right = hashes.verified_units(&mut file)?;
    for (index, right) in (0..hashes.count()).zip(right) {
        if right {
            have.insert(index);
        }
    }
    Ok(have)
}

#[cfg(test)]
#[path = "part_test.rs"]
mod part_test;
