//! Deltas on a server's disk: which one to fetch, and how to build an artifact from it.
//!
//! A delta is fetched like any artifact, by its own root. This module does what comes before (is
//! there a base, and is the delta smaller than what is missing?) and after (apply, verify, rename).
//!
//! ```text
//! <state_dir>/artifacts/<root>.delta        attempts to build <root> from a delta, one byte;
//!                                           removed once it is whole
//! <state_dir>/artifacts/.unfinished-*       the result of a delta, until it is verified
//! ```
//!
//! The result is written to an unfinished file, hashed as it is written, and gets the artifact's
//! name only if its root is the signed one. The next start sweeps what a crash leaves behind. The
//! count of attempts is persisted before an attempt starts, so that a delta that crashes the agent
//! is abandoned in favour of the whole artifact.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use cohort_artifact::{Delta, DeltaError, DeltaInput, Method, apply_delta};
use cohort_base::{OnPath as _, durable};
use cohort_core::ids::Digest;

use super::{ArtifactStore, Claim, UNIT_BYTES};
use crate::part::rehash;
use crate::store_error::StoreError;

/// Attempts after which a delta is abandoned. Two, because a power cut during the first is not the
/// delta's fault.
const TRIES_MAX: u8 = 2;

/// The delta itself failed: never retried for this artifact.
const FAILED: u8 = u8::MAX;

const TRIES_SUFFIX: &str = ".delta";

/// Why an artifact could not be built from a delta. The whole artifact is fetched instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The delta, or its base, is corrupt.
    #[error("the delta from {from} to {artifact} failed")]
    Delta {
        from: Digest,
        artifact: Digest,
        #[source]
        source: DeltaError,
    },
    /// The disk failed, or a file is no longer there.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ArtifactStore {
    /// The delta to fetch instead of an artifact: of those with a whole base here and a known
    /// method, the one with the fewest missing bytes, if fewer than the artifact itself lacks.
    /// Blocks while it hashes what an earlier try left.
    #[must_use]
    pub fn choose_delta(&self, artifact: &Digest, length: u64, deltas: &[Delta]) -> Option<Delta> {
        if deltas.is_empty() || self.is_whole(artifact) || self.tries(artifact) >= TRIES_MAX {
            return None;
        }
        let usable = deltas.iter().filter(|delta| {
            Method::known(&delta.method).is_some()
                && self.is_whole(&delta.from)
                && (1..length).contains(&delta.length)
        });
        let missing = |delta: &Delta| self.missing_bytes(&delta.root, delta.length);
        let (missing, delta) =
            usable.map(|delta| (missing(delta), delta)).min_by_key(|(missing, _)| *missing)?;
        (missing < self.missing_bytes(artifact, length)).then(|| delta.clone())
    }

    /// Missing bytes of an artifact; its full length if that cannot be determined.
    fn missing_bytes(&self, digest: &Digest, length: u64) -> u64 {
        if self.is_whole(digest) {
            return 0;
        }
        let held = match self.part(digest) {
            Some(part) => part.held(),
            None => {
                let hashes = self.read_hashes(digest, length).ok().flatten();
                let part = File::open(self.part_path(digest)).ok();
                match (hashes, part) {
                    (Some(hashes), Some(part)) => {
                        rehash(&part, &hashes).map_or(0, |have| have.held())
                    }
                    _ => 0,
                }
            }
        };
        length.saturating_sub(u64::from(held) * u64::from(UNIT_BYTES))
    }

    /// Builds an artifact of `length` bytes from a delta and its base, which are whole here. The
    /// result is whole, verified and durable, as if it had been fetched. After a failure, this
    /// delta is not tried again. Leaves `reserve` bytes free on the disk. Blocking.
    ///
    /// # Errors
    /// If there is no room, the delta is corrupt, or the result is not the artifact.
    pub fn apply_delta(
        self: &Arc<Self>,
        artifact: &Digest,
        length: u64,
        delta: &Delta,
        reserve: u64,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), ApplyError> {
        let claim = self.claim(artifact, length)?;
        if claim.is_whole() {
            return Ok(());
        }
        let tries = self.tries(artifact);
        self.put_tries(artifact, tries.saturating_add(1))?;
        let built = match self.build(&claim, delta, reserve, stopped) {
            Ok(built) => built,
            Err(error) => {
                // Being stopped is not the delta's fault: it is tried again after a restart. Nor is
                // a missing base.
                let blameless = matches!(
                    error,
                    ApplyError::Delta { source: DeltaError::Stopped, .. }
                        | ApplyError::Store(StoreError::Absent { .. })
                );
                self.put_tries(artifact, if blameless { tries } else { FAILED })?;
                return Err(error);
            }
        };
        let whole = self.whole_path(artifact);
        let placed = durable::put_in_place(built, &whole, durable::READABLE);
        placed.on_path("write", &whole).map_err(StoreError::File)?;
        self.inner.lock().whole.insert(artifact.clone(), length);
        self.changed();
        // Left by an interrupted download, no longer needed.
        for left in [self.part_path(artifact), self.tries_path(artifact)] {
            match fs::remove_file(&left) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err::<(), _>(error).on_path("remove", &left).map_err(StoreError::File)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The verified artifact as an unfinished file; by then, its unit hashes are durable.
    fn build(
        &self,
        claim: &Claim,
        delta: &Delta,
        reserve: u64,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<durable::NamedTempFile, ApplyError> {
        let (artifact, length) = (&claim.digest, claim.length);
        let absent = |digest: &Digest| StoreError::Absent { digest: digest.clone() };
        let base = self.path(&delta.from).ok_or_else(|| absent(&delta.from))?;
        let (file, _) = self.open_whole(&delta.root)?.ok_or_else(|| absent(&delta.root))?;
        let failed = |source| ApplyError::Delta {
            from: delta.from.clone(),
            artifact: artifact.clone(),
            source,
        };
        let method = Method::known(&delta.method)
            .ok_or_else(|| failed(DeltaError::Method { method: delta.method.clone() }))?;
        // The space of a `.part` does not count as free: it is removed only after success.
        let free = (self.free_space)(&self.folder)
            .on_path("get the free space of", &self.folder)
            .map_err(StoreError::File)?;
        let needed = length.saturating_add(reserve);
        let scratch_bytes_max = free.checked_sub(needed).ok_or_else(|| {
            let path = self.folder.clone();
            StoreError::NoSpace { path, needed, reserve, free }
        })?;
        let made = durable::unfinished(&self.folder);
        let built = made.on_path("create a file in", &self.folder).map_err(StoreError::File)?;
        let input = DeltaInput {
            base: &base,
            delta: &file,
            method,
            root: artifact,
            length,
            scratch: &self.folder,
            scratch_bytes_max,
            stopped,
        };
        let hashes = apply_delta(&input, &mut built.as_file()).map_err(failed)?;
        claim.put_hashes(&hashes.to_bytes())?;
        Ok(built)
    }

    /// Number of started attempts to build an artifact from a delta.
    fn tries(&self, artifact: &Digest) -> u8 {
        let tries = fs::read(self.tries_path(artifact)).unwrap_or_default();
        tries.first().copied().unwrap_or(0)
    }

    pub(crate) fn put_tries(&self, artifact: &Digest, tries: u8) -> Result<(), StoreError> {
        let path = self.tries_path(artifact);
        Ok(durable::write(&path, &[tries], durable::READABLE).on_path("write", &path)?)
    }

    fn tries_path(&self, artifact: &Digest) -> PathBuf {
        self.folder.join(format!("{artifact}{TRIES_SUFFIX}"))
    }
}

#[cfg(test)]
#[path = "delta_test.rs"]
pub(crate) mod delta_test;
