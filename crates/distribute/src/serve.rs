//! Serving artifacts and their unit hashes to other servers of the group, and nothing else.
//!
//! ```text
//! GET /v1/artifacts/<root>/unit-hashes?wait_ms=T   32 bytes per unit; held for up to T until
//!                                                  they are here
//! POST /v1/artifacts/<root>/subscription           see [`crate::subscription`]
//! ```

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use cohort_base::chain;
use cohort_core::ids::Digest;
use cohort_identity::{PeerName, Role};
use cohort_wire::http::{ApiError, ApiJson, Caller, Present, Routes, Tally, Who};
use futures_util::stream;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use crate::budget::Budget;
use crate::store::ArtifactStore;
use crate::subscription::{RUNS_MAX, SubscribeRequest, Subscription};

/// Limits of the serving side.
#[derive(Debug, Clone)]
pub struct ServeLimits {
    /// Concurrent responses. Each holds three reads (768 KiB), so 64 bound the serving side to 48
    /// MiB; the network card is saturated long before.
    pub streams_max: usize,
    /// Concurrent responses to one server: several apps may fetch, and change parents.
    pub streams_per_peer_max: usize,
    /// How long a receiver may take for one read's worth (256 KiB), in milliseconds. One slower
    /// than 9 KiB/s loses the connection, so that it cannot hold a slot forever.
    pub read_taken_ms_max: u64,
    /// Limit for everything sent.
    pub upload: Arc<Budget>,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            streams_max: 64,
            streams_per_peer_max: 8,
            read_taken_ms_max: 30_000,
            upload: Arc::default(),
        }
    }
}

/// The routes of ALPN `cohort-bulk/1`, for agents only.
pub fn bulk_router(store: Arc<ArtifactStore>, limits: ServeLimits) -> Router {
    let free = Arc::new(Semaphore::new(limits.streams_max));
    let agents = Who::Roles(&[Role::Agent]);
    let (routes, _) = Routes::default()
        .get("/v1/artifacts/{digest}/unit-hashes", agents, unit_hashes)
        .post("/v1/artifacts/{digest}/subscription", agents, subscription)
        .build();
    routes.with_state(Serving { store, limits, free, by_peer: Arc::default() })
}

#[derive(Clone)]
struct Serving {
    store: Arc<ArtifactStore>,
    limits: ServeLimits,
    free: Arc<Semaphore>,
    by_peer: Arc<Tally<PeerName>>,
}

/// Longest wait for unit hashes, in milliseconds; shorter than a fetch waits for a response.
const HASHES_WAIT_MS_MAX: u64 = 5_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HashesQuery {
    #[serde(default)]
    wait_ms: u64,
}

async fn subscription(
    State(serving): State<Serving>,
    Caller(caller): Caller,
    Path(digest): Path<String>,
    ApiJson(request): ApiJson<SubscribeRequest>,
) -> Result<Response, ApiError> {
    let digest = parse(&digest)?;
    if request.lacks.is_empty() || request.lacks.len() > RUNS_MAX {
        let error = format!("a subscription names 1 to {RUNS_MAX} runs of units");
        return Err(ApiError::bad_request(error));
    }
    if !request.is_in_order() {
        return Err(ApiError::bad_request("runs of units must ascend and not overlap"));
    }
    let place = serving.place(&caller.name)?;
    let subscription = Subscription {
        store: Arc::clone(&serving.store),
        digest,
        child: caller.name.as_str().to_owned(),
        lacks: request.lacks,
        upload: Arc::clone(&serving.limits.upload),
        taken_ms_max: serving.limits.read_taken_ms_max,
    };
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let _place = place;
        subscription.run(sender).await;
    });
    Ok(octets(streamed(receiver)))
}

async fn unit_hashes(
    State(serving): State<Serving>,
    Caller(caller): Caller,
    Path(digest): Path<String>,
    Query(query): Query<HashesQuery>,
) -> Result<Response, ApiError> {
    let digest = parse(&digest)?;
    let _place = serving.place(&caller.name)?;
    let mut changes = serving.store.changes();
    let patience = Duration::from_millis(query.wait_ms.min(HASHES_WAIT_MS_MAX));
    let here = || serving.store.has_hashes(&digest);
    let _ = timeout(patience, changes.wait_for(|_| here())).await;
    let store = Arc::clone(&serving.store);
    let wanted = digest.clone();
    let read = move || store.unit_hashes(&wanted).ok().map(|hashes| hashes.to_bytes());
    let read = tokio::task::spawn_blocking(read).await;
    match read.map_err(|error| ApiError::internal(chain(&error)))? {
        Some(bytes) => Ok(octets(Body::from(bytes))),
        None => Err(ApiError::not_found(format!("artifact {digest} is not here"))),
    }
}

fn octets(body: Body) -> Response {
    let mut response = body.into_response();
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn streamed(receiver: mpsc::Receiver<io::Result<Bytes>>) -> Body {
    Body::from_stream(stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    }))
}

fn parse(digest: &str) -> Result<Digest, ApiError> {
    Digest::new(digest).map_err(|error| ApiError::bad_request(chain(&error)))
}

/// A slot for a response in progress.
struct Place {
    _free: OwnedSemaphorePermit,
    _present: Present<PeerName>,
}

impl Serving {
    fn place(&self, peer: &PeerName) -> Result<Place, ApiError> {
        let busy = || ApiError::overloaded("this server is sending as much as it may");
        let free = Arc::clone(&self.free).try_acquire_owned().map_err(|_| busy())?;
        let present = self.by_peer.enter(peer.clone(), self.limits.streams_per_peer_max);
        Ok(Place { _free: free, _present: present.ok_or_else(busy)? })
    }
}
