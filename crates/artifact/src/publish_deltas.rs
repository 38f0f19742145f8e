//! Deltas from the last versions, made while a release is published.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use cohort_core::ids::{AppId, Platform, Version};
use tempfile::NamedTempFile;
use tough::schema::Targets;

use crate::delta::{DeltaError, DeltaMaker};
use crate::durable::unfinished;
use crate::layout::{BLOBS_DIR, blob_path, manifest_target, units_path};
use crate::lock::RepositoryLock;
use crate::manifest::{Delta, Manifest};
use crate::publish::{DeltaTried, PublishRequest};
use crate::repository::{Repository, RepositoryError, release_of_target};
use crate::steps::Step;
use crate::units::hash_file;

/// Versions that deltas are made from. Three: what runs is rarely older, and each costs as long as
/// the first.
pub(crate) const DELTAS_MAX: usize = 3;

/// Versions among which the last ones are looked for, by what people mean by later: it costs a
/// publisher far from the repository one small file each.
pub(crate) const EARLIER_MAX: usize = 12;

/// Artifacts under this take one moment whole.
const ARTIFACT_BYTES_MIN: u64 = 256 << 10;

/// A delta on its way into the repository.
pub(crate) struct Made {
    tried: DeltaTried,
    file: Option<(NamedTempFile, Vec<u8>)>,
}

impl Made {
    pub(crate) fn delta(&self) -> Option<&Delta> {
        self.tried.outcome.as_ref().ok()
    }

    /// What came of it, and what is to be stored.
    pub(crate) fn into_steps(self) -> (DeltaTried, Vec<Step>) {
        let mut steps = Vec::new();
        if let (Ok(delta), Some((file, units))) = (&self.tried.outcome, self.file) {
            steps.push(Step::file(PathBuf::from(blob_path(&delta.root)), file));
            steps.push(Step::bytes(PathBuf::from(units_path(&delta.root)), units));
        }
        (self.tried, steps)
    }
}

/// The names of the manifests among which the last versions of an app are looked for; of one
/// platform, or of all.
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
    releases.sort_by(|a, b| later(&b.version, &a.version));
    let mut versions: Vec<&Version> = releases.iter().map(|release| &release.version).collect();
    versions.dedup();
    versions.truncate(EARLIER_MAX);
    let chosen = releases.iter().filter(|release| versions.contains(&&release.version));
    chosen.map(|r| manifest_target(&r.app, &r.version, &r.platform)).collect()
}

/// Order of versions as people read them: numbers by their value, not by their digits.
fn later(one: &Version, other: &Version) -> Ordering {
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
    parts(one).cmp(&parts(other)).then_with(|| one.as_str().cmp(other.as_str()))
}

impl Repository {
    /// The last releases of an app for a platform, the latest first: those that the next one gets
    /// deltas from. In a working copy, those whose manifests were pulled.
    ///
    /// # Errors
    /// When the repository cannot be read or is not signed by its root.
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
                // Damaged, of another schema, or not pulled: nothing to start from, and no reason to
                // stop.
                Err(
                    RepositoryError::Io { .. }
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

    /// Tries a delta from each of the releases. What fails is told and costs nothing else.
    pub(crate) async fn make_deltas(
        &self,
        lock: &RepositoryLock,
        request: &PublishRequest,
        earlier: Vec<Manifest>,
        manifest: &Manifest,
        artifact: PathBuf,
    ) -> Result<Vec<Made>, RepositoryError> {
        if earlier.is_empty() || manifest.length < ARTIFACT_BYTES_MIN {
            return Ok(Vec::new());
        }
        let (held, request, manifest) = (lock.clone(), request.clone(), manifest.clone());
        let repository = self.clone();
        let making = tokio::task::spawn_blocking(move || {
            let _held = held;
            let blobs = repository.dir().join(BLOBS_DIR);
            let maker = DeltaMaker::new(&artifact, &manifest.root, manifest.length, &blobs);
            let unusable = match &maker {
                Ok(Some(_)) => None,
                Ok(None) => Some(
                    "the artifact is compressed in a way that servers cannot repeat: publish a \
                     folder, or a plain tar"
                        .to_owned(),
                ),
                Err(error) => Some(chain(error)),
            };
            let maker = maker.ok().flatten();
            let tries = earlier.into_iter().map(|base| {
                let why = unusable.clone().unwrap_or_default();
                let made = maker.as_ref().ok_or(why).and_then(|maker| {
                    request.told.tell(&format!("making the delta from {}", base.version));
                    repository.make_delta(&request, &base, &manifest, maker, &blobs)
                });
                let (outcome, file) = match made {
                    Ok((delta, file)) => (Ok(delta), Some(file)),
                    Err(why) => (Err(why), None),
                };
                Made { tried: DeltaTried { from: base.version, outcome }, file }
            });
            tries.collect()
        });
        making.await.map_err(|_| RepositoryError::Stopped)
    }

    fn make_delta(
        &self,
        request: &PublishRequest,
        base: &Manifest,
        manifest: &Manifest,
        maker: &DeltaMaker,
        blobs: &Path,
    ) -> Result<(Delta, (NamedTempFile, Vec<u8>)), String> {
        if base.root == manifest.root {
            return Err("it is the same artifact".to_owned());
        }
        let here = self.dir().join(blob_path(&base.root));
        let outside = request.bases.get(&base.root);
        let path = if here.is_file() { Some(&here) } else { outside };
        let path = path.ok_or("its artifact is not at hand")?;
        if !hash_file(path).is_ok_and(|hashes| hashes.root == base.root) {
            return Err("its artifact is damaged".to_owned());
        }
        let file = unfinished(blobs).map_err(|error| error.to_string())?;
        let made = maker.delta_from(path, file.as_file()).map_err(|error| chain(&error))?;
        let made = made.ok_or("too little is the same: it would not be worth it")?;
        let delta = Delta {
            from: base.root.clone(),
            method: made.method,
            length: made.hashes.length,
            root: made.hashes.root,
        };
        Ok((delta, (file, made.hashes.units.to_bytes())))
    }
}

fn chain(error: &DeltaError) -> String {
    crate::fetch::chain(error)
}

#[cfg(test)]
mod publish_deltas_test {
    use super::{EARLIER_MAX, earlier_names};

    #[test]
    fn the_last_versions_are_those_that_people_mean() {
        let names: Vec<String> =
            (1..=40).map(|n| format!("apps/web/1.{n}.0/linux/manifest.json")).collect();
        let names = names.iter().map(String::as_str).chain([
            "apps/web/1.9.0-rc.2/linux/manifest.json",
            "apps/other/9.0.0/linux/manifest.json",
            "apps/web/7.0.0/mac/manifest.json",
            "channels/web/stable.json",
        ]);
        let platform = "linux".parse().unwrap();
        let found = earlier_names(names, &"web".parse().unwrap(), Some(&platform));
        assert_eq!(found.len(), EARLIER_MAX);
        assert_eq!(found[0], "apps/web/1.40.0/linux/manifest.json");
        assert_eq!(found[11], "apps/web/1.29.0/linux/manifest.json");
    }
}
