//! Calls to the hub and to agents.

use std::time::Duration;

use cohort_core::ids::ServerId;
use cohort_identity::{Alpn, Peer, Role};
use cohort_wire::http::{Call, CallError, Client, Target};
use serde::de::DeserializeOwned;

use crate::context::Context;
use crate::failure::Failure;

/// How long one agent is waited for: a person looks at the screen, and others can be asked.
pub(crate) const AGENT_DEADLINE: Duration = Duration::from_secs(4);

/// The hub, at its addresses.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    client: Client,
    targets: Vec<Target>,
}

impl Hub {
    /// The hub of a context.
    ///
    /// # Errors
    /// When the context names none, or the identity cannot be used.
    pub(crate) fn of(context: &Context) -> Result<Self, Failure> {
        let (peer, addresses) = context.hub()?;
        let target = |address: &String| Target {
            address: address.clone(),
            peer: peer.clone(),
            alpn: Alpn::Hub,
        };
        Ok(Hub { client: context.client()?, targets: addresses.iter().map(target).collect() })
    }

    /// Who calls.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Its addresses, in the order to try.
    pub(crate) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Makes a call; the next address is tried when one certainly did not see it.
    ///
    /// # Errors
    /// The last address's failure.
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

/// Whether nobody answered, as opposed to an answer that is an error.
pub(crate) fn is_away(error: &CallError) -> bool {
    match error {
        CallError::Refused { .. }
        | CallError::Unreachable { .. }
        | CallError::TimedOut { .. }
        | CallError::Broken { .. } => true,
        // An intermediary, or a hub that is starting or overloaded.
        CallError::Answered { answer, .. } => answer.status == 503,
        _ => false,
    }
}

/// An agent's control port.
///
/// # Errors
/// Never in practice: server ids and names of peers have the same rule.
pub(crate) fn agent_target(server: &ServerId, address: &str) -> Result<Target, Failure> {
    let peer = Peer::new(Role::Agent, server.as_str())
        .map_err(|error| Failure::new("usage", error.to_string()))?;
    Ok(Target { address: address.to_owned(), peer, alpn: Alpn::Control })
}
