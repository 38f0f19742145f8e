//! Deltas from earlier versions, made while a release is published.

use std::cmp::Ordering;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use cohort_core::ids::{AppId, Platform, Version};
use tough::schema::Targets;

use crate::delta::{DeltaError, DeltaMaker};
use crate::layout::{BLOBS_DIR, blob_path, manifest_target, units_path};
use crate::lock::RepositoryLock;
use crate::manifest::{Delta, Manifest};
use crate::publish::{DeltaTried, PublishRequest};
use crate::repository::{Repository, RepositoryError, release_of_target};
use crate::steps::Step;
use crate::units::hash_file;
use cohort_base::durable::unfinished;

/// Versions to make deltas from: servers rarely run older ones, and each takes as long as the
/// first.
pub(crate) const DELTAS_MAX: usize = 3;

/// Candidates for these by version number; each costs a remote publisher one small file.
pub(crate) const EARLIER_MAX: usize = 12;

/// Smaller artifacts are fast enough to send whole, in bytes.
const ARTIFACT_BYTES_MIN: u64 = 256 << 10;

/// Why there is no delta from a version.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoDelta {
    /// The new artifact was compressed by something other than Cohort.
    #[error(
        "the artifact is compressed in a way that servers cannot reproduce: \
         publish a folder or a plain tar"
    )]
    Compression,
    #[error("cannot read the artifact for deltas")]
    Artifact(#[source] Arc<DeltaError>),
    #[error("same artifact")]
    Same,
    /// The old artifact is neither in the repository nor in the publisher's cache.
    #[error("its artifact is not available here")]
    Missing,
    /// The old artifact does not match its manifest.
    #[error("its artifact is damaged")]
    Damaged,
    #[error("the delta would not be much smaller than the artifact")]
    TooLarge,
    #[error("the time for deltas is over: allow more with --delta-budget")]
    Budget,
    #[error("delta failed")]
    Failed(#[source] DeltaError),
    #[error("cannot write the delta")]
    Disk(#[from] io::Error),
}

/// Names of the manifests of the latest versions of an app, for one platform or all.
pub(crate) fn earlier_names<'a>(
    names: impl Iterator<Item = &'a str>,
    app: &AppId,
    platform: Option<&Platform>,
) -> Vec<String> {
    let mut releases: Vec<_> = names
        .filter_map(release_of_target)
        .filter(|release| release.app == *app)
        .filter(|release| platform.is_none_or(|platform| release.platform == *platform))
        .collect();
    releases.sort_by(|a, b| newest_first(&a.version, &b.version));
    let mut versions: Vec<&Version> = releases.iter().map(|release| &release.version).collect();
    versions.dedup();
    versions.truncate(EARLIER_MAX);
    let chosen = releases.iter().filter(|release| versions.contains(&&release.version));
    chosen.map(|r| manifest_target(&r.app, &r.version, &r.platform)).collect()
}

/// Order of versions as people read them, numbers by value, not by digits: the highest first.
pub(crate) fn newest_first(one: &Version, other: &Version) -> Ordering {
    let parts = |version: &Version| {
        let text = version.as_str().to_owned();
        let mut parts: Vec<(u128, String)> = Vec::new();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (number, after) = rest.split_at(digits);
            let words = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
            let (word, after) = after.split_at(words);
            parts.push((number.parse().unwrap_or(0), word.to_owned()));
            rest = after;
        }
        parts
    };
    parts(other).cmp(&parts(one)).then_with(|| other.as_str().cmp(one.as_str()))
}

impl Repository {
    /// The releases from which an app's next release gets deltas, latest first. In a working copy,
    /// those whose manifests were pulled.
    ///
    /// # Errors
    /// If the repository cannot be read or is not signed by its root.
    pub fn last_releases(
        &self,
        app: &AppId,
        platform: &Platform,
    ) -> Result<Vec<Manifest>, RepositoryError> {
        let current = crate::metadata::read_current(self.dir())?;
        self.earlier(&current.targets.signed, app, platform)
    }

    pub(crate) fn earlier(
        &self,
        targets: &Targets,
        app: &AppId,
        platform: &Platform,
    ) -> Result<Vec<Manifest>, RepositoryError> {
        let names = targets.targets.keys().map(tough::TargetName::raw);
        let mut manifests = Vec::new();
        for name in earlier_names(names, app, Some(platform)) {
            match self.read_manifest(targets, &name) {
                Ok(manifest) => manifests.extend(manifest),
                // Damaged, of another schema, or not pulled: one delta less.
                Err(
                    RepositoryError::File(_)
                    | RepositoryError::Damaged { .. }
                    | RepositoryError::Manifest(_),
                ) => {}
                Err(error) => return Err(error),
            }
        }
        manifests.sort_by_key(|manifest| std::cmp::Reverse(manifest.created_at));
        manifests.truncate(DELTAS_MAX);
        Ok(manifests)
    }

    /// Tries a delta from each of the releases; returns the outcomes, and the files to store. A
    /// failure costs only that delta.
    pub(crate) async fn make_deltas(
        &self,
        lock: &RepositoryLock,
        request: &PublishRequest,
        earlier: Vec<Manifest>,
        manifest: &Manifest,
        artifact: PathBuf,
    ) -> Result<(Vec<DeltaTried>, Vec<Step>), RepositoryError> {
        let Some(budget) = request.delta_budget else { return Ok((Vec::new(), Vec::new())) };
        if earlier.is_empty() || manifest.length < ARTIFACT_BYTES_MIN {
            return Ok((Vec::new(), Vec::new()));
        }
        // All of them together; the newest version is the one that most servers run.
        let begun = Instant::now();
        let (held, request, manifest) = (lock.clone(), request.clone(), manifest.clone());
        let repository = self.clone();
        let making = tokio::task::spawn_blocking(move || {
            let _held = held;
            let blobs = repository.dir().join(BLOBS_DIR);
            let maker = DeltaMaker::new(&artifact, &manifest.root, manifest.length, &blobs);
            let maker = maker.map_err(Arc::new);
            let mut files = Vec::new();
            let tries = earlier.into_iter().map(|base| {
                let outcome = match &maker {
                    Ok(Some(maker)) => {
                        (request.told)(&format!("making the delta from {}", base.version));
                        let is_over = || begun.elapsed() >= budget;
                        let made = (maker, &is_over as &(dyn Fn() -> bool + Sync));
                        repository.make_delta(&request, &base, &manifest, made, &mut files)
                    }
                    Ok(None) => Err(NoDelta::Compression),
                    Err(error) => Err(NoDelta::Artifact(Arc::clone(error))),
                };
                DeltaTried { from: base.version, outcome }
            });
            (tries.collect(), files)
        });
        making.await.map_err(|_| RepositoryError::Stopped)
    }

    fn make_delta(
        &self,
        request: &PublishRequest,
        base: &Manifest,
        manifest: &Manifest,
        (maker, is_over): (&DeltaMaker, &(dyn Fn() -> bool + Sync)),
        files: &mut Vec<Step>,
    ) -> Result<Delta, NoDelta> {
        if base.root == manifest.root {
            return Err(NoDelta::Same);
        }
        let here = self.dir().join(blob_path(&base.root));
        let outside = request.bases.get(&base.root);
        let path = if here.is_file() { Some(&here) } else { outside };
        let path = path.ok_or(NoDelta::Missing)?;
        if !hash_file(path).is_ok_and(|hashes| *hashes.root() == base.root) {
            return Err(NoDelta::Damaged);
        }
        let file = unfinished(&self.dir().join(BLOBS_DIR))?;
        let made = maker.delta_from(path, file.as_file(), is_over).map_err(|error| match error {
            DeltaError::Stopped => NoDelta::Budget,
            error => NoDelta::Failed(error),
        });
        let hashes = made?.ok_or(NoDelta::TooLarge)?;
        let (from, root) = (base.root.clone(), hashes.root().clone());
        files.push(Step::file(PathBuf::from(blob_path(&root)), file));
        files.push(Step::bytes(PathBuf::from(units_path(&root)), hashes.to_bytes()));
        Ok(Delta { from, method: maker.method().to_string(), length: hashes.length(), root })
    }
}

#[cfg(test)]
#[path = "publish_deltas_test.rs"]
mod publish_deltas_test;
