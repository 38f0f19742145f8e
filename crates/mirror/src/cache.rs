//! A cache that runs: its port, its places, its end.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use cohort_wire::dscp::Dscp;
use cohort_wire::http::serve_plain;
use cohort_wire::limits::ServerLimits;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::answer::serve;
use crate::artifacts::Artifacts;
use crate::config::CacheConfig;
use crate::files::{Files, files_bytes_max};
use crate::metrics::{Gauges, Metrics};
use crate::origins::Origins;
use crate::shared::Shared;
use crate::store::{Store, lock_folder};
use crate::{CONNECTIONS_PER_ADDRESS_MAX, MirrorError, listen};

/// Requests beyond those for files: probes and metrics have to get through an overload.
const PROBES_MAX: usize = 64;

/// What all requests share.
pub(crate) struct App {
    pub(crate) shared: Arc<Shared>,
    pub(crate) artifacts: Artifacts,
    pub(crate) files: Arc<Files>,
    pub(crate) places: Arc<Semaphore>,
    stopping: CancellationToken,
}

/// A pull-through cache of the repository that runs.
pub struct Cache {
    app: Arc<App>,
    address: SocketAddr,
    server: JoinHandle<()>,
    _lock: std::fs::File,
}

impl Cache {
    /// Starts a cache. When it returns, its port answers.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn start(config: CacheConfig) -> Result<Self, MirrorError> {
        config.check().map_err(|reason| MirrorError::Config { reason })?;
        let metrics = Arc::new(Metrics::default());
        let limits = Arc::new(config.limits.clone());
        let origins = Origins::new(
            &config.origins,
            &config.buckets,
            Arc::clone(&limits),
            Arc::clone(&metrics),
        )?;
        let dir = config.cache_dir.clone();
        let opening = tokio::task::spawn_blocking(move || open(&config, limits, metrics, origins));
        let unusable = |source| MirrorError::Folder { path: dir.clone(), source };
        let (app, lock, address) =
            opening.await.map_err(|error| unusable(std::io::Error::other(error)))??;
        let (listener, address) = listen(address).await?;
        let limits = ServerLimits {
            connections_per_peer_max: CONNECTIONS_PER_ADDRESS_MAX,
            requests_max: app.shared.limits.requests_max + PROBES_MAX,
            dscp_plain: Dscp::LOWER_EFFORT,
            ..ServerLimits::default()
        };
        let server = serve_plain(listener, router(&app), limits, app.stopping.clone());
        let server = tokio::spawn(server);
        let (artifacts, bytes) = app.shared.store.usage();
        tracing::info!(%address, dir = %dir.display(), artifacts, bytes, "mirror is up");
        Ok(Self { app, address, server, _lock: lock })
    }

    /// Where it answers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs until `shutdown`, then lets answers in progress end.
    ///
    /// # Errors
    /// When the server has panicked.
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
        self.app.shared.store.close();
        tracing::info!("mirror is down");
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
    crate::tell_ready();
    cache.run_until(shutdown).await
}

fn open(
    config: &CacheConfig,
    limits: Arc<crate::CacheLimits>,
    metrics: Arc<Metrics>,
    origins: Origins,
) -> Result<(Arc<App>, std::fs::File, SocketAddr), MirrorError> {
    let path = &config.cache_dir;
    let unusable = |source| MirrorError::Folder { path: path.clone(), source };
    std::fs::create_dir_all(path).map_err(unusable)?;
    let lock = lock_folder(path).map_err(unusable)?;
    let lock = lock.ok_or_else(|| MirrorError::InUse { path: path.clone() })?;
    let bytes_max = config.cache_bytes - files_bytes_max(config.cache_bytes);
    let blobs = path.join("blobs");
    let store = Store::open(blobs, bytes_max, limits.free_bytes_min, Arc::clone(&metrics));
    let store = store.map_err(unusable)?;
    let passing_on = Semaphore::new(limits.passed_on_max);
    let places = Arc::new(Semaphore::new(limits.requests_max));
    let shared = Arc::new(Shared { limits, metrics, origins, store, passing_on });
    let files = Files::open(path.join("files"), config.cache_bytes, Arc::clone(&shared));
    let files = Arc::new(files.map_err(unusable)?);
    let artifacts = Artifacts::new(Arc::clone(&shared));
    let stopping = CancellationToken::new();
    let app = Arc::new(App { shared, artifacts, files, places, stopping });
    Ok((app, lock, config.listen))
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
    let (artifacts, bytes) = app.shared.store.usage();
    let requests = app.shared.limits.requests_max - app.places.available_permits();
    let gauges = Gauges {
        artifacts,
        bytes,
        bytes_max: app.shared.store.bytes_max(),
        requests: requests as u64,
    };
    let kind = [(CONTENT_TYPE, cohort_base::metrics::CONTENT_TYPE)];
    (kind, app.shared.metrics.render(gauges)).into_response()
}
