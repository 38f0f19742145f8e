//! A repository that only those with a certificate may read.

use std::sync::Arc;

use cohort_artifact::client::{ClientLimits, FetchError, Mirror, MirrorClient};
use cohort_hub::RepositoryAccess;
use cohort_identity::{Alpn, PeerName, Role, UnixTime, joining_client_config};
use cohort_wire::agent::REVOCATIONS;
use cohort_wire::http::Call;
use cohort_wire::hub::server_path;
use cohort_wire::revocation::{
    Revocation, RevocationsAnswer, RevocationsExchange, SignedRevocation,
};
use cohort_wire::tls::{IdentitySlot, repository_reader};
use http::Method;

use crate::support::Running;

const FILE: &str = "metadata/timestamp.json";

struct Reader {
    client: MirrorClient,
    slot: Arc<IdentitySlot>,
    hub: Mirror,
}

impl Reader {
    fn of(hub: &Running, role: Role, name: &str) -> Self {
        let slot = IdentitySlot::new(hub.identity(role, name));
        let client = MirrorClient::new(ClientLimits::default()).unwrap();
        let client = client.with_certificate(repository_reader(&slot).unwrap()).unwrap();
        Reader { client, slot, hub: format!("cohort://{}", hub.api).parse().unwrap() }
    }

    async fn read(&self) -> Result<Vec<u8>, FetchError> {
        self.client.fetch(&self.hub, FILE, 100).await.map(|bytes| bytes.to_vec())
    }
}

async fn start() -> Running {
    let hub = Running::start_with(|config| {
        config.repository_access = RepositoryAccess::Fleet;
        let file = config.repository_dir().join(FILE);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "signed").unwrap();
    });
    hub.await
}

#[tokio::test]
async fn a_repository_of_the_fleet_is_read_with_a_certificate_only() {
    let hub = start().await;
    for (role, name) in [(Role::Agent, "web-1"), (Role::Viewer, "vera")] {
        assert_eq!(Reader::of(&hub, role, name).read().await.unwrap(), b"signed");
    }
    assert_eq!(hub.plain("GET", &format!("/{FILE}"), "").await.status, 404);
    assert_eq!(hub.plain("GET", "/livez", "").await.status, 200);
    let removed = Reader::of(&hub, Role::Agent, "web-9");
    hub.operator()
        .send(Call::new(Method::DELETE, server_path(&"web-9".parse().unwrap())))
        .await
        .unwrap();
    assert!(removed.read().await.is_err(), "a removed server");
    let without = MirrorClient::new(ClientLimits::default()).unwrap();
    let address: Mirror = format!("cohort://{}", hub.api).parse().unwrap();
    let refused = without.fetch(&address, FILE, 100).await;
    assert!(matches!(refused, Err(FetchError::NoCertificate)), "{refused:?}");
    // A client of the protocol that shows no certificate.
    let tls = joining_client_config(&hub.authority.anchor()).unwrap();
    let mut tls = rustls::ClientConfig::clone(&tls);
    tls.alpn_protocols = vec![Alpn::Bulk.as_bytes().to_vec()];
    let stranger = MirrorClient::new(ClientLimits::default()).unwrap();
    let refused = stranger.with_certificate(tls).unwrap().fetch(&address, FILE, 100).await;
    let Err(FetchError::Status { status, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(status, 401);
    hub.stop().await;
}

/// Each handshake is made with the identity of the moment: renewed, revoked, of a new authority.
#[tokio::test]
async fn who_reads_the_repository_is_asked_at_each_handshake() {
    let hub = start().await;
    let revoke = async |role, name: &str| {
        let (at, name) = (UnixTime::now().as_secs(), PeerName::new(name).unwrap());
        let revocation = Revocation { role, name, at, again: 0, reason: String::new() };
        SignedRevocation::sign(&hub.identity(Role::Operator, "ada"), &revocation).unwrap()
    };
    let eve = Reader::of(&hub, Role::Viewer, "eve");
    assert_eq!(eve.read().await.unwrap(), b"signed");
    let news = vec![revoke(Role::Viewer, "eve").await];
    let exchange = RevocationsExchange { news, ..RevocationsExchange::default() };
    let _: RevocationsAnswer = hub.operator().post(REVOCATIONS, &exchange).await.unwrap();
    // Its open connection ends, and no other opens.
    let refused = async { while eve.read().await.is_ok() {} };
    tokio::time::timeout(std::time::Duration::from_secs(20), refused).await.unwrap();
    eve.slot.replace(hub.identity(Role::Viewer, "vera"));
    assert_eq!(eve.read().await.unwrap(), b"signed", "with another identity");
    // Nor does a reader take a stolen hub for the hub.
    let bob = Reader::of(&hub, Role::Viewer, "bob");
    let roots = hub.identity(Role::Operator, "ada");
    let stolen = revoke(Role::Hub, "hub").await;
    bob.slot.revocations().offer(&stolen, roots.roots(), UnixTime::now()).unwrap();
    assert!(bob.read().await.is_err());
    hub.stop().await;
}
