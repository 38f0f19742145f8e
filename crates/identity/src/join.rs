//! A join token: all that a new server needs, in one line of text.
//!
//! `cohort1:<id>:<secret>:<authority>:<trusted root>:<expiry>:<addresses>:<check>`. Authority and
//! trusted root are SHA-256 hashes (a root of `-`: the fleet has no repository). The expiry is in
//! Unix seconds (0: never), addresses are `host:port` joined by commas, and the check is the start
//! of the SHA-256 of everything before it, which tells a truncated copy from a wrong token.

use std::fmt;
use std::str::FromStr;

use hex::FromHex as _;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::peer::sha256_hex;

const PREFIX: &str = "cohort1";
/// 64 bits: enough to be unique, short enough to read out.
pub(crate) const ID_BYTES: usize = 8;
/// 256 bits cannot be guessed, so failed attempts need not be limited.
const SECRET_BYTES: usize = 32;
const CHECK_DIGITS: usize = 8;
/// In place of a trusted root's hash.
const NO_ROOT: &str = "-";
/// Room for a handful of addresses with host names of up to 255 characters.
const TOKEN_BYTES_MAX: usize = 2048;

/// The right to join once.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Public id, 16 hexadecimal digits.
    pub id: String,
    /// 64 hexadecimal digits; the hub keeps only a hash of it.
    pub(crate) secret: String,
    pub anchors: Anchors,
    /// Expiry in Unix seconds; `None`: never.
    pub expires_at: Option<u64>,
    /// The hub's addresses, `host:port`, in the order to try them.
    pub addresses: Vec<String>,
}

/// What a joiner trusts first. It gets the authority and the root from the hub, and believes
/// neither on the hub's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchors {
    /// SHA-256 of the authority's certificate (DER), 64 hexadecimal digits.
    pub authority: String,
    /// SHA-256 of the repository's first trusted root, 64 hexadecimal digits; `None`: the fleet has
    /// no repository.
    pub trusted_root: Option<String>,
}

impl Anchors {
    /// Those of an authority with this fingerprint, and of this root.
    #[must_use]
    pub fn of(authority: &str, trusted_root: Option<&str>) -> Self {
        let trusted_root = trusted_root.map(|root| sha256_hex(root.as_bytes()));
        Anchors { authority: authority.to_owned(), trusted_root }
    }

    /// Checks what the hub hands out: the authority in PEM, and the root's text.
    ///
    /// # Errors
    /// If either is not the one that the token names.
    pub fn check(&self, authority: &str, trusted_root: Option<&str>) -> Result<(), JoinTokenError> {
        // All that are handed out would be trusted.
        let handed: Result<Vec<CertificateDer<'_>>, _> =
            CertificateDer::pem_slice_iter(authority.as_bytes()).collect();
        let is_ours = |all: &[CertificateDer<'_>]| match all {
            [only] => sha256_hex(only) == self.authority,
            _ => false,
        };
        if !handed.is_ok_and(|all| is_ours(&all)) {
            return Err(JoinTokenError::OtherAuthority);
        }
        if Anchors::of(&self.authority, trusted_root) != *self {
            return Err(JoinTokenError::OtherRoot);
        }
        Ok(())
    }
}

impl JoinToken {
    /// A token with a random id and secret.
    ///
    /// # Errors
    /// When an address is not `host:port`, or the system gives no randomness.
    pub fn generate(
        anchors: &Anchors,
        addresses: &[String],
        expires_at: Option<u64>,
    ) -> Result<Self, JoinTokenError> {
        let token = Self {
            id: random_hex::<ID_BYTES>()?,
            secret: random_hex::<SECRET_BYTES>()?,
            anchors: anchors.clone(),
            expires_at,
            addresses: addresses.to_vec(),
        };
        token.to_text().parse()
    }

    /// The secret. Send it only over a connection whose hub has been verified.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// The token as text. Anybody who has it can join: show it once, never log it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let body = format!(
            "{PREFIX}:{}:{}:{}:{}:{}:{}",
            self.id,
            self.secret,
            self.anchors.authority,
            self.anchors.trusted_root.as_deref().unwrap_or(NO_ROOT),
            self.expires_at.unwrap_or(0),
            self.addresses.join(","),
        );
        format!("{body}:{}", &sha256_hex(body.as_bytes())[..CHECK_DIGITS])
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let text = text.trim();
        if text.len() > TOKEN_BYTES_MAX {
            return Err(JoinTokenError::TooLong { bytes: text.len() });
        }
        if !text.starts_with(PREFIX) {
            return Err(JoinTokenError::NotAToken);
        }
        let (body, check) = text.rsplit_once(':').ok_or(JoinTokenError::Incomplete)?;
        if sha256_hex(body.as_bytes())[..CHECK_DIGITS] != *check {
            return Err(JoinTokenError::Incomplete);
        }
        let mut parts = body.splitn(7, ':').skip(1);
        let mut part = || parts.next().ok_or(JoinTokenError::Incomplete);
        let (id, secret, authority, root) = (part()?, part()?, part()?, part()?);
        let trusted_root = Some(root).filter(|root| *root != NO_ROOT);
        let is_hash = |text: &str| <[u8; 32]>::from_hex(text).is_ok();
        let well_formed = <[u8; ID_BYTES]>::from_hex(id).is_ok()
            && <[u8; SECRET_BYTES]>::from_hex(secret).is_ok()
            && is_hash(authority)
            && trusted_root.is_none_or(is_hash);
        if !well_formed {
            return Err(JoinTokenError::Incomplete);
        }
        let expires_at: u64 = part()?.parse().map_err(|_| JoinTokenError::Incomplete)?;
        let addresses: Vec<String> = part()?.split(',').map(str::to_owned).collect();
        for address in &addresses {
            let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
                return Err(JoinTokenError::Address {
                    address: address.chars().take(80).collect(),
                });
            }
        }
        Ok(Self {
            id: id.to_owned(),
            secret: secret.to_owned(),
            anchors: Anchors {
                authority: authority.to_owned(),
                trusted_root: trusted_root.map(str::to_owned),
            },
            expires_at: (expires_at != 0).then_some(expires_at),
            addresses,
        })
    }
}

impl fmt::Debug for JoinToken {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .field("addresses", &self.addresses)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

fn random_hex<const BYTES: usize>() -> Result<String, JoinTokenError> {
    let mut bytes = [0_u8; BYTES];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| JoinTokenError::Randomness)?;
    Ok(hex::encode(bytes))
}

/// Why a text is not a join token, or none could be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinTokenError {
    #[error("join token is {bytes} bytes, the limit is {TOKEN_BYTES_MAX}")]
    TooLong { bytes: usize },
    #[error("not a join token: a join token starts with `{PREFIX}:`")]
    NotAToken,
    /// Truncated or modified: the check does not match.
    #[error("join token is truncated or modified: copy the whole line")]
    Incomplete,
    #[error("join token's address `{address}` is not of the form host:port")]
    Address { address: String },
    #[error("operating system gives no randomness")]
    Randomness,
    #[error(
        "the hub hands out another authority than the join token names: do not join; ask who made \
         the token"
    )]
    OtherAuthority,
    #[error(
        "the hub hands out another trusted root of the repository than the join token names: do \
         not join; compare the hub's `trusted_root` with an operator's"
    )]
    OtherRoot,
}
