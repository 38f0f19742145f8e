//! The registry as agents and the command line see it: requests to the hub over mutual TLS.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cohort_identity::{Alpn, Peer};
use cohort_wire::http::{Call, CallError, Client, Target};
use cohort_wire::hub::{REGISTRY_RANGE, REGISTRY_TXN, REGISTRY_WATCH};
use serde::de::DeserializeOwned;

use crate::api::{
    RANGE_BYTES_MAX, RangeAnswer, RangeRequest, Registry, RegistryError, Txn, TxnAnswer,
    WATCH_WAIT_MS_MAX, WatchAnswer, WatchReply, WatchRequest,
};

/// How long a read or a change may take: the hub syncs its disk, and may be on a bad line.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// What a watch may take beyond its own wait.
const WATCH_MARGIN: Duration = Duration::from_secs(10);
/// JSON within JSON: every quote is escaped, and keys and revisions come on top.
const ANSWER_BYTES_MAX: u64 = 4 * RANGE_BYTES_MAX as u64;

/// A registry that is reached over the hub's port.
#[derive(Debug)]
pub struct RemoteRegistry {
    client: Client,
    targets: Vec<Target>,
    /// The one that answered last.
    current: AtomicUsize,
}

impl RemoteRegistry {
    /// The registry of the hub with this identity, at any of these addresses (`host:port`), tried
    /// in order.
    ///
    /// # Panics
    /// When there is no address at all: a mistake of the caller, whose configuration requires one.
    #[must_use]
    pub fn new(client: Client, hub: &Peer, addresses: &[String]) -> Self {
        assert!(!addresses.is_empty(), "the hub has at least one address");
        let target = |address: &String| Target {
            address: address.clone(),
            peer: hub.clone(),
            alpn: Alpn::Hub,
        };
        let targets = addresses.iter().map(target).collect();
        RemoteRegistry { client, targets, current: AtomicUsize::new(0) }
    }

    /// Where the hub was reached last (or will be tried first).
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.targets[self.current.load(Ordering::Relaxed) % self.targets.len()]
    }

    async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, RegistryError> {
        let first = self.current.load(Ordering::Relaxed);
        let mut last_error = None;
        for nth in 0..self.targets.len() {
            let index = (first + nth) % self.targets.len();
            match self.client.call_json(&self.targets[index], call.clone()).await {
                Ok(answer) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                // Elsewhere only if it certainly was not done here.
                Err(error) if error.may_have_happened() && !call.idempotent => {
                    return Err(explain(&error));
                }
                Err(error @ CallError::Answered { .. }) => return Err(explain(&error)),
                Err(error) => last_error = Some(explain(&error)),
            }
        }
        Err(last_error.expect("there is at least one target, and it failed"))
    }
}

/// What a failed call means for who asked.
fn explain(error: &CallError) -> RegistryError {
    let reason = match std::error::Error::source(error) {
        Some(source) if error.status().is_none() => format!("{error}: {source}"),
        Some(_) | None => error.to_string(),
    };
    match error.kind() {
        "bad_request" | "too_large" => RegistryError::Invalid { reason },
        "conflict" => RegistryError::Conflict { reason },
        "restored" => RegistryError::RestoredUnconfirmed,
        "forbidden" | "unauthenticated" => RegistryError::Forbidden { reason },
        _ => RegistryError::Unavailable { reason },
    }
}

#[async_trait]
impl Registry for RemoteRegistry {
    async fn range(&self, request: RangeRequest) -> Result<RangeAnswer, RegistryError> {
        let call = Call::post(REGISTRY_RANGE, &request)
            .idempotent()
            .deadline(CALL_DEADLINE)
            .response_bytes_max(ANSWER_BYTES_MAX);
        self.call(call).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnAnswer, RegistryError> {
        self.call(Call::post(REGISTRY_TXN, &txn).deadline(CALL_DEADLINE)).await
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchAnswer, RegistryError> {
        let wait = Duration::from_millis(request.wait_ms.min(WATCH_WAIT_MS_MAX));
        let call = Call::post(REGISTRY_WATCH, &request)
            .idempotent()
            .deadline(wait + WATCH_MARGIN)
            .response_bytes_max(ANSWER_BYTES_MAX);
        match self.call(call).await? {
            WatchReply::Changed(answer) => Ok(answer),
            WatchReply::Compacted { compacted, revision } => {
                Err(RegistryError::Compacted { compacted, revision })
            }
            WatchReply::WentBack { asked, revision } => {
                Err(RegistryError::WentBack { asked, revision })
            }
        }
    }
}
