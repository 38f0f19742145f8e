//! Handshakes in memory, without sockets: who is let in by whom.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use crate::authority_test::{at, authority, peer};
use crate::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn make(authority: &Authority, role: Role, name: &str) -> Identity {
    authority.make_identity(&peer(role, name), DAY, UnixTime::now()).unwrap()
}

fn server(identity: &Identity, auth: ClientAuth) -> Arc<ServerConfig> {
    server_config(identity, &[Alpn::Control, Alpn::Hub], auth).unwrap()
}

/// Shakes hands and passes one byte each way; gives whom the server saw.
fn shake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    expected: &Peer,
) -> Result<Option<Peer>, rustls::Error> {
    let mut client = ClientConnection::new(client, expected.server_name()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut wire = &wire[..];
        while !wire.is_empty() {
            server.read_tls(&mut wire).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut wire = &wire[..];
        while !wire.is_empty() {
            client.read_tls(&mut wire).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    client.writer().write_all(b"x").unwrap();
    let mut wire = Vec::new();
    client.write_tls(&mut wire).unwrap();
    server.read_tls(&mut &wire[..]).unwrap();
    server.process_new_packets()?;
    server.reader().read_exact(&mut [0]).unwrap();
    Ok(server.peer_certificates().map(|chain| peer_of(chain).unwrap()))
}

#[test]
fn both_sides_know_each_other() {
    let (_ca, authority) = authority();
    let (one, two) = (make(&authority, Role::Agent, "one"), make(&authority, Role::Agent, "two"));
    let seen = shake(
        client_config(&one, Alpn::Control).unwrap(),
        server(&two, ClientAuth::Required),
        two.peer(),
    );
    assert_eq!(seen, Ok(Some(one.peer().clone())));
}

#[test]
fn wrong_name_wrong_role_and_wrong_authority_are_refused() {
    let ((_a, ours), (_b, theirs)) = (authority(), authority());
    let one = make(&ours, Role::Agent, "one");
    let client = || client_config(&one, Alpn::Control).unwrap();
    let two = make(&ours, Role::Agent, "two");
    for expected in [peer(Role::Agent, "three"), peer(Role::Hub, "two")] {
        let refused = shake(client(), server(&two, ClientAuth::Required), &expected);
        assert!(refused.is_err(), "{expected}");
    }
    let stranger = make(&theirs, Role::Agent, "two");
    let refused = shake(client(), server(&stranger, ClientAuth::Required), stranger.peer());
    assert!(refused.is_err(), "a server of a stranger's authority");
    for auth in [ClientAuth::Required, ClientAuth::Optional] {
        // A client that trusts us but whom we do not know.
        let chain = stranger.chain_pem();
        let client = rustls::ClientConfig::builder_with_provider(crate::identity::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(crate::identity::root_store(two.roots()).unwrap())
            .with_client_auth_cert(
                crate::identity::certificates(chain, "certificate").unwrap(),
                stranger.key().clone_key(),
            )
            .unwrap();
        let refused = shake(Arc::new(client), server(&two, auth), two.peer());
        assert!(refused.is_err(), "a stranger's client with {auth:?}");
    }
}

#[test]
fn expired_certificates_are_refused_on_both_sides() {
    let (_ca, authority) = authority();
    let long_ago = at(UnixTime::now().as_secs() - 30 * 86400);
    let expired = authority.make_identity(&peer(Role::Agent, "old"), DAY, long_ago).unwrap();
    let fresh = make(&authority, Role::Agent, "fresh");
    let as_server = shake(
        client_config(&fresh, Alpn::Control).unwrap(),
        server(&expired, ClientAuth::Required),
        expired.peer(),
    );
    assert!(as_server.is_err());
    let as_client = shake(
        client_config(&expired, Alpn::Control).unwrap(),
        server(&fresh, ClientAuth::Required),
        fresh.peer(),
    );
    assert!(as_client.is_err());
}

#[test]
fn protocols_that_are_not_served_are_refused() {
    let (_ca, authority) = authority();
    let (one, two) = (make(&authority, Role::Agent, "one"), make(&authority, Role::Agent, "two"));
    let refused = shake(
        client_config(&one, Alpn::Raft).unwrap(),
        server(&two, ClientAuth::Required),
        two.peer(),
    );
    assert_eq!(refused, Err(rustls::Error::NoApplicationProtocol));
}

#[test]
fn who_joins_knows_the_hub_by_its_authority_alone() {
    let ((_a, ours), (_b, theirs)) = (authority(), authority());
    let hub = make(&ours, Role::Hub, "hub");
    let any_name = peer(Role::Hub, "whatever");
    let joining = |authority: &Authority| joining_client_config(&authority.fingerprint()).unwrap();
    let seen = shake(joining(&ours), server(&hub, ClientAuth::Optional), &any_name);
    assert_eq!(seen, Ok(None));
    // Where certificates are required, nobody comes without.
    assert!(shake(joining(&ours), server(&hub, ClientAuth::Required), &any_name).is_err());
    // Another authority's fingerprint; a server that is no hub; an expired hub.
    assert!(shake(joining(&theirs), server(&hub, ClientAuth::Optional), &any_name).is_err());
    let agent = make(&ours, Role::Agent, "hub");
    assert!(shake(joining(&ours), server(&agent, ClientAuth::Optional), &any_name).is_err());
    let long_ago = at(UnixTime::now().as_secs() - 30 * 86400);
    let old = ours.make_identity(&peer(Role::Hub, "hub"), DAY, long_ago).unwrap();
    assert!(shake(joining(&ours), server(&old, ClientAuth::Optional), &any_name).is_err());
    assert!(matches!(joining_client_config("abc"), Err(TlsError::Fingerprint(_))));
}

/// A stranger sends our authority's certificate (it is public) with a leaf of their own.
#[test]
fn showing_the_right_authority_is_not_being_certified_by_it() {
    let ((_a, ours), (_b, theirs)) = (authority(), authority());
    let fake = make(&theirs, Role::Hub, "hub");
    let mut chain = fake.chain().to_vec();
    chain.push(ours.certificate().clone());
    let config = rustls::ServerConfig::builder_with_provider(crate::identity::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, fake.key().clone_key())
        .unwrap();
    let joining = joining_client_config(&ours.fingerprint()).unwrap();
    assert!(shake(joining, Arc::new(config), fake.peer()).is_err());
}
