//! Renews this server's certificate long before it expires, and raises an alarm if it does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain::chain;
use cohort_identity::{Identity, IdentityError, UnixTime};
use cohort_wire::http::{Call, CallError, Client, Target};
use cohort_wire::hub::{RENEW, RenewAnswer, RenewRequest};
use cohort_wire::tls::IdentitySlot;

use crate::shared::Shared;

/// How often the certificate's age is checked. It begins to be renewed with a third of its validity
/// left, so an hour is early enough.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);

/// Why the certificate was not renewed; it is tried again.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("no address of the hub answered")]
    Call(#[source] CallError),
    #[error("the certificate cannot be kept")]
    Identity(#[from] IdentityError),
}

/// Renews this server's certificate once a third of its validity is left, and retries until it
/// works.
pub(crate) async fn renew(shared: Arc<Shared>, slot: Arc<IdentitySlot>) {
    let dir = shared.config.data_dir.join("identity");
    loop {
        look(&dir, &shared.hub, &shared.client, &slot, UnixTime::now()).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What one look at the certificate leads to.
#[derive(Debug, PartialEq, Eq)]
enum Looked {
    /// It is valid for long.
    Fresh,
    Renewed,
    /// It has to be renewed, and was not.
    Due {
        expired: bool,
    },
}

async fn look(
    dir: &Path,
    hub: &[Target],
    client: &Client,
    slot: &IdentitySlot,
    now: UnixTime,
) -> Looked {
    let identity = slot.current();
    let expired = identity.is_expired(now);
    if expired {
        tracing::error!("certificate expired; this server must reach the hub to renew it");
    }
    if !identity.is_expiring(now) {
        return Looked::Fresh;
    }
    match renew_once(dir, hub, client, &identity).await {
        Ok(renewed) => {
            slot.replace(renewed);
            client.forget_connections();
            tracing::info!("certificate renewed");
            Looked::Renewed
        }
        Err(error) => {
            tracing::warn!(error = chain(&error), "certificate not renewed yet");
            Looked::Due { expired }
        }
    }
}

async fn renew_once(
    dir: &Path,
    hub: &[Target],
    client: &Client,
    identity: &Identity,
) -> Result<Identity, RenewalError> {
    let request = Identity::prepare_request(dir, identity.peer().clone())?.to_text();
    let mut asked = hub.iter();
    let mut target = asked.next().expect("an agent knows an address of the hub");
    loop {
        let call = Call::post(RENEW, &RenewRequest { request: request.clone() });
        match (client.call_json::<RenewAnswer>(target, call).await, asked.next()) {
            (Ok(answer), _) => {
                return Ok(Identity::accept(dir, &answer.certificate, &answer.authority)?);
            }
            (Err(_), Some(next)) => target = next,
            (Err(error), None) => return Err(RenewalError::Call(error)),
        }
    }
}

#[cfg(test)]
mod renewal_test {
    use cohort_identity::{Alpn, Authority, Peer, Role};

    use super::*;

    #[tokio::test]
    async fn a_certificate_is_renewed_with_a_third_of_its_validity_left() {
        let folder = tempfile::tempdir().unwrap();
        let now = UnixTime::now();
        let authority = Authority::create(&folder.path().join("ca"), now).unwrap();
        let peer = Peer::new(Role::Agent, "web-1").unwrap();
        const DAY_S: u64 = 86_400;
        let validity = Duration::from_secs(90 * DAY_S);
        let slot = IdentitySlot::new(authority.make_identity(&peer, validity, now).unwrap());
        let client = Client::new(Arc::clone(&slot));
        // A port that was just free: nobody answers.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let hub = [Target {
            address: free.to_string(),
            peer: Peer::new(Role::Hub, "hub").unwrap(),
            alpn: Alpn::Hub,
        }];
        for (days, expected) in [
            (10, Looked::Fresh),
            (80, Looked::Due { expired: false }),
            (91, Looked::Due { expired: true }),
        ] {
            let later =
                UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + days * DAY_S));
            assert_eq!(look(folder.path(), &hub, &client, &slot, later).await, expected);
        }
    }
}
