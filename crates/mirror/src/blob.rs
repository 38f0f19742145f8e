//! One artifact in the cache, unit by unit.
//!
//! ```text
//!            claim                arrived, written
//!  Missing ────────► Coming ───────────────────────► Here
//!     ▲                │ nobody gave it                │ read, and not right
//!     └────────────────┴───────────────────────────────┘
//! ```
//!
//! A unit is checked when it arrives, and again whenever it is read from the disk. So nothing has to
//! be written down about what is there: after a restart every unit is believed to be here until it
//! is read, and what a crash has torn, or a disk has rotten, is fetched again.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use cohort_artifact::UnitHashes;
use tokio::sync::watch;

use crate::fill;
use crate::metrics::add;
use crate::origins::Refused;
use crate::shared::Shared;

/// Looks at a unit that keeps changing under our eyes before giving up: damaged on disk, fetched
/// again, damaged again.
const LOOKS_MAX: usize = 4;

/// Where a unit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// Not on disk.
    Missing,
    /// Somebody fetches it.
    Coming,
    /// On disk, and right unless the disk has failed.
    Here,
}

/// Why a unit that was on its way did not come.
#[derive(Debug, Clone)]
pub(crate) enum Lost {
    /// No origin gave it.
    Refused(Refused),
    /// It cannot be kept any more; whoever still wants it asks for himself.
    NotKept,
}

pub(crate) type Arrival = Option<Result<Bytes, Lost>>;

/// One artifact: its verified hashes, and the units that are on disk or on their way.
pub(crate) struct Blob {
    pub(crate) hashes: UnitHashes,
    pub(crate) shared: Arc<Shared>,
    /// When it was opened.
    pub(crate) opened: Instant,
    file: Option<File>,
    /// Whether units are written down. Once it is not, it stays so; the artifact is opened anew
    /// when nobody uses it.
    kept: AtomicBool,
    units: Mutex<Units>,
}

struct Units {
    states: Vec<Unit>,
    coming: HashMap<u32, watch::Receiver<Arrival>>,
}

/// What lies in a unit's place.
enum OnDisk {
    Right(Bytes),
    /// Claimed, and never written.
    Empty,
    Wrong,
}

/// How one gets a unit.
enum Look {
    Here,
    Coming(watch::Receiver<Arrival>),
    NotKept,
}

impl Blob {
    /// An artifact whose units are written to `file`; without one they are passed on only.
    pub(crate) fn new(
        hashes: UnitHashes,
        file: Option<File>,
        believed: bool,
        shared: Arc<Shared>,
    ) -> Self {
        let state = if believed { Unit::Here } else { Unit::Missing };
        let states = vec![state; hashes.count() as usize];
        Self {
            hashes,
            shared,
            opened: Instant::now(),
            kept: AtomicBool::new(file.is_some()),
            file,
            units: Mutex::new(Units { states, coming: HashMap::new() }),
        }
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    /// The disk refuses: from now on units are passed on.
    pub(crate) fn keep_no_more(&self) {
        self.kept.store(false, Ordering::Relaxed);
    }

    /// Memory that it takes, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        u64::from(self.hashes.count()) * (blake3::OUT_LEN as u64 + size_of::<Unit>() as u64)
    }

    /// One unit, from the disk or from an origin; nothing when it has to be passed on. Units up to
    /// `end` will be wanted soon.
    pub(crate) async fn unit(
        self: &Arc<Self>,
        index: u32,
        end: u32,
    ) -> Result<Option<Bytes>, Refused> {
        for _ in 0..LOOKS_MAX {
            match self.look(index, end) {
                Look::Here => {
                    let blob = Arc::clone(self);
                    let read = tokio::task::spawn_blocking(move || blob.read(index)).await;
                    if let Ok(Some(bytes)) = read {
                        add(&self.shared.metrics.hits, 1);
                        return Ok(Some(bytes));
                    }
                }
                Look::Coming(mut arrival) => {
                    let Ok(arrival) = arrival.wait_for(Option::is_some).await else { continue };
                    match arrival.clone() {
                        Some(Ok(bytes)) => return Ok(Some(bytes)),
                        Some(Err(Lost::Refused(refused))) => return Err(refused),
                        Some(Err(Lost::NotKept)) | None => {}
                    }
                }
                Look::NotKept => return Ok(None),
            }
        }
        Err(Refused::Failed(format!("unit {index} is damaged on the mirror's own disk")))
    }

    /// Where a unit is; begins to fetch it, and those after it in time.
    fn look(self: &Arc<Self>, index: u32, end: u32) -> Look {
        let kept = self.is_kept();
        let run_max = self.shared.limits.run_units_max;
        let mut units = self.lock();
        let look = match units.states[index as usize] {
            Unit::Here => Look::Here,
            Unit::Coming => match units.coming.get(&index) {
                Some(arrival) => {
                    add(&self.shared.metrics.joined, 1);
                    Look::Coming(arrival.clone())
                }
                // Arrived and was written this very moment.
                None => Look::Here,
            },
            Unit::Missing if kept => {
                let arrival = self.claim(&mut units, index, end.min(index + run_max));
                Look::Coming(arrival)
            }
            Unit::Missing => Look::NotKept,
        };
        // The next request goes out when half of the one before has been read, so that the wire
        // does not idle; never for a few units at the edge of what is wanted.
        let ahead = end.min(index.saturating_add(1 + run_max / 2));
        let gap = (index + 1..ahead).find(|at| units.states[*at as usize] == Unit::Missing);
        if let Some(gap) = gap.filter(|_| kept) {
            self.claim(&mut units, gap, end.min(gap + run_max));
        }
        look
    }

    /// Begins to fetch the missing units from `first` on, to the first that is not missing.
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

    /// Reads a unit from the disk; nothing when it is not right, and then it is missing. Blocking.
    fn read(&self, index: u32) -> Option<Bytes> {
        let found = self.read_one(index);
        if let OnDisk::Right(bytes) = found {
            return Some(bytes);
        }
        if matches!(found, OnDisk::Wrong) {
            add(&self.shared.metrics.damaged, 1);
            tracing::warn!(artifact = %self.hashes.root(), unit = index, "unit is damaged on disk");
        }
        // After a crash most units behind it are not there either. They are found now, so that
        // they are fetched together and not one by one.
        let end = self.hashes.count().min(index.saturating_add(self.shared.limits.run_units_max));
        let is_right = |at: &u32| matches!(self.read_one(*at), OnDisk::Right(_));
        let right = (index + 1..end).find(is_right).unwrap_or(end);
        let mut units = self.lock();
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
            tracing::error!(artifact = %self.hashes.root(), unit = index, %error, "disk fails");
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

    /// Says that a unit was written before the blob was shown to anybody.
    pub(crate) fn is_here(&self, index: u32) {
        self.lock().states[index as usize] = Unit::Here;
    }

    fn lock(&self) -> MutexGuard<'_, Units> {
        // States and receivers are changed together, by code that does not panic in between.
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Units that one task fetches. Whatever it did not bring is missing again when it is dropped.
pub(crate) struct Claim {
    pub(crate) blob: Arc<Blob>,
    first: u32,
    next: u32,
    senders: Vec<watch::Sender<Arrival>>,
}

impl Claim {
    /// The first unit that is still to come.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// The unit after the last.
    pub(crate) fn end(&self) -> u32 {
        self.first + count_of(&self.senders)
    }

    /// Gives a verified unit to everybody who waits for it.
    pub(crate) fn arrived(&self, bytes: &Bytes) {
        self.senders[(self.next - self.first) as usize].send_replace(Some(Ok(bytes.clone())));
    }

    /// The unit that arrived was written.
    pub(crate) fn written(&mut self) {
        let mut units = self.blob.lock();
        units.states[self.next as usize] = Unit::Here;
        units.coming.remove(&self.next);
        drop(units);
        self.next += 1;
    }

    /// Nothing more comes.
    pub(crate) fn end_with(mut self, lost: &Lost) {
        let senders = std::mem::take(&mut self.senders);
        // First missing, then told: whoever hears of it and looks again must not find it coming.
        self.reset(self.next..self.first + count_of(&senders));
        for (sender, index) in senders.iter().zip(self.first..) {
            if index >= self.next && sender.borrow().is_none() {
                sender.send_replace(Some(Err(lost.clone())));
            }
        }
    }
}

impl Claim {
    fn reset(&self, indices: Range<u32>) {
        let mut units = self.blob.lock();
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
