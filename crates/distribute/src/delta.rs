//! Deltas on a server's disk: which one is worth fetching, and the new artifact out of it.
//!
//! A delta is fetched like any artifact, by its own root. This is what comes before (is there a base,
//! and is it less than what is still missing?) and after (apply, verify, put in place).
//!
//! ```text
//! <state_dir>/artifacts/<root>.delta        tries to build <root> from a delta, one byte; gone when
//!                                           it is whole
//! <state_dir>/artifacts/.unfinished-<root>  what a delta makes, until it is verified
//! ```
//!
//! What a delta makes is written aside, hashed as it is written, and gets the artifact's name only
//! when its root is the signed one. A crash leaves an unfinished file, which the next start sweeps;
//! the count of tries is durable before a try begins, so that a delta that brings the agent down
//! is given up for the whole artifact.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cohort_artifact::{Delta, DeltaError, DeltaInput, Method, apply_delta};
use cohort_core::ids::Digest;

use super::{ArtifactStore, UNIT_BYTES};
use crate::durable::{sync_folder, write_atomic};
use crate::part::rehash;
use crate::store_error::StoreError;

/// Tries after which a delta is left alone: a second one, because a machine may lose its power in
/// the middle of the first without the delta being to blame.
const TRIES_MAX: u8 = 2;

/// A delta that failed for its own sake: never again for this artifact.
const FAILED: u8 = u8::MAX;

const TRIES_SUFFIX: &str = ".delta";

/// Why a delta did not lead to the artifact. The whole artifact is fetched then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The delta, or what it is applied to, is not in order.
    #[error("the delta from {from} to {artifact} failed")]
    Delta {
        /// The artifact that it starts from.
        from: Digest,
        /// The artifact that it leads to.
        artifact: Digest,
        /// Why.
        #[source]
        source: DeltaError,
    },
    /// The disk, or something that is no longer there.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ArtifactStore {
    /// The delta that is to be fetched instead of an artifact: of those whose base is whole here and
    /// whose method is known, the one of which least is missing, when that is less than what is
    /// missing of the artifact itself. Blocks for as long as hashing what an earlier try left takes.
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

    /// Bytes of an artifact that are not here yet; all of them when nothing can be told.
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

    /// Builds an artifact of `length` bytes from a delta that is whole here, and its base. After
    /// that it is whole, verified and durable, as if it had been fetched; a failure changes nothing
    /// but that this delta is not tried again. `reserve` bytes stay free on the disk. Blocking.
    ///
    /// # Errors
    /// When there is no room, the delta is not in order, or the result is not the artifact.
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
        let absent = |digest: &Digest| StoreError::Absent { digest: digest.clone() };
        let base = self.path(&delta.from).ok_or_else(|| absent(&delta.from))?;
        let (file, _) = self.open_whole(&delta.root)?.ok_or_else(|| absent(&delta.root))?;
        let failed = |source| ApplyError::Delta {
            from: delta.from.clone(),
            artifact: artifact.clone(),
            source,
        };
        let tries = self.tries(artifact);
        self.put_tries(artifact, tries.saturating_add(1))?;
        let method = Method::known(&delta.method)
            .ok_or_else(|| failed(DeltaError::Method { method: delta.method.clone() }));
        let made = method.and_then(|method| {
            // A `.part` is not counted as ours here: it goes only when this has succeeded.
            let free = (self.free_space)(&self.folder)
                .map_err(StoreError::file("asking for the free space of", &self.folder))?;
            let needed = length.saturating_add(reserve);
            let scratch_bytes_max = free.checked_sub(needed).ok_or_else(|| {
                let path = self.folder.clone();
                StoreError::NoSpace { path, needed, reserve, free }
            })?;
            let aside = Aside::new(&self.folder, artifact)?;
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
            let hashes = apply_delta(&input, &mut &aside.file).map_err(failed)?;
            claim.put_hashes(&hashes.units.to_bytes())?;
            Ok(aside)
        });
        let aside = match made {
            Ok(aside) => aside,
            // Not the delta's fault: it may be tried again when the agent is back.
            Err(error @ ApplyError::Delta { source: DeltaError::Stopped, .. }) => {
                self.put_tries(artifact, tries)?;
                return Err(error);
            }
            Err(error) => {
                self.put_tries(artifact, FAILED)?;
                return Err(error);
            }
        };
        aside.put_in_place(&self.whole_path(artifact))?;
        self.lock().whole.insert(artifact.clone(), length);
        self.changed();
        // What an interrupted download left is not needed any more.
        for left in [self.part_path(artifact), self.tries_path(artifact)] {
            match fs::remove_file(&left) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::file("removing", &left)(error).into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Tries that began to build an artifact from a delta.
    fn tries(&self, artifact: &Digest) -> u8 {
        let tries = fs::read(self.tries_path(artifact)).unwrap_or_default();
        tries.first().copied().unwrap_or(0)
    }

    fn put_tries(&self, artifact: &Digest, tries: u8) -> Result<(), StoreError> {
        let path = self.tries_path(artifact);
        write_atomic(&path, &[tries]).map_err(StoreError::file("writing", &path))
    }

    fn tries_path(&self, artifact: &Digest) -> PathBuf {
        self.folder.join(format!("{artifact}{TRIES_SUFFIX}"))
    }
}

/// A file that is being written; it vanishes unless it is put in place.
struct Aside {
    file: File,
    path: PathBuf,
    placed: bool,
}

impl Aside {
    fn new(folder: &Path, artifact: &Digest) -> Result<Self, StoreError> {
        // Swept at the start like everything unfinished; the claim makes the name ours.
        let path = folder.join(format!(".unfinished-{artifact}"));
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(StoreError::file("making", &path))?;
        Ok(Self { file, path, placed: false })
    }

    fn put_in_place(mut self, to: &Path) -> Result<(), StoreError> {
        self.file.sync_all().map_err(StoreError::file("syncing", &self.path))?;
        fs::rename(&self.path, to).map_err(StoreError::file("renaming", &self.path))?;
        self.placed = true;
        let folder = to.parent().unwrap_or(Path::new("."));
        sync_folder(folder).map_err(StoreError::file("syncing", folder))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.placed {
            // Swept at the next start if this fails.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
#[path = "delta_test.rs"]
pub(crate) mod delta_test;
