//! The four TUF roles as files: read with every signature checked, written signed.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use cohort_base::{Cause, FileError, OnPath as _};
use jiff::Timestamp as Time;
use serde::de::DeserializeOwned;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{
    Hashes, Metafile, Role as TufRole, RoleKeys, RoleType, Root, Signature, Signed, Snapshot,
    Target, Targets, Timestamp,
};

use crate::digest::sha256;
use crate::keys::{KeyRole, Keys, SigningKey};
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
    /// A change of keys has written its root, and not yet the timestamp that goes with it: what is
    /// here is to be signed next, the timestamp on disk belongs to the keys of before.
    pub(crate) interrupted: bool,
}

/// A signed role, ready to write.
pub(crate) struct Ready {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    version: NonZeroU64,
}

impl Ready {
    /// A signed role that another publisher has made.
    pub(crate) fn of(bytes: Vec<u8>, version: NonZeroU64) -> Self {
        Self { name: String::new(), bytes, version }
    }

    /// How another role refers to this one: by version, length and SHA-256, so that files from
    /// different states cannot be mixed.
    pub(crate) fn reference(&self) -> Metafile {
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
    let root = read_root(repository)?;
    match read_chain(repository, root.clone()) {
        Err(error @ RepositoryError::BadSignature { .. }) => {
            read_interrupted(repository, root)?.ok_or(error)
        }
        current => current,
    }
}

/// The newest root, signed by its own keys.
pub(crate) fn read_root(repository: &Path) -> Result<Signed<Root>, RepositoryError> {
    let root: Signed<Root> = read(&newest_root(repository)?)?;
    verify(&root, &root)?;
    Ok(root)
}

/// What the timestamp leads to, all of it signed by the keys of `root`.
fn read_chain(repository: &Path, root: Signed<Root>) -> Result<Current, RepositoryError> {
    let metadata = repository.join(METADATA_DIR);
    let timestamp: Signed<Timestamp> = read(&metadata.join("timestamp.json"))?;
    verify(&root, &timestamp)?;
    let version = named(repository, &timestamp.signed.meta, "snapshot.json")?;
    let (snapshot, targets) = read_lists(repository, &root, version)?;
    Ok(Current { root, timestamp, snapshot, targets, interrupted: false })
}

/// A snapshot and the targets that it names, signed by the keys of `root`.
fn read_lists(
    repository: &Path,
    root: &Signed<Root>,
    version: NonZeroU64,
) -> Result<(Signed<Snapshot>, Signed<Targets>), RepositoryError> {
    let metadata = repository.join(METADATA_DIR);
    let snapshot: Signed<Snapshot> = read(&metadata.join(format!("{version}.snapshot.json")))?;
    verify(root, &snapshot)?;
    let version = named(repository, &snapshot.signed.meta, "targets.json")?;
    let targets: Signed<Targets> = read(&metadata.join(format!("{version}.targets.json")))?;
    verify(root, &targets)?;
    Ok((snapshot, targets))
}

fn named(
    repository: &Path,
    meta: &HashMap<String, Metafile>,
    file: &str,
) -> Result<NonZeroU64, RepositoryError> {
    meta.get(file).map(|entry| entry.version).ok_or_else(|| RepositoryError::Damaged {
        path: repository.join(METADATA_DIR),
        source: "a role does not name the next one".into(),
    })
}

/// The state that a change of keys was about to make current: its lists are on disk, signed by the
/// keys of the newest root, while the timestamp still belongs to the root before. `None` if this is
/// not what happened. Nothing that only former keys signed is taken.
fn read_interrupted(
    repository: &Path,
    root: Signed<Root>,
) -> Result<Option<Current>, RepositoryError> {
    let metadata = repository.join(METADATA_DIR);
    let Some(before) = NonZeroU64::new(root.signed.version.get() - 1) else { return Ok(None) };
    let before: Signed<Root> = read(&metadata.join(format!("{before}.root.json")))?;
    verify(&before, &before)?;
    verify(&before, &root)?;
    let Ok(old) = read_chain(repository, before) else { return Ok(None) };
    let newest = highest(&metadata, "snapshot")?.and_then(NonZeroU64::new);
    let Some(newest) = newest else { return Ok(None) };
    let Ok((snapshot, targets)) = read_lists(repository, &root, newest) else { return Ok(None) };
    let path = metadata.join(format!("{newest}.snapshot.json"));
    let bytes = fs::read(&path).on_path("read", &path)?;
    let reference = Ready::of(bytes, newest).reference();
    let mut timestamp = old.timestamp;
    timestamp.signed.meta.insert("snapshot.json".to_owned(), reference);
    Ok(Some(Current { root, timestamp, snapshot, targets, interrupted: true }))
}

/// The paths of all roots, the newest first; none without a repository.
pub(crate) fn roots(repository: &Path) -> Result<Vec<PathBuf>, FileError> {
    let metadata = repository.join(METADATA_DIR);
    let mut versions = versions_of(&metadata, "root")?;
    versions.sort_unstable_by(|a, b| b.cmp(a));
    Ok(versions.into_iter().map(|version| metadata.join(format!("{version}.root.json"))).collect())
}

/// The path of the root with the highest version.
pub(crate) fn newest_root(repository: &Path) -> Result<PathBuf, RepositoryError> {
    let newest = roots(repository)?.into_iter().next();
    newest.ok_or_else(|| RepositoryError::NotARepository { path: repository.to_owned() })
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
    Ok(versions_of(metadata, role)?.into_iter().max())
}

fn versions_of(metadata: &Path, role: &str) -> Result<Vec<u64>, FileError> {
    let entries = match fs::read_dir(metadata) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.on_path("read folder", metadata)?,
    };
    let suffix = format!(".{role}.json");
    let mut versions = Vec::new();
    for entry in entries {
        let name = entry.on_path("read folder", metadata)?.file_name();
        let version = name.to_str().and_then(|name| name.strip_suffix(&suffix));
        versions.extend(version.and_then(|version| version.parse::<u64>().ok()));
    }
    Ok(versions)
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

/// A new root, version 1, with the given keys; one signature of each role counts.
pub(crate) fn new_root(keys: &Keys, expires: Time) -> Result<Root, RepositoryError> {
    let mut root = Root {
        spec_version: SPEC_VERSION.to_owned(),
        consistent_snapshot: true,
        version: NonZeroU64::MIN,
        expires,
        keys: HashMap::new(),
        roles: HashMap::new(),
        _extra: HashMap::new(),
    };
    for role in KeyRole::ALL {
        let none =
            RoleKeys { keyids: Vec::new(), threshold: NonZeroU64::MIN, _extra: HashMap::new() };
        root.roles.insert(role.of_tuf(), none);
        for key in keys.of(role) {
            add_key(&mut root, role, key)?;
        }
    }
    Ok(root)
}

/// Lets a key sign for a role.
pub(crate) fn add_key(
    root: &mut Root,
    role: KeyRole,
    key: &SigningKey,
) -> Result<(), RepositoryError> {
    let id = id_of(role.of_tuf(), key)?;
    root.keys.insert(id.clone(), key.public().clone());
    if let Some(of_role) = root.roles.get_mut(&role.of_tuf())
        && !of_role.keyids.contains(&id)
    {
        of_role.keyids.push(id);
    }
    Ok(())
}

fn id_of(role: RoleType, key: &SigningKey) -> Result<Decoded<Hex>, RepositoryError> {
    key.public().key_id().map_err(|error| sign_error(role, error))
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
    keys: &[SigningKey],
    version: NonZeroU64,
    snapshot: Metafile,
    expires: Time,
) -> Result<Ready, RepositoryError> {
    let mut timestamp = Timestamp::new(SPEC_VERSION.to_owned(), version, expires);
    timestamp.meta.insert("snapshot.json".to_owned(), snapshot);
    sign(root, timestamp, keys).await
}

/// Signs one role with those of its keys that are at hand; refuses too few.
pub(crate) async fn sign<T: TufRole>(
    root: &Root,
    role: T,
    keys: &[SigningKey],
) -> Result<Ready, RepositoryError> {
    sign_for(&[root], role, keys).await
}

/// Signs one role so that it counts by each of `roots`.
pub(crate) async fn sign_for<T: TufRole>(
    roots: &[&Root],
    role: T,
    keys: &[SigningKey],
) -> Result<Ready, RepositoryError> {
    let bytes = role.canonical_form().map_err(|error| sign_error(T::TYPE, error))?;
    let mut signatures: Vec<Signature> = Vec::new();
    for key in keys {
        let keyid = id_of(T::TYPE, key)?;
        let names =
            |root: &&Root| root.roles.get(&T::TYPE).is_some_and(|r| r.keyids.contains(&keyid));
        let again = signatures.iter().any(|signature| signature.keyid == keyid);
        if roots.iter().any(names) && !again {
            let sig = key.sign(&bytes).await.map_err(|error| sign_error(T::TYPE, error))?.into();
            signatures.push(Signature { keyid, sig });
        }
    }
    for root in roots {
        let of_role = root.roles.get(&T::TYPE);
        let is_of_role = |signature: &&Signature| {
            of_role.is_some_and(|of_role| of_role.keyids.contains(&signature.keyid))
        };
        let have = signatures.iter().filter(is_of_role).count() as u64;
        let need = of_role.map_or(1, |of_role| of_role.threshold.get());
        if have < need {
            return Err(RepositoryError::MissingKey { role: T::TYPE.to_string(), have, need });
        }
    }
    // Includes the version, except for the timestamp.
    let (name, version) = (role.filename(true), role.version());
    let signed = Signed { signed: role, signatures };
    for root in roots {
        root.verify_role(&signed).map_err(|error| sign_error(T::TYPE, error))?;
    }
    let mut bytes =
        serde_json::to_vec_pretty(&signed).map_err(|error| sign_error(T::TYPE, error))?;
    bytes.push(b'\n');
    Ok(Ready { name, bytes, version })
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
