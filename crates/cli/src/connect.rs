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
        Ok(Hub::at(context.client()?, &peer, addresses))
    }

    /// The hub that issued a join token. Any hub whose authority has the token's fingerprint is
    /// accepted, whatever its name.
    pub(crate) fn joining(token: &JoinToken) -> Result<Self, Failure> {
        let peer = Peer::new(Role::Hub, "hub").or_fail("name")?;
        Ok(Hub::at(Client::joining(&token.fingerprint), &peer, &token.addresses))
    }

    fn at(client: Client, peer: &Peer, addresses: &[String]) -> Self {
        let target = |address: &String| Target {
            address: address.clone(),
            peer: peer.clone(),
            alpn: Alpn::Hub,
        };
        Hub { client, targets: addresses.iter().map(target).collect() }
    }

    /// The client with the caller's identity.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The hub's addresses, in the order to try.
    pub(crate) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Calls the hub. Tries the next address if the call certainly did not arrive at this one.
    pub(crate) async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, CallError> {
        let mut last = None;
        for target in &self.targets {
            match self.client.call_json(target, call.clone()).await {
                Err(error) if !error.may_have_happened() || call.idempotent && is_away(&error) => {
                    last = Some(error);
                }
                answer => return answer,
            }
        }
        Err(last.unwrap_or_else(|| CallError::Request {
            address: "hub".to_owned(),
            source: "no address is known".into(),
        }))
    }
}

/// Whether the callee is unreachable or unavailable, rather than refusing.
pub(crate) fn is_away(error: &CallError) -> bool {
    match error {
        CallError::Refused { .. }
        | CallError::Unreachable { .. }
        | CallError::TimedOut { .. }
        | CallError::Broken { .. } => true,
        // From an intermediary, or a hub that is starting or overloaded.
        CallError::Answered { answer, .. } => answer.status == 503,
        _ => false,
    }
}

pub(crate) fn agent_target(server: &ServerId, address: &str) -> Result<Target, Failure> {
    let peer = Peer::new(Role::Agent, server.as_str()).or_fail("usage")?;
    Ok(Target { address: address.to_owned(), peer, alpn: Alpn::Control })
}
