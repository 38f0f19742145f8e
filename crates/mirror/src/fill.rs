//! Fetching units from origins, for all waiting readers and for the disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cohort_artifact::client::{Answer, Wanted};
use cohort_artifact::{UNIT_BYTES, blob_path};

use crate::blob::{Blob, Claim};
use crate::origins::{OriginError, Refused};

/// Rounds through all origins without a single unit before a run fails: the second catches origins
/// that have just recovered.
const ROUNDS_MAX: u32 = 2;

/// The longest pause between two rounds: readers are waiting, and would rather ask another mirror.
const ROUND_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Fetches the units of a claim, delivers them to the waiting readers, and writes them to disk.
pub(crate) async fn fill(mut claim: Claim) {
    let blob = Arc::clone(&claim.blob);
    // Fails only if the semaphore is closed, which never happens.
    let Ok(_permit) = blob.cache.origins.bulk.acquire().await else { return };
    let mut rounds = 0;
    while claim.next() < claim.end() {
        let before = claim.next();
        let Some(refused) = round(&blob, &mut claim).await else { return };
        rounds = if claim.next() > before { 1 } else { rounds + 1 };
        let pause = match &refused {
            Refused::Later(after) => *after,
            // Longer than the pause after an origin's first failure.
            Refused::Failed(_) => blob.cache.limits.pauses.pause(2, u64::MAX),
            Refused::Absent => Duration::MAX,
        };
        if rounds >= ROUNDS_MAX || pause > ROUND_PAUSE_MAX {
            let (artifact, unit) = (blob.hashes.root(), claim.next());
            tracing::warn!(%artifact, unit, ?refused, "cannot get the unit from any origin");
            return claim.end_with(&refused);
        }
        tokio::time::sleep(pause).await;
    }
}

/// Asks every origin once for what is still missing; each continues where the previous one stopped.
/// `None` once nothing is left to do.
async fn round(blob: &Arc<Blob>, claim: &mut Claim) -> Option<Refused> {
    let origins = &blob.cache.origins;
    let mut turn = origins.turn(blob.hashes.root().as_str());
    while let Some(origin) = turn.next() {
        let asked = Instant::now();
        let mut run = Run { blob, origin, next: claim.next(), answer: None };
        loop {
            let bytes = match run.unit(claim.end()).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    turn.failed(origin, asked, &error);
                    break;
                }
            };
            origins.delivered(origin, asked);
            let (kept, metrics) = (blob.is_kept(), &blob.cache.metrics);
            (if kept { &metrics.misses } else { &metrics.passed_on }).inc();
            // Readers first, then the disk, which may be slower.
            claim.arrived(&bytes);
            if !kept {
                claim.passed_on();
                return None;
            }
            let (index, disk) = (claim.next(), Arc::clone(blob));
            match tokio::task::spawn_blocking(move || disk.write(index, &bytes)).await {
                Ok(Ok(())) => claim.written(),
                failed => {
                    let artifact = blob.hashes.root();
                    tracing::error!(%artifact, unit = index, ?failed, "cannot write unit to disk");
                    blob.cache.disk_refused(blob);
                    return None;
                }
            }
            if claim.next() == claim.end() {
                return None;
            }
        }
    }
    Some(turn.refused())
}

/// One response of one origin, split into verified units.
struct Run<'a> {
    blob: &'a Blob,
    origin: usize,
    next: u32,
    answer: Option<Answer>,
}

impl Run<'_> {
    /// The next unit, verified. The request is sent for the first one, for all units before `end`.
    async fn unit(&mut self, end: u32) -> Result<Bytes, OriginError> {
        let Blob { cache, hashes, .. } = self.blob;
        let (start, length) = hashes.span(self.next).map_err(OriginError::wrong)?;
        let answer = match &mut self.answer {
            Some(answer) => answer,
            none => {
                let last = (u64::from(end) * u64::from(UNIT_BYTES)).min(hashes.length()) - 1;
                let wanted = Wanted { range: Some((start, last)), ..Wanted::default() };
                let path = blob_path(hashes.root());
                none.insert(cache.origins.get(self.origin, &path, &wanted).await?)
            }
        };
        let bytes = answer.at_most(length, cache.limits.answer_max).await?;
        cache.metrics.origin_bytes.inc_by(bytes.len() as u64);
        if bytes.len() < length {
            return Err(OriginError::CutShort(self.next));
        }
        hashes.verify_unit(self.next, &bytes).map_err(OriginError::wrong)?;
        self.next += 1;
        Ok(bytes)
    }
}
