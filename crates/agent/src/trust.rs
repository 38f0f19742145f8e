//! Every server verifies signatures itself, no matter who told it what to fetch.

use std::time::Duration;

use cohort_artifact::{TrustError, TrustedRepository};
use cohort_base::chain;
use cohort_core::ids::{AppId, Version};
use cohort_core::orders::{FetchOrder, Source};
use cohort_wire::http::{Call, CallError};

use crate::shared::Shared;

/// `GET`: the newest verified metadata of the repository, for a peer that cannot reach a mirror.
pub(crate) const BUNDLE: &str = "/v1/trust-bundle";
/// `POST` an app, version and platform: the signed manifest's bytes.
pub(crate) const MANIFEST: &str = "/v1/manifest";
/// Size limit of a bundle, in bytes: metadata of many thousands of releases.
const BUNDLE_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ManifestRequest {
    pub app: AppId,
    pub version: Version,
    pub platform: cohort_core::ids::Platform,
}

/// Why a release is not fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unverified {
    #[error(
        "this server has no trusted root of the repository; let it join again with a new token"
    )]
    NoRoot,
    #[error("cannot verify the manifest of {app} {version}")]
    Manifest { app: AppId, version: Version, source: TrustError },
    #[error("the order differs from the signed manifest of {app} {version}")]
    Differs { app: AppId, version: Version },
}

/// Why a peer was of no help; the mirrors are tried then.
#[derive(Debug, thiserror::Error)]
enum FromPeer {
    #[error("cannot get metadata from the peer")]
    Call(#[from] CallError),
    #[error("the peer's metadata is not trusted")]
    Trust(#[from] TrustError),
}

/// Checks that the trusted keys signed the release in an order. Freshness was judged when the
/// rollout was decided.
pub(crate) async fn verify_release(
    shared: &Shared,
    app: &AppId,
    fetch: &FetchOrder,
) -> Result<(), Unverified> {
    let repository = shared.repository.as_deref().ok_or(Unverified::NoRoot)?;
    let release = &fetch.release;
    let version = &release.version;
    // A holder of the artifact has its metadata too, and is closer than any mirror.
    for source in &fetch.sources {
        match from_peer(shared, repository, app, fetch, source).await {
            Ok(()) => break,
            Err(error) => {
                let (error, peer) = (chain(&error), &source.server);
                tracing::info!(error, %peer, %app, %version, "release not verified with a peer");
            }
        }
    }
    match repository.manifest(app, version, &release.platform).await {
        Ok(manifest) if manifest.release() == *release => Ok(()),
        Ok(_) => Err(Unverified::Differs { app: app.clone(), version: version.clone() }),
        Err(source) => {
            Err(Unverified::Manifest { app: app.clone(), version: version.clone(), source })
        }
    }
}

async fn from_peer(
    shared: &Shared,
    repository: &TrustedRepository,
    app: &AppId,
    fetch: &FetchOrder,
    source: &Source,
) -> Result<(), FromPeer> {
    let release = &fetch.release;
    let known = repository.cached_manifest_bytes(app, &release.version, &release.platform);
    if known.is_some() {
        return Ok(());
    }
    let target = shared.target(&source.server, &source.address);
    let deadline = Duration::from_secs(5);
    let call = Call::get(BUNDLE).deadline(deadline).response_bytes_max(BUNDLE_BYTES_MAX);
    let bundle = shared.client.call(&target, call).await?;
    repository.accept_bundle(&bundle).await?;
    let request = ManifestRequest {
        app: app.clone(),
        version: release.version.clone(),
        platform: release.platform.clone(),
    };
    let call = Call::post(MANIFEST, &request).deadline(deadline).idempotent();
    let manifest = shared.client.call(&target, call).await?;
    repository.accept_manifest(app, &release.version, &release.platform, &manifest)?;
    Ok(())
}

#[cfg(test)]
#[path = "trust_test.rs"]
mod trust_test;
