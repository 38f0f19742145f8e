//! The plain port of a mirror, and the mirror of a directory: the repository's files and probes.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::Router;
use axum::routing::get;
use cohort_wire::http::serve_plain;
use cohort_wire::limits::ServerLimits;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{MirrorError, static_files};

/// Configuration of a directory mirror.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorConfig {
    /// Address to listen on; plain HTTP, because all content is signed.
    pub listen: SocketAddr,
    /// The directory with a copy of the repository.
    pub repository_dir: PathBuf,
}

/// Serves a directory until `shutdown`.
///
/// # Errors
/// If it cannot listen.
pub async fn run_mirror(
    config: MirrorConfig,
    shutdown: CancellationToken,
) -> Result<(), MirrorError> {
    let (listener, address) = listen(config.listen).await?;
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .merge(static_files(&config.repository_dir));
    tracing::info!(%address, dir = %config.repository_dir.display(), "mirror started");
    tell_ready();
    serve_plain(listener, router, ServerLimits::repository(), shutdown).await;
    Ok(())
}

pub(crate) async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), MirrorError> {
    let failed = |source| MirrorError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Reports readiness to the service manager, if there is one.
pub(crate) fn tell_ready() {
    if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "cannot report readiness to the service manager");
    }
}
