//! A mirror of a folder: the repository's files on one plain port, with probes, and nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::Router;
use axum::routing::get;
use cohort_wire::dscp::Dscp;
use cohort_wire::http::serve_plain;
use cohort_wire::limits::ServerLimits;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{CONNECTIONS_PER_ADDRESS_MAX, MirrorError, listen, static_files};

/// What a mirror is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorConfig {
    /// Where it answers; plain HTTP, because everything read is signed.
    pub listen: SocketAddr,
    /// The folder that holds a copy of the repository.
    pub repository_dir: PathBuf,
}

/// Runs a mirror until `shutdown`.
///
/// # Errors
/// When it cannot listen.
pub async fn run_mirror(
    config: MirrorConfig,
    shutdown: CancellationToken,
) -> Result<(), MirrorError> {
    let (listener, address) = listen(config.listen).await?;
    let router = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .merge(static_files(&config.repository_dir));
    let limits = ServerLimits {
        connections_per_peer_max: CONNECTIONS_PER_ADDRESS_MAX,
        dscp_plain: Dscp::LOWER_EFFORT,
        ..ServerLimits::default()
    };
    tracing::info!(%address, dir = %config.repository_dir.display(), "mirror is up");
    crate::tell_ready();
    serve_plain(listener, router, limits, shutdown).await;
    Ok(())
}
