//! The hub's join tokens: one file per token, with only a hash of its secret.
//!
//! A redeemed token stores the key that it was redeemed for, on disk before the certificate is
//! sent, so that a server that lost the answer, and only that one, can redeem it again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cohort_base::{Cause, FileError, OnPath as _, chain, durable};
use hex::FromHex as _;
use parking_lot::Mutex;
use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};

use crate::identity::read_small;
use crate::join::{Anchors, ID_BYTES, JoinToken, JoinTokenError};
use crate::peer::{Peer, PeerName, Role, sha256_hex};
use crate::request::IdentityRequest;

/// Used tokens are kept: they record who has which name. This fits ten thousand servers that
/// re-joined a few times each; at half a kilobyte per token the folder stays under 50 MB.
pub const TOKENS_MAX: usize = 100_000;

/// For how many seconds the same key gets a certificate again: long enough for a server to restart
/// and retry, short enough that a token left in a shell history is worthless.
pub const REDEEM_AGAIN_WINDOW_S: u64 = 15 * 60;

/// What a token allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinGrant {
    pub role: Role,
    /// The only name allowed; `None`, for servers: any name that is not taken.
    pub name: Option<PeerName>,
}

/// What the hub knows of a name, whatever became of the tokens that it was joined with.
#[derive(Debug, Clone, Copy, Default)]
pub struct KnownName {
    /// A server has it.
    pub is_taken: bool,
    /// When its holder was last removed, in Unix seconds: an earlier token does not bring it back.
    pub removed_at: Option<u64>,
}

/// Whether a token can still be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum TokenState {
    /// Waiting for a server to join with it.
    Unused,
    Used {
        peer: Peer,
        /// SHA-256 of its public key, in hexadecimal.
        key_fingerprint: String,
        /// Unix seconds.
        used_at: u64,
    },
    Revoked,
}

/// What the hub stores about a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// Version of the file format: 1.
    pub version: u32,
    /// The token's public id; also the file's name.
    pub id: String,
    /// SHA-256 of the secret, in hexadecimal.
    pub(crate) secret_sha256: String,
    /// Who may join with it.
    pub grant: JoinGrant,
    /// SHA-256 of the repository's root that its user is to trust first, in hexadecimal.
    pub trusted_root: Option<String>,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds; `None`: never.
    pub expires_at: Option<u64>,
    pub state: TokenState,
}

/// All join tokens of a hub.
#[derive(Debug)]
pub struct JoinTokens {
    dir: PathBuf,
    records: Mutex<BTreeMap<String, TokenRecord>>,
}

impl JoinTokens {
    /// Opens the store in a folder, which is created if missing. A damaged file is logged and its
    /// token refused; it does not stop the hub.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn open(dir: &Path) -> Result<Self, RedeemError> {
        durable::private_folder(dir).on_path("create directory", dir)?;
        durable::sweep(dir).on_path("clean up", dir)?;
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(dir).on_path("read directory", dir)? {
            let path = entry.on_path("read directory", dir)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read_record(&path) {
                Ok(record) => {
                    records.insert(record.id.clone(), record);
                }
                Err(error) => {
                    let reason = chain(&*error);
                    tracing::error!(path = %path.display(), reason, "ignoring damaged join token");
                }
            }
        }
        Ok(Self { dir: dir.to_owned(), records: Mutex::new(records) })
    }

    /// Creates a token. It is on disk when this returns.
    ///
    /// # Errors
    /// When there are too many, an address is malformed, or the disk fails.
    pub fn create(
        &self,
        grant: JoinGrant,
        anchors: &Anchors,
        addresses: &[String],
        expires_at: Option<u64>,
        now: UnixTime,
    ) -> Result<JoinToken, RedeemError> {
        let token =
            JoinToken::generate(anchors, addresses, expires_at).map_err(RedeemError::Token)?;
        let record = TokenRecord {
            version: 1,
            id: token.id.clone(),
            secret_sha256: sha256_hex(token.secret.as_bytes()),
            grant,
            trusted_root: anchors.trusted_root.clone(),
            created_at: now.as_secs(),
            expires_at,
            state: TokenState::Unused,
        };
        let mut records = self.records.lock();
        if records.len() >= TOKENS_MAX {
            return Err(RedeemError::TooMany);
        }
        self.write(&record)?;
        records.insert(record.id.clone(), record);
        Ok(token)
    }

    /// Checks that a token exists, in whatever state, and that this is its secret. Returns the
    /// SHA-256 of the root that its user is to trust.
    ///
    /// # Errors
    /// `Unknown`.
    pub fn check_secret(&self, id: &str, secret: &str) -> Result<Option<String>, RedeemError> {
        with_secret(&self.records.lock(), id, secret).map(|record| record.trusted_root.clone())
    }

    /// Redeems a token for a certificate, which `issue` makes: also when the same key redeems it
    /// again, because the server may have another group by then. The key is on disk when this
    /// returns. Blocks on a sync.
    ///
    /// # Errors
    /// When the token is unknown, expired, revoked, used with another key, or for another peer;
    /// when the name is taken; when `issue` or the disk fails. The token is unchanged then.
    pub fn redeem<E: Into<Cause>>(
        &self,
        id: &str,
        secret: &str,
        request: &IdentityRequest,
        known: KnownName,
        now: UnixTime,
        issue: impl FnOnce(&Peer) -> Result<String, E>,
    ) -> Result<String, RedeemError> {
        let mut records = self.records.lock();
        let peer = request.peer();
        let key_fingerprint = request.public_key().fingerprint();
        let record = with_secret(&records, id, secret)?;
        let certify = || issue(peer).map_err(|error| RedeemError::Issue(error.into()));
        match &record.state {
            TokenState::Revoked => return Err(RedeemError::Revoked),
            TokenState::Used { peer: holder, key_fingerprint: holders_key, used_at } => {
                let again = *holders_key == key_fingerprint
                    && holder == peer
                    && known.removed_at.is_none_or(|removed_at| removed_at < *used_at)
                    && now.as_secs().saturating_sub(*used_at) <= REDEEM_AGAIN_WINDOW_S;
                return if again { certify() } else { Err(RedeemError::Used) };
            }
            TokenState::Unused => {}
        }
        if record.expires_at.is_some_and(|until| now.as_secs() > until) {
            return Err(RedeemError::Expired);
        }
        let named = record.grant.name.as_ref();
        // A name is that of a person whose deeds are recorded under it: only a token gives one.
        let unnamed_person = named.is_none() && peer.role != Role::Agent;
        let other_name = named.is_some_and(|name| *name != peer.name);
        if record.grant.role != peer.role || other_name || unnamed_person {
            return Err(RedeemError::Grant(Box::new(peer.clone())));
        }
        // A token without a name must not replace a server that has joined already.
        let taken = |other: &TokenRecord| match &other.state {
            TokenState::Used { peer: holder, .. } => holder == peer,
            TokenState::Unused | TokenState::Revoked => false,
        };
        if named.is_none() && (known.is_taken || records.values().any(taken)) {
            return Err(RedeemError::NameTaken(Box::new(peer.clone())));
        }
        let certificate = certify()?;
        let mut used = record.clone();
        used.state =
            TokenState::Used { peer: peer.clone(), key_fingerprint, used_at: now.as_secs() };
        self.write(&used)?;
        records.insert(used.id.clone(), used);
        Ok(certificate)
    }

    /// Revokes an unused token.
    ///
    /// # Errors
    /// When it is unknown or used, or the disk fails.
    pub fn revoke(&self, id: &str) -> Result<(), RedeemError> {
        let mut records = self.records.lock();
        let record = records.get(id).ok_or(RedeemError::Unknown)?;
        if matches!(record.state, TokenState::Used { .. }) {
            return Err(RedeemError::Used);
        }
        let mut revoked = record.clone();
        revoked.state = TokenState::Revoked;
        self.write(&revoked)?;
        records.insert(revoked.id.clone(), revoked);
        Ok(())
    }

    /// Revokes every unused token: files from a backup do not know which were used since. Returns
    /// how many there were.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn revoke_unused(&self) -> Result<usize, RedeemError> {
        let mut records = self.records.lock();
        let mut count = 0;
        for record in records.values_mut() {
            if record.state == TokenState::Unused {
                let revoked = TokenRecord { state: TokenState::Revoked, ..record.clone() };
                self.write(&revoked)?;
                *record = revoked;
                count += 1;
            }
        }
        Ok(count)
    }

    /// All tokens, ordered by id.
    #[must_use]
    pub fn list(&self) -> Vec<TokenRecord> {
        self.records.lock().values().cloned().collect()
    }

    /// Deletes tokens that expired or were revoked more than `age_s` seconds ago without being
    /// used. Used ones stay: they record who has which name. Returns how many were deleted.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn prune(&self, age_s: u64, now: UnixTime) -> Result<usize, RedeemError> {
        let mut records = self.records.lock();
        let before = now.as_secs().saturating_sub(age_s);
        let old: Vec<String> = records
            .values()
            .filter(|record| match record.state {
                TokenState::Unused => record.expires_at.is_some_and(|until| until < before),
                TokenState::Revoked => record.expires_at.unwrap_or(record.created_at) < before,
                TokenState::Used { .. } => false,
            })
            .map(|record| record.id.clone())
            .collect();
        for id in &old {
            let path = self.path(id);
            fs::remove_file(&path).on_path("remove", &path)?;
            records.remove(id);
        }
        durable::sync_folder(&self.dir).on_path("sync", &self.dir)?;
        Ok(old.len())
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn write(&self, record: &TokenRecord) -> Result<(), RedeemError> {
        let path = self.path(&record.id);
        let text =
            serde_json::to_vec_pretty(record).expect("strings and numbers always become JSON");
        Ok(durable::write(&path, &text, durable::SECRET).on_path("write", &path)?)
    }
}

/// The token with this secret. The same answer for an unknown id, so that ids cannot be probed.
fn with_secret<'a>(
    records: &'a BTreeMap<String, TokenRecord>,
    id: &str,
    secret: &str,
) -> Result<&'a TokenRecord, RedeemError> {
    let record = records.get(id).ok_or(RedeemError::Unknown)?;
    let offered = sha256_hex(secret.as_bytes());
    let (offered, known) = (offered.as_bytes(), record.secret_sha256.as_bytes());
    aws_lc_rs::constant_time::verify_slices_are_equal(offered, known)
        .map_err(|_| RedeemError::Unknown)?;
    Ok(record)
}

fn read_record(path: &Path) -> Result<TokenRecord, Cause> {
    let record: TokenRecord = serde_json::from_str(&read_small(path)?)?;
    if record.version != 1 {
        return Err(format!("unsupported version {}", record.version).into());
    }
    <[u8; ID_BYTES]>::from_hex(&record.id)?;
    if path.file_stem().is_none_or(|stem| stem != record.id.as_str()) {
        return Err(format!("it holds token {}", record.id).into());
    }
    Ok(record)
}

/// Why a token could not be created, redeemed or revoked.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// No such token, or the wrong secret.
    #[error("unknown join token")]
    Unknown,
    /// Redeemed already, with another key or too long ago.
    #[error("join token has been used already")]
    Used,
    #[error("join token has expired")]
    Expired,
    #[error("join token has been revoked")]
    Revoked,
    /// The token is for another role or name than this.
    #[error("join token does not allow joining as {0}")]
    Grant(Box<Peer>),
    #[error("the name of {0} is taken; a token made for that name replaces its holder")]
    NameTaken(Box<Peer>),
    #[error("cannot issue a certificate")]
    Issue(#[source] Cause),
    #[error("cannot store more than {TOKENS_MAX} join tokens")]
    TooMany,
    #[error("cannot create a join token")]
    Token(#[source] JoinTokenError),
    #[error("join tokens' files are not accessible")]
    File(#[from] FileError),
}
