//! Who is who: a built-in certificate authority, certificates that name a peer and its role,
//! one-time join tokens, mutual TLS, and statements signed with a certificate's key.
//!
//! **What it is.** It turns bytes and files into "this is the agent `web-1`" or a refusal. A
//! certificate names its holder by one DNS name, `<name>.<role>.cohort.internal`, so ordinary TLS
//! name verification checks identity: dial an address, expect a name.
//!
//! **What it must never know.** Sockets, HTTP, groups, rollouts. What an agent may do is decided
//! where its requests arrive.
//!
//! **Where to start reading.** [`Peer`] (what a certificate says), then [`Authority`] (who issues
//! it), then [`Identity`] (what a process holds to prove it).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod authority;
mod identity;
mod join;
mod join_store;
mod live;
mod peer;
mod request;
mod secret;
mod statement;
mod tls;

#[cfg(test)]
mod authority_test;
#[cfg(test)]
mod golden_test;
#[cfg(test)]
mod identity_test;
#[cfg(test)]
mod join_test;
#[cfg(test)]
mod rotation_test;
#[cfg(test)]
mod statement_test;
#[cfg(test)]
mod tls_test;

pub use authority::{Authority, AuthorityError, BACKDATED, LIFETIME};
pub use identity::{Identity, IdentityError, NotARenewal, Validity};
pub use join::{Anchors, JoinToken, JoinTokenError};
pub use join_store::{
    JoinGrant, JoinTokens, KnownName, REDEEM_AGAIN_WINDOW_S, RedeemError, TOKENS_MAX, TokenRecord,
    TokenState,
};
pub use live::{Live, hub_reader_config};
pub use peer::{Certified, InvalidPeer, Peer, PeerName, Role, certified_by, peer_of, sha256_hex};
pub use request::{IdentityRequest, PublicKey, REQUEST_BYTES_MAX, RequestError};
pub use rustls_pki_types::{CertificateDer, UnixTime};
pub use secret::Secret;
pub use statement::{
    STATEMENT_BYTES_MAX, SignedStatement, StatementError, sign_statement, verify_statement,
};
pub use tls::{Alpn, ClientAuth, TlsError, client_config, joining_client_config, server_config};
