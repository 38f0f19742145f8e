//! Who is who: a small built-in authority, certificates that name a peer and its role, join
//! tokens that are used once, mutual-TLS configurations, and statements signed by a certificate's
//! key.
//!
//! What it must never know: sockets, HTTP, groups, rollouts. It turns bytes and files into "this
//! is the agent `web-1`" or a clear no; what an agent may do is decided where requests arrive.
//!
//! Start reading at [`Peer`] (what a certificate says), then [`Authority`] (who says it), then
//! [`Identity`] (what a part holds to prove it).
//!
//! A certificate names its holder by one DNS name, `<name>.<role>.cohort.internal`. Ordinary TLS
//! name verification therefore checks identity: one dials an address and expects a name.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod authority;
mod durable;
mod hex;
mod identity;
mod join;
mod join_store;
mod peer;
mod request;
mod statement;
mod tls;

#[cfg(test)]
mod authority_test;
#[cfg(test)]
mod identity_test;
#[cfg(test)]
mod join_test;
#[cfg(test)]
mod statement_test;
#[cfg(test)]
mod tls_test;

pub use authority::{Authority, AuthorityError, LIFETIME_DAYS, lifetime_of};
pub use durable::{write_durable, write_durable_secret};
pub use hex::{from_hex, to_hex};
pub use identity::{Identity, IdentityError, Validity};
pub use join::{JoinToken, JoinTokenError};
pub use join_store::{
    JoinGrant, JoinTokens, REDEEM_AGAIN_WINDOW_S, RedeemError, TOKENS_MAX, TokenRecord, TokenState,
};
pub use peer::{InvalidPeer, Peer, PeerName, Role, peer_of};
pub use request::{IdentityRequest, PublicKey, REQUEST_BYTES_MAX, RequestError};
pub use rustls_pki_types::{CertificateDer, UnixTime};
pub use statement::{
    STATEMENT_BYTES_MAX, SignedStatement, StatementError, sign_statement, verify_statement,
};
pub use tls::{Alpn, ClientAuth, TlsError, client_config, joining_client_config, server_config};

/// The SHA-256 of some bytes, as 64 hexadecimal digits: fingerprints of certificates and keys.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    to_hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}
