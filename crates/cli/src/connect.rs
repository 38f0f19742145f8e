//! Calls to the hub and to agents.

use std::time::Duration;

use cohort_core::ids::ServerId;
use cohort_identity::{Alpn, JoinToken, Peer, Role};
use cohort_wire::http::{Call, CallError, Client, Target};
use serde::de::DeserializeOwned;

use crate::context::Context;
use crate::failure::{Failure, OrFail as _};

/// Deadline of a call to one agent. 4 s: an operator is waiting, and other agents can respond.
pub(crate) const AGENT_DEADLINE: Duration = Duration::from_secs(4);

#[derive(Debug, Clone)]
pub(crate) struct Hub {
    client: Client,
    targets: Vec<Target>,
}

impl Hub {
    /// The hub of a context.
    pub(crate) fn of(context: &Context) -> Result<Self, Failure> {
        let (peer, addresses) = context.hub()?;
        Ok(Hub { client: context.client()?, targets: Target::hub(&peer, addresses) })
    }

    /// The hub that issued a join token. Any hub whose authority has the token's fingerprint is
    /// accepted, whatever its name.
    pub(crate) fn joining(token: &JoinToken) -> Result<Self, Failure> {
        let peer = Peer::new(Role::Hub, "hub").or_fail("name")?;
        let client = Client::joining(&token.anchors.authority);
        Ok(Hub { client, targets: Target::hub(&peer, &token.addresses) })
    }

    /// The client with the caller's identity.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The hub's addresses, in the order to try.
    pub(crate) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Calls the hub, at the first of its addresses that responds.
    pub(crate) async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, CallError> {
        self.client.call_any(&self.targets, 0, call).await.map(|(_, answer)| answer)
    }
}

pub(crate) fn agent_target(server: &ServerId, address: &str) -> Result<Target, Failure> {
    let peer = Peer::new(Role::Agent, server.as_str()).or_fail("usage")?;
    Ok(Target { address: address.to_owned(), peer, alpn: Alpn::Control })
}
