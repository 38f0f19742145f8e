//! What the hub does by itself, now and then: renews the repository's timestamp and its own
//! certificate.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cohort_artifact::{Repository, SigningKey};
use cohort_identity::{Identity, lifetime_of};

use crate::app::{App, now};

/// What runs must live this long without the hub, in seconds: below it, someone must be told.
const ALONE_S: i64 = 30 * 86_400;

/// Runs until the hub stops.
pub(crate) async fn run(app: Arc<App>) {
    let interval = Duration::from_secs(app.config.renew_interval_s);
    loop {
        renew_timestamp(&app).await;
        renew_certificate(&app).await;
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = app.stopping.cancelled() => return,
        }
    }
}

/// Removes uploads that a crash cut short.
pub(crate) fn sweep_uploads(app: &App) {
    let dir = app.config.repository_dir();
    // A folder without a repository has no uploads either.
    let Ok(repository) = Repository::open(&dir) else { return };
    if let Err(error) = repository.sweep_incoming() {
        let reason = chain(&error);
        tracing::warn!(repository = %dir.display(), reason, "old uploads cannot be removed");
    }
}

/// Signs that the repository is still the current one, when the last such signature is old.
async fn renew_timestamp(app: &App) {
    let (dir, key) = (app.config.repository_dir(), app.config.timestamp_key());
    if !dir.join("metadata/timestamp.json").exists() {
        tracing::debug!(repository = %dir.display(), "there is no repository yet");
        return;
    }
    let _publishing = app.publishing.lock().await;
    match renew_if_due(&dir, &key).await {
        Ok(expires_at) => {
            app.metrics.repository_expires_at.store(expires_at, Ordering::Relaxed);
            app.metrics.timestamp_failing.store(0, Ordering::Relaxed);
            let left_s = expires_at - i64::try_from(now().as_secs()).unwrap_or(i64::MAX);
            if left_s < ALONE_S {
                tracing::warn!(
                    repository = %dir.display(), left_s,
                    "a signature of the repository ends within 30 days: run `cohort publish` or \
                     renew it, or new releases will be refused"
                );
            }
        }
        Err(error) => {
            app.metrics.timestamp_failing.store(1, Ordering::Relaxed);
            tracing::error!(
                repository = %dir.display(), key = %key.display(), error,
                "repository's timestamp cannot be renewed: new servers and releases will be \
                 refused once it has expired"
            );
        }
    }
}

/// Gives when the first signature of the repository ends, in seconds of Unix time.
async fn renew_if_due(dir: &Path, key: &Path) -> Result<i64, String> {
    let repository = Repository::open(dir).map_err(|error| chain(&error))?;
    let before = repository.expiries().map_err(|error| chain(&error))?;
    let key = SigningKey::load(key).map_err(|error| chain(&error))?;
    let after = repository.renew_timestamp_if_due(&key).await.map_err(|error| chain(&error))?;
    if after != before {
        tracing::info!(until = %after.timestamp, "repository's timestamp renewed");
    }
    Ok(after.nearest().1.as_second())
}

/// Renews the hub's own certificate, when the authority is here.
async fn renew_certificate(app: &App) {
    let current = app.identity.current();
    let Some(authority) = app.authority.clone() else { return };
    if !current.is_expiring(now()) {
        return;
    }
    let (peer, dir) = (current.peer().clone(), app.config.identity_dir());
    let renewed = tokio::task::spawn_blocking(move || -> Result<Identity, String> {
        let identity = authority
            .make_identity(&peer, lifetime_of(peer.role), now())
            .map_err(|error| chain(&error))?;
        identity.save(&dir).map_err(|error| chain(&error))?;
        Ok(identity)
    });
    match renewed.await {
        Ok(Ok(identity)) => {
            app.identity.replace(identity);
            tracing::info!("the hub's certificate was renewed");
        }
        Ok(Err(error)) => tracing::error!(error, "the hub's certificate cannot be renewed"),
        Err(error) => tracing::error!(%error, "the hub's certificate cannot be renewed"),
    }
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
