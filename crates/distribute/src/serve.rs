//! Serving other servers of the group: artifacts and their unit hashes, and nothing else.
//!
//! ```text
//! GET /v1/artifacts/<root>/units?first=N&count=M   units N.. as bytes; fewer than M when only the
//!                                                  first of them are here yet; 404 when N is not
//! GET /v1/artifacts/<root>/unit-hashes?wait_ms=T   32 bytes per unit; held for T at most until
//!                                                  they are here
//! POST /v1/artifacts/<root>/subscription           see [`crate::subscription`]
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use cohort_artifact::UNIT_BYTES;
use cohort_core::ids::Digest;
use cohort_identity::{PeerName, Role};
use cohort_wire::http::{ApiError, ApiJson, Caller, require_role};
use futures_util::stream;
use http::HeaderValue;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use crate::budget::Budget;
use crate::request::span_of;
use crate::store::ArtifactStore;
use crate::subscription::{RUNS_MAX, SubscribeRequest, Subscription};
use crate::unit_set::UnitRun;

/// Bytes that are read from the disk at once: four units, one system call per 256 KiB.
const READ_BYTES: u64 = 4 * UNIT_BYTES as u64;

/// Limits of the serving side.
#[derive(Debug, Clone)]
pub struct ServeLimits {
    /// Answers that are being sent at once. Each holds three reads (768 KiB), so 64 bound the
    /// serving side to 48 MiB; a NIC is full long before.
    pub streams_max: usize,
    /// Answers to one server at once: a fetch sends two requests, and several apps may fetch.
    pub streams_per_peer_max: usize,
    /// How long a receiver may take for one read's worth (256 KiB), in milliseconds; a slower one
    /// loses the connection, so that it cannot hold a place for ever. Below 9 KiB/s.
    pub read_taken_ms_max: u64,
    /// How fast everything together may be sent.
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
    let places = Arc::new(Places {
        free: Arc::new(Semaphore::new(limits.streams_max)),
        by_peer: Mutex::default(),
    });
    let routes = Router::new()
        .route("/v1/artifacts/{digest}/units", get(units))
        .route("/v1/artifacts/{digest}/unit-hashes", get(unit_hashes))
        .route("/v1/artifacts/{digest}/subscription", post(subscription))
        .with_state(Serving { store, limits, places });
    require_role(routes, &[Role::Agent])
}

#[derive(Clone)]
struct Serving {
    store: Arc<ArtifactStore>,
    limits: ServeLimits,
    places: Arc<Places>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnitsQuery {
    first: u32,
    count: u32,
}

async fn units(
    State(serving): State<Serving>,
    Caller(caller): Caller,
    Path(digest): Path<String>,
    Query(query): Query<UnitsQuery>,
) -> Result<Response, ApiError> {
    let digest = parse(&digest)?;
    let run = UnitRun { first: query.first, count: query.count };
    if run.count == 0 {
        return Err(ApiError::bad_request("count must be 1 at least"));
    }
    let place = serving.place(&caller.name)?;
    let store = Arc::clone(&serving.store);
    let wanted = digest.clone();
    let found = blocking(move || find(&store, &wanted, run)).await?;
    let Some((file, start, length)) = found else {
        return Err(ApiError::not_found(format!("unit {} of {digest} is not here", run.first)));
    };
    let body = send(file, start, length, place, &serving.limits);
    Ok(answer(length, body))
}

/// Longest wait for unit hashes, in milliseconds; below what the asker waits for a first byte.
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
    let mut response = streamed(receiver).into_response();
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
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
    let bytes = blocking(move || Ok(store.unit_hashes(&wanted).ok().map(|h| h.to_bytes()))).await?;
    match bytes {
        Some(bytes) => Ok(answer(bytes.len() as u64, Body::from(bytes))),
        None => Err(ApiError::not_found(format!("artifact {digest} is not here"))),
    }
}

/// The file that holds the first units of a run, the first byte, and how many.
fn find(
    store: &ArtifactStore,
    digest: &Digest,
    run: UnitRun,
) -> io::Result<Option<(File, u64, u64)>> {
    if let Some((file, total)) = store.open_whole(digest).map_err(io::Error::other)? {
        let (start, length) = span_of(total, run);
        return Ok((length > 0).then_some((file, start, length)));
    }
    let Some(part) = store.part(digest) else { return Ok(None) };
    let Some(here) = part.run_here(run, u32::MAX) else { return Ok(None) };
    let (start, length) = span_of(part.hashes().length(), here);
    Ok(Some((part.reader()?, start, length)))
}

fn answer(length: u64, body: Body) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}

/// Reads one piece ahead of the connection; the place is given back when all is sent, when the
/// receiver goes away, and when it takes too long.
fn send(file: File, start: u64, length: u64, place: Place, limits: &ServeLimits) -> Body {
    let (taken_ms_max, upload) = (limits.read_taken_ms_max, Arc::clone(&limits.upload));
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(1);
    tokio::spawn(async move {
        let _place = place;
        let file = Arc::new(file);
        let mut at = start;
        while at < start + length {
            let bytes = READ_BYTES.min(start + length - at);
            let source = Arc::clone(&file);
            let piece = tokio::task::spawn_blocking(move || read(&source, at, bytes)).await;
            let piece = piece.unwrap_or_else(|error| Err(io::Error::other(error)));
            let failed = piece.is_err();
            upload.take(piece.as_ref().map_or(0, Bytes::len), || ()).await;
            let taken = timeout(Duration::from_millis(taken_ms_max), sender.send(piece)).await;
            // Gone, or too slow: the body ends early, which the receiver sees by its length.
            if failed || !matches!(taken, Ok(Ok(()))) {
                return;
            }
            at += bytes;
        }
    });
    streamed(receiver)
}

fn streamed(receiver: mpsc::Receiver<io::Result<Bytes>>) -> Body {
    Body::from_stream(stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    }))
}

fn read(file: &File, at: u64, bytes: u64) -> io::Result<Bytes> {
    let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
    let mut piece = vec![0; bytes];
    file.read_exact_at(&mut piece, at)?;
    Ok(piece.into())
}

fn parse(digest: &str) -> Result<Digest, ApiError> {
    Digest::new(digest).map_err(|error| ApiError::bad_request(error.to_string()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other);
    done.and_then(|result| result).map_err(|error| ApiError::internal(error.to_string()))
}

/// Who is being sent something.
struct Places {
    free: Arc<Semaphore>,
    by_peer: Mutex<BTreeMap<String, usize>>,
}

/// A place among those that are being sent something.
struct Place {
    places: Arc<Places>,
    peer: String,
    _free: OwnedSemaphorePermit,
}

impl Serving {
    fn place(&self, peer: &PeerName) -> Result<Place, ApiError> {
        let busy = || ApiError::overloaded("this server sends as much as it may");
        let free = Arc::clone(&self.places.free).try_acquire_owned().map_err(|_| busy())?;
        let mut by_peer = self.places.by_peer.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_peer.entry(peer.as_str().to_owned()).or_default();
        if *count >= self.limits.streams_per_peer_max {
            return Err(busy());
        }
        *count += 1;
        let places = Arc::clone(&self.places);
        Ok(Place { places, peer: peer.as_str().to_owned(), _free: free })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_peer = self.places.by_peer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                by_peer.remove(&self.peer);
            }
        }
    }
}
