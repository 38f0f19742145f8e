//! An artifact on its way: a preallocated file that verified units are written into, in place.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cohort_artifact::{UNIT_BYTES, UnitError, UnitHashes};
use cohort_core::ids::ServerId;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use tokio::sync::watch;

use crate::frame::Frame;
use crate::store_error::StoreError;
use crate::unit_set::{UnitRun, UnitSet};

/// The newest units that are kept in memory for the children, per artifact: 1 MiB. A child that
/// keeps up never costs a read of the file.
const RECENT_UNITS_MAX: usize = 16;

/// Space that is claimed at once, 8 MiB: units that come meanwhile wait for some milliseconds.
const CLAIM_BYTES: u64 = 8 << 20;

/// A longer pause between two units says nothing about how fast they come.
const INTERVAL_MAX: Duration = Duration::from_millis(100);

/// A `.part` file, open. All of it is blocking: call it from a thread that may block.
///
/// Which units are there is known in memory only; after a crash the file is hashed again, so that
/// nothing that was lost on the way to the disk is ever believed.
#[derive(Debug)]
pub struct Part {
    path: PathBuf,
    file: File,
    hashes: Arc<UnitHashes>,
    here: Mutex<Here>,
    /// Number of units that are there; changes with every new one.
    arrivals: watch::Sender<u32>,
}

/// What is there, and who sent it.
#[derive(Debug)]
struct Here {
    have: UnitSet,
    /// Per unit: 0 for a mirror or the disk, else 1 + the place in `senders`.
    origins: Vec<u8>,
    senders: Vec<ServerId>,
    /// The newest, oldest first: at most [`RECENT_UNITS_MAX`].
    recent: VecDeque<(u32, Bytes)>,
    /// When the newest came, and how long it has taken from one to the next, smoothed.
    newest: Option<Instant>,
    interval: Duration,
    /// The disk was too full: what is beyond the units that are there may be gone.
    given_back: bool,
}

/// Why a unit was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The bytes are not the signed ones; nothing was written.
    #[error("refused")]
    Wrong(#[source] UnitError),
    /// The disk refuses.
    #[error(transparent)]
    Disk(#[from] StoreError),
}

impl Part {
    /// Opens or makes the file, and hashes what an earlier attempt left. Its space is yet to be
    /// claimed.
    pub(crate) fn open(path: PathBuf, hashes: Arc<UnitHashes>) -> Result<Self, StoreError> {
        let length = hashes.length();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path).map_err(StoreError::file("opening", &path))?;
        let left = file.metadata().map_err(StoreError::file("reading the length of", &path))?.len();
        let have = if left == 0 {
            UnitSet::empty(hashes.count())
        } else {
            rehash(&file, &hashes).map_err(StoreError::file("hashing", &path))?
        };
        file.set_len(length).map_err(StoreError::file("setting the length of", &path))?;
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

    /// Claims the space of the whole file, a slice at a time, while units are written to it: on file
    /// systems that zero what they give (and those in memory do) all at once would take longer than
    /// the first of the bytes. Stops where nobody wants the part any more.
    ///
    /// # Errors
    /// The disk's. What was claimed and holds no unit is given back then, lest it keeps the disk
    /// full, and no unit is taken any more.
    pub(crate) fn claim_space(part: &Weak<Part>) -> Result<(), StoreError> {
        let mut start = 0;
        while let Some(part) = part.upgrade() {
            let length = part.hashes.length().saturating_sub(start).min(CLAIM_BYTES);
            if length == 0 {
                break;
            }
            match preallocate(&part.file, start, length) {
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

    /// Why there is no space.
    fn refused(&self, source: io::Error) -> StoreError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let (path, length) = (self.path.clone(), self.hashes.length());
                StoreError::Taken { path, length, source }
            }
            _ => StoreError::file("preallocating", &self.path)(source),
        }
    }

    /// Shortens the file to the units that are there.
    fn give_back(&self) {
        let mut here = self.lock();
        here.given_back = true;
        let end = here.have.runs(usize::MAX).last().map_or(0, |run| u64::from(run.end()));
        let end = (end * u64::from(UNIT_BYTES)).min(self.hashes.length());
        if let Err(error) = self.file.set_len(end) {
            tracing::warn!(path = %self.path.display(), %error, "what was claimed stays claimed");
        }
    }

    /// The hashes that every unit is checked against.
    #[must_use]
    pub fn hashes(&self) -> &Arc<UnitHashes> {
        &self.hashes
    }

    /// The units that are there, verified.
    #[must_use]
    pub fn have(&self) -> UnitSet {
        self.lock().have.clone()
    }

    /// Number of units that are there, verified.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.lock().have.held()
    }

    /// Whether a unit is there, verified.
    #[must_use]
    pub fn has(&self, index: u32) -> bool {
        self.lock().have.contains(index)
    }

    /// Writes a unit to its place, after it was verified. Returns whether it is new here.
    ///
    /// # Errors
    /// When the bytes are wrong (nothing is written then) or the disk refuses.
    pub fn write(&self, index: u32, bytes: &[u8]) -> Result<bool, WriteError> {
        self.put(index, bytes, None, None)
    }

    /// The same for a unit that came in a frame, which is kept for the children; remembers the
    /// server that sent it, to which it is never sent back.
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
        self.file.write_all_at(unit, start).map_err(StoreError::file("writing", &self.path))?;
        let (new, held) = {
            let mut here = self.lock();
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

    /// How long it takes from one unit to the next, lately. Nothing at first.
    pub(crate) fn interval(&self) -> Duration {
        self.lock().interval
    }

    /// The frame of a unit that came lately.
    pub(crate) fn recent(&self, index: u32) -> Option<Bytes> {
        let here = self.lock();
        let found = here.recent.iter().rev().find(|(known, _)| *known == index);
        found.map(|(_, frame)| frame.clone())
    }

    /// Changes with every unit that arrives.
    pub(crate) fn arrivals(&self) -> watch::Receiver<u32> {
        self.arrivals.subscribe()
    }

    /// The next units that are here and wanted by a server, without a gap: they are taken out of
    /// `wanted`. What that server sent itself is taken out as well.
    pub(crate) fn next_wanted(
        &self,
        wanted: &mut UnitSet,
        by: &str,
        count_max: u32,
    ) -> Option<UnitRun> {
        let here = self.lock();
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

    /// The first units of a run that are there without a gap, to be passed on: at most `count_max`.
    pub(crate) fn run_here(&self, run: UnitRun, count_max: u32) -> Option<UnitRun> {
        let here = self.lock().have.run_from(run.first, run.count.min(count_max))?;
        (here.first == run.first).then_some(here)
    }

    /// The file, for reading units that are there.
    pub(crate) fn reader(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_all().map_err(StoreError::file("syncing", &self.path))
    }

    fn lock(&self) -> MutexGuard<'_, Here> {
        // A set of bits is whole after every instruction, so a panic elsewhere cannot have bent it.
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Here {
    /// An eighth of weight for the newest: units come in pairs when two requests run at once.
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

    /// More senders than can be told apart are not remembered: they get back what they sent, once.
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

/// Which units of a file are right.
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

/// Claims some bytes of a file; `false` where the file system cannot: the check of free space must
/// do there.
fn preallocate(file: &File, start: u64, length: u64) -> io::Result<bool> {
    loop {
        match fallocate(file, FallocateFlags::empty(), start, length) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
            result => return result.map(|()| true).map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
#[path = "part_test.rs"]
mod part_test;
