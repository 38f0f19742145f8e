//! Fetching units from origins: for everybody and the disk ([`fill`]), or for one reader only
//! ([`Direct`]), when the disk is full.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cohort_artifact::{UNIT_BYTES, blob_path};
use tokio::sync::SemaphorePermit;

use crate::blob::{Blob, Claim, Lost};
use crate::metrics::add;
use crate::origins::{Body, OriginError, Refused};

/// Rounds through all origins without a single unit before a run is given up: the second meets
/// origins that have just come back.
const ROUNDS_MAX: u32 = 2;

/// The longest pause between two rounds: readers wait, and would rather ask another mirror.
const ROUND_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Fetches the units of a claim, hands them to those who wait, and writes them down.
pub(crate) async fn fill(mut claim: Claim) {
    let blob = Arc::clone(&claim.blob);
    // Fails only when the semaphore is closed, which it never is.
    let Ok(_permit) = blob.shared.origins.bulk.acquire().await else { return };
    let mut rounds = 0;
    while claim.next() < claim.end() {
        let before = claim.next();
        let refused = match round(&blob, &mut claim).await {
            Ok(()) => return,
            Err(Lost::NotKept) => return claim.end_with(&Lost::NotKept),
            Err(Lost::Refused(refused)) => refused,
        };
        rounds = if claim.next() > before { 1 } else { rounds + 1 };
        let pause = match &refused {
            Refused::Later(after) => *after,
            Refused::Failed(_) => Duration::from_millis(blob.shared.limits.backoff_ms_min) * 2,
            Refused::Absent => ROUND_PAUSE_MAX * 2,
        };
        if rounds >= ROUNDS_MAX || pause > ROUND_PAUSE_MAX {
            tracing::warn!(artifact = %blob.hashes.root(), unit = claim.next(), ?refused, "units do not come");
            return claim.end_with(&Lost::Refused(refused));
        }
        tokio::time::sleep(pause).await;
    }
}

/// Asks every origin once for what is still missing. Each goes on where the one before ended.
async fn round(blob: &Arc<Blob>, claim: &mut Claim) -> Result<(), Lost> {
    let origins = &blob.shared.origins;
    let mut turn = origins.turn(blob.hashes.root().as_str());
    while let Some(origin) = turn.next() {
        let asked = Instant::now();
        let mut run = Run { blob, next: claim.next(), body: None };
        loop {
            let bytes = match run.unit(origin, claim.end()).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    turn.failed(origin, &error);
                    break;
                }
            };
            add(&blob.shared.metrics.misses, 1);
            origins.delivered(origin, asked);
            // First to those who wait, then to the disk, which may be slower than they are.
            claim.arrived(&bytes);
            let (index, disk) = (claim.next(), Arc::clone(blob));
            let written = tokio::task::spawn_blocking(move || disk.write(index, &bytes)).await;
            match written {
                Ok(Ok(())) => claim.written(),
                failed => {
                    tracing::error!(artifact = %blob.hashes.root(), unit = index, ?failed, "unit cannot be kept");
                    blob.shared.disk_refused(blob);
                    return Err(Lost::NotKept);
                }
            }
            if claim.next() == claim.end() {
                return Ok(());
            }
        }
    }
    Err(Lost::Refused(turn.refused()))
}

/// One answer of one origin, taken apart into verified units.
struct Run<'a> {
    blob: &'a Arc<Blob>,
    next: u32,
    body: Option<Body<'a>>,
}

impl Run<'_> {
    /// The next unit, verified. The request goes out with the first and asks for all before `end`.
    async fn unit(&mut self, origin: usize, end: u32) -> Result<Bytes, OriginError> {
        let shared = &self.blob.shared;
        let hashes = &self.blob.hashes;
        let (start, length) = hashes.span(self.next).map_err(wrong)?;
        let body = match &mut self.body {
            Some(body) => body,
            none => {
                let last = (u64::from(end) * u64::from(UNIT_BYTES)).min(hashes.length()) - 1;
                let path = blob_path(hashes.root());
                none.insert(shared.origins.get_range(origin, &path, (start, last)).await?)
            }
        };
        let time = Duration::from_millis(shared.limits.unit_ms_max);
        let bytes = body.at_most(length, time).await?;
        if bytes.len() < length {
            return Err(OriginError::Failed(format!("ended within unit {}", self.next)));
        }
        hashes.verify_unit(self.next, &bytes).map_err(wrong)?;
        self.next += 1;
        Ok(bytes)
    }
}

fn wrong(error: impl std::fmt::Display) -> OriginError {
    OriginError::Wrong(error.to_string())
}

/// Units for one reader, past the disk: at the reader's own pace.
pub(crate) struct Direct<'a> {
    run: Option<(usize, Instant, Run<'a>)>,
    _permit: SemaphorePermit<'a>,
}

impl<'a> Direct<'a> {
    /// Waits for a place among the few.
    pub(crate) async fn begin(blob: &'a Arc<Blob>) -> Result<Self, Refused> {
        let waiting = blob.shared.passing_on.acquire();
        let permit = tokio::time::timeout(blob.shared.limits.first_byte(), waiting).await;
        match permit {
            Ok(Ok(permit)) => Ok(Self { run: None, _permit: permit }),
            Ok(Err(_)) | Err(_) => Err(Refused::Later(ROUND_PAUSE_MAX)),
        }
    }

    /// Unit `index`, verified; `end` is where the reader will stop.
    pub(crate) async fn unit(
        &mut self,
        blob: &'a Arc<Blob>,
        index: u32,
        end: u32,
    ) -> Result<Bytes, Refused> {
        let origins = &blob.shared.origins;
        let mut turn = origins.turn(blob.hashes.root().as_str());
        loop {
            let (origin, asked, mut run) = match self.run.take().filter(|run| run.2.next == index) {
                Some(run) => run,
                None => match turn.next() {
                    Some(origin) => (origin, Instant::now(), Run { blob, next: index, body: None }),
                    None => return Err(turn.refused()),
                },
            };
            match run.unit(origin, end).await {
                Ok(bytes) => {
                    origins.delivered(origin, asked);
                    add(&blob.shared.metrics.passed_on, 1);
                    self.run = Some((origin, asked, run));
                    return Ok(bytes);
                }
                Err(error) => turn.failed(origin, &error),
            }
        }
    }
}
