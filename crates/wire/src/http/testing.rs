//! A fleet of identities and servers over loopback, for the tests of this crate.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use cohort_identity::{Alpn, Authority, ClientAuth, Identity, Peer, Role, UnixTime};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Client, Handler, Target, serve};
use crate::limits::ServerLimits;
use crate::tls::IdentitySlot;

pub(crate) struct Fleet {
    _dir: tempfile::TempDir,
    pub(crate) authority: Authority,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), UnixTime::now()).unwrap();
        Self { _dir: dir, authority }
    }

    pub(crate) fn identity(&self, role: Role, name: &str) -> Identity {
        let day = Duration::from_secs(24 * 60 * 60);
        self.authority.make_identity(&peer(role, name), day, UnixTime::now()).unwrap()
    }

    pub(crate) fn slot(&self, role: Role, name: &str) -> Arc<IdentitySlot> {
        IdentitySlot::new(self.identity(role, name))
    }

    pub(crate) fn client(&self, role: Role, name: &str) -> Client {
        Client::new(self.slot(role, name))
    }

    /// Serves `router` as the agent `web-1`.
    pub(crate) async fn serve(&self, router: Router, limits: ServerLimits) -> Served {
        let slot = self.slot(Role::Agent, "web-1");
        let routes = BTreeMap::from([(Alpn::Control, Handler::Http(router))]);
        Served::start(slot, ClientAuth::Required, routes, limits).await
    }
}

pub(crate) fn peer(role: Role, name: &str) -> Peer {
    Peer::new(role, name).unwrap()
}

/// A server that is stopped when dropped.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) slot: Arc<IdentitySlot>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Served {
    pub(crate) async fn start(
        slot: Arc<IdentitySlot>,
        auth: ClientAuth,
        routes: BTreeMap<Alpn, Handler>,
        limits: ServerLimits,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = serve(listener, Arc::clone(&slot), auth, routes, limits, shutdown.clone());
        let task = tokio::spawn(serving);
        Self { address, slot, shutdown, task }
    }

    pub(crate) fn target(&self, alpn: Alpn) -> Target {
        let peer = self.slot.current().peer().clone();
        Target { address: self.address.to_string(), peer, alpn }
    }

    pub(crate) fn control(&self) -> Target {
        self.target(Alpn::Control)
    }
}

/// Waits until a condition holds, for at most ten seconds.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(tokio::time::Instant::now() < deadline, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
