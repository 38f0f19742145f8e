use std::sync::Arc;

use cohort_core::orders::{FetchOrder, Source};
use cohort_core::release::Release;
use cohort_identity::Alpn;
use cohort_wire::http::Handler;

use super::{Unverified, verify_release};
use crate::control;
use crate::shared::Shared;
use crate::testing::{Lab, order, web};

fn source(server: &str, address: &str) -> Source {
    Source { server: server.parse().unwrap(), address: address.to_owned() }
}

fn knows(shared: &Shared, release: &Release) -> bool {
    let repository = shared.repository.as_ref().unwrap();
    repository.cached_manifest_bytes(&web(), &release.version, &release.platform).is_some()
}

#[tokio::test]
async fn a_server_without_a_mirror_verifies_with_the_metadata_of_a_peer() {
    let lab = Lab::new().await;
    lab.publish("1.0.0").await;
    let holder = lab.agent("s1", Some(lab.repository.dir())).await;
    let order = order(&holder).await;
    let address = lab.serve_control(&holder).await;
    let server = lab.agent("s2", None).await;
    assert!(verify_release(&server, &web(), &order).await.is_err(), "nobody to ask");
    // The first one does not answer, which is not the end of it.
    let sources = vec![source("s3", "127.0.0.1:1"), source("s1", &address)];
    let asked = FetchOrder { sources, ..order.clone() };
    verify_release(&server, &web(), &asked).await.unwrap();
    assert!(knows(&server, &order.release));
    verify_release(&server, &web(), &order).await.expect("by what is on its disk");
}

#[tokio::test]
async fn an_order_that_differs_from_what_is_signed_is_refused() {
    let lab = Lab::new().await;
    lab.publish("1.0.0").await;
    let server = lab.agent("s1", Some(lab.repository.dir())).await;
    let order = order(&server).await;
    verify_release(&server, &web(), &order).await.unwrap();
    let release = &order.release;
    let verify = async |forged: Release| {
        let forged = FetchOrder { release: forged, ..order.clone() };
        verify_release(&server, &web(), &forged).await
    };
    for forged in [
        Release { artifact: "aa".repeat(32).parse().unwrap(), ..release.clone() },
        Release { length: release.length + 1, ..release.clone() },
    ] {
        let refused = verify(forged).await;
        assert!(matches!(refused, Err(Unverified::Differs { .. })), "{refused:?}");
    }
    let unknown = Release { version: "9.9.9".parse().unwrap(), ..release.clone() };
    let refused = verify(unknown).await;
    assert!(matches!(refused, Err(Unverified::Manifest { .. })), "{refused:?}");
    let other = "db".parse().unwrap();
    assert!(verify_release(&server, &other, &order).await.is_err(), "of another app");
}

#[tokio::test]
async fn a_peer_with_metadata_of_another_repository_changes_nothing() {
    let (lab, strangers) = (Lab::new().await, Lab::new().await);
    strangers.publish("1.0.0").await;
    let stranger = strangers.agent("s1", Some(strangers.repository.dir())).await;
    let order = order(&stranger).await;
    // It has a certificate of this fleet all the same.
    let handler = Handler::Http(control::router(Arc::clone(&stranger)));
    let address = lab.serve("s1", Alpn::Control, handler).await;
    let server = lab.agent("s2", None).await;
    let asked = FetchOrder { sources: vec![source("s1", &address)], ..order };
    assert!(verify_release(&server, &web(), &asked).await.is_err());
    assert!(!knows(&server, &asked.release));
    assert_eq!(server.repository.as_ref().unwrap().bundle(), None);
}

#[tokio::test]
async fn a_server_without_a_trusted_root_trusts_nothing() {
    let lab = Lab::new().await;
    lab.publish("1.0.0").await;
    let order = order(&*lab.agent("s1", Some(lab.repository.dir())).await).await;
    let server = lab.agent_with("s2", Some(lab.repository.dir()), None).await;
    let refused = verify_release(&server, &web(), &order).await;
    assert!(matches!(refused, Err(Unverified::NoRoot)), "{refused:?}");
}
