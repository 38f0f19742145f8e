//! The registry for agents and the command line: requests to the hub over mutual TLS.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cohort_base::chain;
use cohort_wire::http::{Call, CallError, Client, Target};
use cohort_wire::hub::{REGISTRY_RANGE, REGISTRY_TXN, REGISTRY_WATCH};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{
    RANGE_BYTES_MAX, RangeAnswer, RangeRequest, Registry, RegistryError, Txn, TxnAnswer,
    WATCH_WAIT_MS_MAX, WatchAnswer, WatchReply, WatchRequest,
};
use crate::seen::{Answered, Asked, SeenRecord};

/// For a read or a change: the hub syncs its disk, and may be on a bad line.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// For a watch, beyond its own wait.
const WATCH_MARGIN: Duration = Duration::from_secs(10);
/// Values are JSON within JSON with every quote escaped, plus keys and revisions.
const ANSWER_BYTES_MAX: u64 = 4 * RANGE_BYTES_MAX as u64;

/// A registry behind the hub's API.
#[derive(Debug)]
pub struct RemoteRegistry {
    client: Client,
    targets: Vec<Target>,
    /// The target that answered last.
    current: AtomicUsize,
    seen: SeenRecord,
}

impl RemoteRegistry {
    /// The registry of the hub at any of these addresses, tried in order. `seen`: what it has
    /// proven so far.
    ///
    /// # Panics
    /// When there is no address; the caller's configuration requires one.
    #[must_use]
    pub fn new(client: Client, targets: Vec<Target>, seen: SeenRecord) -> Self {
        assert!(!targets.is_empty(), "the hub has at least one address");
        RemoteRegistry { client, targets, current: AtomicUsize::new(0), seen }
    }

    /// The hub's address that answered last, and is tried first.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.targets[self.current.load(Ordering::Relaxed)]
    }

    /// A request to the registry, with what this client has seen of it.
    fn ask(&self, path: &str, request: impl Serialize) -> Call {
        Call::post(path, &Asked { request, seen: self.seen.current() })
    }

    async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, RegistryError> {
        let first = self.current.load(Ordering::Relaxed);
        let answer = self.client.call_any(&self.targets, first, call).await;
        let (current, Answered { answer, seen }) = answer?;
        self.current.store(current, Ordering::Relaxed);
        self.seen.note(seen).await;
        Ok(answer)
    }
}

/// What a failed call to the hub means: the only place that tells a hub that refuses from one that
/// is away, also for what is not in its registry.
impl From<CallError> for RegistryError {
    fn from(error: CallError) -> Self {
        let mut reason = chain(&error);
        if let CallError::Answered { answer, .. } = &error {
            // An operator reads this in the end, and what the hub advises.
            answer.hints.iter().for_each(|hint| reason.push_str(&format!("; {hint}")));
        }
        match error.kind() {
            "bad_request" | "too_large" => RegistryError::Invalid { reason },
            "conflict" => RegistryError::Conflict { reason },
            "restored" => RegistryError::RestoredUnconfirmed,
            "forbidden" | "unauthenticated" => RegistryError::Forbidden { reason },
            // Its disk failed, or is full: waiting does not help.
            "storage" | "full" | "internal" => RegistryError::Broken { reason },
            _ => RegistryError::Unavailable { reason },
        }
    }
}

#[async_trait]
impl Registry for RemoteRegistry {
    async fn range(&self, request: RangeRequest) -> Result<RangeAnswer, RegistryError> {
        let call = self
            .ask(REGISTRY_RANGE, request)
            .idempotent()
            .deadline(CALL_DEADLINE)
            .response_bytes_max(ANSWER_BYTES_MAX);
        self.call(call).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnAnswer, RegistryError> {
        self.call(self.ask(REGISTRY_TXN, txn).deadline(CALL_DEADLINE)).await
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchAnswer, RegistryError> {
        let wait = Duration::from_millis(request.wait_ms.min(WATCH_WAIT_MS_MAX));
        let call = self
            .ask(REGISTRY_WATCH, request)
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

#[cfg(test)]
mod remote_test {
    use cohort_wire::http::ApiError;

    use super::*;

    #[test]
    fn a_hub_that_refuses_is_not_one_that_is_away() {
        let of = |answer: ApiError| {
            let answer = Box::new(answer);
            RegistryError::from(CallError::Answered { address: "hub:7418".to_owned(), answer })
        };
        for broken in [ApiError::internal("no space"), ApiError::unavailable("full", "full")] {
            assert!(matches!(of(broken), RegistryError::Broken { .. }));
        }
        assert!(matches!(of(ApiError::forbidden("no")), RegistryError::Forbidden { .. }));
        for busy in [ApiError::overloaded("busy"), ApiError::unavailable("stopping", "stops")] {
            assert!(matches!(of(busy), RegistryError::Unavailable { .. }));
        }
    }
}
