//! Renews this server's certificate long before it expires, and raises an alarm if it does.

use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain::chain;
use cohort_identity::{Alpn, Identity, IdentityError, InvalidPeer, Peer, Role, UnixTime};
use cohort_wire::http::{Call, CallError, Target};
use cohort_wire::hub::{RENEW, RenewAnswer, RenewRequest};
use cohort_wire::tls::IdentitySlot;
use tokio_util::sync::CancellationToken;

use crate::join::Joined;
use crate::shared::Shared;

/// How often the certificate's age is checked. It begins to be renewed with a third of its life
/// left, so an hour is early enough.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);

/// Why the certificate was not renewed; it is tried again.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("the hub's name is invalid")]
    Hub(#[from] InvalidPeer),
    #[error("no hub is configured; set `hub` in agent.toml")]
    NoHub,
    #[error(transparent)]
    Call(CallError),
    #[error("the certificate cannot be kept")]
    Identity(#[from] IdentityError),
}

/// Renews this server's certificate once a third of its life is left, and retries until it works.
pub(crate) async fn renew(
    shared: Arc<Shared>,
    slot: Arc<IdentitySlot>,
    joined: Joined,
    stop: CancellationToken,
) {
    loop {
        let now = UnixTime::now();
        let identity = slot.current();
        if identity.is_expired(now) {
            tracing::error!("certificate expired; this server must reach the hub to renew it");
        }
        if identity.is_expiring(now)
            && let Err(error) = renew_once(&shared, &slot, &joined, &identity).await
        {
            tracing::warn!(error = chain(&error), "certificate not renewed yet");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn renew_once(
    shared: &Shared,
    slot: &IdentitySlot,
    joined: &Joined,
    identity: &Identity,
) -> Result<(), RenewalError> {
    let dir = shared.config.data_dir.join("identity");
    let request = Identity::prepare_request(&dir, identity.peer().clone())?;
    let hub = Peer::new(Role::Hub, joined.hub.as_str())?;
    let addresses =
        if shared.config.hub.is_empty() { &joined.hub_addresses } else { &shared.config.hub };
    let mut last = RenewalError::NoHub;
    for address in addresses {
        let target = Target { address: address.clone(), peer: hub.clone(), alpn: Alpn::Hub };
        let call = Call::post(RENEW, &RenewRequest { request: request.to_text() });
        match shared.client.call_json::<RenewAnswer>(&target, call).await {
            Ok(answer) => {
                slot.replace(Identity::accept(&dir, &answer.certificate, &answer.authority)?);
                shared.client.forget_connections();
                tracing::info!("certificate renewed");
                return Ok(());
            }
            Err(error) => last = RenewalError::Call(error),
        }
    }
    Err(last)
}
