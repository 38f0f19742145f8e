//! The kill switch: one register per scope, signed by an operator, latched on every server's disk.
//!
//! It is not in the log, because a minority must be able to stop. Which register is in force, and
//! which is refused, is decided in [`cohort_core::kill`]; here are signatures and files.
//!
//! On disk, a scope is one file whose *name* contains epoch and position:
//! `fleet@00000000000000000007@on.kill`, `group@web.zone-a@…@off.kill`. The name survives damage to
//! the content, so a damaged file counts as *on* at its epoch, and the next epoch replaces it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cohort_base::{Cause, FileError, OnPath as _, chain, durable};
use cohort_core::ids::GroupId;
pub use cohort_core::kill::{KillScope, Position, Refused, Registers};
use cohort_identity::{
    CertificateDer, Identity, Peer, Role, SignedStatement, StatementError, UnixTime,
    sign_statement, verify_statement,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::http::ApiError;
use crate::limits::KILL_REASON_BYTES_MAX;
use crate::revocation::Revocations;

#[cfg(test)]
#[path = "kill_test.rs"]
mod kill_test;

/// The kind of signed statement.
const CONTEXT: &str = "cohort-kill/1";
/// Largest file, in bytes: names, a number, a bounded reason, a certificate chain, and a signature
/// in hexadecimal.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// A kill switch's position, with epoch and reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillRegister {
    pub scope: KillScope,
    /// Incremented by every change; the highest wins.
    pub epoch: u64,
    /// Whether new work is stopped.
    pub on: bool,
    /// For people; at most [`KILL_REASON_BYTES_MAX`] bytes.
    pub reason: String,
    /// Unix time in seconds, by the operator's clock; for people only.
    pub at: u64,
}

impl KillRegister {
    /// What decides between this and another register of its scope.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, on: self.on }
    }
}

/// A register with its operator's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignedKill(pub SignedStatement);

impl SignedKill {
    /// Signs a register. The receiver checks the signer's role.
    ///
    /// # Errors
    /// If the reason is too long or has hidden characters, or the identity's key cannot sign.
    pub fn sign(identity: &Identity, register: &KillRegister) -> Result<Self, KillError> {
        check_reason(&register.reason)?;
        let body = serde_json::to_vec(register).expect("names and numbers always become JSON");
        sign_statement(identity, CONTEXT, &body).map(Self).map_err(KillError::Statement)
    }

    /// Verifies that an operator signed it; returns the operator and the register.
    ///
    /// # Errors
    /// If the signature does not verify, the signer is not an operator, or it is malformed.
    pub fn verify(
        &self,
        roots: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(Peer, KillRegister), KillError> {
        let peer = verify_statement(roots, CONTEXT, &self.0, &[Role::Operator], now)
            .map_err(KillError::Statement)?;
        Ok((peer, self.unverified()?))
    }

    /// Verifies a register that another server passes on. One that stops goes on spreading after
    /// its author's certificate has expired: that was valid when it was signed. So an expired key
    /// can stop, and never start, anything.
    ///
    /// # Errors
    /// As [`Self::verify`].
    fn verify_spreading(
        &self,
        roots: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<KillRegister, KillError> {
        let refused = match self.verify(roots, now) {
            Ok((_, register)) => return Ok(register),
            Err(refused) => refused,
        };
        let Ok(register) = self.unverified() else { return Err(refused) };
        if !register.on || register.at > now.as_secs() {
            return Err(refused);
        }
        let then = UnixTime::since_unix_epoch(Duration::from_secs(register.at));
        self.verify(roots, then).map_err(|_| refused)?;
        Ok(register)
    }

    /// The register, without checking the signature.
    fn unverified(&self) -> Result<KillRegister, KillError> {
        let register: KillRegister =
            serde_json::from_slice(&self.0.body).map_err(KillError::Malformed)?;
        check_reason(&register.reason)?;
        Ok(register)
    }
}

fn check_reason(reason: &str) -> Result<(), KillError> {
    if reason.len() > KILL_REASON_BYTES_MAX {
        let bytes = reason.len();
        return Err(KillError::Reason(format!(
            "it is {bytes} bytes, the limit is {KILL_REASON_BYTES_MAX}"
        )));
    }
    cohort_base::text::check("it", reason).map_err(KillError::Reason)
}

/// A scope's register on this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KillEntry {
    Said {
        register: KillRegister,
        /// The same with its signature, for forwarding.
        signed: SignedKill,
    },
    /// The file is damaged; counts as on until a higher epoch arrives.
    Damaged(DamagedKill),
}

/// A register whose content is damaged. It counts as on until a higher epoch arrives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedKill {
    pub scope: KillScope,
    /// The epoch, from the file's name.
    pub epoch: u64,
    /// The file, and what is wrong with it.
    pub reason: String,
}

/// The response of an agent or hub to `GET` and `POST` of kill registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillAnswer {
    /// Whether the posted register was newer than the one here.
    pub changed: bool,
    pub registers: Vec<SignedKill>,
    pub damaged: Vec<DamagedKill>,
}

impl KillEntry {
    /// What decides between this and another register of its scope.
    #[must_use]
    pub fn position(&self) -> Position {
        match self {
            KillEntry::Said { register, .. } => register.position(),
            KillEntry::Damaged(damaged) => Position::damaged(damaged.epoch),
        }
    }

    /// The operator's reason, or the damage.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            KillEntry::Said { register, .. } => &register.reason,
            KillEntry::Damaged(damaged) => &damaged.reason,
        }
    }
}

/// The registers of a server or hub, persisted before any is acknowledged.
#[derive(Debug)]
pub struct DurableKill {
    dir: PathBuf,
    entries: Mutex<Registers<KillEntry>>,
}

impl DurableKill {
    /// Opens the registers in a directory, creating it if missing: those that cover a server of
    /// `group`, or with `None` those of every scope.
    ///
    /// # Errors
    /// If the directory cannot be read. A damaged file is not an error: it counts as *on*.
    pub fn open(dir: &Path, group: Option<GroupId>) -> Result<Self, KillError> {
        fs::create_dir_all(dir).on_path("create directory", dir)?;
        durable::sweep(dir).on_path("clean up", dir)?;
        let mut entries = Registers::new(group);
        for entry in fs::read_dir(dir).on_path("read directory", dir)? {
            let path = entry.on_path("read directory", dir)?.path();
            if path.extension().is_none_or(|extension| extension != "kill") {
                continue;
            }
            let (scope, entry) = read_entry(&path);
            if let KillEntry::Damaged(DamagedKill { reason, .. }) = &entry {
                tracing::error!(%scope, reason, "damaged kill register counts as on");
            }
            entries.merge(scope, entry.position(), entry);
        }
        Ok(Self { dir: dir.to_owned(), entries: Mutex::new(entries) })
    }

    /// Verifies a register and stores it if it is newer. When this returns true, it is persisted
    /// and should be forwarded. Blocks on a sync.
    ///
    /// # Errors
    /// If it is not signed by an operator, it is refused, or the disk fails; then nothing has
    /// changed.
    pub fn offer(
        &self,
        signed: &SignedKill,
        roots: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<bool, KillError> {
        let register = signed.verify_spreading(roots, now)?;
        let mut entries = self.entries.lock();
        let (scope, position) = (register.scope.clone(), register.position());
        if !entries.accept(&scope, position, now.as_secs())? {
            return Ok(false);
        }
        let path = self.dir.join(file_name(&register.scope, register.epoch, register.on));
        let text = serde_json::to_vec(signed).expect("texts always become JSON");
        durable::write(&path, &text, durable::READABLE).on_path("write", &path)?;
        self.remove_older(&register);
        entries.merge(scope, position, KillEntry::Said { register, signed: signed.clone() });
        Ok(true)
    }

    /// Forgets what somebody resumed whose certificate is revoked: others know the register before.
    /// What such a person stopped stays stopped until a later register. Returns whether there was
    /// one. Blocks on the disk.
    pub fn forget_revoked(&self, revocations: &Revocations) -> bool {
        let mut entries = self.entries.lock();
        let revoked: Vec<KillScope> = entries
            .iter()
            .filter_map(|(scope, entry)| match entry {
                KillEntry::Said { register, signed } => {
                    let off = !register.on && revocations.revokes_author_of(&signed.0);
                    off.then(|| scope.clone())
                }
                KillEntry::Damaged(_) => None,
            })
            .collect();
        for scope in &revoked {
            if let Some(position) = entries.position(scope) {
                let file = self.dir.join(file_name(scope, position.epoch, position.on));
                if let Err(error) = fs::remove_file(&file) {
                    tracing::warn!(file = %file.display(), %error, "revoked kill register stays");
                    continue;
                }
            }
            entries.forget(scope);
        }
        !revoked.is_empty()
    }

    /// The register that stops this server: the fleet's or its group's, if on.
    #[must_use]
    pub fn is_on(&self) -> Option<KillEntry> {
        self.entries.lock().stopping().cloned()
    }

    /// How many scopes are on.
    #[must_use]
    pub fn on_count(&self) -> usize {
        self.entries.lock().iter().filter(|(_, entry)| entry.position().on).count()
    }

    /// Every scope's register, for display.
    #[must_use]
    pub fn entries(&self) -> Registers<KillEntry> {
        self.entries.lock().clone()
    }

    /// Every signed register, for forwarding.
    #[must_use]
    pub fn signed(&self) -> Vec<SignedKill> {
        self.answer(false).registers
    }

    /// The response to a request for the registers, or to a posted one that `changed` them or not.
    #[must_use]
    pub fn answer(&self, changed: bool) -> KillAnswer {
        let mut answer = KillAnswer { changed, registers: Vec::new(), damaged: Vec::new() };
        for (_, entry) in self.entries.lock().iter() {
            match entry {
                KillEntry::Said { signed, .. } => answer.registers.push(signed.clone()),
                KillEntry::Damaged(damaged) => answer.damaged.push(damaged.clone()),
            }
        }
        answer
    }

    /// Removes the scope's other files. If that fails, they lose against the new one at the next
    /// start too.
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

/// Reads a file. Its signature was verified before it was written and is not verified again: the
/// signer's certificate may have expired since, and a latched register stays.
fn read_entry(path: &Path) -> (KillScope, KillEntry) {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((scope, epoch, on)) = parse_name(name) else {
        // Only this process writes here: an unknown file stops everything, visibly.
        let reason = format!("file {} has no valid name", path.display());
        let damaged = DamagedKill { scope: KillScope::Fleet, epoch: 0, reason };
        return (KillScope::Fleet, KillEntry::Damaged(damaged));
    };
    let read = || -> Result<(KillRegister, SignedKill), Cause> {
        let length = fs::metadata(path)?.len();
        if length > FILE_BYTES_MAX {
            return Err(format!("it is {length} bytes long").into());
        }
        let signed: SignedKill = serde_json::from_slice(&fs::read(path)?)?;
        let register = signed.unverified()?;
        if (&register.scope, register.epoch, register.on) != (&scope, epoch, on) {
            return Err("its content does not match its name".into());
        }
        Ok((register, signed))
    };
    let entry = match read() {
        Ok((register, signed)) => KillEntry::Said { register, signed },
        Err(error) => {
            let reason = format!("file {} is damaged: {}", path.display(), chain(&*error));
            KillEntry::Damaged(DamagedKill { scope: scope.clone(), epoch, reason })
        }
    };
    (scope, entry)
}

/// Why a kill register was rejected, or could not be stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KillError {
    /// The signature or the signer's role is wrong.
    #[error("kill register is rejected")]
    Statement(#[source] StatementError),
    /// By an operator whose certificate is revoked.
    #[error("kill register's author is revoked")]
    Revoked,
    /// Signed, but not a register.
    #[error("malformed kill register")]
    Malformed(#[source] serde_json::Error),
    #[error("kill register's reason is refused: {0}")]
    Reason(String),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("cannot access the files of kill registers")]
    File(#[from] FileError),
}

impl From<KillError> for ApiError {
    fn from(error: KillError) -> ApiError {
        let reason = chain(&error);
        match error {
            KillError::Revoked => ApiError::forbidden(reason),
            KillError::Statement(_) => ApiError::forbidden(reason)
                .hint("an operator's certificate signs it: `cohort kill on` or `cohort kill off`"),
            KillError::Malformed(_)
            | KillError::Reason(_)
            | KillError::Refused(Refused::Epoch { .. }) => ApiError::bad_request(reason),
            KillError::Refused(Refused::OtherGroup { group, .. }) => ApiError::conflict(reason)
                .hint(format!("send it to an agent of {group}, or to the hub")),
            KillError::Refused(Refused::TooMany) => ApiError::unavailable("full", reason),
            KillError::File(_) => ApiError::internal(reason),
        }
    }
}
