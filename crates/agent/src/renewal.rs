//! Renews this server's certificate long before it expires, and raises an alarm if it does.
//!
//! When, and at which address of the hub, is decided in [`cohort_server::renewal`].

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain::chain;
use cohort_identity::{Identity, IdentityError, UnixTime};
use cohort_server::renewal::{Age, Asked, Next, Renewal};
use cohort_wire::http::{Call, CallError, Client, Target};
use cohort_wire::hub::{
    AUTHORITY, AuthorityAnswer, AuthorityRequest, RENEW, RenewAnswer, RenewRequest,
};
use cohort_wire::tls::IdentitySlot;

use crate::shared::Shared;

/// Why the certificate was not renewed; it is tried again.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("cannot get a certificate from the hub")]
    Call(#[source] CallError),
    #[error("cannot use the hub's certificate, keeping the old one")]
    Identity(#[from] IdentityError),
}

/// Renews this server's certificate whenever it is due.
pub(crate) async fn renew(shared: Arc<Shared>, slot: Arc<IdentitySlot>) {
    let dir = shared.config.data_dir.join("identity");
    let mut renewal = Renewal::new(shared.hub.len());
    loop {
        let rest = look(&mut renewal, &dir, &shared.hub, &shared.client, &slot).await;
        tokio::time::sleep(rest).await;
    }
}

/// Looks at the certificate, and renews it if it is due. Returns the time until the next look.
async fn look(
    renewal: &mut Renewal,
    dir: &Path,
    hub: &[Target],
    client: &Client,
    slot: &IdentitySlot,
) -> Duration {
    let identity = slot.current();
    let mut age = age(&identity, UnixTime::now());
    if age == Age::Fresh && is_replaced(hub, client, &identity).await {
        age = Age::Replaced;
    }
    let mut next = renewal.look(age);
    loop {
        let address = match next {
            Next::Ask { address } => address,
            Next::Rest { for_ms } => return Duration::from_millis(for_ms),
        };
        next = renewal.asked(match renew_at(&hub[address], dir, client, &identity).await {
            Ok(renewed) => {
                slot.replace(renewed);
                client.forget_connections();
                tracing::info!("certificate renewed");
                // So that the hub knows.
                let _ = is_replaced(hub, client, &slot.current()).await;
                Asked::Renewed
            }
            Err(error) => {
                let address = &hub[address].address;
                tracing::warn!(error = chain(&error), address, "certificate not renewed yet");
                match error {
                    RenewalError::Call(_) => Asked::NotIssued,
                    RenewalError::Identity(_) => Asked::NotAccepted,
                }
            }
        });
    }
}

/// Tells the hub which authority the certificate is of, and whether a renewal would change that, or
/// which authorities are trusted. A hub that does not answer changes nothing.
async fn is_replaced(hub: &[Target], client: &Client, identity: &Identity) -> bool {
    let request = AuthorityRequest { issuer: identity.issuer(), trusts: identity.trusted() };
    let call = Call::post(AUTHORITY, &request).idempotent();
    let answered: Result<(_, AuthorityAnswer), _> = client.call_any(hub, 0, call).await;
    let Ok((_, AuthorityAnswer { issuer, mut trusts })) = answered else { return false };
    let mut trusted = request.trusts;
    trusted.sort();
    trusts.sort();
    request.issuer != Some(issuer) || trusted != trusts
}

fn age(identity: &Identity, now: UnixTime) -> Age {
    if identity.is_expired(now) {
        tracing::error!("certificate expired; this server must reach the hub to renew it");
        Age::Expired
    } else if identity.is_expiring(now) {
        Age::Expiring
    } else {
        Age::Fresh
    }
}

async fn renew_at(
    hub: &Target,
    dir: &Path,
    client: &Client,
    identity: &Identity,
) -> Result<Identity, RenewalError> {
    // The same key for every address, until one certificate has been accepted.
    let request = Identity::prepare_request(dir, identity.peer().clone())?.to_text();
    let call = Call::post(RENEW, &RenewRequest { request });
    let answer: RenewAnswer = client.call_json(hub, call).await.map_err(RenewalError::Call)?;
    Ok(identity.accept_renewal(dir, &answer.certificate, &answer.authorities, UnixTime::now())?)
}

#[cfg(test)]
mod renewal_test {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::routing::post;
    use axum::{Json, Router};
    use cohort_identity::{Alpn, IdentityRequest, Peer, Role};
    use cohort_wire::http::Handler;

    use super::*;
    use crate::testing::Lab;

    const DAY: Duration = Duration::from_secs(86_400);

    fn server() -> Peer {
        Peer::new(Role::Agent, "s1").unwrap()
    }

    /// Valid for 90 days, of which this many have passed.
    fn slot(lab: &Lab, days: u32) -> Arc<IdentitySlot> {
        let from =
            UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) - DAY * days);
        IdentitySlot::new(lab.authority.make_identity(&server(), DAY * 90, from).unwrap())
    }

    fn target(address: &str) -> Target {
        let peer = Peer::new(Role::Hub, "hub").unwrap();
        Target { address: address.to_owned(), peer, alpn: Alpn::Hub }
    }

    /// A hub that renews certificates, and the number of requests so far.
    async fn hub(lab: &Arc<Lab>) -> (Target, Arc<AtomicUsize>) {
        let (issuer, count) = (Arc::clone(lab), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&count);
        let renew = async move |Json(request): Json<RenewRequest>| {
            counted.fetch_add(1, Ordering::Relaxed);
            let request = IdentityRequest::from_text(&request.request).unwrap();
            let issued = issuer.authority.issue(&request, &server(), None, UnixTime::now());
            Json(RenewAnswer {
                certificate: issued.unwrap(),
                authorities: issuer.authority.trusted_pem(),
            })
        };
        let handler = Handler::Http(Router::new().route(RENEW, post(renew)));
        let peer = Peer::new(Role::Hub, "hub").unwrap();
        (target(&lab.serve_as(peer, Alpn::Hub, handler).await), count)
    }

    #[tokio::test]
    async fn the_next_address_renews_what_the_first_does_not_and_the_new_one_is_in_use() {
        let lab = Arc::new(Lab::new().await);
        let (hub, count) = hub(&lab).await;
        let hub = [target("127.0.0.1:1"), hub];
        let (slot, dir) = (slot(&lab, 80), lab.path("identity"));
        let client = Client::new(Arc::clone(&slot));
        let mut renewal = Renewal::new(hub.len());
        let old = slot.current().validity();
        look(&mut renewal, &dir, &hub, &client, &slot).await;
        assert!(slot.current().validity().not_after > old.not_after);
        assert_eq!(Identity::load(&dir).unwrap().validity(), slot.current().validity());
        look(&mut renewal, &dir, &hub, &client, &slot).await;
        assert_eq!(count.load(Ordering::Relaxed), 1, "fresh: no second request");
    }

    /// The hub's authority is replaced: a fresh certificate is renewed, once, and both are trusted.
    #[tokio::test]
    async fn a_fresh_certificate_of_a_replaced_authority_is_renewed() {
        let lab = Arc::new(Lab::new().await);
        let new = lab.authority.rotate(&lab.path("ca"), UnixTime::now()).unwrap();
        let new = Arc::new(new);
        let count = Arc::new(AtomicUsize::new(0));
        let (issuer, counted) = (Arc::clone(&new), Arc::clone(&count));
        let renew = async move |Json(request): Json<RenewRequest>| {
            counted.fetch_add(1, Ordering::Relaxed);
            let request = IdentityRequest::from_text(&request.request).unwrap();
            let certificate = issuer.issue(&request, &server(), None, UnixTime::now()).unwrap();
            Json(RenewAnswer { certificate, authorities: issuer.trusted_pem() })
        };
        let follow = {
            let new = Arc::clone(&new);
            async move |Json(_): Json<AuthorityRequest>| {
                Json(AuthorityAnswer { issuer: new.fingerprint(), trusts: new.trusted() })
            }
        };
        let routes = Router::new().route(RENEW, post(renew)).route(AUTHORITY, post(follow));
        let peer = Peer::new(Role::Hub, "hub").unwrap();
        let hub = [target(&lab.serve_as(peer, Alpn::Hub, Handler::Http(routes)).await)];
        let (slot, dir) = (slot(&lab, 10), lab.path("identity"));
        let client = Client::new(Arc::clone(&slot));
        let mut renewal = Renewal::new(hub.len());
        for _ in 0..2 {
            look(&mut renewal, &dir, &hub, &client, &slot).await;
            assert_eq!(slot.current().issuer(), Some(new.fingerprint()));
            assert_eq!(Identity::load(&dir).unwrap().trusted(), new.trusted());
            assert_eq!(count.load(Ordering::Relaxed), 1);
        }
    }

    #[tokio::test]
    async fn a_certificate_for_another_key_leaves_the_old_one_and_ends_the_round() {
        let lab = Arc::new(Lab::new().await);
        let wrong = async |Json(_): Json<RenewRequest>| {
            let authorities = String::new();
            Json(RenewAnswer { certificate: String::new(), authorities })
        };
        let handler = Handler::Http(Router::new().route(RENEW, post(wrong)));
        let peer = Peer::new(Role::Hub, "hub").unwrap();
        let first = target(&lab.serve_as(peer, Alpn::Hub, handler).await);
        let (second, count) = hub(&lab).await;
        let hub = [first, second];
        let (slot, dir) = (slot(&lab, 80), lab.path("identity"));
        let client = Client::new(Arc::clone(&slot));
        let old = slot.current().validity();
        look(&mut Renewal::new(hub.len()), &dir, &hub, &client, &slot).await;
        assert_eq!(slot.current().validity(), old);
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn two_thirds_of_its_validity_a_certificate_is_fresh() {
        let lab = Lab::new().await;
        let now = UnixTime::now();
        for (days, expected) in [(10, Age::Fresh), (80, Age::Expiring), (91, Age::Expired)] {
            assert_eq!(age(&slot(&lab, days).current(), now), expected, "after {days} days");
        }
    }
}
