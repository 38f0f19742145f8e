//! The hub's memory of join tokens: one file per token, holding only a hash of its secret.
//!
//! A redeemed token keeps the certificate that it gave, on disk before anybody is told, so that a
//! server that lost the answer gets the same one again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};

use crate::durable::{sync_folder, write_durable_secret};
use crate::from_hex;
use crate::identity::read_small;
use crate::join::{ID_BYTES, JoinToken, JoinTokenError};
use crate::peer::{Peer, PeerName, Role};
use crate::request::IdentityRequest;
use crate::sha256_hex;

/// Used tokens are kept, because they remember who has which name. A fleet of ten thousand servers,
/// each re-joined a few times, fits; at about 1.5 KB each the folder stays under 150 MB.
pub const TOKENS_MAX: usize = 100_000;

/// How long the same key gets the same certificate again, in seconds: long enough for a server to
/// restart and retry, short enough that a token found in a shell history later is worth nothing.
pub const REDEEM_AGAIN_WINDOW_S: u64 = 15 * 60;

/// What a token allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinGrant {
    /// The role that its user gets.
    pub role: Role,
    /// The only name that it is good for; `None`: any name that nobody has yet.
    pub name: Option<PeerName>,
}

/// Where a token is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum TokenState {
    /// Not used yet.
    Unused,
    /// Used, by whom and when.
    Used {
        /// Who joined.
        peer: Peer,
        /// SHA-256 of their public key, in hexadecimal.
        key_fingerprint: String,
        /// When, in seconds of Unix time.
        used_at: u64,
        /// The certificate that they got, in PEM.
        certificate: String,
    },
    /// Taken back by an operator.
    Revoked,
}

/// What the hub remembers of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// Version of this file's form: 1.
    pub version: u32,
    /// Which token.
    pub id: String,
    /// SHA-256 of the secret, in hexadecimal.
    secret_sha256: String,
    /// What it allows.
    pub grant: JoinGrant,
    /// When it was made, in seconds of Unix time.
    pub created_at: u64,
    /// Until when it is good, in seconds of Unix time.
    pub expires_at: Option<u64>,
    /// Where it is in its life.
    pub state: TokenState,
}

/// All join tokens of a hub.
#[derive(Debug)]
pub struct JoinTokens {
    dir: PathBuf,
    records: Mutex<BTreeMap<String, TokenRecord>>,
}

impl JoinTokens {
    /// Opens the store in a folder, which is made when it is missing. A damaged file is reported
    /// in the log and its token is refused; it does not stop the hub.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn open(dir: &Path) -> Result<Self, RedeemError> {
        fs::create_dir_all(dir).map_err(|error| RedeemError::file(dir, error))?;
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(|error| RedeemError::file(dir, error))? {
            let path = entry.map_err(|error| RedeemError::file(dir, error))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read_record(&path) {
                Ok(record) => {
                    records.insert(record.id.clone(), record);
                }
                Err(reason) => {
                    tracing::error!(path = %path.display(), reason, "join token's file is damaged");
                }
            }
        }
        Ok(Self { dir: dir.to_owned(), records: Mutex::new(records) })
    }

    /// Makes a token. It is on disk when this returns.
    ///
    /// # Errors
    /// When there are too many, an address is malformed, or the disk refuses.
    pub fn create(
        &self,
        grant: JoinGrant,
        fingerprint: &str,
        addresses: &[String],
        expires_at: Option<u64>,
        now: UnixTime,
    ) -> Result<JoinToken, RedeemError> {
        let token =
            JoinToken::generate(fingerprint, addresses, expires_at).map_err(RedeemError::Token)?;
        let record = TokenRecord {
            version: 1,
            id: token.id.clone(),
            secret_sha256: sha256_hex(token.secret.as_bytes()),
            grant,
            created_at: now.as_secs(),
            expires_at,
            state: TokenState::Unused,
        };
        let mut records = self.lock();
        if records.len() >= TOKENS_MAX {
            return Err(RedeemError::TooMany);
        }
        self.write(&record)?;
        records.insert(record.id.clone(), record);
        Ok(token)
    }

    /// Redeems a token for a certificate, which `issue` makes. The outcome is on disk when this
    /// returns. Blocking: it writes a file and syncs it.
    ///
    /// # Errors
    /// When the token is unknown, expired, revoked, used by another key, or for somebody else; when
    /// the name is taken; when `issue` or the disk refuses. Nothing is then changed.
    pub fn redeem<E: std::fmt::Display>(
        &self,
        id: &str,
        secret: &str,
        request: &IdentityRequest,
        now: UnixTime,
        issue: impl FnOnce(&Peer) -> Result<String, E>,
    ) -> Result<String, RedeemError> {
        let mut records = self.lock();
        let peer = request.peer();
        let key_fingerprint = request.public_key().fingerprint();
        let record = records.get(id).ok_or(RedeemError::Unknown)?;
        let offered = sha256_hex(secret.as_bytes());
        aws_lc_rs::constant_time::verify_slices_are_equal(
            offered.as_bytes(),
            record.secret_sha256.as_bytes(),
        )
        // The same answer as for an unknown id: ids are not for trying out.
        .map_err(|_| RedeemError::Unknown)?;
        match &record.state {
            TokenState::Revoked => return Err(RedeemError::Revoked),
            TokenState::Used {
                peer: holder,
                key_fingerprint: holders_key,
                used_at,
                certificate,
            } => {
                let again = *holders_key == key_fingerprint
                    && holder == peer
                    && now.as_secs().saturating_sub(*used_at) <= REDEEM_AGAIN_WINDOW_S;
                return if again { Ok(certificate.clone()) } else { Err(RedeemError::Used) };
            }
            TokenState::Unused => {}
        }
        if record.expires_at.is_some_and(|until| now.as_secs() > until) {
            return Err(RedeemError::Expired);
        }
        let named = record.grant.name.as_ref();
        if record.grant.role != peer.role || named.is_some_and(|name| *name != peer.name) {
            return Err(RedeemError::Grant { asked: Box::new(peer.clone()) });
        }
        // A token without a name must not let its user become a server that is there already.
        let taken = |other: &TokenRecord| match &other.state {
            TokenState::Used { peer: holder, .. } => holder == peer,
            TokenState::Unused | TokenState::Revoked => false,
        };
        if named.is_none() && records.values().any(taken) {
            return Err(RedeemError::NameTaken { peer: Box::new(peer.clone()) });
        }
        let certificate =
            issue(peer).map_err(|error| RedeemError::Issue { reason: error.to_string() })?;
        let mut used = record.clone();
        used.state = TokenState::Used {
            peer: peer.clone(),
            key_fingerprint,
            used_at: now.as_secs(),
            certificate: certificate.clone(),
        };
        self.write(&used)?;
        records.insert(used.id.clone(), used);
        Ok(certificate)
    }

    /// Takes an unused token back.
    ///
    /// # Errors
    /// When it is unknown or used, or the disk refuses.
    pub fn revoke(&self, id: &str) -> Result<(), RedeemError> {
        let mut records = self.lock();
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

    /// All tokens, by id.
    #[must_use]
    pub fn list(&self) -> Vec<TokenRecord> {
        self.lock().values().cloned().collect()
    }

    /// Forgets tokens that expired or were revoked unused, more than `age_s` seconds ago.
    /// Used ones stay: they remember who has which name.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn prune(&self, age_s: u64, now: UnixTime) -> Result<usize, RedeemError> {
        let mut records = self.lock();
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
            fs::remove_file(&path).map_err(|error| RedeemError::file(&path, error))?;
            records.remove(id);
        }
        sync_folder(&self.dir).map_err(|error| RedeemError::file(&self.dir, error))?;
        Ok(old.len())
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn write(&self, record: &TokenRecord) -> Result<(), RedeemError> {
        let path = self.path(&record.id);
        let text =
            serde_json::to_vec_pretty(record).expect("strings and numbers always become JSON");
        write_durable_secret(&path, &text).map_err(|error| RedeemError::file(&path, error))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, TokenRecord>> {
        // Records change in one insert, so a panic elsewhere leaves nothing half done.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_record(path: &Path) -> Result<TokenRecord, String> {
    let text = read_small(path).map_err(|error| error.to_string())?;
    let record: TokenRecord = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    if record.version != 1 {
        return Err(format!("version {} is not known here", record.version));
    }
    let right_name = path.file_stem().is_some_and(|stem| stem == record.id.as_str());
    let right_id = from_hex(&record.id).is_some_and(|bytes| bytes.len() == ID_BYTES);
    if right_name && right_id { Ok(record) } else { Err("it is another token's".to_owned()) }
}

/// Why a token cannot be made or redeemed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedeemError {
    /// No such token, or the wrong secret.
    #[error("join token is not known to this hub")]
    Unknown,
    /// Used already.
    #[error("join token has been used already")]
    Used,
    /// Too late.
    #[error("join token has expired")]
    Expired,
    /// Taken back.
    #[error("join token has been revoked")]
    Revoked,
    /// For somebody else.
    #[error("join token does not allow to join as {asked}")]
    Grant {
        /// Who was asked for.
        asked: Box<Peer>,
    },
    /// Somebody else is called that.
    #[error("the name of {peer} is taken; a token made for that very name replaces its holder")]
    NameTaken {
        /// Who was asked for.
        peer: Box<Peer>,
    },
    /// The authority refuses.
    #[error("certificate cannot be issued: {reason}")]
    Issue {
        /// Why.
        reason: String,
    },
    /// There are too many.
    #[error("there are {TOKENS_MAX} join tokens, no more are kept")]
    TooMany,
    /// The token cannot be made.
    #[error("join token cannot be made")]
    Token(#[source] JoinTokenError),
    /// A file cannot be read or written.
    #[error("join token's file {path} cannot be read or written")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl RedeemError {
    fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.display().to_string(), source }
    }
}
