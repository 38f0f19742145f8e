//! The kill switch: a register per scope, signed by an operator, latched on every server's disk.
//!
//! It is no entry of the log, because a minority must be able to stop. Registers are merged: the
//! higher epoch wins, and at equal epochs *on* wins; so they can be passed on in any order, any
//! number of times, by anybody.
//!
//! On disk a scope is one file, whose *name* carries epoch and position, written aside and renamed:
//! `fleet@00000000000000000007@on.kill`, `group@web.zone-a@…@off.kill`. The name survives when the
//! content is damaged, so a damaged file counts as *on* at its epoch, and the next epoch heals it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cohort_core::ids::GroupId;
use cohort_identity::{
    CertificateDer, Identity, Peer, Role, SignedStatement, StatementError, UnixTime,
    sign_statement, verify_statement, write_durable,
};
use serde::{Deserialize, Serialize};

use crate::limits::{KILL_EPOCH_STEP_MAX, KILL_REASON_BYTES_MAX, KILL_SCOPES_MAX};

#[cfg(test)]
#[path = "kill_test.rs"]
mod kill_test;

/// What kind of signed statement a register is.
const CONTEXT: &str = "cohort-kill/1";
/// The statement holds names, a number and a bounded reason; chain and signature as hexadecimal.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// What a register is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KillScope {
    /// Everything.
    Fleet,
    /// One group.
    Group(GroupId),
}

/// What an operator says about a scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillRegister {
    /// What it is about.
    pub scope: KillScope,
    /// Raised with every change.
    pub epoch: u64,
    /// Whether nothing new may begin.
    pub on: bool,
    /// Why, for people; at most [`KILL_REASON_BYTES_MAX`] bytes.
    pub reason: String,
    /// When, by the operator's clock, in seconds of Unix time. For people only.
    pub at: u64,
}

/// A register as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignedKill(pub SignedStatement);

impl SignedKill {
    /// Signs a register. Who may is checked where it arrives.
    ///
    /// # Errors
    /// When the reason is too long, or the identity's key cannot sign.
    pub fn sign(identity: &Identity, register: &KillRegister) -> Result<Self, KillError> {
        if register.reason.len() > KILL_REASON_BYTES_MAX {
            return Err(KillError::Reason { bytes: register.reason.len() });
        }
        let body = serde_json::to_vec(register).expect("names and numbers always become JSON");
        sign_statement(identity, CONTEXT, &body).map(Self).map_err(KillError::Statement)
    }

    /// Verifies that an operator said it, and what.
    ///
    /// # Errors
    /// When it is by a stranger or by any other role, damaged, or malformed.
    pub fn verify(
        &self,
        roots: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(Peer, KillRegister), KillError> {
        let peer = verify_statement(roots, CONTEXT, &self.0, &[Role::Operator], now)
            .map_err(KillError::Statement)?;
        Ok((peer, self.unverified()?))
    }

    /// What it says, without asking who says it.
    fn unverified(&self) -> Result<KillRegister, KillError> {
        let register: KillRegister = serde_json::from_slice(&self.0.body)
            .map_err(|error| KillError::Malformed { reason: error.to_string() })?;
        if register.reason.len() > KILL_REASON_BYTES_MAX {
            return Err(KillError::Reason { bytes: register.reason.len() });
        }
        Ok(register)
    }
}

/// What becomes of a register when another of its scope arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merged {
    /// The one that arrived takes its place.
    Take,
    /// The one that is here stays.
    Keep,
}

/// Merges registers of one scope, each given as epoch and position: the higher epoch wins; at equal
/// epochs *on* wins, so that *off* needs a higher one.
#[must_use]
pub fn merge(current: Option<(u64, bool)>, incoming: (u64, bool)) -> Merged {
    match current {
        // Epoch first, then `true` above `false`: just the order of pairs.
        Some(current) if incoming <= current => Merged::Keep,
        Some(_) | None => Merged::Take,
    }
}

/// A scope's position on this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KillEntry {
    /// As an operator said it.
    Said {
        /// What was said.
        register: KillRegister,
        /// By whom, with the proof; to be passed on.
        signed: SignedKill,
    },
    /// Its file is damaged: counts as on, until a higher epoch comes.
    Damaged {
        /// The epoch, from the file's name.
        epoch: u64,
        /// What is wrong, with the file's name.
        reason: String,
    },
}

impl KillEntry {
    /// Whether nothing new may begin.
    #[must_use]
    pub fn is_on(&self) -> bool {
        match self {
            KillEntry::Said { register, .. } => register.on,
            KillEntry::Damaged { .. } => true,
        }
    }

    /// Its epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        match self {
            KillEntry::Said { register, .. } => register.epoch,
            KillEntry::Damaged { epoch, .. } => *epoch,
        }
    }

    /// Why it is as it is, for people.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            KillEntry::Said { register, .. } => &register.reason,
            KillEntry::Damaged { reason, .. } => reason,
        }
    }
}

/// The registers of one server, on its disk before anything is acknowledged.
#[derive(Debug)]
pub struct DurableKill {
    dir: PathBuf,
    entries: Mutex<BTreeMap<KillScope, KillEntry>>,
}

impl DurableKill {
    /// Opens the registers in a folder, which is made when it is missing.
    ///
    /// # Errors
    /// When the folder cannot be read. A damaged file is no error: it counts as *on*.
    pub fn open(dir: &Path) -> Result<Self, KillError> {
        fs::create_dir_all(dir).map_err(|error| KillError::file(dir, error))?;
        let mut entries: BTreeMap<KillScope, KillEntry> = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(|error| KillError::file(dir, error))? {
            let path = entry.map_err(|error| KillError::file(dir, error))?.path();
            // Leftovers of a crash end in `.new` and were never acknowledged.
            if path.extension().is_none_or(|extension| extension != "kill") {
                continue;
            }
            let (scope, entry) = read_entry(&path);
            if let KillEntry::Damaged { reason, .. } = &entry {
                tracing::error!(reason, "kill switch's register is damaged and counts as on");
            }
            let current = entries.get(&scope).map(|known| (known.epoch(), known.is_on()));
            if merge(current, (entry.epoch(), entry.is_on())) == Merged::Take {
                entries.insert(scope, entry);
            }
        }
        Ok(Self { dir: dir.to_owned(), entries: Mutex::new(entries) })
    }

    /// Verifies a register and takes it when it is newer; it is then on disk. Says whether anything
    /// changed; when it did, pass it on. Blocking: it may write a file and sync it.
    ///
    /// # Errors
    /// When it is not an operator's, or the disk refuses; nothing has then changed.
    pub fn offer(
        &self,
        signed: &SignedKill,
        roots: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Merged, KillError> {
        let (_, register) = signed.verify(roots, now)?;
        let mut entries = self.lock();
        let known = entries.get(&register.scope);
        let current = known.map(|known| (known.epoch(), known.is_on()));
        if merge(current, (register.epoch, register.on)) == Merged::Keep {
            return Ok(Merged::Keep);
        }
        // Operators without a view of the fleet take the time of day, so that is always within reach.
        let base = current.map_or(0, |(epoch, _)| epoch).max(now.as_secs());
        let highest = base.saturating_add(KILL_EPOCH_STEP_MAX);
        if register.epoch > highest {
            return Err(KillError::Epoch { epoch: register.epoch, highest });
        }
        if known.is_none() && entries.len() >= KILL_SCOPES_MAX {
            return Err(KillError::TooMany);
        }
        let path = self.dir.join(file_name(&register.scope, register.epoch, register.on));
        let text = serde_json::to_vec(signed).expect("texts always become JSON");
        write_durable(&path, &text).map_err(|error| KillError::file(&path, error))?;
        self.remove_older(&register);
        let scope = register.scope.clone();
        entries.insert(scope, KillEntry::Said { register, signed: signed.clone() });
        Ok(Merged::Take)
    }

    /// Why nothing new may begin in a group: the fleet's entry or the group's own, when on.
    #[must_use]
    pub fn is_on(&self, group: Option<&GroupId>) -> Option<KillEntry> {
        let entries = self.lock();
        let own = group.map(|group| KillScope::Group(group.clone()));
        [Some(KillScope::Fleet), own]
            .into_iter()
            .flatten()
            .filter_map(|scope| entries.get(&scope))
            .find(|entry| entry.is_on())
            .cloned()
    }

    /// The epoch that the next change of a scope needs.
    #[must_use]
    pub fn next_epoch(&self, scope: &KillScope) -> u64 {
        self.lock().get(scope).map_or(0, KillEntry::epoch).saturating_add(1)
    }

    /// Every scope's entry, for showing.
    #[must_use]
    pub fn entries(&self) -> BTreeMap<KillScope, KillEntry> {
        self.lock().clone()
    }

    /// Every signed register, for passing on.
    #[must_use]
    pub fn signed(&self) -> Vec<SignedKill> {
        let said = |entry: &KillEntry| match entry {
            KillEntry::Said { signed, .. } => Some(signed.clone()),
            KillEntry::Damaged { .. } => None,
        };
        self.lock().values().filter_map(said).collect()
    }

    /// Removes the scope's other files. Should it fail, they lose against the new one at the next
    /// start as they did now, so it is not worth an error.
    fn remove_older(&self, register: &KillRegister) {
        let keep = file_name(&register.scope, register.epoch, register.on);
        let Ok(files) = fs::read_dir(&self.dir) else { return };
        for file in files.flatten() {
            let name = file.file_name();
            let Some(name) = name.to_str() else { continue };
            let same_scope = parse_name(name).is_some_and(|(scope, _, _)| scope == register.scope);
            if same_scope && name != keep {
                let _ = fs::remove_file(file.path());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<KillScope, KillEntry>> {
        // Entries change in one insert, so a panic elsewhere leaves nothing half done.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn file_name(scope: &KillScope, epoch: u64, on: bool) -> String {
    let position = if on { "on" } else { "off" };
    match scope {
        KillScope::Fleet => format!("fleet@{epoch:020}@{position}.kill"),
        KillScope::Group(group) => format!("group@{group}@{epoch:020}@{position}.kill"),
    }
}

fn parse_name(name: &str) -> Option<(KillScope, u64, bool)> {
    let mut parts = name.strip_suffix(".kill")?.rsplitn(3, '@');
    let on = match parts.next()? {
        "on" => true,
        "off" => false,
        _ => return None,
    };
    let epoch = parts.next()?.parse().ok()?;
    let scope = match parts.next()? {
        "fleet" => KillScope::Fleet,
        group => KillScope::Group(GroupId::new(group.strip_prefix("group@")?).ok()?),
    };
    Some((scope, epoch, on))
}

/// Reads one file. It was verified before it was written, and its author's certificate may have
/// expired since: what is latched stays.
fn read_entry(path: &Path) -> (KillScope, KillEntry) {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((scope, epoch, on)) = parse_name(name) else {
        // Nobody but us writes here; what cannot be told apart stops everything, visibly.
        let reason = format!("file {} has no valid name", path.display());
        return (KillScope::Fleet, KillEntry::Damaged { epoch: 0, reason });
    };
    let read = || -> Result<(KillRegister, SignedKill), String> {
        let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
        if length > FILE_BYTES_MAX {
            return Err(format!("it is {length} bytes"));
        }
        let text = fs::read(path).map_err(|error| error.to_string())?;
        let signed: SignedKill =
            serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        let register = signed.unverified().map_err(|error| error.to_string())?;
        if (&register.scope, register.epoch, register.on) != (&scope, epoch, on) {
            return Err("its content is not what its name says".to_owned());
        }
        Ok((register, signed))
    };
    let entry = match read() {
        Ok((register, signed)) => KillEntry::Said { register, signed },
        Err(reason) => {
            let reason = format!("file {} is damaged: {reason}", path.display());
            KillEntry::Damaged { epoch, reason }
        }
    };
    (scope, entry)
}

/// What can go wrong with the kill switch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KillError {
    /// Not said by an operator.
    #[error("kill switch's register is refused")]
    Statement(#[source] StatementError),
    /// Signed, but no register.
    #[error("kill switch's register is malformed: {reason}")]
    Malformed {
        /// What the parser said.
        reason: String,
    },
    /// A novel for a reason.
    #[error("kill switch's reason is {bytes} bytes, at most {KILL_REASON_BYTES_MAX} are kept")]
    Reason {
        /// Its length.
        bytes: usize,
    },
    /// Far beyond the next.
    #[error("kill switch's epoch {epoch} is too far ahead, at most {highest} is taken here")]
    Epoch {
        /// The epoch it says.
        epoch: u64,
        /// The highest that would be taken.
        highest: u64,
    },
    /// Too many groups.
    #[error("there are {KILL_SCOPES_MAX} kill registers, no more are kept")]
    TooMany,
    /// A file cannot be read or written.
    #[error("kill switch's file {path} cannot be read or written")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl KillError {
    fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.display().to_string(), source }
    }
}
