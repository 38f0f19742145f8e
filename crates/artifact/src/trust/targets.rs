//! Signed files: from this server's disk, else from the first mirror with the right bytes.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use cohort_core::ids::{AppId, Platform, Version};
use cohort_core::refused::WhyRefused;
use tough::schema::Target;

use super::{Loaded, TrustedRepository};
use crate::checks::{check_manifest, is_target, most_telling, store_error};
use crate::layout::{METADATA_DIR, blob_path, manifest_target, target_path};
use crate::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::trust_error::TrustError;
use crate::units::hash_file;
use crate::verified::VerifiedManifest;
use cohort_base::durable::{self, SECRET, create_folders, folder_of};

/// Directory of cached manifests and channels, by SHA-256, below the store.
const TARGETS_CACHE: &str = "targets";

impl TrustedRepository {
    pub(super) async fn manifest_in(
        &self,
        loaded: &Loaded,
        app: &AppId,
        version: &Version,
        platform: &Platform,
    ) -> Result<VerifiedManifest, TrustError> {
        let name = manifest_target(app, version, platform);
        let target = loaded.target(&name).ok_or_else(|| loaded.missing(app, version, platform))?;
        let bytes = self.target_bytes(&name, target, MANIFEST_BYTES_MAX).await?;
        check_manifest(&name, &bytes, app, version, platform)
    }

    /// The names of all signed targets.
    pub(crate) fn target_names(&self) -> Result<Vec<String>, TrustError> {
        let loaded = self.known()?;
        Ok(loaded.targets.keys().map(|name| name.raw().to_owned()).collect())
    }

    /// One target, by its path in a repository.
    pub(crate) async fn target_file(&self, name: &str) -> Result<(String, Vec<u8>), TrustError> {
        let loaded = self.known()?;
        let target =
            loaded.target(name).ok_or_else(|| WhyRefused::NoFile { file: name.to_owned() })?;
        let bytes = self.target_bytes(name, target, MANIFEST_BYTES_MAX).await?;
        Ok((target_path(name, &hex::encode(&target.hashes.sha256)), bytes))
    }

    /// Fetches an artifact into an empty file, from the first mirror with the right bytes; false if
    /// there is none.
    pub(crate) async fn artifact(&self, manifest: &Manifest, path: &Path) -> bool {
        let start = self.good.load(Ordering::Relaxed);
        for mirror in self.mirrors.iter().cycle().skip(start).take(self.mirrors.len()) {
            let relative = blob_path(&manifest.root);
            let fetched = async {
                let mut file = tokio::fs::File::create(path).await.ok()?;
                let length = manifest.length;
                self.client.fetch_to(mirror, &relative, length, &mut file).await.ok()
            };
            let right = fetched.await.is_some()
                && hash_file(path).is_ok_and(|hashes| *hashes.root() == manifest.root);
            if right {
                return true;
            }
        }
        false
    }

    /// The newest metadata and the targets whose names are `wanted`, by their paths in a
    /// repository.
    pub(crate) async fn files(
        &self,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<(String, Vec<u8>)>, TrustError> {
        let loaded = self.known()?;
        let mut files = Vec::new();
        for (name, target) in &loaded.targets {
            let name = name.raw();
            if wanted(name) {
                let bytes = self.target_bytes(name, target, MANIFEST_BYTES_MAX).await?;
                files.push((target_path(name, &hex::encode(&target.hashes.sha256)), bytes));
            }
        }
        let metadata = loaded.bundle.files()?;
        files.extend(
            metadata
                .into_iter()
                .map(|(name, bytes)| (format!("{METADATA_DIR}/{name}"), bytes.to_vec())),
        );
        Ok(files)
    }

    /// The bytes of a signed target: from this disk, else from the first mirror with the right
    /// ones, which are then cached.
    pub(super) async fn target_bytes(
        &self,
        name: &str,
        target: &Target,
        bytes_max: u64,
    ) -> Result<Vec<u8>, TrustError> {
        if let Some(bytes) = self.cached(target) {
            return Ok(bytes);
        }
        if target.length > bytes_max {
            let file = name.to_owned();
            return Err(WhyRefused::TooLarge { file, limit_bytes: bytes_max }.into());
        }
        let path = target_path(name, &hex::encode(&target.hashes.sha256));
        let bytes = self
            .ask_mirrors(&path, target.length, |bytes| {
                if is_target(target, bytes) {
                    Ok(bytes.to_vec())
                } else {
                    Err(WhyRefused::WrongBytes { file: name.to_owned() }.into())
                }
            })
            .await?;
        self.cache(target, &bytes)?;
        Ok(bytes)
    }

    /// The first response that `check` accepts.
    pub(super) async fn ask_mirrors<T>(
        &self,
        path: &str,
        bytes_max: u64,
        check: impl Fn(&[u8]) -> Result<T, TrustError>,
    ) -> Result<T, TrustError> {
        let mut refused = Vec::new();
        let start = self.good.load(Ordering::Relaxed);
        for mirror in self.mirrors.iter().cycle().skip(start).take(self.mirrors.len()) {
            let fetched = self.client.fetch(mirror, path, bytes_max).await;
            let fetched = fetched.map_err(|error| TrustError::of_fetch(path, error));
            let checked = fetched.and_then(|bytes| check(&bytes));
            match checked {
                Ok(value) => return Ok(value),
                Err(error) => {
                    let error = error.at(mirror);
                    self.note(&error);
                    refused.push(error);
                }
            }
        }
        Err(most_telling(refused))
    }

    fn cache_path(&self, target: &Target) -> PathBuf {
        self.store.join(TARGETS_CACHE).join(hex::encode(&target.hashes.sha256))
    }

    pub(super) fn cached(&self, target: &Target) -> Option<Vec<u8>> {
        std::fs::read(self.cache_path(target)).ok().filter(|bytes| is_target(target, bytes))
    }

    pub(super) fn cache(&self, target: &Target, bytes: &[u8]) -> Result<(), TrustError> {
        let path = self.cache_path(target);
        create_folders(folder_of(&path))
            .and_then(|()| durable::write(&path, bytes, SECRET))
            .map_err(|error| store_error(&path, error))
    }

    /// Removes files that no signed target names any more (channels that moved). One that cannot be
    /// removed does no harm: it is checked before use.
    pub(super) fn prune_cache(&self, loaded: &Loaded) {
        let Ok(entries) = std::fs::read_dir(self.store.join(TARGETS_CACHE)) else { return };
        let named: std::collections::HashSet<String> =
            loaded.targets.values().map(|target| hex::encode(&target.hashes.sha256)).collect();
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_none_or(|name| !named.contains(name)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}
