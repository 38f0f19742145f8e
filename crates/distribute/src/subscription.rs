//! Serving one subscription: "I lack these units, send them as you get them".
//!
//! ```text
//! POST /v1/artifacts/<root>/subscription   {"lacks": [{"first": 0, "count": 1024}, …]}
//! answer   frames, until all these units have been sent:
//!          index   4 bytes, big endian
//!          unit    its bytes; their number follows from the index and the artifact's length
//!          index 0xffffffff is a heartbeat and has no bytes
//! ```
//!
//! The same request starts, resumes, repairs and changes parents. A unit is sent as soon as it is
//! verified, lowest first, and from memory as long as the child keeps up (all children share the 16
//! newest units of an artifact). Each child has its own cursor and one read (four units) in memory,
//! so a slow child blocks no other and costs no more than that.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cohort_core::ids::Digest;
use cohort_transfer::{UNIT_BYTES, UnitRun, UnitSet, span_of, unit_count};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::budget::Budget;
use crate::frame::{ALIVE, INDEX_BYTES};
use crate::part::Part;
use crate::store::ArtifactStore;

/// A parent with nothing to send sends a heartbeat after this long, in milliseconds: a third of
/// what a child tolerates ([`crate::Limits::silence_ms_max`]).
pub(crate) const ALIVE_MS: u64 = 100;

/// How long a parent with none of the artifact holds a subscription, in milliseconds: its own
/// orders arrive within the two seconds of a long poll.
pub(crate) const ABSENT_MS_MAX: u64 = 10_000;

/// Units per disk read: 256 KiB, one system call.
const READ_UNITS_MAX: u32 = 4;

/// Bounds of a piece sent at a time under a limit, in bytes: less than a packet gains nothing; a
/// fifth of a unit's frame, with its chunk header, fits into one TLS record of 16 KiB.
const PIECE_BYTES_MIN: usize = 1_024;
const PIECE_BYTES_MAX: usize = (UNIT_BYTES as usize + INDEX_BYTES).div_ceil(5);

/// A unit is spread over this fraction of the time until the next one: a third, so that a child
/// slightly behind catches up, and a hop adds no more delay than that.
const SPREAD_PART: u32 = 3;

/// Resolution of a timer; pieces due sooner are sent immediately.
const SLEEP_MIN: Duration = Duration::from_millis(1);

/// Most runs in one request: holes come from failures and are few. The rest is requested once these
/// have arrived. 4,096 runs are 130 KB of JSON.
pub const RUNS_MAX: usize = 4_096;

/// A subscription's body: the units that a child lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubscribeRequest {
    /// The missing units, ascending, at most [`RUNS_MAX`] runs.
    pub lacks: Vec<UnitRun>,
}

impl SubscribeRequest {
    /// Whether runs ascend without overlap, so that the work for all of them is bounded by the
    /// units of the artifact.
    pub(crate) fn is_in_order(&self) -> bool {
        self.lacks.windows(2).all(|pair| pair[0].end() <= pair[1].first)
    }
}

/// The file to read units from: a whole artifact, or one still arriving.
enum Origin {
    Whole(Arc<File>, u64),
    Part(Arc<File>, Arc<Part>, watch::Receiver<u32>),
}

pub(crate) struct Subscription {
    pub(crate) store: Arc<ArtifactStore>,
    pub(crate) digest: Digest,
    pub(crate) child: String,
    pub(crate) lacks: Vec<UnitRun>,
    pub(crate) upload: Arc<Budget>,
    /// How long the child may take for one read (256 KiB), in milliseconds.
    pub(crate) taken_ms_max: u64,
}

impl Subscription {
    /// Runs until everything is sent, or the child is gone or too slow.
    pub(crate) async fn run(self, sender: mpsc::Sender<io::Result<Bytes>>) {
        let mut changes = self.store.changes();
        let absent_until = Instant::now() + Duration::from_millis(ABSENT_MS_MAX);
        let mut wanted: Option<UnitSet> = None;
        let mut origin: Option<Origin> = None;
        let mut alive_at = Instant::now();
        loop {
            changes.borrow_and_update();
            if origin.as_ref().is_none_or(|origin| self.is_stale(origin)) {
                origin = match self.open() {
                    Ok(origin) => origin,
                    Err(error) => {
                        let _ = sender.send(Err(error)).await;
                        return;
                    }
                };
            }
            if let Some(origin) = &mut origin {
                if let Origin::Part(_, _, arrivals) = origin {
                    arrivals.borrow_and_update();
                }
                let wanted =
                    wanted.get_or_insert_with(|| UnitSet::from_runs(origin.units(), &self.lacks));
                if let Some(run) = origin.next(wanted, &self.child) {
                    if !self.send(&sender, origin, run).await {
                        return;
                    }
                    alive_at = Instant::now() + Duration::from_millis(ALIVE_MS);
                    continue;
                }
                if wanted.is_empty() {
                    return;
                }
            } else if Instant::now() >= absent_until {
                return;
            }
            if Instant::now() >= alive_at {
                if !self.live(&sender).await {
                    return;
                }
                alive_at = Instant::now() + Duration::from_millis(ALIVE_MS);
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = arrival(origin.as_mut()) => {}
                () = sleep_until(alive_at) => {}
                () = sender.closed() => return,
            }
        }
    }

    /// Sends the units of a run; `false` if nothing more can be sent.
    async fn send(
        &self,
        sender: &mpsc::Sender<io::Result<Bytes>>,
        origin: &Origin,
        run: UnitRun,
    ) -> bool {
        let frames = match origin.recent(run) {
            Some(frames) => frames,
            None => match self.read(sender, origin, run).await {
                Some(Ok(frames)) => vec![frames],
                Some(Err(error)) => {
                    self.put(sender, Err(error)).await;
                    return false;
                }
                None => return false,
            },
        };
        // A child that keeps up gets a unit spread over time, so that the service's own packets fit
        // in between; one that is behind gets all that the wire carries.
        let spread = if run.count == 1 { origin.interval() / SPREAD_PART } else { Duration::ZERO };
        let begun = Instant::now();
        for mut frame in frames {
            let (length, mut sent) = (count(frame.len()), 0);
            while !frame.is_empty() {
                // Small pieces under a limit, so that the child always gets a heartbeat in time.
                let most = match self.upload.limit() {
                    Some(limit) => piece_bytes(limit),
                    None if spread.is_zero() => frame.len(),
                    None => PIECE_BYTES_MAX,
                };
                let piece = frame.split_to(frame.len().min(most));
                let due = begun + spread * sent / length;
                if due.saturating_duration_since(Instant::now()) >= SLEEP_MIN {
                    sleep_until(due).await;
                }
                sent += count(piece.len());
                self.upload.take(piece.len(), || ()).await;
                if !self.put(sender, Ok(piece)).await {
                    return false;
                }
            }
        }
        true
    }

    /// Reads a run from the disk, with heartbeats while the disk is slow. `None` if the child is
    /// gone.
    async fn read(
        &self,
        sender: &mpsc::Sender<io::Result<Bytes>>,
        origin: &Origin,
        run: UnitRun,
    ) -> Option<io::Result<Bytes>> {
        let mut read = std::pin::pin!(origin.read(run));
        loop {
            if let Ok(read) = timeout(Duration::from_millis(ALIVE_MS), read.as_mut()).await {
                return Some(read);
            }
            if !self.live(sender).await {
                return None;
            }
        }
    }

    async fn live(&self, sender: &mpsc::Sender<io::Result<Bytes>>) -> bool {
        self.put(sender, Ok(Bytes::copy_from_slice(&ALIVE.to_be_bytes()))).await
    }

    async fn put(
        &self,
        sender: &mpsc::Sender<io::Result<Bytes>>,
        piece: io::Result<Bytes>,
    ) -> bool {
        let taken = timeout(Duration::from_millis(self.taken_ms_max), sender.send(piece)).await;
        matches!(taken, Ok(Ok(())))
    }

    fn open(&self) -> io::Result<Option<Origin>> {
        if let Some((file, length)) =
            self.store.open_whole(&self.digest).map_err(io::Error::other)?
        {
            return Ok(Some(Origin::Whole(Arc::new(file), length)));
        }
        let Some(part) = self.store.part(&self.digest) else { return Ok(None) };
        let arrivals = part.arrivals();
        Ok(Some(Origin::Part(Arc::new(part.reader()?), part, arrivals)))
    }

    /// Whether nothing more will arrive, because the fetch that wrote it has ended.
    fn is_stale(&self, origin: &Origin) -> bool {
        let Origin::Part(_, part, _) = origin else { return false };
        if part.held() == part.hashes().count() {
            return false;
        }
        self.store.part(&self.digest).is_none_or(|current| !Arc::ptr_eq(part, &current))
    }
}

impl Origin {
    fn length(&self) -> u64 {
        match self {
            Origin::Whole(_, length) => *length,
            Origin::Part(_, part, _) => part.hashes().length(),
        }
    }

    fn units(&self) -> u32 {
        unit_count(self.length())
    }

    fn next(&self, wanted: &mut UnitSet, child: &str) -> Option<UnitRun> {
        match self {
            Origin::Whole(..) => {
                let run = wanted.run_from(0, READ_UNITS_MAX)?;
                wanted.remove_run(run);
                Some(run)
            }
            Origin::Part(_, part, _) => part.next_wanted(wanted, child, READ_UNITS_MAX),
        }
    }

    /// The time between two arrivals; zero for a whole artifact.
    fn interval(&self) -> Duration {
        match self {
            Origin::Whole(..) => Duration::ZERO,
            Origin::Part(_, part, _) => part.interval(),
        }
    }

    /// The frames of a run, if all of them are still in memory.
    fn recent(&self, run: UnitRun) -> Option<Vec<Bytes>> {
        match self {
            Origin::Whole(..) => None,
            Origin::Part(_, part, _) => (run.first..run.end()).map(|i| part.recent(i)).collect(),
        }
    }

    async fn read(&self, run: UnitRun) -> io::Result<Bytes> {
        let (Origin::Whole(file, _) | Origin::Part(file, _, _)) = self;
        let (file, total) = (Arc::clone(file), self.length());
        let read = tokio::task::spawn_blocking(move || frames(&file, total, run));
        read.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// Bytes of a frame, or of a piece of one.
fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Bytes to send at a time under a limit in bytes per second: a fiftieth of a second's worth, so
/// that each of several children hears something long before silence counts as failure.
fn piece_bytes(limit: u64) -> usize {
    usize::try_from(limit / 50).unwrap_or(usize::MAX).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
}

async fn arrival(origin: Option<&mut Origin>) {
    match origin {
        Some(Origin::Part(_, _, arrivals)) => {
            if arrivals.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        Some(Origin::Whole(..)) | None => std::future::pending().await,
    }
}

fn frames(file: &File, total: u64, run: UnitRun) -> io::Result<Bytes> {
    let (_, length) = span_of(total, run);
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let mut piece = vec![0; length + run.count as usize * INDEX_BYTES];
    let mut at = 0;
    for index in run.first..run.end() {
        let (start, length) = span_of(total, UnitRun { first: index, count: 1 });
        let length = usize::try_from(length).map_err(io::Error::other)?;
        piece[at..at + INDEX_BYTES].copy_from_slice(&index.to_be_bytes());
        at += INDEX_BYTES;
        file.read_exact_at(&mut piece[at..at + length], start)?;
        at += length;
    }
    Ok(piece.into())
}
