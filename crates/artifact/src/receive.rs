//! Receives a publisher's uploads, file by file, without trusting them.
//!
//! A publisher can do no more than fill the disk: every file must match its name (a blob or target
//! its hash, metadata signed by the root's keys), and the only step that readers see, a new
//! `timestamp.json`, must lead to files that are all here and lose nothing that was published
//! meanwhile.

use std::fs;
use std::path::{Path, PathBuf};

use cohort_base::durable::{create_folders, sweep, unfinished};
use cohort_base::{Cause, OnPath as _};
use tempfile::NamedTempFile;
use tough::schema::{Role as TufRole, Root, Signed, Snapshot, Targets, Timestamp};

use crate::channel::ChannelPointer;
use crate::digest::sha256;
use crate::layout::{
    METADATA_DIR, blob_path, channel_of_target, is_channel, is_removed_list, target_path,
    units_path,
};
use crate::manifest::Manifest;
use crate::metadata::{self, Current};
use crate::remove::{RemovedList, touch};
use crate::repository::{Repository, RepositoryError, release_of_target};
use crate::repository_file::RepositoryFile;
use crate::steps::Step;
use crate::trust_state::BUNDLE_BYTES_MAX;
use crate::units::root_of_units;

/// Directory of unchecked uploads, below the repository.
const INCOMING_DIR: &str = ".incoming";

impl Repository {
    /// The upload that changes keys: all its files in one, from [`Repository::signed_change`].
    pub const KEY_CHANGE: &str = "key-change.json";

    /// Size limit of an upload with this name; `None` if no such file is accepted.
    #[must_use]
    pub fn upload_bytes_max(relative: &str) -> Option<u64> {
        if relative == Self::KEY_CHANGE {
            return Some(BUNDLE_BYTES_MAX);
        }
        uploadable(relative).map(|file| file.bytes_max())
    }

    /// A file for an upload, on the repository's disk; removed unless it is received.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn incoming(&self) -> Result<NamedTempFile, RepositoryError> {
        let path = self.dir().join(INCOMING_DIR);
        let file = create_folders(&path).and_then(|()| unfinished(&path));
        Ok(file.on_path("write to", &path)?)
    }

    /// Removes uploads that a crash interrupted; call at the hub's start.
    ///
    /// # Errors
    /// If they cannot be removed.
    pub fn sweep_incoming(&self) -> Result<(), RepositoryError> {
        let path = self.dir().join(INCOMING_DIR);
        Ok(sweep(&path).on_path("clean", &path)?)
    }

    /// Checks an uploaded file and puts it in place; returns whether it is new. Idempotent.
    ///
    /// # Errors
    /// [`RepositoryError::Refused`] if it does not match its name, is not signed, or leads to
    /// something that is not here; [`RepositoryError::Outdated`] if something was published since
    /// the pull.
    pub async fn receive(
        &self,
        relative: &str,
        file: NamedTempFile,
    ) -> Result<bool, RepositoryError> {
        let refused = |source| RepositoryError::Refused {
            file: relative.chars().take(200).collect(),
            source,
        };
        if relative == Self::KEY_CHANGE {
            return self.receive_key_change(file, refused).await;
        }
        let kind =
            uploadable(relative).ok_or_else(|| refused("no such file is accepted".into()))?;
        let lock = self.lock().await?;
        let path = self.dir().join(relative);
        let (repository, held, uploaded) = (self.clone(), lock.clone(), file.path().to_owned());
        let checked = tokio::task::spawn_blocking(move || {
            let _held = held;
            let new = repository.check_upload(&kind, &uploaded, &path)?;
            if new {
                let folder = path.parent().unwrap_or(repository.dir());
                create_folders(folder)?;
            } else if !matches!(kind, RepositoryFile::Timestamp) {
                // It is needed again, and nothing may name it yet.
                touch(&path)?;
            }
            Ok::<bool, Refusal>(new)
        });
        let checked = checked.await.map_err(|_| RepositoryError::Stopped)?;
        match checked {
            Err(Refusal::Outdated) => Err(RepositoryError::Outdated),
            Err(Refusal::Wrong(cause)) => Err(refused(cause)),
            Ok(false) => Ok(false),
            Ok(true) => {
                self.write(&lock, vec![Step::file(PathBuf::from(relative), file)]).await?;
                Ok(true)
            }
        }
    }

    async fn receive_key_change(
        &self,
        file: NamedTempFile,
        refused: impl Fn(Cause) -> RepositoryError,
    ) -> Result<bool, RepositoryError> {
        let lock = self.lock().await?;
        let (repository, held) = (self.clone(), lock.clone());
        let checked = tokio::task::spawn_blocking(move || {
            let _held = held;
            repository.check_signed_change(&fs::read(file.path())?)
        });
        let checked = checked.await.map_err(|_| RepositoryError::Stopped)?;
        match checked.map_err(refused)? {
            None => Ok(false),
            Some(steps) => {
                self.write(&lock, steps).await?;
                Ok(true)
            }
        }
    }

    /// Whether the upload is new.
    fn check_upload(
        &self,
        kind: &RepositoryFile,
        uploaded: &Path,
        path: &Path,
    ) -> Result<bool, Refusal> {
        let length = fs::metadata(uploaded)?.len();
        if length > kind.bytes_max() {
            return Err(format!("longer than {} bytes", kind.bytes_max()).into());
        }
        // Everything but a blob is small enough to be read whole.
        let read = || fs::read(uploaded);
        match kind {
            RepositoryFile::Blob(root) => {
                let right = crate::units::hash_file(uploaded)?.root() == root;
                if right { Ok(!path.exists()) } else { Err(WRONG_HASH.into()) }
            }
            RepositoryFile::Units(root) => {
                let right = root_of_units(&read()?).as_ref() == Some(root);
                if right { Ok(!path.exists()) } else { Err(WRONG_UNITS.into()) }
            }
            RepositoryFile::Target(hash) => {
                let right = hex::encode(sha256(&read()?)) == hash.as_str();
                if right { Ok(!path.exists()) } else { Err(WRONG_HASH.into()) }
            }
            RepositoryFile::Snapshot(version) => {
                self.check_versioned::<Snapshot>(&read()?, *version, path)
            }
            RepositoryFile::Targets(version) => {
                self.check_versioned::<Targets>(&read()?, *version, path)
            }
            RepositoryFile::Timestamp => self.check_timestamp(&read()?, path),
            RepositoryFile::Root(_) => Err("a root comes in a change of keys".into()),
        }
    }

    fn check_versioned<T: TufRole + serde::de::DeserializeOwned>(
        &self,
        bytes: &[u8],
        version: u64,
        path: &Path,
    ) -> Result<bool, Refusal> {
        if let Ok(existing) = fs::read(path) {
            // Of another publisher: versions follow the clock.
            return if existing == bytes { Ok(false) } else { Err(Refusal::Outdated) };
        }
        match signed::<T>(&metadata::read_root(self.dir())?, bytes)?.signed.version().get() {
            found if found == version => Ok(true),
            found => Err(format!("it is version {found}").into()),
        }
    }

    /// Checks the one file whose change readers see.
    fn check_timestamp(&self, bytes: &[u8], path: &Path) -> Result<bool, Refusal> {
        if fs::read(path).is_ok_and(|existing| existing == bytes) {
            return Ok(false);
        }
        let Current { root, timestamp, snapshot, targets, .. } =
            metadata::read_current(self.dir())?;
        let new = signed::<Timestamp>(&root, bytes)?.signed;
        if new.version <= timestamp.signed.version {
            return Err(Refusal::Outdated);
        }
        let named = |meta: &std::collections::HashMap<String, tough::schema::Metafile>,
                     role: &str| {
            let entry = meta.get(&format!("{role}.json")).ok_or("it names no next role")?;
            let name = format!("{}.{role}.json", entry.version);
            let bytes = fs::read(self.dir().join(METADATA_DIR).join(&name))
                .map_err(|_| format!("it names {name}, which is not here"))?;
            let same = entry.length == Some(bytes.len() as u64)
                && entry.hashes.as_ref().is_some_and(|hash| *hash.sha256 == sha256(&bytes));
            if same { Ok(bytes) } else { Err(format!("it names another {name}")) }
        };
        let new_snapshot = signed::<Snapshot>(&root, &named(&new.meta, "snapshot")?)?.signed;
        let new_targets = signed::<Targets>(&root, &named(&new_snapshot.meta, "targets")?)?.signed;
        if new_snapshot.version < snapshot.signed.version
            || new_targets.version < targets.signed.version
        {
            return Err(Refusal::Outdated);
        }
        self.check_targets(&targets.signed, &new_targets)?;
        Ok(true)
    }

    /// Nothing published may change, or vanish without being listed as removed, and everything new
    /// must be here completely.
    fn check_targets(&self, old: &Targets, new: &Targets) -> Result<(), Refusal> {
        for (name, target) in &old.targets {
            let Some(now) = new.targets.get(name) else {
                if self.lists_as_removed(new, name.raw())? {
                    continue;
                }
                return Err(Refusal::Outdated);
            };
            let may_change = is_channel(name.raw()) || is_removed_list(name.raw());
            if now.hashes != target.hashes && !may_change {
                return Err(Refusal::Outdated);
            }
        }
        for (name, target) in &new.targets {
            let before = old.targets.get(name);
            if before.is_some_and(|before| before.hashes == target.hashes) {
                continue;
            }
            let name = name.raw();
            let read = |target: &tough::schema::Target| {
                let relative = target_path(name, &hex::encode(&target.hashes.sha256));
                fs::read(self.dir().join(relative))
                    .ok()
                    .filter(|bytes| sha256(bytes) == *target.hashes.sha256)
                    .ok_or_else(|| format!("it names {name}, which is not here"))
            };
            let bytes = read(target)?;
            if is_channel(name) {
                let pointer = ChannelPointer::parse(&bytes)?;
                let serial = match before {
                    Some(before) => ChannelPointer::parse(&read(before)?)?.serial,
                    None => {
                        let removed = self.removed(old, &pointer.app)?;
                        removed
                            .and_then(|it| it.channels.get(&pointer.channel).copied())
                            .unwrap_or(0)
                    }
                };
                if pointer.serial <= serial {
                    return Err(Refusal::Outdated);
                }
            } else if is_removed_list(name) {
                RemovedList::parse(&bytes)?;
            } else {
                // By a publisher who had not seen that.
                if self.lists_as_removed(old, name)? {
                    return Err(Refusal::Outdated);
                }
                let manifest = Manifest::parse(&bytes)?;
                let deltas = manifest.deltas.iter().map(|delta| &delta.root);
                for root in std::iter::once(&manifest.root).chain(deltas) {
                    for path in [blob_path(root), units_path(root)] {
                        if !self.dir().join(&path).is_file() {
                            return Err(format!("it leads to {path}, which is not here").into());
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

impl Repository {
    /// Whether these targets say that another one was removed.
    fn lists_as_removed(&self, targets: &Targets, name: &str) -> Result<bool, Refusal> {
        if let Some(release) = release_of_target(name) {
            return Ok(self.removed(targets, &release.app)?.is_some_and(|list| list.has(&release)));
        }
        let Some((app, channel)) = channel_of_target(name) else { return Ok(false) };
        let removed = self.removed(targets, &app)?;
        Ok(removed.is_some_and(|list| list.channels.contains_key(&channel)))
    }
}

/// What a publisher may upload: everything but roots.
fn uploadable(relative: &str) -> Option<RepositoryFile> {
    RepositoryFile::of(relative).filter(|file| !matches!(file, RepositoryFile::Root(_)))
}

const WRONG_HASH: &str = "its bytes do not have the hash in its name";
const WRONG_UNITS: &str = "the unit hashes do not merge into the root in its name";

/// Why an upload is refused.
enum Refusal {
    /// Another publisher was faster: pull and publish again.
    Outdated,
    Wrong(Cause),
}

impl<E: Into<Cause>> From<E> for Refusal {
    fn from(cause: E) -> Self {
        Self::Wrong(cause.into())
    }
}

fn signed<T: TufRole + serde::de::DeserializeOwned>(
    root: &Signed<Root>,
    bytes: &[u8],
) -> Result<Signed<T>, Refusal> {
    let role: Signed<T> = serde_json::from_slice(bytes)?;
    root.signed
        .verify_role(&role)
        .map_err(|_| format!("it is not signed by the repository's {} key", T::TYPE))?;
    Ok(role)
}
