//! Opening an artifact: from memory, from the disk, or from an origin.
//!
//! A reader names an artifact by its root; its length is unknown at first. So the unit hashes come
//! first, which are verified against the root and give the number of units; then the last unit,
//! whose hash shows where it ends. After these two, the length is as certain as the root, whatever
//! origins claim.

use std::sync::Arc;

use bytes::Bytes;
use cohort_artifact::client::Wanted;
use cohort_artifact::{
    ARTIFACT_BYTES_MAX, UNIT_BYTES, UnitHashes, blob_path, root_of_units, units_path,
};
use cohort_base::chain;
use cohort_core::ids::Digest;

use crate::blob::Blob;
use crate::cache::Shared;
use crate::origins::{OriginError, Refused};

/// Longest file of unit hashes: that of the longest artifact.
const HASHES_BYTES_MAX: u64 = ARTIFACT_BYTES_MAX / UNIT_BYTES as u64 * blake3::OUT_LEN as u64;

impl Shared {
    /// Opens an artifact; concurrent callers share the work.
    pub(crate) async fn artifact(self: &Arc<Self>, digest: &Digest) -> Result<Arc<Blob>, Refused> {
        if let Some(blob) = self.store.get(digest) {
            return Ok(blob);
        }
        let (cache, of) = (Arc::clone(self), digest.clone());
        self.opening.ask(digest.as_str(), || async move { cache.open_artifact(&of).await }).await
    }

    async fn open_artifact(self: &Arc<Self>, digest: &Digest) -> Result<Arc<Blob>, Refused> {
        let broke = |error: tokio::task::JoinError| Refused::Failed(chain(&error));
        if let Some(blob) = self.store.get(digest) {
            return Ok(blob);
        }
        let (cache, of) = (Arc::clone(self), digest.clone());
        let load = move || cache.store.load(&of, &cache);
        if let Some(blob) = tokio::task::spawn_blocking(load).await.map_err(broke)? {
            return Ok(blob);
        }
        let (hashes, last_unit) = self.fetch_ends(digest).await?;
        let cache = Arc::clone(self);
        let create = move || cache.store.create(hashes, &last_unit, &cache);
        tokio::task::spawn_blocking(create).await.map_err(broke)
    }

    /// The hashes and the last unit, from the first origin that has both correct.
    async fn fetch_ends(&self, digest: &Digest) -> Result<(UnitHashes, Bytes), Refused> {
        self.origins.first(digest.as_str(), |origin| self.ends(origin, digest)).await
    }

    async fn ends(
        &self,
        origin: usize,
        digest: &Digest,
    ) -> Result<(UnitHashes, Bytes), OriginError> {
        let time = self.limits.small_max;
        let mut answer = self.origins.get(origin, &units_path(digest), &Wanted::default()).await?;
        let units = answer.rest(HASHES_BYTES_MAX, time).await?;
        self.metrics.origin_bytes.inc_by(units.len() as u64);
        let count = units.len() as u64 / blake3::OUT_LEN as u64;
        if root_of_units(&units).as_ref() != Some(digest) {
            return Err(OriginError::wrong("the unit hashes belong to another artifact"));
        }
        let last = u32::try_from(count - 1).map_err(OriginError::wrong)?;
        let start = u64::from(last) * u64::from(UNIT_BYTES);
        let range = Some((start, start + u64::from(UNIT_BYTES) - 1));
        let wanted = Wanted { range, ..Wanted::default() };
        let mut answer = self.origins.get(origin, &blob_path(digest), &wanted).await?;
        let unit = answer.at_most(UNIT_BYTES as usize, time).await?;
        self.metrics.origin_bytes.inc_by(unit.len() as u64);
        let length = (start + unit.len() as u64).max(1);
        let hashes = UnitHashes::parse_for(&units, digest, length).map_err(OriginError::wrong)?;
        hashes.verify_unit(last, &unit).map_err(OriginError::wrong)?;
        self.metrics.misses.inc();
        Ok((hashes, unit))
    }
}
