//! Statements signed by the key of a certificate: they travel from server to server and prove
//! their author wherever they arrive, as the kill switch needs.

use rustls::SignatureScheme;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use serde::{Deserialize, Serialize};

use crate::hex::serde_hex;
use crate::identity::{Identity, certificates, verify_chain};
use crate::peer::{InvalidPeer, Peer, Role, peer_of};

/// What is signed is a register of a few hundred bytes; 16 KiB is far beyond any of them, and the
/// whole of it is kept in memory and on every server.
pub const STATEMENT_BYTES_MAX: usize = 16 * 1024;

/// Six certificates of a few kilobytes each.
const CHAIN_BYTES_MAX: usize = 32 * 1024;

/// No signature that the schemes below can make is longer (RSA of 8192 bits).
const SIGNATURE_BYTES_MAX: usize = 1024;

/// In front of everything signed here, so that a signature made in TLS or in an identity request
/// can never be taken for a statement.
const DOMAIN: &[u8] = b"cohort-statement/1\0";

/// What we can sign with and verify, best first. The built-in authority has P-256 keys only; the
/// others are for those who bring an authority.
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

/// Something said, by whom, and the proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedStatement {
    /// What is said.
    #[serde(with = "serde_hex")]
    pub body: Vec<u8>,
    /// What kind of statement it is; one kind is never taken for another.
    pub context: String,
    /// The author's certificates in PEM, their own first.
    pub chain: String,
    /// Over context and body, by the key of the first certificate.
    #[serde(with = "serde_hex")]
    pub signature: Vec<u8>,
}

/// Signs a statement. `context` names its kind, such as `cohort-kill/1`.
///
/// # Errors
/// When the body is too large or the key is of a kind that cannot sign.
pub fn sign_statement(
    identity: &Identity,
    context: &str,
    body: &[u8],
) -> Result<SignedStatement, StatementError> {
    if body.len() > STATEMENT_BYTES_MAX {
        return Err(StatementError::TooLarge { what: "body", bytes: body.len() });
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

/// Verifies a statement: its kind, its author's certificate at `now`, the author's role, and the
/// signature. Gives the author.
///
/// # Errors
/// Says what of these is wrong.
pub fn verify_statement(
    roots: &[CertificateDer<'_>],
    context: &str,
    statement: &SignedStatement,
    roles: &[Role],
    now: UnixTime,
) -> Result<Peer, StatementError> {
    for (what, bytes, max) in [
        ("body", statement.body.len(), STATEMENT_BYTES_MAX),
        ("chain", statement.chain.len(), CHAIN_BYTES_MAX),
        ("signature", statement.signature.len(), SIGNATURE_BYTES_MAX),
    ] {
        if bytes > max {
            return Err(StatementError::TooLarge { what, bytes });
        }
    }
    if statement.context != context {
        return Err(StatementError::Context {
            said: statement.context.chars().take(80).collect(),
            expected: context.to_owned(),
        });
    }
    let chain = certificates(&statement.chain, "certificate")
        .map_err(|error| StatementError::Untrusted { reason: error.to_string() })?;
    verify_chain(&chain, roots, now)
        .map_err(|error| StatementError::Untrusted { reason: error.to_string() })?;
    let peer = peer_of(&chain).map_err(StatementError::Peer)?;
    if !roles.contains(&peer.role) {
        return Err(StatementError::Role { peer: Box::new(peer) });
    }
    let leaf = webpki::EndEntityCert::try_from(&chain[0])
        .map_err(|error| StatementError::Untrusted { reason: error.to_string() })?;
    let message = message(context, &statement.body);
    let signed = schemes().into_iter().any(|(_, algorithm)| {
        leaf.verify_signature(algorithm, &message, &statement.signature).is_ok()
    });
    if signed { Ok(peer) } else { Err(StatementError::Signature { peer: Box::new(peer) }) }
}

/// The context's length stands before it: no two pairs of context and body give the same bytes.
fn message(context: &str, body: &[u8]) -> Vec<u8> {
    let length = u64::try_from(context.len()).unwrap_or(u64::MAX).to_be_bytes();
    [DOMAIN, &length, context.as_bytes(), body].concat()
}

/// Why a statement is not believed, or cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatementError {
    /// Part of it is larger than any that we make.
    #[error("statement's {what} is too large: {bytes} bytes")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// Of another kind.
    #[error("statement is of the kind `{said}`, expected `{expected}`")]
    Context {
        /// What it says.
        said: String,
        /// What was asked for.
        expected: String,
    },
    /// The author's certificate does not hold.
    #[error("statement's author has no certificate of a trusted authority: {reason}")]
    Untrusted {
        /// What the verifier said.
        reason: String,
    },
    /// The certificate names nobody.
    #[error("statement's author is nobody")]
    Peer(#[source] InvalidPeer),
    /// The author may not say this.
    #[error("statement is by {peer}, whose role may not make it")]
    Role {
        /// The author.
        peer: Box<Peer>,
    },
    /// The signature does not hold.
    #[error("statement claims to be by {peer}, but the signature does not hold")]
    Signature {
        /// Who is claimed.
        peer: Box<Peer>,
    },
    /// This key cannot sign.
    #[error("identity's key cannot sign statements")]
    Key,
}
