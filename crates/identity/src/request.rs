//! Asking an authority for a certificate: a public key, the name wanted, and a proof that the
//! asker holds the private key.
//!
//! Not PKCS #10: a request of ours has three fields, and a parser for general ASN.1 would be the
//! largest thing that a stranger with a join token can feed.

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use serde::{Deserialize, Serialize};

use crate::peer::Peer;
use crate::{from_hex, sha256_hex, to_hex};

/// A request is about 450 bytes of JSON; ten times that leaves room for fields of later versions
/// and nothing for an attacker.
pub const REQUEST_BYTES_MAX: usize = 4096;

/// Mixed into the proof, so that no signature made for another purpose can serve as one.
const PROOF_CONTEXT: &[u8] = b"cohort-identity-request/1\0";

/// The SubjectPublicKeyInfo of every uncompressed P-256 key begins with these bytes.
const P256_PREFIX: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
/// Prefix and two coordinates of 32 bytes.
const P256_INFO_BYTES: usize = P256_PREFIX.len() + 64;

/// A P-256 public key as SubjectPublicKeyInfo. The one kind that the built-in authority certifies:
/// every TLS stack and browser takes it, and its text has one form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo. That the point is on the curve shows when a signature is
    /// verified with it.
    ///
    /// # Errors
    /// [`RequestError::Key`] for any other kind of key.
    pub fn from_info(der: Vec<u8>) -> Result<Self, RequestError> {
        if der.len() == P256_INFO_BYTES && der.starts_with(&P256_PREFIX) {
            Ok(Self(der))
        } else {
            Err(RequestError::Key)
        }
    }

    /// The key's SubjectPublicKeyInfo.
    #[must_use]
    pub fn as_info(&self) -> &[u8] {
        &self.0
    }

    /// SHA-256 of the SubjectPublicKeyInfo, in hexadecimal.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        sha256_hex(&self.0)
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0[P256_PREFIX.len() - 1..]
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// A verified request for a certificate: whoever made it holds the private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityRequest {
    peer: Peer,
    key: PublicKey,
    proof: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestText {
    version: u32,
    peer: Peer,
    public_key: String,
    proof: String,
}

impl IdentityRequest {
    /// Makes a request for `peer` with a key pair (P-256).
    ///
    /// # Errors
    /// [`RequestError::Key`] when the pair is of another kind.
    pub fn new(peer: Peer, pair: &KeyPair) -> Result<Self, RequestError> {
        let key = PublicKey::from_info(pair.subject_public_key_info())?;
        let proof = pair.sign(&proof_message(&peer, &key)).map_err(|_| RequestError::Key)?;
        Ok(Self { peer, key, proof })
    }

    /// Who the asker wants to be.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The asker's key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.key
    }

    /// The request as text (JSON), to be sent.
    #[must_use]
    pub fn to_text(&self) -> String {
        let text = RequestText {
            version: 1,
            peer: self.peer.clone(),
            public_key: to_hex(&self.key.0),
            proof: to_hex(&self.proof),
        };
        serde_json::to_string(&text).expect("strings and numbers always become JSON")
    }

    /// Reads a request and checks its proof.
    ///
    /// # Errors
    /// When the text is too long, malformed, of an unknown version, or the proof does not hold.
    pub fn from_text(text: &str) -> Result<Self, RequestError> {
        if text.len() > REQUEST_BYTES_MAX {
            return Err(RequestError::TooLarge { bytes: text.len() });
        }
        let text: RequestText = serde_json::from_str(text)
            .map_err(|error| RequestError::Malformed { reason: error.to_string() })?;
        if text.version != 1 {
            return Err(RequestError::Version { version: text.version });
        }
        let key = from_hex(&text.public_key).ok_or(RequestError::Key)?;
        let key = PublicKey::from_info(key)?;
        let proof = from_hex(&text.proof).ok_or(RequestError::Proof)?;
        let info = SubjectPublicKeyInfoDer::from(key.as_info());
        webpki::RawPublicKeyEntity::try_from(&info)
            .and_then(|entity| {
                let algorithm = webpki::aws_lc_rs::ECDSA_P256_SHA256;
                entity.verify_signature(algorithm, &proof_message(&text.peer, &key), &proof)
            })
            .map_err(|_| RequestError::Proof)?;
        Ok(Self { peer: text.peer, key, proof })
    }
}

fn proof_message(peer: &Peer, key: &PublicKey) -> Vec<u8> {
    [PROOF_CONTEXT, peer.dns_name().as_bytes(), b"\0", key.as_info()].concat()
}

/// Why a request for a certificate is no good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Larger than anything we make.
    #[error("identity request is {bytes} bytes, at most {REQUEST_BYTES_MAX} are read")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not a request.
    #[error("identity request is malformed: {reason}")]
    Malformed {
        /// What the parser said.
        reason: String,
    },
    /// Of a later version.
    #[error("identity request is of version {version}, this authority knows version 1")]
    Version {
        /// The version it says.
        version: u32,
    },
    /// Not a P-256 key.
    #[error("identity request carries no P-256 public key")]
    Key,
    /// The asker does not hold the private key, or changed the name after signing.
    #[error("identity request's proof of possession does not hold for its name and key")]
    Proof,
}
