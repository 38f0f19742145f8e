use std::collections::BTreeMap;

use cohort_identity::{Alpn, ClientAuth, Role};
use rustix::net::sockopt;
use tokio::sync::mpsc;

use super::Handler;
use super::testing::{Fleet, Served};
use crate::dscp::Dscp;
use crate::limits::ServerLimits;

/// The marks of both ends of a connection: the client's, then the server's.
async fn marks(alpn: Alpn, client: Option<Dscp>, limits: ServerLimits) -> (u8, u8) {
    let fleet = Fleet::new();
    let (told, mut marks) = mpsc::unbounded_channel();
    let handler = Handler::raw(move |_, stream| {
        let told = told.clone();
        async move {
            told.send(sockopt::ip_tos(stream.get_ref().0).unwrap()).unwrap();
        }
    });
    let routes = BTreeMap::from([(alpn, handler)]);
    let slot = fleet.slot(Role::Agent, "web-1");
    let served = Served::start(slot, ClientAuth::Required, routes, limits).await;
    let caller = fleet.client(Role::Agent, "web-2");
    if let Some(dscp) = client {
        caller.mark_bulk(dscp);
    }
    let stream = caller.open(&served.target(alpn)).await.unwrap();
    let here = sockopt::ip_tos(stream.get_ref().0).unwrap();
    (here, marks.recv().await.unwrap())
}

#[tokio::test]
async fn what_carries_artifacts_is_marked_at_both_ends_and_nothing_else() {
    assert_eq!(marks(Alpn::Bulk, None, ServerLimits::default()).await, (0x04, 0x04));
    for alpn in [Alpn::Control, Alpn::Raft] {
        assert_eq!(marks(alpn, None, ServerLimits::default()).await, (0, 0), "{alpn}");
    }
}

#[tokio::test]
async fn the_mark_can_be_chosen() {
    let class_8: Dscp = "8".parse().unwrap();
    let limits = ServerLimits { dscp_bulk: class_8, ..ServerLimits::default() };
    assert_eq!(marks(Alpn::Bulk, Some(class_8), limits).await, (0x20, 0x20));
    let limits = ServerLimits { dscp_bulk: Dscp::DEFAULT, ..ServerLimits::default() };
    assert_eq!(marks(Alpn::Bulk, Some(Dscp::DEFAULT), limits).await, (0, 0));
}
