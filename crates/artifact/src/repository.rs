//! The publisher's side: a directory that any static HTTP server can serve while it is written.
//!
//! Order of every change: artifacts and targets first (nothing names them yet), then the versioned
//! metadata (nothing refers to it yet), and `timestamp.json` last, by rename: readers see either
//! the old or the new state, and so does the next publisher after a crash.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cohort_base::{Cause, FileError, OnPath as _};
use cohort_core::ids::{AppId, Channel, Platform, Version};
use serde::{Deserialize, Serialize};
use tough::TargetName;
use tough::schema::{Targets, Timestamp};

use crate::channel::{CHANNEL_SCHEMA, ChannelPointer};
use crate::digest::sha256;
use crate::keys::{Keys, SigningKey};
use crate::layout::{
    BLOBS_DIR, METADATA_DIR, SETTINGS_FILE, channel_target, is_channel, manifest_target,
    target_path,
};
use crate::lifetimes::{Expiries, Lifetimes, RENEW_AFTER_S};
use crate::lock::RepositoryLock;
use crate::manifest::{Manifest, ManifestError};
use crate::metadata::{self, Current, later, now};
use crate::pack::PackError;
use crate::package_file::PackageFileError;
use crate::steps::{Faults, Step};
use cohort_base::durable::{create_folders, sweep};

/// A release in a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReleaseName {
    pub app: AppId,
    pub version: Version,
    pub platform: Platform,
}

impl ReleaseName {
    /// The name of its manifest's target.
    pub(crate) fn target(&self) -> String {
        manifest_target(&self.app, &self.version, &self.platform)
    }
}

/// Why a repository cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("repository {} is locked by another publisher: try again", path.display())]
    Locked { path: PathBuf },
    #[error("{} is not a repository (no metadata/N.root.json)", path.display())]
    NotARepository { path: PathBuf },
    #[error("{} already holds a repository", path.display())]
    Exists { path: PathBuf },
    /// A file of the repository does not match its signature.
    #[error("repository file {} is damaged", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: Cause,
    },
    /// A role was not signed by the keys of the root.
    #[error("the repository's {role} metadata is not signed by the keys of its root")]
    BadSignature { role: String },
    /// Too few of the keys at hand are named in the root.
    #[error(
        "{role} metadata needs {need} of the {role} keys in the repository's root; {have} given"
    )]
    MissingKey { role: String, have: u64, need: u64 },
    #[error(transparent)]
    KeyChange(#[from] crate::key_change::KeyChangeError),
    #[error("cannot sign {role} metadata")]
    Sign {
        role: String,
        #[source]
        source: Cause,
    },
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The artifact's `cohort.toml` is wrong, or contradicts a flag.
    #[error(transparent)]
    PackageFile(#[from] PackageFileError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(
        "{app} {version} for {platform} is published already with another {difference}: \
         a version never changes; publish under a new one"
    )]
    AlreadyPublished { app: AppId, version: Version, platform: Platform, difference: &'static str },
    /// Only a published version can be put on a channel.
    #[error(
        "{app} {version} is not published for any platform; first: \
         cohort publish PATH --app {app} --version {version}"
    )]
    NoSuchRelease { app: AppId, version: Version },
    #[error("app {app} has no channel {channel}")]
    NoSuchChannel { app: AppId, channel: Channel },
    #[error(
        "{app} {version} for {platform} was removed: a version does not come back; publish under \
         a new one"
    )]
    WasRemoved { app: AppId, version: Version, platform: Platform },
    #[error(
        "channel {channel} points to {app} {version}; first, point it to another version: \
         cohort channel set {app} {channel} VERSION"
    )]
    OnChannel { app: AppId, version: Version, channel: Channel },
    #[error(transparent)]
    Pull(#[from] crate::trust_error::TrustError),
    /// An upload does not match its name, or is not signed.
    #[error("upload {file} was refused")]
    Refused {
        file: String,
        #[source]
        source: Cause,
    },
    #[error("the repository has changed since it was read: publish again")]
    Outdated,
    #[error("publishing was interrupted: the program is shutting down")]
    Stopped,
}

pub(crate) const SETTINGS_SCHEMA: u32 = 1;

/// What the next publisher needs, and readers need not trust.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) schema: u32,
    pub(crate) lifetimes: Lifetimes,
}

/// A repository on this machine's disk.
#[derive(Debug, Clone)]
pub struct Repository {
    dir: PathBuf,
    lifetimes: Lifetimes,
    pub(crate) faults: Faults,
}

impl Repository {
    /// Creates an empty repository.
    ///
    /// # Errors
    /// If one exists, a key is missing, or a file cannot be written.
    pub async fn create(
        dir: &Path,
        keys: &Keys,
        lifetimes: Lifetimes,
    ) -> Result<Self, RepositoryError> {
        create_folders(&dir.join(BLOBS_DIR)).on_path("create folders in", dir)?;
        let repository = Self { dir: dir.to_owned(), lifetimes, faults: Faults::default() };
        let lock = repository.lock().await?;
        // The timestamp is written last: an interrupted creation can be repeated.
        if repository.metadata_path("timestamp.json").exists() {
            return Err(RepositoryError::Exists { path: dir.to_owned() });
        }
        let settings = serde_json::to_vec_pretty(&Settings { schema: SETTINGS_SCHEMA, lifetimes })
            .map_err(|error| repository.damaged(SETTINGS_FILE, error))?;
        let now = now();
        let root = metadata::new_root(keys, later(now, lifetimes.root_s))?;
        let signed_root = metadata::sign(&root, root.clone(), &keys.root).await?;
        let one = std::num::NonZeroU64::MIN;
        let targets = metadata::new_targets(now);
        let chain = metadata::sign_chain(&root, keys, targets, [one; 3], &lifetimes, now).await?;
        let mut steps = vec![
            Step::bytes(PathBuf::from(SETTINGS_FILE), settings),
            Step::metadata("root.json", signed_root.bytes.clone()),
        ];
        steps.extend([signed_root].into_iter().chain(chain).map(Step::from));
        repository.write(&lock, steps).await?;
        Ok(repository)
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// If the directory does not contain one.
    pub fn open(dir: &Path) -> Result<Self, RepositoryError> {
        metadata::newest_root(dir)?;
        let path = dir.join(SETTINGS_FILE);
        let lifetimes = match fs::read(&path) {
            Ok(bytes) => {
                let damaged = |source| RepositoryError::Damaged { path: path.clone(), source };
                let settings: Settings =
                    serde_json::from_slice(&bytes).map_err(|error| damaged(error.into()))?;
                if settings.schema != SETTINGS_SCHEMA {
                    let reason = format!("schema {} is not {SETTINGS_SCHEMA}", settings.schema);
                    return Err(damaged(reason.into()));
                }
                settings.lifetimes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Lifetimes::default(),
            Err(source) => return Err(FileError { doing: "read", path, source }.into()),
        };
        Ok(Self { dir: dir.to_owned(), lifetimes, faults: Faults::default() })
    }

    /// The paths of the repository's roots, the newest first; none if there is no repository.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn roots(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
        metadata::roots(dir)
    }

    /// Sets the lifetimes of future signatures.
    pub(crate) fn with_lifetimes(self, lifetimes: Lifetimes) -> Self {
        Self { lifetimes, ..self }
    }

    pub(crate) fn lifetimes(&self) -> Lifetimes {
        self.lifetimes
    }

    /// The directory to serve, with `metadata/`, `targets/` and `blobs/`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// When signatures expire.
    ///
    /// # Errors
    /// If the repository cannot be read or is not signed by its root.
    pub fn expiries(&self) -> Result<Expiries, RepositoryError> {
        let current = metadata::read_current(&self.dir)?;
        Ok(expiries_of(&current))
    }

    /// All channels, sorted by app and name.
    ///
    /// # Errors
    /// If the repository cannot be read or is not signed by its root.
    pub fn channels(&self) -> Result<Vec<ChannelPointer>, RepositoryError> {
        let targets = metadata::read_current(&self.dir)?.targets.signed;
        let mut channels = Vec::new();
        for name in targets.targets.keys().filter(|name| is_channel(name.raw())) {
            if let Some(bytes) = self.read_target(&targets, name.raw())? {
                channels.push(ChannelPointer::parse(&bytes)?);
            }
        }
        channels.sort_by(|a, b| (&a.app, &a.channel).cmp(&(&b.app, &b.channel)));
        Ok(channels)
    }

    /// Points a channel to a version. Idempotent.
    ///
    /// # Errors
    /// If the version is not published for any platform, the keys are not this repository's, or a
    /// file cannot be written.
    pub async fn set_channel(
        &self,
        keys: &Keys,
        app: &AppId,
        channel: &Channel,
        version: &Version,
    ) -> Result<ChannelPointer, RepositoryError> {
        let lock = self.lock().await?;
        let current = metadata::read_current(&self.dir)?;
        let mut changed = BTreeMap::new();
        let pointer = self.point(&current.targets.signed, &mut changed, app, channel, version)?;
        if !changed.is_empty() {
            self.commit(&lock, keys, current, Vec::new(), changed).await?;
        }
        Ok(pointer)
    }

    /// Signs a new timestamp for the same content, to keep a fleet fresh while nothing is
    /// published. Needs only the timestamp key. Completes an interrupted change of keys.
    ///
    /// # Errors
    /// If the key is not this repository's, or a file cannot be written.
    pub async fn renew_timestamp(&self, keys: &[SigningKey]) -> Result<Expiries, RepositoryError> {
        let lock = self.lock().await?;
        let mut current = metadata::read_current(&self.dir)?;
        let root = &current.root.signed;
        let old = &current.timestamp.signed;
        let expires = later(now(), self.lifetimes.timestamp_s);
        let reference = old
            .meta
            .get("snapshot.json")
            .cloned()
            .ok_or_else(|| self.damaged("metadata/timestamp.json", "names no snapshot"))?;
        let version = metadata::version_after(old.version);
        let ready = metadata::sign_timestamp(root, keys, version, reference, expires).await?;
        self.write(&lock, vec![Step::from(ready)]).await?;
        current.timestamp.signed = Timestamp { version, expires, ..current.timestamp.signed };
        Ok(expiries_of(&current))
    }

    /// Renews the timestamp if it is older than a day; for a timer.
    ///
    /// # Errors
    /// As [`Repository::renew_timestamp`].
    pub async fn renew_timestamp_if_due(
        &self,
        keys: &[SigningKey],
    ) -> Result<Expiries, RepositoryError> {
        let current = metadata::read_current(&self.dir)?;
        let expiries = expiries_of(&current);
        // With lifetimes below a day (tests, drills), after half of them.
        let renew_after_s = RENEW_AFTER_S.min(self.lifetimes.timestamp_s / 2);
        let due = later(now(), self.lifetimes.timestamp_s.saturating_sub(renew_after_s));
        if current.interrupted || expiries.timestamp <= due {
            self.renew_timestamp(keys).await
        } else {
            Ok(expiries)
        }
    }

    /// Adds to `changed` the target that points the channel to the version.
    pub(crate) fn point(
        &self,
        targets: &Targets,
        changed: &mut BTreeMap<String, Vec<u8>>,
        app: &AppId,
        channel: &Channel,
        version: &Version,
    ) -> Result<ChannelPointer, RepositoryError> {
        let prefix = format!("apps/{app}/{version}/");
        let mut names = targets.targets.keys().map(TargetName::raw);
        if !names.any(|name| name.starts_with(&prefix))
            && !changed.keys().any(|name| name.starts_with(&prefix))
        {
            let (app, version) = (app.clone(), version.clone());
            return Err(RepositoryError::NoSuchRelease { app, version });
        }
        let name = channel_target(app, channel);
        let old = match self.read_target(targets, &name)? {
            Some(bytes) => Some(ChannelPointer::parse(&bytes)?),
            None => None,
        };
        let serial = match old {
            Some(old) if old.version == *version => return Ok(old),
            Some(old) => old.serial + 1,
            // Where one of the same name ended.
            None => {
                let removed = self.removed(targets, app)?;
                removed.and_then(|list| list.channels.get(channel).copied()).unwrap_or(0) + 1
            }
        };
        let pointer = ChannelPointer {
            schema: CHANNEL_SCHEMA,
            app: app.clone(),
            channel: channel.clone(),
            version: version.clone(),
            serial,
            set_at: now(),
        };
        changed.insert(name, pointer.to_bytes());
        Ok(pointer)
    }

    /// The manifest of a release, if it is published.
    pub(crate) fn read_manifest(
        &self,
        targets: &Targets,
        name: &str,
    ) -> Result<Option<Manifest>, RepositoryError> {
        Ok(match self.read_target(targets, name)? {
            Some(bytes) => Some(Manifest::parse(&bytes)?),
            None => None,
        })
    }

    pub(crate) fn read_target(
        &self,
        targets: &Targets,
        name: &str,
    ) -> Result<Option<Vec<u8>>, RepositoryError> {
        let found = TargetName::new(name).ok().and_then(|name| targets.targets.get(&name));
        let Some(target) = found else { return Ok(None) };
        let relative = target_path(name, &hex::encode(&target.hashes.sha256));
        let path = self.dir.join(&relative);
        let bytes = fs::read(&path).on_path("read", &path)?;
        if sha256(&bytes) != *target.hashes.sha256 {
            return Err(self.damaged(&relative, "its bytes are not the signed ones"));
        }
        Ok(Some(bytes))
    }

    /// Writes blobs, then changed targets, then metadata that names them.
    pub(crate) async fn commit(
        &self,
        lock: &RepositoryLock,
        keys: &Keys,
        current: Current,
        blobs: Vec<Step>,
        changed: BTreeMap<String, Vec<u8>>,
    ) -> Result<(), RepositoryError> {
        let Current { root, timestamp, snapshot, targets, interrupted: _ } = current;
        let mut targets = targets.signed;
        let mut steps = blobs;
        for (name, bytes) in changed {
            let target = metadata::target_of(&bytes);
            let path = target_path(&name, &hex::encode(&target.hashes.sha256));
            let name = TargetName::new(name).map_err(|error| self.damaged(TARGETS_HINT, error))?;
            targets.targets.insert(name, target);
            steps.push(Step::bytes(PathBuf::from(path), bytes));
        }
        let versions = [
            metadata::next_version(&self.dir, "targets", targets.version)?,
            metadata::next_version(&self.dir, "snapshot", snapshot.signed.version)?,
            metadata::version_after(timestamp.signed.version),
        ];
        let chain =
            metadata::sign_chain(&root.signed, keys, targets, versions, &self.lifetimes, now())
                .await?;
        steps.extend(chain.map(Step::from));
        self.write(lock, steps).await
    }

    /// Takes the lock and removes what a crashed publisher left behind.
    pub(crate) async fn lock(&self) -> Result<RepositoryLock, RepositoryError> {
        let lock = match RepositoryLock::take(&self.dir).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(RepositoryError::Locked { path: self.dir.clone() });
            }
            lock => lock.on_path("lock", &self.dir)?,
        };
        for path in [self.dir.clone(), self.dir.join(BLOBS_DIR)] {
            sweep(&path).on_path("clean", &path)?;
        }
        Ok(lock)
    }

    pub(crate) async fn write(
        &self,
        lock: &RepositoryLock,
        steps: Vec<Step>,
    ) -> Result<(), RepositoryError> {
        let (lock, dir, faults) = (lock.clone(), self.dir.clone(), self.faults.clone());
        tokio::task::spawn_blocking(move || {
            let _held = lock;
            steps.into_iter().try_for_each(|step| step.write(&dir, &faults))
        })
        .await
        .map_err(|_| RepositoryError::Stopped)?
    }

    fn metadata_path(&self, name: &str) -> PathBuf {
        self.dir.join(METADATA_DIR).join(name)
    }

    fn damaged(&self, relative: &str, cause: impl Into<Cause>) -> RepositoryError {
        RepositoryError::Damaged { path: self.dir.join(relative), source: cause.into() }
    }
}

const TARGETS_HINT: &str = "targets";

fn expiries_of(current: &Current) -> Expiries {
    Expiries {
        root: current.root.signed.expires,
        targets: current.targets.signed.expires,
        snapshot: current.snapshot.signed.expires,
        timestamp: current.timestamp.signed.expires,
    }
}

/// The release in the name `apps/<app>/<version>/<platform>/manifest.json`.
pub(crate) fn release_of_target(name: &str) -> Option<ReleaseName> {
    let mut parts = name.strip_prefix("apps/")?.strip_suffix("/manifest.json")?.split('/');
    let release = ReleaseName {
        app: parts.next()?.parse().ok()?,
        version: parts.next()?.parse().ok()?,
        platform: parts.next()?.replace('~', "/").parse().ok()?,
    };
    parts.next().is_none().then_some(release)
}
