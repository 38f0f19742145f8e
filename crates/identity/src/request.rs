//! A certificate request: a public key, the requested name, and proof of possession of the private
//! key.
//!
//! Not PKCS #10: our request has three fields, and a general ASN.1 parser would be the largest
//! attack surface open to a stranger with a join token.

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use serde::{Deserialize, Serialize};

use crate::peer::{Peer, sha256_hex};

/// A request is about 450 bytes of JSON; ten times that leaves room for later fields.
pub const REQUEST_BYTES_MAX: usize = 4096;

/// Part of what is signed: a signature made for another purpose is never a proof.
const PROOF_CONTEXT: &[u8] = b"cohort-identity-request/1\0";

/// The first bytes of the SubjectPublicKeyInfo of every uncompressed P-256 key.
const P256_PREFIX: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
/// Prefix and two coordinates of 32 bytes.
const P256_INFO_BYTES: usize = P256_PREFIX.len() + 64;

/// A P-256 public key as SubjectPublicKeyInfo, the only kind that the built-in authority certifies:
/// every TLS stack and browser supports it, and it has one encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo. Whether the point is on the curve is checked later, by the
    /// first signature verified with it.
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

    /// The SubjectPublicKeyInfo, DER.
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

/// A certificate request whose sender provably holds the private key.
#[derive(Debug, Clone)]
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
    #[serde(with = "hex::serde")]
    public_key: Vec<u8>,
    #[serde(with = "hex::serde")]
    proof: Vec<u8>,
}

impl IdentityRequest {
    /// Makes a request for `peer` with a key pair (P-256).
    ///
    /// # Errors
    /// [`RequestError::Key`] for any other kind of key pair.
    pub fn new(peer: Peer, pair: &KeyPair) -> Result<Self, RequestError> {
        let key = PublicKey::from_info(pair.subject_public_key_info())?;
        let proof = pair.sign(&proof_message(&peer, &key)).map_err(|_| RequestError::Key)?;
        Ok(Self { peer, key, proof })
    }

    /// Who the certificate is to name.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The key to certify.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.key
    }

    /// The request as JSON.
    #[must_use]
    pub fn to_text(&self) -> String {
        let text = RequestText {
            version: 1,
            peer: self.peer.clone(),
            public_key: self.key.0.clone(),
            proof: self.proof.clone(),
        };
        serde_json::to_string(&text).expect("strings and numbers always become JSON")
    }

    /// Reads a request and checks its proof.
    ///
    /// # Errors
    /// When the text is too long, malformed, of an unknown version, or the proof does not verify.
    pub fn from_text(text: &str) -> Result<Self, RequestError> {
        if text.len() > REQUEST_BYTES_MAX {
            return Err(RequestError::TooLarge { bytes: text.len() });
        }
        let text: RequestText = serde_json::from_str(text).map_err(RequestError::Malformed)?;
        if text.version != 1 {
            return Err(RequestError::Version { version: text.version });
        }
        let key = PublicKey::from_info(text.public_key)?;
        let info = SubjectPublicKeyInfoDer::from(key.as_info());
        webpki::RawPublicKeyEntity::try_from(&info)
            .and_then(|entity| {
                let algorithm = webpki::aws_lc_rs::ECDSA_P256_SHA256;
                entity.verify_signature(algorithm, &proof_message(&text.peer, &key), &text.proof)
            })
            .map_err(|_| RequestError::Proof)?;
        Ok(Self { peer: text.peer, key, proof: text.proof })
    }
}

fn proof_message(peer: &Peer, key: &PublicKey) -> Vec<u8> {
    [PROOF_CONTEXT, peer.dns_name().as_bytes(), b"\0", key.as_info()].concat()
}

/// Why a certificate request was rejected.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("identity request is {bytes} bytes, the limit is {REQUEST_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("malformed identity request")]
    Malformed(#[source] serde_json::Error),
    #[error("identity request has version {version}, this authority supports version 1")]
    Version { version: u32 },
    #[error("identity request carries no P-256 public key")]
    Key,
    /// The requester does not hold the private key, or the name was changed after signing.
    #[error("identity request's proof of possession does not match its name and key")]
    Proof,
}
