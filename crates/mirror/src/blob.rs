//! One artifact in the cache, unit by unit.
//!
//! ```text
//!            claim                arrived, written
//!  Missing ────────► Coming ───────────────────────► Here
//!     ▲                │ no origin delivered it        │ read, and corrupt
//!     └────────────────┴───────────────────────────────┘
//! ```
//!
//! A unit is verified when it arrives, and again whenever it is read from disk. So there is no
//! record of what is on disk: after a restart, every unit is assumed to be there until it is read,
//! and what a crash tore or the disk corrupted is fetched again.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use cohort_artifact::UnitHashes;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::cache::Shared;
use crate::fill;
use crate::origins::Refused;

/// Attempts at a unit that is corrupt on disk, fetched, and corrupt again.
const LOOKS_MAX: usize = 4;

/// State of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Missing,
    Coming,
    /// Assumed to be on disk.
    Here,
}

/// Outcome of a fetch; `None` while it is in progress.
pub(crate) type Arrival = Option<Result<Bytes, Refused>>;

/// One artifact: its verified hashes, and the units that are on disk or being fetched.
pub(crate) struct Blob {
    pub(crate) hashes: UnitHashes,
    pub(crate) cache: Arc<Shared>,
    /// When it was opened, to retry an artifact that found no room on disk.
    pub(crate) opened: Instant,
    file: Option<File>,
    /// Whether units are written to disk. If not, each is fetched on its own for its readers.
    kept: AtomicBool,
    units: Mutex<Units>,
}

struct Units {
    states: Vec<Unit>,
    coming: HashMap<u32, watch::Receiver<Arrival>>,
}

/// The content of a unit's place on disk.
enum OnDisk {
    Right(Bytes),
    /// Allocated and never written.
    Empty,
    Wrong,
}

/// How to get a unit.
enum Look {
    Here,
    Coming(watch::Receiver<Arrival>),
}

impl Blob {
    /// An artifact whose units are written to `file`; without a file they are only forwarded.
    pub(crate) fn new(
        hashes: UnitHashes,
        file: Option<File>,
        believed: bool,
        cache: Arc<Shared>,
    ) -> Self {
        let state = if believed { Unit::Here } else { Unit::Missing };
        let states = vec![state; hashes.count() as usize];
        Self {
            hashes,
            cache,
            opened: Instant::now(),
            kept: AtomicBool::new(file.is_some()),
            file,
            units: Mutex::new(Units { states, coming: HashMap::new() }),
        }
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    /// The disk failed: from now on, forwards units without storing them.
    pub(crate) fn keep_no_more(&self) {
        self.kept.store(false, Ordering::Relaxed);
    }

    /// One unit, from disk or from an origin. Units up to `end` will be needed soon.
    pub(crate) async fn unit(self: &Arc<Self>, index: u32, end: u32) -> Result<Bytes, Refused> {
        for _ in 0..LOOKS_MAX {
            match self.look(index, end) {
                Look::Here => {
                    let blob = Arc::clone(self);
                    let read = tokio::task::spawn_blocking(move || blob.read(index)).await;
                    if let Ok(Some(bytes)) = read {
                        self.cache.metrics.hits.inc();
                        return Ok(bytes);
                    }
                }
                Look::Coming(mut arrival) => {
                    // Closed without a value if the disk failed: try again.
                    let Ok(arrival) = arrival.wait_for(Option::is_some).await else { continue };
                    if let Some(outcome) = arrival.clone() {
                        return outcome;
                    }
                }
            }
        }
        Err(Refused::Failed(format!("unit {index} is damaged on the mirror's own disk")))
    }

    /// Where to get a unit; starts to fetch it, and the following ones early enough.
    fn look(self: &Arc<Self>, index: u32, end: u32) -> Look {
        let kept = self.is_kept();
        // Units that are not stored are fetched at the reader's pace.
        let run_max = if kept { self.cache.limits.run_units_max } else { 1 };
        let mut units = self.units.lock();
        let look = match units.states[index as usize] {
            Unit::Here => Look::Here,
            Unit::Coming => match units.coming.get(&index) {
                Some(arrival) => {
                    self.cache.metrics.joined.inc();
                    Look::Coming(arrival.clone())
                }
                // Written between the two lookups.
                None => Look::Here,
            },
            Unit::Missing => Look::Coming(self.claim(&mut units, index, end.min(index + run_max))),
        };
        // The next request is sent when half of the previous one has been read, so that the link
        // does not idle.
        let ahead = end.min(index.saturating_add(1 + run_max / 2));
        let gap = (index + 1..ahead).find(|at| units.states[*at as usize] == Unit::Missing);
        if let Some(gap) = gap.filter(|_| kept) {
            self.claim(&mut units, gap, end.min(gap + run_max));
        }
        look
    }

    /// Starts to fetch the run of missing units that starts at `first`.
    fn claim(
        self: &Arc<Self>,
        units: &mut Units,
        first: u32,
        end: u32,
    ) -> watch::Receiver<Arrival> {
        let mut senders = Vec::new();
        let mut arrivals = Vec::new();
        for index in first..end {
            if units.states[index as usize] != Unit::Missing {
                break;
            }
            let (sender, arrival) = watch::channel(None);
            units.states[index as usize] = Unit::Coming;
            units.coming.insert(index, arrival.clone());
            senders.push(sender);
            arrivals.push(arrival);
        }
        let claim = Claim { blob: Arc::clone(self), first, next: first, senders };
        tokio::spawn(fill::fill(claim));
        arrivals.swap_remove(0)
    }

    /// Reads a unit from disk. A corrupt one counts as missing from then on. Blocking.
    fn read(&self, index: u32) -> Option<Bytes> {
        let found = self.read_one(index);
        if let OnDisk::Right(bytes) = found {
            return Some(bytes);
        }
        if matches!(found, OnDisk::Wrong) {
            self.cache.metrics.damaged.inc();
            tracing::warn!(artifact = %self.hashes.root(), unit = index, "cached unit is corrupt");
        }
        // After a crash, most units behind it are missing too. Finding them now lets one request
        // fetch them all.
        let end = self.hashes.count().min(index.saturating_add(self.cache.limits.run_units_max));
        let is_right = |at: &u32| matches!(self.read_one(*at), OnDisk::Right(_));
        let right = (index + 1..end).find(is_right).unwrap_or(end);
        let mut units = self.units.lock();
        for at in index..right {
            if units.states[at as usize] == Unit::Here {
                units.states[at as usize] = Unit::Missing;
            }
        }
        None
    }

    fn read_one(&self, index: u32) -> OnDisk {
        let (Ok((start, length)), Some(file)) = (self.hashes.span(index), &self.file) else {
            return OnDisk::Empty;
        };
        let mut bytes = vec![0; length];
        if let Err(error) = file.read_exact_at(&mut bytes, start) {
            let artifact = self.hashes.root();
            tracing::error!(%artifact, unit = index, %error, "cannot read cached unit");
            return OnDisk::Wrong;
        }
        if self.hashes.verify_unit(index, &bytes).is_ok() {
            OnDisk::Right(bytes.into())
        } else if bytes.iter().all(|byte| *byte == 0) {
            OnDisk::Empty
        } else {
            OnDisk::Wrong
        }
    }

    /// Writes a verified unit. Blocking.
    pub(crate) fn write(&self, index: u32, bytes: &[u8]) -> std::io::Result<()> {
        let (start, _) = self.hashes.span(index).map_err(std::io::Error::other)?;
        let file = self.file.as_ref().ok_or_else(|| std::io::Error::other("no file"))?;
        file.write_all_at(bytes, start)
    }

    /// Marks a unit as written before the blob was published.
    pub(crate) fn is_here(&self, index: u32) {
        self.units.lock().states[index as usize] = Unit::Here;
    }
}

/// Units that one task fetches. When dropped, undelivered ones are missing again.
pub(crate) struct Claim {
    pub(crate) blob: Arc<Blob>,
    first: u32,
    next: u32,
    senders: Vec<watch::Sender<Arrival>>,
}

impl Claim {
    /// The first unit not delivered yet.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// One past the last unit.
    pub(crate) fn end(&self) -> u32 {
        self.first + count_of(&self.senders)
    }

    /// Delivers a verified unit to all waiting readers.
    pub(crate) fn arrived(&self, bytes: &Bytes) {
        self.senders[(self.next - self.first) as usize].send_replace(Some(Ok(bytes.clone())));
    }

    /// Marks the delivered unit as on disk.
    pub(crate) fn written(&mut self) {
        let mut units = self.blob.units.lock();
        units.states[self.next as usize] = Unit::Here;
        units.coming.remove(&self.next);
        drop(units);
        self.next += 1;
    }

    /// Marks the delivered unit as forwarded but not stored.
    pub(crate) fn passed_on(&mut self) {
        self.reset(self.next..self.next + 1);
        self.next += 1;
    }

    /// Fails the rest of the units.
    pub(crate) fn end_with(mut self, refused: &Refused) {
        let senders = std::mem::take(&mut self.senders);
        // Reset before waking readers: one that tries again must not find a unit in transit.
        self.reset(self.next..self.first + count_of(&senders));
        for (sender, index) in senders.iter().zip(self.first..) {
            if index >= self.next && sender.borrow().is_none() {
                sender.send_replace(Some(Err(refused.clone())));
            }
        }
    }

    fn reset(&self, indices: Range<u32>) {
        let mut units = self.blob.units.lock();
        for index in indices {
            units.states[index as usize] = Unit::Missing;
            units.coming.remove(&index);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.reset(self.next..self.end());
    }
}

fn count_of(senders: &[watch::Sender<Arrival>]) -> u32 {
    u32::try_from(senders.len()).expect("a run is short")
}

#[cfg(test)]
#[path = "blob_test.rs"]
mod blob_test;
