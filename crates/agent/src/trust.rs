//! Every server verifies signatures itself, no matter who told it what to fetch.

use std::time::Duration;

use cohort_artifact::TrustedRepository;
use cohort_core::ids::AppId;
use cohort_core::orders::{FetchOrder, Source};
use cohort_wire::http::Call;

use crate::shared::Shared;

/// `GET`: the newest verified metadata of the repository, for a peer that cannot reach a mirror.
pub(crate) const BUNDLE: &str = "/v1/trust-bundle";
/// `POST` an app, version and platform: the signed manifest's bytes.
pub(crate) const MANIFEST: &str = "/v1/manifest";
/// Size limit of a bundle, in bytes: metadata of many thousands of releases.
const BUNDLE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Names one manifest.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ManifestRequest {
    pub app: AppId,
    pub version: cohort_core::ids::Version,
    pub platform: cohort_core::ids::Platform,
}

/// Checks that the trusted keys signed the release in an order. Freshness was judged when the
/// rollout was decided.
pub(crate) async fn verify_release(
    shared: &Shared,
    app: &AppId,
    fetch: &FetchOrder,
) -> Result<(), String> {
    let Some(repository) = shared.repository.as_deref() else {
        return Err(
            "this server has no trusted root of the repository; let it join again with a new token"
                .into(),
        );
    };
    let release = &fetch.release;
    let mut last = String::new();
    // A holder of the artifact has its metadata too, and is closer than any mirror.
    for source in &fetch.sources {
        match from_peer(shared, repository, app, fetch, source).await {
            Ok(()) => break,
            Err(error) => last = error,
        }
    }
    let manifest =
        repository.manifest(app, &release.version, &release.platform).await.map_err(|error| {
            if last.is_empty() { error.to_string() } else { format!("{error}; {last}") }
        })?;
    if manifest.release() == *release {
        Ok(())
    } else {
        Err(format!("the order differs from the signed manifest of {app} {}", release.version))
    }
}

async fn from_peer(
    shared: &Shared,
    repository: &TrustedRepository,
    app: &AppId,
    fetch: &FetchOrder,
    source: &Source,
) -> Result<(), String> {
    let release = &fetch.release;
    let known = repository.cached_manifest_bytes(app, &release.version, &release.platform);
    if known.is_some() {
        return Ok(());
    }
    let target = shared.target(&source.server, &source.address);
    let deadline = Duration::from_secs(5);
    let call = Call::get(BUNDLE).deadline(deadline).response_bytes_max(BUNDLE_BYTES_MAX);
    let bundle = shared.client.call(&target, call).await.map_err(|error| error.to_string())?;
    repository.accept_bundle(&bundle).await.map_err(|error| error.to_string())?;
    let request = ManifestRequest {
        app: app.clone(),
        version: release.version.clone(),
        platform: release.platform.clone(),
    };
    let call = Call::post(MANIFEST, &request).deadline(deadline).idempotent();
    let manifest = shared.client.call(&target, call).await.map_err(|error| error.to_string())?;
    repository
        .accept_manifest(app, &release.version, &release.platform, &manifest)
        .map(drop)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
#[path = "trust_test.rs"]
mod trust_test;
