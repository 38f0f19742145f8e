//! Publishing to a repository on another machine: pull, sign here, upload.
//!
//! The keys stay with the publisher. What is pulled is verified like everything that is read; what
//! is uploaded is checked once more by [`Repository::receive`] on the other side.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cohort_core::ids::{AppId, Version};

use crate::durable::{create_folders, write_atomic};
use crate::layout::{BLOBS_DIR, METADATA_DIR, TARGETS_DIR};
use crate::lifetimes::Lifetimes;
use crate::repository::{Repository, RepositoryError};
use crate::trust::TrustedRepository;

/// A repository in a folder of the publisher, as far as it is needed to publish on top of it.
#[derive(Debug)]
pub struct WorkingCopy {
    repository: Repository,
    pulled: BTreeSet<PathBuf>,
}

impl WorkingCopy {
    /// Fetches the newest metadata, all channels, and the manifests of `release` (to notice that a
    /// version is published already) into `folder`, which must be empty or missing.
    ///
    /// # Errors
    /// When no mirror gives what can be trusted, or a file cannot be written.
    pub async fn pull(
        folder: &Path,
        reader: &TrustedRepository,
        release: Option<(&AppId, &Version)>,
        lifetimes: Lifetimes,
    ) -> Result<Self, RepositoryError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| RepositoryError::Io { path, source }
        };
        create_folders(folder).map_err(io(folder))?;
        if fs::read_dir(folder).map_err(io(folder))?.next().is_some() {
            return Err(RepositoryError::Exists { path: folder.to_owned() });
        }
        reader.refresh().await?;
        let prefix = release.map(|(app, version)| format!("apps/{app}/{version}/"));
        let wanted = |name: &str| {
            name.starts_with("channels/")
                || prefix.as_ref().is_some_and(|prefix| name.starts_with(prefix))
        };
        for (relative, bytes) in reader.files(wanted).await? {
            let path = folder.join(relative);
            write_atomic(&path, &bytes, 0o644).map_err(io(&path))?;
        }
        let repository = Repository::open(folder)?.with_lifetimes(lifetimes);
        let pulled = files(folder)?;
        Ok(Self { repository, pulled })
    }

    /// The repository to publish to, set channels in, and so on.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// What is new since the pull, relative to the repository, in the order in which it has to be
    /// uploaded: `metadata/timestamp.json` last. Nothing when nothing changed.
    ///
    /// # Errors
    /// When the folder cannot be read.
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

/// All files that readers may ask for, relative to the repository.
fn files(repository: &Path) -> Result<BTreeSet<PathBuf>, RepositoryError> {
    let mut found = BTreeSet::new();
    let mut folders: Vec<PathBuf> =
        [BLOBS_DIR, TARGETS_DIR, METADATA_DIR].map(|folder| repository.join(folder)).into();
    while let Some(folder) = folders.pop() {
        if !folder.is_dir() {
            continue;
        }
        let io = |source| RepositoryError::Io { path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(relative) = path.strip_prefix(repository) {
                found.insert(relative.to_owned());
            }
        }
    }
    Ok(found)
}
