//! Statements signed with a certificate's key. They are passed from server to server and prove
//! their author wherever they arrive, as the kill switch needs.

use cohort_base::Cause;
use rustls::SignatureScheme;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use serde::{Deserialize, Serialize};

use crate::identity::{Identity, certificates, verify_chain};
use crate::peer::{Certified, InvalidPeer, Peer, Role, certified_by, peer_of};

/// The largest body, in bytes: a report whose texts consist of control characters, which JSON
/// writes as six. Most have a few hundred bytes.
pub const STATEMENT_BYTES_MAX: usize = 32 * 1024;

/// Six certificates of a few kilobytes each.
const CHAIN_BYTES_MAX: usize = 32 * 1024;

/// The longest signature of the schemes below is RSA with 8192 bits.
const SIGNATURE_BYTES_MAX: usize = 1024;

/// Prefix of everything signed here: a signature made in TLS or in an identity request can never
/// pass for a statement.
const DOMAIN: &[u8] = b"cohort-statement/1\0";

/// What we sign with and verify, preferred first. The built-in authority issues P-256 keys only;
/// the others are for external authorities.
fn schemes() -> [(SignatureScheme, &'static dyn SignatureVerificationAlgorithm); 5] {
    use webpki::aws_lc_rs as lc;
    [
        (SignatureScheme::ECDSA_NISTP256_SHA256, lc::ECDSA_P256_SHA256),
        (SignatureScheme::ECDSA_NISTP384_SHA384, lc::ECDSA_P384_SHA384),
        (SignatureScheme::ED25519, lc::ED25519),
        (SignatureScheme::RSA_PSS_SHA256, lc::RSA_PSS_2048_8192_SHA256_LEGACY_KEY),
        (SignatureScheme::RSA_PSS_SHA512, lc::RSA_PSS_2048_8192_SHA512_LEGACY_KEY),
    ]
}

/// A body, its author's certificates, and the signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedStatement {
    /// Opaque here; at most [`STATEMENT_BYTES_MAX`].
    #[serde(with = "hex::serde")]
    pub body: Vec<u8>,
    /// The kind of statement, such as `cohort-kill/1`. One kind never passes for another.
    pub context: String,
    /// The author's certificates in PEM, leaf first.
    pub chain: String,
    /// Over context and body, with the leaf's key.
    #[serde(with = "hex::serde")]
    pub signature: Vec<u8>,
}

impl SignedStatement {
    /// What the author's certificate says; `None` if it is unreadable. Verify the statement first.
    #[must_use]
    pub fn certified(&self) -> Option<Certified> {
        certified_by(&certificates(&self.chain, "certificate").ok()?).ok()
    }
}

/// Signs `body` as a statement of the kind `context`.
///
/// # Errors
/// When the body is too large or the key's type cannot sign.
pub fn sign_statement(
    identity: &Identity,
    context: &str,
    body: &[u8],
) -> Result<SignedStatement, StatementError> {
    if body.len() > STATEMENT_BYTES_MAX {
        return Err(StatementError::TooLarge { part: "body", bytes: body.len() });
    }
    let offered: Vec<SignatureScheme> = schemes().into_iter().map(|(scheme, _)| scheme).collect();
    let signer = identity.certified().key.choose_scheme(&offered).ok_or(StatementError::Key)?;
    let signature = signer.sign(&message(context, body)).map_err(|_| StatementError::Key)?;
    Ok(SignedStatement {
        body: body.to_vec(),
        context: context.to_owned(),
        chain: identity.chain_pem().to_owned(),
        signature,
    })
}

/// Verifies a statement's kind, its author's certificate at `now`, the author's role, and the
/// signature. Returns the author.
///
/// # Errors
/// The first of these that fails.
pub fn verify_statement(
    roots: &[CertificateDer<'_>],
    context: &str,
    statement: &SignedStatement,
    roles: &[Role],
    now: UnixTime,
) -> Result<Peer, StatementError> {
    for (part, bytes, max) in [
        ("body", statement.body.len(), STATEMENT_BYTES_MAX),
        ("chain", statement.chain.len(), CHAIN_BYTES_MAX),
        ("signature", statement.signature.len(), SIGNATURE_BYTES_MAX),
    ] {
        if bytes > max {
            return Err(StatementError::TooLarge { part, bytes });
        }
    }
    if statement.context != context {
        return Err(StatementError::Context {
            found: statement.context.chars().take(80).collect(),
            expected: context.to_owned(),
        });
    }
    let chain = certificates(&statement.chain, "certificate")
        .map_err(|error| StatementError::Untrusted(error.into()))?;
    let untrusted = |error: webpki::Error| StatementError::Untrusted(error.into());
    verify_chain(&chain, roots, now, webpki::KeyUsage::client_auth()).map_err(untrusted)?;
    let peer = peer_of(&chain).map_err(StatementError::Peer)?;
    if !roles.contains(&peer.role) {
        return Err(StatementError::Role(Box::new(peer)));
    }
    let leaf = webpki::EndEntityCert::try_from(&chain[0]).map_err(untrusted)?;
    let message = message(context, &statement.body);
    let signed = schemes().into_iter().any(|(_, algorithm)| {
        leaf.verify_signature(algorithm, &message, &statement.signature).is_ok()
    });
    if signed { Ok(peer) } else { Err(StatementError::Signature(Box::new(peer))) }
}

/// The context's length comes first, so no two pairs of context and body give the same bytes.
fn message(context: &str, body: &[u8]) -> Vec<u8> {
    let length = u64::try_from(context.len()).unwrap_or(u64::MAX).to_be_bytes();
    [DOMAIN, &length, context.as_bytes(), body].concat()
}

/// Why a statement was rejected, or could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    #[error("statement's {part} is too large: {bytes} bytes")]
    TooLarge { part: &'static str, bytes: usize },
    /// A statement of another kind, whose name is cut to 80 characters.
    #[error("statement is of kind `{found}`, expected `{expected}`")]
    Context { found: String, expected: String },
    /// The author's certificate does not lead to a trusted authority, or is malformed.
    #[error("statement's author is not certified by a trusted authority")]
    Untrusted(#[source] Cause),
    #[error("statement's certificate does not name a peer")]
    Peer(#[source] InvalidPeer),
    #[error("statement is by {0}, whose role may not make it")]
    Role(Box<Peer>),
    /// The signature does not verify; the peer is the claimed author.
    #[error("statement claims to be by {0}, but the signature does not verify")]
    Signature(Box<Peer>),
    #[error("identity's key cannot sign statements")]
    Key,
}
