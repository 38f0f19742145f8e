//! Opening an artifact: from memory, from the disk, or from an origin.
//!
//! A reader names an artifact by its root, and nobody has said how long it is. So the unit hashes
//! come first, which prove themselves against the root and say how many units there are; then the
//! last unit, whose hash says where it ends. After these two the length is as certain as the root,
//! whatever origins say of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cohort_artifact::{ARTIFACT_BYTES_MAX, UNIT_BYTES, UnitHashes, blob_path, units_path};
use cohort_core::ids::Digest;

use crate::blob::Blob;
use crate::flights::Flights;
use crate::metrics::add;
use crate::origins::{OriginError, Refused};
use crate::recent::Recent;
use crate::shared::Shared;

/// Longest file of unit hashes: that of the longest artifact.
const HASHES_BYTES_MAX: u64 = ARTIFACT_BYTES_MAX / UNIT_BYTES as u64 * blake3::OUT_LEN as u64;

/// The artifacts of a cache, opened.
pub(crate) struct Artifacts {
    pub(crate) shared: Arc<Shared>,
    opening: Arc<Flights<Result<Arc<Blob>, Refused>>>,
    absent: Arc<Recent>,
}

impl Artifacts {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let absent = Arc::new(Recent::new(Duration::from_millis(shared.limits.absent_ms)));
        Self { shared, opening: Flights::new(), absent }
    }

    /// Opens an artifact; everybody who asks at the same time shares the work.
    pub(crate) async fn open(&self, digest: &Digest) -> Result<Arc<Blob>, Refused> {
        if let (Some(blob), _) = self.shared.store.get(digest) {
            return Ok(blob);
        }
        if self.absent.knows(digest.as_str()) {
            return Err(Refused::Absent);
        }
        let opened = self.opening.join(digest.as_str(), || {
            let (shared, absent) = (Arc::clone(&self.shared), Arc::clone(&self.absent));
            let digest = digest.clone();
            async move {
                let result = open(&shared, &digest).await;
                if matches!(result, Err(Refused::Absent)) {
                    absent.note(digest.as_str());
                }
                result
            }
        });
        let broke = || Err(Refused::Failed("opening it broke down".to_owned()));
        opened.await.unwrap_or_else(broke)
    }
}

async fn open(shared: &Arc<Shared>, digest: &Digest) -> Result<Arc<Blob>, Refused> {
    let broke = |error: tokio::task::JoinError| Refused::Failed(error.to_string());
    match shared.store.get(digest) {
        (Some(blob), _) => return Ok(blob),
        (None, true) => {
            let (store, digest) = (Arc::clone(shared), digest.clone());
            let load = move || store.store.load(&digest, &store);
            let loaded = tokio::task::spawn_blocking(load).await.map_err(broke)?;
            if let Some(blob) = loaded {
                return Ok(blob);
            }
        }
        (None, false) => {}
    }
    let (hashes, last_unit) = fetch_ends(shared, digest).await?;
    let store = Arc::clone(shared);
    let create = move || store.store.create(hashes, &last_unit, &store);
    tokio::task::spawn_blocking(create).await.map_err(broke)
}

/// The hashes and the last unit, from the first origin that has both and they are right.
async fn fetch_ends(shared: &Shared, digest: &Digest) -> Result<(UnitHashes, Bytes), Refused> {
    let origins = &shared.origins;
    // Fails only when the semaphore is closed, which it never is.
    let _permit = origins.small.acquire().await.map_err(|_| Refused::Absent)?;
    let mut turn = origins.turn(digest.as_str());
    while let Some(origin) = turn.next() {
        match ends(shared, origin, digest).await {
            Ok(ends) => {
                turn.delivered(origin);
                return Ok(ends);
            }
            Err(error) => turn.failed(origin, &error),
        }
    }
    Err(turn.refused())
}

async fn ends(
    shared: &Shared,
    origin: usize,
    digest: &Digest,
) -> Result<(UnitHashes, Bytes), OriginError> {
    let wrong = |error: String| OriginError::Wrong(format!("{digest}: {error}"));
    let time = Duration::from_millis(shared.limits.small_ms_max);
    let path = units_path(digest);
    let mut answer = shared.origins.get(origin, &path, None, http::HeaderMap::new()).await?;
    let units = answer.rest(HASHES_BYTES_MAX, time).await?;
    let count = units.len() as u64 / blake3::OUT_LEN as u64;
    let longest = (count * u64::from(UNIT_BYTES)).max(1);
    // An answer that was cut short is no lie; it fails here as well, and once is no pattern.
    UnitHashes::parse_for(&units, digest, longest).map_err(|error| wrong(error.to_string()))?;
    let last = u32::try_from(count - 1).map_err(|error| wrong(error.to_string()))?;
    let start = u64::from(last) * u64::from(UNIT_BYTES);
    let span = (start, start + u64::from(UNIT_BYTES) - 1);
    let mut answer = shared.origins.get_range(origin, &blob_path(digest), span).await?;
    let unit = answer.at_most(UNIT_BYTES as usize, time).await?;
    let length = start + unit.len() as u64;
    let hashes = UnitHashes::parse_for(&units, digest, length.max(1))
        .map_err(|error| wrong(error.to_string()))?;
    hashes.verify_unit(last, &unit).map_err(|error| wrong(error.to_string()))?;
    add(&shared.metrics.misses, 1);
    Ok((hashes, unit))
}
