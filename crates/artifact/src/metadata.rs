//! The four TUF roles as files: read with every signature checked, written signed.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use cohort_base::{Cause, OnPath as _};
use jiff::Timestamp as Time;
use serde::de::DeserializeOwned;
use tough::editor::signed::SignedRole;
use tough::schema::{
    Hashes, KeyHolder, Metafile, Role as TufRole, RoleKeys, RoleType, Root, Signed, Snapshot,
    Target, Targets, Timestamp,
};

use crate::digest::sha256;
use crate::keys::{Keys, SigningKey};
use crate::layout::METADATA_DIR;
use crate::lifetimes::Lifetimes;
use crate::repository::RepositoryError;

/// The TUF version that the metadata follows.
const SPEC_VERSION: &str = "1.0.0";

/// Longest metadata file, in bytes; targets.json has 350 bytes per manifest or channel, so 16 MiB
/// are 45,000 releases.
pub(crate) const METADATA_BYTES_MAX: u64 = 16 << 20;

/// The current state of a repository, all signatures verified against its newest root.
pub(crate) struct Current {
    pub(crate) root: Signed<Root>,
    pub(crate) timestamp: Signed<Timestamp>,
    pub(crate) snapshot: Signed<Snapshot>,
    pub(crate) targets: Signed<Targets>,
}

/// A signed role, ready to write.
pub(crate) struct Ready {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    version: NonZeroU64,
}

impl Ready {
    /// How another role refers to this one: by version, length and SHA-256, so that files from
    /// different states cannot be mixed.
    fn reference(&self) -> Metafile {
        Metafile {
            length: Some(self.bytes.len() as u64),
            hashes: Some(hashes(&self.bytes)),
            version: self.version,
            _extra: HashMap::new(),
        }
    }
}

fn hashes(bytes: &[u8]) -> Hashes {
    Hashes { sha256: sha256(bytes).into(), _extra: HashMap::new() }
}

/// The target entry for a file with these bytes.
pub(crate) fn target_of(bytes: &[u8]) -> Target {
    Target {
        length: bytes.len() as u64,
        hashes: hashes(bytes),
        custom: HashMap::new(),
        _extra: HashMap::new(),
    }
}

/// Reads the newest state of a repository.
pub(crate) fn read_current(repository: &Path) -> Result<Current, RepositoryError> {
    let root: Signed<Root> = read(&newest_root(repository)?)?;
    verify(&root, &root)?;
    let metadata = repository.join(METADATA_DIR);
    let timestamp: Signed<Timestamp> = read(&metadata.join("timestamp.json"))?;
    verify(&root, &timestamp)?;
    let incomplete = || RepositoryError::Damaged {
        path: metadata.clone(),
        source: "a role does not name the next one".into(),
    };
    let version = timestamp.signed.meta.get("snapshot.json").ok_or_else(incomplete)?.version;
    let snapshot: Signed<Snapshot> = read(&metadata.join(format!("{version}.snapshot.json")))?;
    verify(&root, &snapshot)?;
    let version = snapshot.signed.meta.get("targets.json").ok_or_else(incomplete)?.version;
    let targets: Signed<Targets> = read(&metadata.join(format!("{version}.targets.json")))?;
    verify(&root, &targets)?;
    Ok(Current { root, timestamp, snapshot, targets })
}

/// The path of the root with the highest version.
pub(crate) fn newest_root(repository: &Path) -> Result<PathBuf, RepositoryError> {
    let metadata = repository.join(METADATA_DIR);
    match highest(&metadata, "root")? {
        Some(version) => Ok(metadata.join(format!("{version}.root.json"))),
        None => Err(RepositoryError::NotARepository { path: repository.to_owned() }),
    }
}

fn read<T: TufRole + DeserializeOwned>(path: &Path) -> Result<Signed<T>, RepositoryError> {
    let damaged = |source| RepositoryError::Damaged { path: path.to_owned(), source };
    if fs::metadata(path).on_path("read", path)?.len() > METADATA_BYTES_MAX {
        return Err(damaged(format!("longer than {METADATA_BYTES_MAX} bytes").into()));
    }
    let bytes = fs::read(path).on_path("read", path)?;
    serde_json::from_slice(&bytes).map_err(|error| damaged(error.into()))
}

/// A publisher signs what it read together with what it adds: without this check, write access to
/// the directory would be enough to get anything signed.
fn verify<T: TufRole>(root: &Signed<Root>, role: &Signed<T>) -> Result<(), RepositoryError> {
    root.signed
        .verify_role(role)
        .map_err(|_| RepositoryError::BadSignature { role: T::TYPE.to_string() })
}

/// The highest version of a role's file, used or not.
fn highest(metadata: &Path, role: &str) -> Result<Option<u64>, RepositoryError> {
    let entries = match fs::read_dir(metadata) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries.on_path("read folder", metadata)?,
    };
    let suffix = format!(".{role}.json");
    let mut highest = None;
    for entry in entries {
        let name = entry.on_path("read folder", metadata)?.file_name();
        let version = name.to_str().and_then(|name| name.strip_suffix(&suffix));
        highest = highest.max(version.and_then(|version| version.parse().ok()));
    }
    Ok(highest)
}

/// The next version: the Unix time in seconds, or `current` plus one if that is higher.
///
/// A hub restored from a backup has forgotten versions that its readers have seen. Counting by one,
/// it would be rejected as a replay until it caught up; the clock puts it ahead immediately.
pub(crate) fn version_after(current: NonZeroU64) -> NonZeroU64 {
    let by_clock = u64::try_from(now().as_second()).ok().and_then(NonZeroU64::new);
    by_clock.unwrap_or(current).max(current.saturating_add(1))
}

/// The next version of a role, also above those that a publisher wrote before it crashed: a version
/// never has two contents.
pub(crate) fn next_version(
    repository: &Path,
    role: &str,
    current: NonZeroU64,
) -> Result<NonZeroU64, RepositoryError> {
    let written = highest(&repository.join(METADATA_DIR), role)?.and_then(NonZeroU64::new);
    Ok(version_after(written.unwrap_or(current).max(current)))
}

/// A new root, version 1, with one key for each role.
pub(crate) fn new_root(keys: &Keys, expires: Time) -> Result<Root, RepositoryError> {
    let root_key = keys.root.as_ref().ok_or(RepositoryError::RootKeyMissing)?;
    let mut root = Root {
        spec_version: SPEC_VERSION.to_owned(),
        consistent_snapshot: true,
        version: NonZeroU64::MIN,
        expires,
        keys: HashMap::new(),
        roles: HashMap::new(),
        _extra: HashMap::new(),
    };
    for (role, key) in [
        (RoleType::Root, root_key),
        (RoleType::Targets, &keys.targets),
        (RoleType::Snapshot, &keys.snapshot),
        (RoleType::Timestamp, &keys.timestamp),
    ] {
        let public = key.public();
        let id = public.key_id().map_err(|error| sign_error(role, error))?;
        root.keys.insert(id.clone(), public);
        let threshold = NonZeroU64::MIN;
        root.roles.insert(role, RoleKeys { keyids: vec![id], threshold, _extra: HashMap::new() });
    }
    Ok(root)
}

/// Empty targets, before anything is published.
pub(crate) fn new_targets(expires: Time) -> Targets {
    let mut targets = Targets::new(SPEC_VERSION.to_owned(), NonZeroU64::MIN, expires);
    targets.delegations = None;
    targets
}

/// Signs the three roles that change with every publish, each naming the previous one.
pub(crate) async fn sign_chain(
    root: &Root,
    keys: &Keys,
    mut targets: Targets,
    versions: [NonZeroU64; 3],
    lifetimes: &Lifetimes,
    now: Time,
) -> Result<[Ready; 3], RepositoryError> {
    let [targets_version, snapshot_version, timestamp_version] = versions;
    targets.version = targets_version;
    targets.expires = later(now, lifetimes.targets_s);
    let targets = sign(root, targets, &keys.targets).await?;
    let expires = later(now, lifetimes.snapshot_s);
    let mut snapshot = Snapshot::new(SPEC_VERSION.to_owned(), snapshot_version, expires);
    snapshot.meta.insert("targets.json".to_owned(), targets.reference());
    let snapshot = sign(root, snapshot, &keys.snapshot).await?;
    let reference = snapshot.reference();
    let expires = later(now, lifetimes.timestamp_s);
    let timestamp =
        sign_timestamp(root, &keys.timestamp, timestamp_version, reference, expires).await?;
    Ok([targets, snapshot, timestamp])
}

/// Signs a timestamp that names a snapshot.
pub(crate) async fn sign_timestamp(
    root: &Root,
    key: &SigningKey,
    version: NonZeroU64,
    snapshot: Metafile,
    expires: Time,
) -> Result<Ready, RepositoryError> {
    let mut timestamp = Timestamp::new(SPEC_VERSION.to_owned(), version, expires);
    timestamp.meta.insert("snapshot.json".to_owned(), snapshot);
    sign(root, timestamp, key).await
}

/// Signs one role with its key; refuses a key that the root does not name for it.
pub(crate) async fn sign<T: TufRole + Clone>(
    root: &Root,
    role: T,
    key: &SigningKey,
) -> Result<Ready, RepositoryError> {
    let sources = key.source();
    let signer = sources[0].as_sign().await.map_err(|error| sign_error(T::TYPE, error))?;
    let named = root.roles.get(&T::TYPE).zip(root.key_id(signer.as_ref()));
    if !named.is_some_and(|(role, id)| role.keyids.contains(&id)) {
        return Err(RepositoryError::ForeignKey { role: T::TYPE.to_string() });
    }
    // Includes the version, except for the timestamp.
    let name = role.filename(true);
    let version = role.version();
    let holder = KeyHolder::Root(root.clone());
    let signed = SignedRole::new(role, &holder, &sources, &SystemRandom::new())
        .await
        .map_err(|error| sign_error(T::TYPE, error))?;
    Ok(Ready { name, bytes: signed.buffer().clone(), version })
}

fn sign_error(role: RoleType, cause: impl Into<Cause>) -> RepositoryError {
    RepositoryError::Sign { role: role.to_string(), source: cause.into() }
}

/// The current time, in whole seconds: other readers reject fractions.
pub(crate) fn now() -> Time {
    Time::from_second(Time::now().as_second()).expect("the present is within jiff's range")
}

/// `seconds` later, no later than the year 9999.
pub(crate) fn later(now: Time, seconds: u64) -> Time {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    Time::from_second(now.as_second().saturating_add(seconds)).unwrap_or(Time::MAX)
}
