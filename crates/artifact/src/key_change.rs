//! Changing who signs what: a new root, signed by the old root keys and the new ones, and what is
//! signed by the keys that changed, signed again.
//!
//! Readers follow roots one by one. They refuse a timestamp that the newest root does not name the
//! key of, so the two are written one right after the other, the root first; if that is
//! interrupted, the next signature completes it (see [`metadata::read_current`]).

use std::num::NonZeroU64;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{Role as TufRole, RoleKeys, Root, Signed, Snapshot, Targets, Timestamp};

use crate::keys::{KeyRole, Keys, SigningKey};
use crate::layout::METADATA_DIR;
use crate::lifetimes::Lifetimes;
use crate::metadata::{self, Current, Ready, later, now};
use crate::repository::{Repository, RepositoryError};
use crate::steps::Step;
use cohort_base::{Cause, OnPath as _};

/// Most keys of one role: more people than can be brought together.
const KEYS_MAX: usize = 16;

/// Most roots of a repository: readers follow as many, from the first one.
pub(crate) const ROOTS_MAX: u64 = 256;

/// Digits of a key's id that suffice to name it among the keys of a role.
const ID_DIGITS_MIN: usize = 8;

/// A change of who signs for a role.
#[derive(Debug, Clone)]
pub enum KeyChange {
    Add {
        role: KeyRole,
        key: SigningKey,
    },
    /// `old`: the start of its id; `None` if the role has one key.
    Replace {
        role: KeyRole,
        old: Option<String>,
        new: SigningKey,
    },
    /// `old`: the start of its id.
    Remove {
        role: KeyRole,
        old: String,
    },
    /// How many keys of the role must sign.
    Threshold {
        role: KeyRole,
        count: NonZeroU64,
    },
}

/// Why keys cannot be changed like that.
#[derive(Debug, thiserror::Error)]
pub enum KeyChangeError {
    #[error("{role} has no key {id}; its keys: {have}")]
    NoSuchKey { role: KeyRole, id: String, have: String },
    #[error("{role} has {count} keys: say which one to replace; its keys: {have}")]
    WhichKey { role: KeyRole, count: usize, have: String },
    #[error("{id} needs at least {ID_DIGITS_MIN} digits, and to fit one key only")]
    Vague { id: String },
    #[error("{role} has that key already")]
    Same { role: KeyRole },
    #[error("{role} would have {keys} keys, and needs the signatures of {threshold}")]
    TooFew { role: KeyRole, keys: usize, threshold: u64 },
    #[error("a role has at most {KEYS_MAX} keys")]
    TooMany,
    #[error("the hub alone signs the timestamp, every day: its threshold stays 1")]
    HubSignsAlone,
    #[error("a repository has at most {ROOTS_MAX} roots, and this one has them")]
    TooManyRoots,
    #[error("the change of keys does not follow what is here: {0}")]
    DoesNotFollow(&'static str),
}

/// The keys of a role, by the newest root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RoleInRoot {
    pub role: KeyRole,
    /// How many of them must sign.
    pub threshold: u64,
    /// Their ids: 64 hexadecimal digits.
    pub keys: Vec<String>,
}

/// The files of a change of keys, as sent to the hub: one request, so that all of it or nothing is
/// seen.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedChange {
    root: String,
    targets: String,
    snapshot: String,
    timestamp: String,
}

impl KeyChange {
    /// The role whose keys it changes.
    #[must_use]
    pub fn role(&self) -> KeyRole {
        match self {
            Self::Add { role, .. }
            | Self::Replace { role, .. }
            | Self::Remove { role, .. }
            | Self::Threshold { role, .. } => *role,
        }
    }

    /// The next root.
    fn apply(&self, root: &Root, expires: jiff::Timestamp) -> Result<Root, RepositoryError> {
        let mut next = Root { expires, ..root.clone() };
        next.version = root.version.saturating_add(1);
        if next.version.get() > ROOTS_MAX {
            return Err(KeyChangeError::TooManyRoots.into());
        }
        let role = self.role();
        match self {
            Self::Add { key, .. } => add(&mut next, role, key)?,
            Self::Remove { old, .. } => {
                let old = find(&next, role, old)?;
                of_role(&mut next, role).keyids.retain(|id| *id != old);
            }
            Self::Replace { old, new, .. } => {
                let old = match (old, ids(&next, role).as_slice()) {
                    (Some(old), _) => find(&next, role, old)?,
                    (None, [one]) => one.clone(),
                    (None, many) => {
                        let (count, have) = (many.len(), shown(&next, role));
                        return Err(KeyChangeError::WhichKey { role, count, have }.into());
                    }
                };
                add(&mut next, role, new)?;
                of_role(&mut next, role).keyids.retain(|id| *id != old);
            }
            Self::Threshold { count, .. } => {
                of_role(&mut next, role).threshold = *count;
            }
        }
        let RoleKeys { keyids, threshold, .. } = of_role(&mut next, role);
        let (keys, threshold) = (keyids.len(), threshold.get());
        if role == KeyRole::Timestamp && threshold > 1 {
            return Err(KeyChangeError::HubSignsAlone.into());
        }
        if (keys as u64) < threshold {
            return Err(KeyChangeError::TooFew { role, keys, threshold }.into());
        }
        if keys > KEYS_MAX {
            return Err(KeyChangeError::TooMany.into());
        }
        let Root { keys, roles, .. } = &mut next;
        keys.retain(|id, _| roles.values().any(|role| role.keyids.contains(id)));
        Ok(next)
    }
}

fn of_role(root: &mut Root, role: KeyRole) -> &mut RoleKeys {
    let none = || RoleKeys {
        keyids: Vec::new(),
        threshold: NonZeroU64::MIN,
        _extra: std::collections::HashMap::new(),
    };
    root.roles.entry(role.of_tuf()).or_insert_with(none)
}

fn ids(root: &Root, role: KeyRole) -> Vec<Decoded<Hex>> {
    root.roles.get(&role.of_tuf()).map(|of_role| of_role.keyids.clone()).unwrap_or_default()
}

fn shown(root: &Root, role: KeyRole) -> String {
    let short = |id: &Decoded<Hex>| hex::encode(id).chars().take(12).collect::<String>();
    ids(root, role).iter().map(short).collect::<Vec<_>>().join(", ")
}

fn add(root: &mut Root, role: KeyRole, key: &SigningKey) -> Result<(), RepositoryError> {
    if ids(root, role).iter().any(|id| hex::encode(id) == key.id()) {
        return Err(KeyChangeError::Same { role }.into());
    }
    metadata::add_key(root, role, key)
}

fn find(root: &Root, role: KeyRole, start: &str) -> Result<Decoded<Hex>, RepositoryError> {
    let fits = |id: &Decoded<Hex>| hex::encode(id).starts_with(start);
    let found: Vec<_> = ids(root, role).into_iter().filter(fits).collect();
    match found.as_slice() {
        [one] if start.len() >= ID_DIGITS_MIN => Ok(one.clone()),
        [] => {
            let have = shown(root, role);
            Err(KeyChangeError::NoSuchKey { role, id: start.to_owned(), have }.into())
        }
        _ => Err(KeyChangeError::Vague { id: start.to_owned() }.into()),
    }
}

impl Repository {
    /// Version of the newest root, and who signs what by it.
    ///
    /// # Errors
    /// If the repository cannot be read, or the root is not signed by its own keys.
    pub fn roles(&self) -> Result<(u64, Vec<RoleInRoot>), RepositoryError> {
        let root = metadata::read_root(self.dir())?.signed;
        let of = |role: KeyRole| RoleInRoot {
            role,
            threshold: root.roles.get(&role.of_tuf()).map_or(0, |keys| keys.threshold.get()),
            keys: ids(&root, role).iter().map(hex::encode).collect(),
        };
        Ok((root.version.get(), KeyRole::ALL.map(of).into()))
    }

    /// Writes a new root, signed by the old root keys and the new ones, and signs again what the
    /// changed role signs, and what names that. `keys`: the old ones and the new ones, as far as
    /// they are at hand. Returns the new root's version.
    ///
    /// # Errors
    /// If the change leaves too few keys, keys are missing, or a file cannot be written.
    pub async fn change_keys(
        &self,
        keys: &Keys,
        change: &KeyChange,
    ) -> Result<u64, RepositoryError> {
        let lock = self.lock().await?;
        let current = metadata::read_current(self.dir())?;
        let now = now();
        let old = &current.root.signed;
        let next = change.apply(old, later(now, self.lifetimes().root_s))?;
        let version = next.version.get();
        // Everything is signed before anything is written.
        let root = metadata::sign_for(&[old, &next], next.clone(), &keys.root).await?;
        let role = change.role();
        let mut lists =
            sign_again(self.dir(), &next, &current, keys, role, self.lifetimes()).await?;
        let timestamp = lists.pop();
        let steps = lists.into_iter().chain([root]).chain(timestamp).map(Step::from);
        self.write(&lock, steps.collect()).await?;
        Ok(version)
    }

    /// The newest metadata as the hub takes a change of keys.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn signed_change(&self) -> Result<Vec<u8>, RepositoryError> {
        let current = metadata::read_current(self.dir())?;
        let read = |name: String| {
            let path = self.dir().join(METADATA_DIR).join(name);
            std::fs::read_to_string(&path).on_path("read", &path)
        };
        let change = SignedChange {
            root: read(format!("{}.root.json", current.root.signed.version))?,
            targets: read(format!("{}.targets.json", current.targets.signed.version))?,
            snapshot: read(format!("{}.snapshot.json", current.snapshot.signed.version))?,
            timestamp: read("timestamp.json".to_owned())?,
        };
        Ok(serde_json::to_vec(&change).expect("texts are JSON"))
    }

    /// What an uploaded change of keys has to write, in order; `None` if it is here already.
    pub(crate) fn check_signed_change(&self, bytes: &[u8]) -> Result<Option<Vec<Step>>, Cause> {
        let change: SignedChange = serde_json::from_slice(bytes)?;
        let wrong = KeyChangeError::DoesNotFollow;
        let old = metadata::read_current(self.dir())?;
        let root: Signed<Root> = serde_json::from_str(&change.root)?;
        if root == old.root {
            let path = self.dir().join(METADATA_DIR).join("timestamp.json");
            let same = std::fs::read(&path).on_path("read", &path)? == change.timestamp.as_bytes();
            return if same { Ok(None) } else { Err(wrong("that root is here already").into()) };
        }
        if root.signed.version.get() != old.root.signed.version.get() + 1 {
            return Err(wrong("the root is not the next one").into());
        }
        old.root.signed.verify_role(&root)?;
        let new = parse(&root, &change)?;
        root.signed.verify_role(&root)?;
        if new.timestamp.signed.version <= old.timestamp.signed.version
            || new.snapshot.signed.version < old.snapshot.signed.version
            || new.targets.signed.version < old.targets.signed.version
        {
            return Err(wrong("something was published since").into());
        }
        if new.targets.signed.targets != old.targets.signed.targets {
            return Err(wrong("it changes what is published").into());
        }
        let [targets, snapshot] = [
            (new.targets.signed.filename(true), change.targets),
            (new.snapshot.signed.filename(true), change.snapshot),
        ];
        let lists = [targets, snapshot, (root.signed.filename(true), change.root)];
        let last = ("timestamp.json".to_owned(), change.timestamp);
        let steps = lists.into_iter().chain([last]);
        Ok(Some(steps.map(|(name, text)| Step::metadata(&name, text.into_bytes())).collect()))
    }
}

/// The lists of an uploaded change, signed by the keys of its root, each naming the next.
fn parse(root: &Signed<Root>, change: &SignedChange) -> Result<Current, Cause> {
    let timestamp: Signed<Timestamp> = serde_json::from_str(&change.timestamp)?;
    let snapshot: Signed<Snapshot> = serde_json::from_str(&change.snapshot)?;
    let targets: Signed<Targets> = serde_json::from_str(&change.targets)?;
    root.signed.verify_role(&timestamp)?;
    root.signed.verify_role(&snapshot)?;
    root.signed.verify_role(&targets)?;
    let names = |meta: &std::collections::HashMap<_, _>, file: &str, ready: Ready| {
        meta.get(file) == Some(&ready.reference())
    };
    let of = |text: &str, version| Ready::of(text.as_bytes().to_vec(), version);
    let named = names(
        &timestamp.signed.meta,
        "snapshot.json",
        of(&change.snapshot, snapshot.signed.version),
    ) && names(
        &snapshot.signed.meta,
        "targets.json",
        of(&change.targets, targets.signed.version),
    );
    if !named {
        return Err(KeyChangeError::DoesNotFollow("its files do not name each other").into());
    }
    Ok(Current { root: root.clone(), timestamp, snapshot, targets, interrupted: false })
}

/// Signs what the role signs, and what names that; the timestamp, always, comes last.
async fn sign_again(
    dir: &Path,
    root: &Root,
    current: &Current,
    keys: &Keys,
    role: KeyRole,
    lifetimes: Lifetimes,
) -> Result<Vec<Ready>, RepositoryError> {
    let now = now();
    let mut ready = Vec::new();
    let mut reference = current.timestamp.signed.meta.get("snapshot.json").cloned();
    if matches!(role, KeyRole::Targets | KeyRole::Snapshot) {
        let mut snapshot = current.snapshot.signed.clone();
        if role == KeyRole::Targets {
            let mut targets = current.targets.signed.clone();
            targets.version = metadata::next_version(dir, "targets", targets.version)?;
            targets.expires = later(now, lifetimes.targets_s);
            let signed = metadata::sign(root, targets, &keys.targets).await?;
            snapshot.meta.insert("targets.json".to_owned(), signed.reference());
            ready.push(signed);
        }
        snapshot.version = metadata::next_version(dir, "snapshot", snapshot.version)?;
        snapshot.expires = later(now, lifetimes.snapshot_s);
        let signed = metadata::sign(root, snapshot, &keys.snapshot).await?;
        reference = Some(signed.reference());
        ready.push(signed);
    }
    let reference = reference.ok_or(KeyChangeError::DoesNotFollow("no snapshot is named"))?;
    let version = metadata::version_after(current.timestamp.signed.version);
    let expires = later(now, lifetimes.timestamp_s);
    let timestamp =
        metadata::sign_timestamp(root, &keys.timestamp, version, reference, expires).await?;
    ready.push(timestamp);
    Ok(ready)
}
