//! Publishing to a repository on another machine: pull, sign here, upload.
//!
//! The keys stay with the publisher. What is pulled is verified like everything that is read; what
//! is uploaded is checked again by [`Repository::receive`] on the other side.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cohort_core::ids::{AppId, Digest, Platform, Version};

use crate::layout::{BLOBS_DIR, METADATA_DIR, TARGETS_DIR, blob_path, is_channel, is_removed_list};
use crate::lifetimes::Lifetimes;
use crate::publish::Told;
use crate::publish_deltas::earlier_names;
use crate::repository::{Repository, RepositoryError};
use crate::repository_file::repository_files;
use crate::trust::TrustedRepository;
use cohort_base::OnPath as _;
use cohort_base::durable::{self, READABLE, create_folders, folder_of, sweep, unfinished};

/// Artifacts that a publisher caches to make deltas from: three each for four apps and platforms.
const BASES_MAX: usize = 12;

/// What is done with a working copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Needs {
    /// Channels are set, and releases removed.
    Names,
    /// This is published: the manifests of this version, which may exist, and of those before it,
    /// to make deltas from them.
    Release(AppId, Version),
    /// The manifests of one app are read.
    App(AppId),
    /// All manifests are read.
    Apps,
}

/// The part of a remote repository needed to publish on top of it.
#[derive(Debug)]
pub struct WorkingCopy {
    repository: Repository,
    pulled: BTreeSet<PathBuf>,
}

impl WorkingCopy {
    /// Fetches the newest metadata, all channels and removals, and the manifests that `needs`
    /// names, into `folder`, which must be empty or missing.
    ///
    /// # Errors
    /// If no mirror has trustworthy metadata, or a file cannot be written.
    pub async fn pull(
        folder: &Path,
        reader: &TrustedRepository,
        needs: &Needs,
        lifetimes: Lifetimes,
    ) -> Result<Self, RepositoryError> {
        create_folders(folder).on_path("create folder", folder)?;
        if fs::read_dir(folder).on_path("read folder", folder)?.next().is_some() {
            return Err(RepositoryError::Exists { path: folder.to_owned() });
        }
        reader.refresh().await?;
        let prefix = match needs {
            Needs::Names => None,
            Needs::Release(app, version) => Some(format!("apps/{app}/{version}/")),
            Needs::App(app) => Some(format!("apps/{app}/")),
            Needs::Apps => Some("apps/".to_owned()),
        };
        let wanted = |name: &str| {
            is_channel(name)
                || is_removed_list(name)
                || prefix.as_ref().is_some_and(|prefix| name.starts_with(prefix))
        };
        for (relative, bytes) in reader.files(wanted).await? {
            let path = folder.join(relative);
            put(&path, &bytes).on_path("write", &path)?;
        }
        if let Needs::Release(app, _) = needs {
            let names = reader.target_names()?;
            for name in earlier_names(names.iter().map(String::as_str), app, None) {
                // A missing one is one delta less.
                let Ok((relative, bytes)) = reader.target_file(&name).await else { continue };
                let path = folder.join(relative);
                put(&path, &bytes).on_path("write", &path)?;
            }
        }
        let repository = Repository::open(folder)?.with_lifetimes(lifetimes);
        let pulled = files(folder)?;
        Ok(Self { repository, pulled })
    }

    /// Fetches the artifacts that deltas can start from into `cache`, unless they are there, and
    /// returns their paths for [`crate::PublishRequest::bases`]. What no mirror has is left out.
    ///
    /// # Errors
    /// If the repository cannot be read, or the cache cannot be written.
    pub async fn fetch_bases(
        &self,
        reader: &TrustedRepository,
        app: &AppId,
        platform: &Platform,
        cache: &Path,
        told: &Told,
    ) -> Result<BTreeMap<Digest, PathBuf>, RepositoryError> {
        create_folders(cache).and_then(|()| sweep(cache)).on_path("write to", cache)?;
        let mut bases = BTreeMap::new();
        for manifest in self.repository.last_releases(app, platform)? {
            let path = cache.join(manifest.root.as_str());
            if !path.is_file() {
                told(&format!("fetching {app} {} to make a delta from", manifest.version));
                let file = unfinished(cache).on_path("write to", cache)?;
                if !reader.artifact(&manifest, file.path()).await {
                    continue;
                }
                file.persist(&path).map_err(|error| error.error).on_path("write", &path)?;
            }
            bases.insert(manifest.root, path);
        }
        prune(cache).on_path("clean", cache)?;
        Ok(bases)
    }

    /// Stores a published artifact in the cache, for the next release's delta.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn keep_base(&self, root: &Digest, cache: &Path) -> Result<(), RepositoryError> {
        create_folders(cache).on_path("create folder", cache)?;
        let (from, to) = (self.repository.dir().join(blob_path(root)), cache.join(root.as_str()));
        if from.is_file() && !to.exists() {
            let copied = fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop));
            copied.on_path("write", &to)?;
        }
        Ok(prune(cache).on_path("clean", cache)?)
    }

    /// The local repository, for publishing and setting channels.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Files that are new since the pull, in order of upload: `metadata/timestamp.json` last. Empty
    /// if nothing changed.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn new_files(&self) -> Result<Vec<PathBuf>, RepositoryError> {
        let timestamp = Path::new(METADATA_DIR).join("timestamp.json");
        let all = files(self.repository.dir())?;
        let mut new: Vec<PathBuf> =
            all.into_iter().filter(|path| !self.pulled.contains(path)).collect();
        // `blobs`, then `targets`, then `metadata`.
        let rank = |path: &PathBuf| {
            let order = [BLOBS_DIR, TARGETS_DIR, METADATA_DIR];
            order.iter().position(|folder| path.starts_with(folder))
        };
        new.sort_by_key(|path| (rank(path), path.clone()));
        if new.iter().any(|path| path.starts_with(METADATA_DIR)) {
            new.push(timestamp);
        }
        Ok(new)
    }
}

fn put(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    create_folders(folder_of(path))?;
    durable::write(path, bytes, READABLE)
}

/// Keeps the newest [`BASES_MAX`] artifacts of a cache.
fn prune(cache: &Path) -> std::io::Result<()> {
    let mut artifacts = Vec::new();
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| Digest::new(name).is_ok()) {
            artifacts.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    artifacts.sort_by(|a, b| b.cmp(a));
    artifacts.iter().skip(BASES_MAX).try_for_each(|(_, path)| fs::remove_file(path))
}

fn files(repository: &Path) -> Result<BTreeSet<PathBuf>, RepositoryError> {
    Ok(repository_files(repository)?.into_keys().map(PathBuf::from).collect())
}
