//! Certificates are renewed long before they end; one that lapses raises an alarm.

use std::sync::Arc;
use std::time::Duration;

use cohort_identity::{Alpn, Identity, Peer, Role, UnixTime};
use cohort_wire::http::{Call, Target};
use cohort_wire::hub::{RENEW, RenewAnswer, RenewRequest};
use cohort_wire::tls::IdentitySlot;
use tokio_util::sync::CancellationToken;

use crate::join::Joined;
use crate::shared::Shared;

/// How often the certificate's age is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);

/// Renews this server's certificate when a third of its life is left, until it works.
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
            tracing::error!("this server's certificate has expired; the hub must be reached");
        }
        if identity.is_expiring(now)
            && let Err(reason) = renew_once(&shared, &slot, &joined, &identity).await
        {
            tracing::warn!(reason, "this server's certificate was not renewed yet");
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
) -> Result<(), String> {
    let dir = shared.config.data_dir.join("identity");
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let request = Identity::prepare_request(&dir, identity.peer().clone()).map_err(|e| text(&e))?;
    let hub = Peer::new(Role::Hub, joined.hub.as_str()).map_err(|e| text(&e))?;
    let addresses =
        if shared.config.hub.is_empty() { &joined.hub_addresses } else { &shared.config.hub };
    let mut last = "no hub is named".to_owned();
    for address in addresses {
        let target = Target { address: address.clone(), peer: hub.clone(), alpn: Alpn::Hub };
        let call = Call::post(RENEW, &RenewRequest { request: request.to_text() });
        match shared.client.call_json::<RenewAnswer>(&target, call).await {
            Ok(answer) => {
                let renewed = Identity::accept(&dir, &answer.certificate, &answer.authority)
                    .map_err(|e| text(&e))?;
                slot.replace(renewed);
                shared.client.forget_connections();
                tracing::info!("this server's certificate was renewed");
                return Ok(());
            }
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}
