//! Calls to the hub and to agents.

use std::borrow::Cow;
use std::time::Duration;

use cohort_base::text;
use cohort_core::ids::ServerId;
use cohort_identity::{Alpn, JoinToken, Peer, Role};
use cohort_wire::http::{Call, CallError, Client, Target};
use serde::de::DeserializeOwned;
use serde_json::Value;

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
        ask(&self.client, &self.targets, call).await.map(|(_, answer)| answer)
    }
}

/// Parts of answers that stay as they were signed, or written by a person. Of a signed statement,
/// the certificates of its author: the rest are digits.
const VERBATIM: &[&str] =
    &["authorities", "authority", "certificate", "chain", "lines", "policy", "trusted_root"];

/// Calls the targets in turn, until one responds; returns its number too. The texts of the answer
/// are made fit to be shown, each in one line.
pub(crate) async fn ask<T: DeserializeOwned>(
    client: &Client,
    targets: &[Target],
    call: Call,
) -> Result<(usize, T), CallError> {
    let (at, mut answer) = client.call_any::<Value>(targets, 0, call).await?;
    clean(&mut answer);
    let address = targets[at].address.clone();
    let malformed =
        |error: serde_json::Error| CallError::Malformed { address, source: error.into() };
    Ok((at, serde_json::from_value(answer).map_err(malformed)?))
}

fn clean(value: &mut Value) {
    match value {
        Value::String(string) => {
            if let Cow::Owned(shown) = text::line(string) {
                *string = shown;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(clean),
        Value::Object(fields) => {
            let taken = std::mem::take(fields);
            *fields = taken
                .into_iter()
                .map(|(key, mut value)| {
                    if !VERBATIM.contains(&key.as_str()) {
                        clean(&mut value);
                    }
                    (text::line(&key).into_owned(), value)
                })
                .collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

pub(crate) fn agent_target(server: &ServerId, address: &str) -> Result<Target, Failure> {
    let peer = Peer::new(Role::Agent, server.as_str()).or_fail("usage")?;
    Ok(Target { address: address.to_owned(), peer, alpn: Alpn::Control })
}

#[cfg(test)]
mod connect_test {
    use super::*;

    #[test]
    fn texts_of_an_answer_are_lines_and_what_is_signed_stays() {
        let mut answer = serde_json::json!({
            "reason": "fine\nhint: run this", "list": ["\u{1b}[2J", 7, null],
            "labels": { "\u{202e}zone": "a" }, "kill": { "chain": "one\ntwo" },
            "policies": [{ "policy": { "args": ["-c", "one\ntwo"] }, "by": "eve\u{7}" }],
        });
        clean(&mut answer);
        assert_eq!(
            answer,
            serde_json::json!({
                "reason": "fine\\nhint: run this", "list": ["\\u001b[2J", 7, null],
                "labels": { "\\u202ezone": "a" }, "kill": { "chain": "one\ntwo" },
                "policies": [{ "policy": { "args": ["-c", "one\ntwo"] }, "by": "eve\\u0007" }],
            })
        );
    }
}
