//! A running pull-through cache: shared parts, port, shutdown.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use cohort_base::disk;
use cohort_wire::http::serve_plain;
use cohort_wire::limits::ServerLimits;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::MirrorError;
use crate::answer::serve;
use crate::blob::Blob;
use crate::config::{CacheConfig, CacheLimits};
use crate::files::{Files, files_bytes_max};
use crate::joint::Joint;
use crate::metrics::Metrics;
use crate::origins::Origins;
use crate::server::{listen, tell_ready};
use crate::store::Store;

/// Requests on top of those for files: probes and metrics must get through during an overload.
const PROBES_MAX: usize = 64;

/// Shared by all parts of a cache.
pub(crate) struct Shared {
    pub(crate) limits: Arc<CacheLimits>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) origins: Origins,
    pub(crate) store: Store,
    pub(crate) opening: Arc<Joint<Arc<Blob>>>,
}

impl Shared {
    /// Opens the artifacts of a cache in `dir`. Blocking.
    pub(crate) fn open(
        dir: &Path,
        bytes_max: u64,
        limits: Arc<CacheLimits>,
        metrics: Arc<Metrics>,
        origins: Origins,
    ) -> std::io::Result<Arc<Self>> {
        let free_bytes_min = limits.free_bytes_min;
        let store =
            Store::open(dir.join("blobs"), bytes_max, free_bytes_min, Arc::clone(&metrics))?;
        let opening = Joint::new(limits.absent_for);
        Ok(Arc::new(Self { limits, metrics, origins, store, opening }))
    }

    /// After a failed write of one of its units: removes the artifact from disk and keeps serving
    /// its readers from origins.
    pub(crate) fn disk_refused(&self, blob: &Arc<Blob>) {
        blob.keep_no_more();
        self.store.forget(blob);
    }
}

/// The HTTP server's state.
pub(crate) struct App {
    pub(crate) cache: Arc<Shared>,
    pub(crate) files: Arc<Files>,
    /// One permit per file request in progress.
    pub(crate) places: Arc<Semaphore>,
    stopping: CancellationToken,
}

/// A running pull-through cache of the repository.
pub struct Cache {
    app: Arc<App>,
    address: SocketAddr,
    server: JoinHandle<()>,
    _lock: std::fs::File,
}

impl Cache {
    /// Starts a cache. On return, its port accepts requests.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn start(config: CacheConfig) -> Result<Self, MirrorError> {
        config.check()?;
        let metrics = Arc::new(Metrics::default());
        let limits = Arc::new(config.limits.clone());
        let (urls, buckets) = (&config.origins, &config.buckets);
        let origins = Origins::new(urls, buckets, Arc::clone(&limits), Arc::clone(&metrics))?;
        let (dir, address) = (config.cache_dir.clone(), config.listen);
        let unusable = |source| MirrorError::Folder { path: dir.clone(), source };
        let opening = tokio::task::spawn_blocking(move || open(&config, limits, metrics, origins));
        let opened = opening.await.map_err(|error| unusable(error.into()))?.map_err(unusable)?;
        let (app, lock) = opened.ok_or_else(|| MirrorError::InUse { path: dir.clone() })?;
        let (listener, address) = listen(address).await?;
        let requests_max = app.cache.limits.requests_max + PROBES_MAX;
        let refusals = app.cache.metrics.refusals("repository");
        let limits = ServerLimits { requests_max, refusals, ..ServerLimits::repository() };
        let server = serve_plain(listener, router(&app), limits, app.stopping.clone());
        let server = tokio::spawn(server);
        let (artifacts, bytes) = app.cache.store.usage();
        tracing::info!(%address, dir = %dir.display(), artifacts, bytes, "mirror started");
        Ok(Self { app, address, server, _lock: lock })
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs until `shutdown`, then finishes the responses in progress.
    ///
    /// # Errors
    /// If the server panicked.
    pub async fn run_until(mut self, shutdown: CancellationToken) -> Result<(), MirrorError> {
        let ended = tokio::select! {
            () = shutdown.cancelled() => None,
            ended = &mut self.server => Some(ended),
        };
        self.app.stopping.cancel();
        let ended = match ended {
            Some(ended) => ended,
            None => (&mut self.server).await,
        };
        self.app.cache.store.close();
        tracing::info!("mirror stopped");
        ended.map_err(MirrorError::Part)
    }
}

/// Runs a cache until `shutdown`.
///
/// # Errors
/// [`MirrorError`].
pub async fn run_cache(
    config: CacheConfig,
    shutdown: CancellationToken,
) -> Result<(), MirrorError> {
    let cache = Cache::start(config).await?;
    tell_ready();
    cache.run_until(shutdown).await
}

/// Locks and opens the directory; `None` if another process holds the lock. Blocking.
fn open(
    config: &CacheConfig,
    limits: Arc<CacheLimits>,
    metrics: Arc<Metrics>,
    origins: Origins,
) -> std::io::Result<Option<(Arc<App>, std::fs::File)>> {
    let path = &config.cache_dir;
    std::fs::create_dir_all(path)?;
    let Some(lock) = disk::lock(&path.join("lock"))? else { return Ok(None) };
    let small = files_bytes_max(config.cache_bytes);
    let places = Arc::new(Semaphore::new(limits.requests_max));
    let cache = Shared::open(path, config.cache_bytes - small, limits, metrics, origins)?;
    let files = Files::open(path.join("files"), small, Arc::clone(&cache))?;
    let stopping = CancellationToken::new();
    Ok(Some((Arc::new(App { cache, files, places, stopping }), lock)))
}

fn router(app: &Arc<App>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/metadata/{*path}", get(serve))
        .route("/targets/{*path}", get(serve))
        .route("/blobs/{*path}", get(serve))
        .with_state(Arc::clone(app))
}

async fn readyz(State(app): State<Arc<App>>) -> Response {
    if app.stopping.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    "ok\n".into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let metrics = &app.cache.metrics;
    let (artifacts, bytes) = app.cache.store.usage();
    let requests = app.cache.limits.requests_max - app.places.available_permits();
    for (gauge, value) in [
        (&metrics.artifacts, artifacts),
        (&metrics.bytes, bytes),
        (&metrics.bytes_max, app.cache.store.bytes_max()),
        (&metrics.requests, requests as u64),
    ] {
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    }
    let kind = [(CONTENT_TYPE, cohort_base::metrics::CONTENT_TYPE)];
    (kind, metrics.text()).into_response()
}
