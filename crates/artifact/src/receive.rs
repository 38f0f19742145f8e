//! Taking uploads of a publisher, file by file, without trusting them.
//!
//! Whoever may upload can do no more than fill the disk: every file has to be what its name says
//! (a blob its hash, a target its hash, metadata signed by the root's keys), and the one step that
//! changes what readers see, a new `timestamp.json`, has to lead to files that are all here and to
//! lose nothing that was published meanwhile.

use std::fs;
use std::path::{Path, PathBuf};

use cohort_core::ids::Digest;
use tempfile::NamedTempFile;
use tough::schema::{Role as TufRole, Root, Signed, Snapshot, Targets, Timestamp};

use crate::channel::ChannelPointer;
use crate::digest::{hash_of, hex, sha256};
use crate::durable::{create_folders, unfinished};
use crate::layout::{BLOBS_DIR, METADATA_DIR, TARGETS_DIR, blob_path, target_path, units_path};
use crate::manifest::{ARTIFACT_BYTES_MAX, MANIFEST_BYTES_MAX, Manifest, UNIT_BYTES};
use crate::metadata::{self, Current, METADATA_BYTES_MAX};
use crate::repository::{Repository, RepositoryError};
use crate::steps::Step;
use crate::units::root_of_file;

/// Where uploads wait until they are checked, below the repository.
const INCOMING_DIR: &str = ".incoming";

/// What an uploaded file is, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Blob(Digest),
    Units(Digest),
    Target { sha256_hex: String },
    Versioned { role: Versioned, version: u64 },
    Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Versioned {
    Snapshot,
    Targets,
}

impl Kind {
    /// Reads a relative path; nothing for any name that a publisher has no business with (a root
    /// is changed by hand, at the hub).
    fn of(relative: &str) -> Option<Self> {
        let (folder, name) = relative.split_once('/')?;
        let plain = |part: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+~".contains(&byte);
            !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed)
        };
        if relative.len() > 512 || !name.split('/').all(plain) {
            return None;
        }
        match folder {
            BLOBS_DIR => match name.strip_suffix(".units") {
                Some(root) => root.parse().ok().map(Self::Units),
                None => name.parse().ok().map(Self::Blob),
            },
            TARGETS_DIR => {
                let (hash, rest) = name.rsplit('/').next()?.split_once('.')?;
                let hash: Digest = hash.parse().ok()?;
                (!rest.is_empty()).then(|| Self::Target { sha256_hex: hash.to_string() })
            }
            METADATA_DIR if name == "timestamp.json" => Some(Self::Timestamp),
            METADATA_DIR => {
                let (version, role) = name.split_once('.')?;
                let role = match role {
                    "snapshot.json" => Versioned::Snapshot,
                    "targets.json" => Versioned::Targets,
                    _ => return None,
                };
                Some(Self::Versioned { role, version: version.parse().ok()? })
            }
            _ => None,
        }
    }

    fn bytes_max(&self) -> u64 {
        match self {
            Self::Blob(_) => ARTIFACT_BYTES_MAX,
            Self::Units(_) => ARTIFACT_BYTES_MAX / u64::from(UNIT_BYTES) * 32,
            Self::Target { .. } => MANIFEST_BYTES_MAX,
            Self::Versioned { .. } | Self::Timestamp => METADATA_BYTES_MAX,
        }
    }
}

impl Repository {
    /// The most bytes that a file of this name may have; nothing when no such file is taken.
    #[must_use]
    pub fn upload_bytes_max(relative: &str) -> Option<u64> {
        Kind::of(relative).map(|kind| kind.bytes_max())
    }

    /// A file to write an upload into, on the right disk; it vanishes unless it is received.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn incoming(&self) -> Result<NamedTempFile, RepositoryError> {
        let path = self.dir().join(INCOMING_DIR);
        unfinished(&path).map_err(|source| RepositoryError::Io { path, source })
    }

    /// Removes uploads that a crash cut short; for the start of the hub.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn sweep_incoming(&self) -> Result<(), RepositoryError> {
        let path = self.dir().join(INCOMING_DIR);
        crate::durable::sweep_unfinished(&path)
            .map_err(|source| RepositoryError::Io { path, source })
    }

    /// Checks an uploaded file and puts it in place under its name. Uploading a file again that is
    /// here already changes nothing.
    ///
    /// # Errors
    /// [`RepositoryError::Refused`] when it is not what its name says, is not signed, or leads to
    /// something that is not here; [`RepositoryError::Outdated`] when something was published
    /// since the pull.
    pub async fn receive(
        &self,
        relative: &str,
        file: NamedTempFile,
    ) -> Result<(), RepositoryError> {
        let refused = |reason: &str| RepositoryError::Refused {
            file: relative.chars().take(200).collect(),
            reason: reason.to_owned(),
        };
        let kind = Kind::of(relative).ok_or_else(|| refused("no such file is taken"))?;
        let lock = self.lock().await?;
        let path = self.dir().join(relative);
        let (repository, held, uploaded) = (self.clone(), lock.clone(), file.path().to_owned());
        let checked = tokio::task::spawn_blocking(move || {
            let _held = held;
            let new = repository.check_upload(&kind, &uploaded, &path)?;
            if new {
                let folder = path.parent().unwrap_or(repository.dir());
                create_folders(folder).map_err(|error| error.to_string())?;
            }
            Ok::<bool, String>(new)
        });
        let checked = checked.await.map_err(|_| RepositoryError::Stopped)?;
        match checked {
            Err(reason) if reason == OUTDATED => Err(RepositoryError::Outdated),
            Err(reason) => Err(refused(&reason)),
            Ok(false) => Ok(()),
            Ok(true) => self.write(&lock, vec![Step::file(PathBuf::from(relative), file)]).await,
        }
    }

    /// Whether the upload is new; why it is refused.
    fn check_upload(&self, kind: &Kind, uploaded: &Path, path: &Path) -> Result<bool, String> {
        let unreadable = |error: std::io::Error| error.to_string();
        let length = fs::metadata(uploaded).map_err(unreadable)?.len();
        if length > kind.bytes_max() {
            return Err(format!("longer than {} bytes", kind.bytes_max()));
        }
        // Everything but a blob is small enough to be read whole.
        let read = || fs::read(uploaded).map_err(unreadable);
        match kind {
            Kind::Blob(root) => {
                let right = crate::units::hash_file(uploaded).map_err(unreadable)?.root == *root;
                if right { Ok(!path.exists()) } else { Err(WRONG_HASH.to_owned()) }
            }
            Kind::Units(root) => match root_of_file(&read()?) {
                Some(found) if found == hash_of(root) => Ok(!path.exists()),
                _ => Err("the unit hashes do not merge into the root in its name".to_owned()),
            },
            Kind::Target { sha256_hex } => {
                let right = hex(&sha256(&read()?)) == *sha256_hex;
                if right { Ok(!path.exists()) } else { Err(WRONG_HASH.to_owned()) }
            }
            Kind::Versioned { role, version } => {
                let bytes = read()?;
                if let Ok(existing) = fs::read(path) {
                    let same = existing == bytes;
                    return if same { Ok(false) } else { Err("it exists already".to_owned()) };
                }
                let root = self.current()?.root;
                let found = match role {
                    Versioned::Snapshot => signed::<Snapshot>(&root, &bytes)?.signed.version,
                    Versioned::Targets => signed::<Targets>(&root, &bytes)?.signed.version,
                };
                let right = found.get() == *version;
                if right { Ok(true) } else { Err(format!("it is version {found}")) }
            }
            Kind::Timestamp => self.check_timestamp(&read()?, path),
        }
    }

    /// The one step that readers see.
    fn check_timestamp(&self, bytes: &[u8], path: &Path) -> Result<bool, String> {
        if fs::read(path).is_ok_and(|existing| existing == bytes) {
            return Ok(false);
        }
        let Current { root, timestamp, snapshot, targets } = self.current()?;
        let new = signed::<Timestamp>(&root, bytes)?.signed;
        if new.version <= timestamp.signed.version {
            return Err(OUTDATED.to_owned());
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
            return Err(OUTDATED.to_owned());
        }
        self.check_targets(&targets.signed, &new_targets)?;
        Ok(true)
    }

    /// Nothing that is published may vanish or change, and whatever is new has to be here whole.
    fn check_targets(&self, old: &Targets, new: &Targets) -> Result<(), String> {
        for (name, target) in &old.targets {
            let Some(now) = new.targets.get(name) else { return Err(OUTDATED.to_owned()) };
            if now.hashes != target.hashes && !name.raw().starts_with("channels/") {
                return Err(OUTDATED.to_owned());
            }
        }
        for (name, target) in &new.targets {
            let before = old.targets.get(name);
            if before.is_some_and(|before| before.hashes == target.hashes) {
                continue;
            }
            let name = name.raw();
            let read = |target: &tough::schema::Target| {
                let relative = target_path(name, &hex(&target.hashes.sha256));
                fs::read(self.dir().join(relative))
                    .ok()
                    .filter(|bytes| sha256(bytes) == *target.hashes.sha256)
                    .ok_or_else(|| format!("it names {name}, which is not here"))
            };
            let bytes = read(target)?;
            if name.starts_with("channels/") {
                let pointer = ChannelPointer::parse(&bytes).map_err(|error| error.to_string())?;
                let serial = match before {
                    Some(before) => {
                        ChannelPointer::parse(&read(before)?)
                            .map_err(|error| error.to_string())?
                            .serial
                    }
                    None => 0,
                };
                if pointer.serial <= serial {
                    return Err(OUTDATED.to_owned());
                }
            } else {
                let manifest = Manifest::parse(&bytes).map_err(|error| error.to_string())?;
                let deltas = manifest.deltas.iter().map(|delta| &delta.root);
                for root in std::iter::once(&manifest.root).chain(deltas) {
                    for path in [blob_path(root), units_path(root)] {
                        if !self.dir().join(&path).is_file() {
                            return Err(format!("it leads to {path}, which is not here"));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn current(&self) -> Result<Current, String> {
        metadata::read_current(self.dir()).map_err(|error| error.to_string())
    }
}

const WRONG_HASH: &str = "its bytes do not have the hash in its name";

/// Told apart from other refusals, because pulling and publishing again helps.
const OUTDATED: &str = "outdated";

fn signed<T: TufRole + serde::de::DeserializeOwned>(
    root: &Signed<Root>,
    bytes: &[u8],
) -> Result<Signed<T>, String> {
    let role: Signed<T> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    root.signed
        .verify_role(&role)
        .map_err(|_| format!("it is not signed by the repository's {} key", T::TYPE))?;
    Ok(role)
}
