//! A join token: everything a new server needs to know, in one line of text.
//!
//! `cohort1:<id>:<secret>:<authority's fingerprint>:<expiry>:<addresses>:<check>`, where the expiry
//! is in seconds of Unix time (0: never), addresses are `host:port` joined by commas, and the check
//! is the start of the SHA-256 of all before it: a token that was cut while being copied is told
//! from one that is wrong.

use std::fmt;
use std::str::FromStr;

use crate::{from_hex, sha256_hex, to_hex};

const PREFIX: &str = "cohort1";
/// 64 bits: told apart by a person, never guessed against.
pub(crate) const ID_BYTES: usize = 8;
/// 256 bits: nobody guesses it, so wrong guesses need not be counted.
const SECRET_BYTES: usize = 32;
const CHECK_DIGITS: usize = 8;
/// A handful of hubs' addresses, each a host name of at most 255 characters.
const TOKEN_BYTES_MAX: usize = 2048;

/// The right to join, once.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Which token it is; not secret.
    pub id: String,
    /// What proves it; 64 hexadecimal digits.
    pub(crate) secret: String,
    /// SHA-256 of the authority's certificate, 64 hexadecimal digits.
    pub fingerprint: String,
    /// Until when it is good, in seconds of Unix time.
    pub expires_at: Option<u64>,
    /// Where the hub is, as `host:port`; tried in order.
    pub addresses: Vec<String>,
}

impl JoinToken {
    /// A new token with fresh id and secret.
    ///
    /// # Errors
    /// When an address is not `host:port`, or there is no randomness.
    pub fn generate(
        fingerprint: &str,
        addresses: &[String],
        expires_at: Option<u64>,
    ) -> Result<Self, JoinTokenError> {
        let token = Self {
            id: random_hex::<ID_BYTES>()?,
            secret: random_hex::<SECRET_BYTES>()?,
            fingerprint: fingerprint.to_owned(),
            expires_at,
            addresses: addresses.to_vec(),
        };
        token.to_text().parse()
    }

    /// The secret, to be sent to the hub over a connection that has been verified.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// The token as text. Whoever has it can join: show it once, never log it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let body = format!(
            "{PREFIX}:{}:{}:{}:{}:{}",
            self.id,
            self.secret,
            self.fingerprint,
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
        let mut parts = body.splitn(6, ':').skip(1);
        let mut part = || parts.next().ok_or(JoinTokenError::Incomplete);
        let (id, secret, fingerprint) = (part()?, part()?, part()?);
        for (digits, bytes) in [(id, ID_BYTES), (secret, SECRET_BYTES), (fingerprint, 32)] {
            if from_hex(digits).is_none_or(|decoded| decoded.len() != bytes) {
                return Err(JoinTokenError::Incomplete);
            }
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
            fingerprint: fingerprint.to_owned(),
            expires_at: (expires_at != 0).then_some(expires_at),
            addresses,
        })
    }
}

impl fmt::Debug for JoinToken {
    /// Never shows the secret.
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
    Ok(to_hex(&bytes))
}

/// Why a text is no join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinTokenError {
    /// Longer than any that we make.
    #[error("join token is {bytes} bytes, at most {TOKEN_BYTES_MAX} are read")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Something else altogether.
    #[error("this is not a join token: one begins with `{PREFIX}:`")]
    NotAToken,
    /// Cut or changed.
    #[error("join token is cut or changed: copy the whole line")]
    Incomplete,
    /// Not `host:port`.
    #[error("join token's address `{address}` is not of the form host:port")]
    Address {
        /// The address, cut.
        address: String,
    },
    /// No randomness.
    #[error("operating system gives no randomness")]
    Randomness,
}
