//! Revoked certificates: stolen keys, and people who have left.
//!
//! An operator signs that the certificates of a peer count no more if they were issued by then.
//! Every agent and hub keeps what it hears of that, refuses such peers at every handshake and ends
//! their connections, and passes it on: like the kill switch, it needs no hub. A certificate that
//! the authority issues later counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cohort_base::{FileError, OnPath as _, chain, durable};
use cohort_identity::{
    CertificateDer, Certified, Identity, LIFETIME, Peer, PeerName, Role, SignedStatement,
    StatementError, UnixTime, sha256_hex, sign_statement, verify_statement,
};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::http::ApiError;
use crate::limits::KILL_REASON_BYTES_MAX;

#[cfg(test)]
#[path = "revocation_test.rs"]
mod revocation_test;

/// The kind of signed statement.
const CONTEXT: &str = "cohort-revocation/1";

/// Revocations that are kept. 1,000: each is forgotten once no certificate is that old.
pub const REVOCATIONS_MAX: usize = 1_000;

/// Revocations in one message: with their certificates, a fraction of a request's limit.
pub const REVOCATIONS_SENT_MAX: usize = 64;

/// How often a revocation is signed again: once per authority.
const AGAIN_MAX: u32 = 1_000;

/// How far the time of a revocation may be ahead of the clock that judges it, in seconds: five
/// minutes. It decides which later certificates count.
const AHEAD_S_MAX: u64 = 300;
/// The same for a hub's.
const HUB_AHEAD_S_MAX: u64 = 5;

/// That certificates of a peer count no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    pub role: Role,
    pub name: PeerName,
    /// Unix time in seconds: certificates that are valid from then on, or from earlier, are
    /// revoked.
    pub at: u64,
    /// How often operators have signed it again, because the authority that had certified the one
    /// before would end; at most [`AGAIN_MAX`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub again: u32,
    /// For people; at most [`KILL_REASON_BYTES_MAX`] bytes.
    pub reason: String,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Which of two revocations of one peer counts: that of the later date, and of those the one that
/// was signed later.
pub type Edition = (u64, u32);

impl Revocation {
    /// Whose certificates are revoked.
    #[must_use]
    pub fn peer(&self) -> Peer {
        Peer { role: self.role, name: self.name.clone() }
    }

    /// Whether every certificate that it is about has expired.
    fn is_past(&self, now: UnixTime) -> bool {
        self.at.saturating_add(LIFETIME.as_secs()) <= now.as_secs()
    }

    /// How far its date may be ahead of a clock, in seconds. A hub's next certificate is valid only
    /// after that date, and until then nobody talks to the hub.
    fn ahead_max(&self) -> u64 {
        match self.role {
            Role::Hub => HUB_AHEAD_S_MAX,
            Role::Viewer | Role::Publisher | Role::Agent | Role::Operator => AHEAD_S_MAX,
        }
    }

    /// How much the certificates could do.
    fn rank(&self) -> u8 {
        match self.role {
            Role::Viewer => 0,
            Role::Publisher => 1,
            Role::Agent => 2,
            Role::Operator | Role::Hub => 3,
        }
    }

    /// Which of several it is.
    #[must_use]
    pub fn edition(&self) -> Edition {
        (self.at, self.again)
    }

    /// The same, for another operator to sign again.
    #[must_use]
    pub fn once_more(&self) -> Self {
        match self.again < AGAIN_MAX {
            true => Revocation { again: self.again + 1, ..self.clone() },
            false => Revocation { at: self.at + 1, again: 0, ..self.clone() },
        }
    }

    /// The peer, as exchanges and people name it: `agent/web-1`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.role.as_str(), self.name)
    }
}

/// A revocation with its operator's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignedRevocation(pub SignedStatement);

impl SignedRevocation {
    /// Signs a revocation. The receiver checks the signer's role.
    ///
    /// # Errors
    /// If the reason is too long, or the identity's key cannot sign.
    pub fn sign(identity: &Identity, revocation: &Revocation) -> Result<Self, RevocationError> {
        check(revocation)?;
        let body = serde_json::to_vec(revocation).expect("names and numbers become JSON");
        sign_statement(identity, CONTEXT, &body).map(Self).map_err(RevocationError::Statement)
    }

    /// Verifies that an operator signed it. The operator's certificate had to be valid at the time
    /// of the revocation; it may have expired since.
    ///
    /// # Errors
    /// If the signature does not verify, the signer is not an operator, or it is malformed.
    pub fn verify(
        &self,
        roots: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(Peer, Revocation), RevocationError> {
        let revocation = self.unverified()?;
        let ahead_max = revocation.ahead_max();
        if revocation.at > now.as_secs() + ahead_max {
            let by_s = revocation.at - now.as_secs();
            return Err(RevocationError::Ahead { by_s, ahead_max });
        }
        let then = UnixTime::since_unix_epoch(Duration::from_secs(revocation.at));
        let verify = |at| verify_statement(roots, CONTEXT, &self.0, &[Role::Operator], at);
        let by = verify(now).or_else(|_| verify(then)).map_err(RevocationError::Statement)?;
        Ok((by, revocation))
    }

    fn unverified(&self) -> Result<Revocation, RevocationError> {
        let revocation: Revocation =
            serde_json::from_slice(&self.0.body).map_err(RevocationError::Malformed)?;
        check(&revocation)?;
        Ok(revocation)
    }
}

fn check(revocation: &Revocation) -> Result<(), RevocationError> {
    let bytes = revocation.reason.len();
    if crate::entry::sentence("the reason", &revocation.reason).is_err() {
        return Err(RevocationError::Hidden);
    }
    if bytes > KILL_REASON_BYTES_MAX {
        return Err(RevocationError::Reason { bytes });
    }
    if revocation.again > AGAIN_MAX {
        return Err(RevocationError::Again);
    }
    Ok(())
}

/// What a place tells another of its revocations; and what it asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevocationsExchange {
    /// Each peer's revocation that the sender has.
    pub has: BTreeMap<String, Edition>,
    /// Revocations that the other may lack; at most [`REVOCATIONS_SENT_MAX`].
    pub news: Vec<SignedRevocation>,
}

/// The answer to a [`RevocationsExchange`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationsAnswer {
    /// What the answering place has now.
    pub has: BTreeMap<String, Edition>,
    /// Revocations that the other lacks; at most [`REVOCATIONS_SENT_MAX`].
    pub news: Vec<SignedRevocation>,
}

/// The revocations that a process knows, on disk if it has a file for them.
#[derive(Debug)]
pub struct Revocations {
    file: Option<PathBuf>,
    known: RwLock<BTreeMap<Peer, (Revocation, SignedRevocation)>>,
    /// Held by whoever changes it.
    writing: Mutex<()>,
    /// Identifies what is known; 0 while nothing is.
    digest: watch::Sender<u64>,
}

impl Default for Revocations {
    /// None, in memory only: of a process that asks nobody for them.
    fn default() -> Self {
        let (known, digest) = (RwLock::default(), watch::Sender::new(0));
        Revocations { file: None, known, writing: Mutex::default(), digest }
    }
}

impl Revocations {
    /// Reads the file, if there is one. Those older than any certificate are forgotten. Signatures
    /// were verified before they were written, and are not verified again: the signer's
    /// certificate may have expired since.
    ///
    /// # Errors
    /// If the file is not readable or damaged: without it, revoked peers would be let in.
    pub fn open(file: &Path, now: UnixTime) -> Result<Arc<Self>, RevocationError> {
        durable::sweep_for(file).on_path("clean up", file)?;
        let signed: Vec<SignedRevocation> = match std::fs::read(file) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|source| RevocationError::Damaged { path: file.to_owned(), source })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => Err(error).on_path("read", file)?,
        };
        let mut known = BTreeMap::new();
        for signed in signed {
            let revocation = signed.unverified()?;
            if !revocation.is_past(now) {
                known.insert(revocation.peer(), (revocation, signed));
            }
        }
        let digest = watch::Sender::new(digest_of(&known));
        let (file, known) = (Some(file.to_owned()), RwLock::new(known));
        Ok(Arc::new(Revocations { file, known, writing: Mutex::default(), digest }))
    }

    /// Verifies a revocation and keeps it if it is news; durable before this returns true. Blocks
    /// on a sync.
    ///
    /// # Errors
    /// If it is not signed by an operator, or by one who is revoked, there are too many of that
    /// operator's, or the disk fails; then nothing has changed.
    pub fn offer(
        &self,
        signed: &SignedRevocation,
        roots: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<bool, RevocationError> {
        let (by, revocation) = signed.verify(roots, now)?;
        if self.revokes_author_of(&signed.0) {
            return Err(RevocationError::Revoked(Box::new(by)));
        }
        // Readers do not wait for the disk.
        let _writing = self.writing.lock();
        let mut next = self.known.read().clone();
        let peer = revocation.peer();
        let current = next.get(&peer).map(|(revocation, _)| revocation.edition());
        let expired = revocation.is_past(now);
        if expired || current.is_some_and(|current| current >= revocation.edition()) {
            return Ok(false);
        }
        next.insert(peer.clone(), (revocation, signed.clone()));
        if next.len() > REVOCATIONS_MAX {
            let least = least(&next).filter(|least| *least != peer);
            next.remove(&least.ok_or(RevocationError::TooMany)?);
        }
        if let Some(file) = &self.file {
            let all: Vec<&SignedRevocation> = next.values().map(|(_, signed)| signed).collect();
            let text = serde_json::to_vec(&all).expect("texts always become JSON");
            durable::write(file, &text, durable::SECRET).on_path("write", file)?;
        }
        let digest = digest_of(&next);
        *self.known.write() = next;
        self.digest.send_replace(digest);
        Ok(true)
    }

    /// Whether a certificate is revoked.
    #[must_use]
    pub fn revokes(&self, certified: &Certified) -> bool {
        self.revoked_at(&certified.peer).is_some_and(|at| certified.not_before.as_secs() <= at)
    }

    /// Whether a verified statement counts no more, because its author's certificate is revoked.
    #[must_use]
    pub fn revokes_author_of(&self, statement: &SignedStatement) -> bool {
        statement.certified().is_none_or(|author| self.revokes(&author))
    }

    /// When the certificates of a peer were revoked last, in Unix seconds.
    #[must_use]
    pub fn revoked_at(&self, peer: &Peer) -> Option<u64> {
        self.known.read().get(peer).map(|(revocation, _)| revocation.at)
    }

    /// Every revocation, by peer, for people.
    #[must_use]
    pub fn all(&self) -> Vec<Revocation> {
        self.known.read().values().map(|(revocation, _)| revocation.clone()).collect()
    }

    /// A number that identifies what is known: equal where the same is known.
    #[must_use]
    pub fn digest(&self) -> u64 {
        *self.digest.borrow()
    }

    /// Changes whenever there is news.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.digest.subscribe()
    }

    /// Which revocation of each peer.
    #[must_use]
    pub fn has(&self) -> BTreeMap<String, Edition> {
        let known = self.known.read();
        known.values().map(|(it, _)| (it.key(), it.edition())).collect()
    }

    /// Those in force that these roots do not prove, nor did when they were signed; at most
    /// [`REVOCATIONS_SENT_MAX`].
    #[must_use]
    pub fn unproven(&self, roots: &[CertificateDer<'_>], now: UnixTime) -> Vec<SignedRevocation> {
        let known = self.known.read();
        let unproven = known.values().filter(|(revocation, signed)| {
            !revocation.is_past(now) && signed.verify(roots, now).is_err()
        });
        unproven.take(REVOCATIONS_SENT_MAX).map(|(_, signed)| signed.clone()).collect()
    }

    /// Revocations that one who has these lacks; at most [`REVOCATIONS_SENT_MAX`].
    #[must_use]
    pub fn news_for(&self, has: &BTreeMap<String, Edition>) -> Vec<SignedRevocation> {
        let known = self.known.read();
        let lacks = known.values().filter(|(revocation, _)| {
            has.get(&revocation.key()).is_none_or(|has| *has < revocation.edition())
        });
        lacks.take(REVOCATIONS_SENT_MAX).map(|(_, signed)| signed.clone()).collect()
    }

    /// Takes in what another place sent, as far as it verifies, and answers it. Blocks on a sync.
    pub fn exchange(
        &self,
        exchange: &RevocationsExchange,
        roots: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> RevocationsAnswer {
        self.take(&exchange.news, roots, now);
        RevocationsAnswer { has: self.has(), news: self.news_for(&exchange.has) }
    }

    /// Takes in what another place sent, as far as it verifies. Blocks on a sync.
    pub fn take(&self, news: &[SignedRevocation], roots: &[CertificateDer<'_>], now: UnixTime) {
        for signed in news.iter().take(REVOCATIONS_SENT_MAX) {
            match self.offer(signed, roots, now) {
                Ok(true) => {
                    let peer = signed.unverified().map(|revocation| revocation.peer());
                    tracing::warn!(peer = ?peer.ok(), "certificates revoked");
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(error = chain(&error), "revocation refused"),
            }
        }
    }
}

/// The one to give up, the same everywhere: of the operator who signed the most, so that nobody
/// displaces what others signed by signing many; where it matters least, the oldest.
fn least(known: &BTreeMap<Peer, (Revocation, SignedRevocation)>) -> Option<Peer> {
    let mut of: BTreeMap<Option<Peer>, Vec<&Revocation>> = BTreeMap::new();
    for (revocation, signed) in known.values() {
        of.entry(signed.0.certified().map(|by| by.peer)).or_default().push(revocation);
    }
    let most = of.into_values().max_by_key(Vec::len)?;
    let least = most.into_iter().map(|it| (it.rank(), it.at, it.peer())).min();
    least.map(|(.., peer)| peer)
}

/// Independent of the order in which they came.
fn digest_of(known: &BTreeMap<Peer, (Revocation, SignedRevocation)>) -> u64 {
    let hash = |revocation: &Revocation| {
        let text = format!("{}@{}.{}", revocation.key(), revocation.at, revocation.again);
        let hash = hex::decode(sha256_hex(text.as_bytes())).expect("hexadecimal digits");
        let (first, _) = hash.split_first_chunk().expect("a hash has 32 bytes");
        u64::from_be_bytes(*first)
    };
    known.values().fold(0, |digest, (revocation, _)| digest ^ hash(revocation))
}

/// Why a revocation was refused, or could not be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RevocationError {
    #[error("revocation's reason has line breaks or hidden characters")]
    Hidden,
    /// The signature or the signer's role is wrong.
    #[error("revocation is rejected")]
    Statement(#[source] StatementError),
    /// Whoever revokes is revoked.
    #[error("the certificate of {0} is revoked: it revokes nobody")]
    Revoked(Box<Peer>),
    /// Signed, but no revocation.
    #[error("malformed revocation")]
    Malformed(#[source] serde_json::Error),
    #[error("revocation's reason is {bytes} bytes, the limit is {KILL_REASON_BYTES_MAX}")]
    Reason { bytes: usize },
    #[error("revocation was signed more than {AGAIN_MAX} times")]
    Again,
    #[error("revocation is dated {by_s} s ahead of this clock; at most {ahead_max} s are accepted")]
    Ahead { by_s: u64, ahead_max: u64 },
    #[error("{REVOCATIONS_MAX} revocations are kept already, the limit")]
    TooMany,
    #[error("the file of revocations {} is damaged", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("cannot access the file of revocations")]
    File(#[from] FileError),
}

impl From<RevocationError> for ApiError {
    fn from(error: RevocationError) -> ApiError {
        let reason = chain(&error);
        match error {
            RevocationError::Statement(_) => ApiError::forbidden(reason)
                .hint("an operator's certificate signs it: `cohort server revoke SERVER`"),
            RevocationError::Revoked(_) => ApiError::forbidden(reason),
            RevocationError::Malformed(_)
            | RevocationError::Reason { .. }
            | RevocationError::Hidden
            | RevocationError::Again
            | RevocationError::Ahead { .. } => ApiError::bad_request(reason),
            RevocationError::TooMany => ApiError::unavailable("full", reason),
            RevocationError::Damaged { .. } | RevocationError::File(_) => {
                ApiError::internal(reason)
            }
        }
    }
}
