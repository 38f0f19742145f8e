//! The hub's periodic work: renewing the repository's timestamp and its own certificate, and
//! removing old verdicts.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cohort_artifact::{
    Collected, KeyError, Repository, RepositoryError, SigningKey, UNUSED_AGE_MIN, no_passphrase,
};
use cohort_base::chain;
use cohort_identity::{Identity, LIFETIME, certified_by};
use cohort_registry::typed::forget_old_verdicts;

use crate::HubError;
use crate::app::{App, blocking, now};

/// How long servers must be able to run without the hub, in seconds; below it, the hub warns.
const ALONE_S: i64 = 30 * 86_400;

/// When a certificate that could not be renewed is tried again.
const SOON: Duration = Duration::from_secs(5);

/// Runs until the hub stops.
pub(crate) async fn run(app: Arc<App>) {
    let interval = Duration::from_secs(app.config.renew_interval_s);
    let mut revocations = app.identity.revocations().subscribe();
    loop {
        // First: a fleet that has revoked it waits for another one.
        let renewed = renew_certificate(&app).await;
        renew_timestamp(&app).await;
        collect(&app).await;
        match forget_old_verdicts(&app.registry).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "removed verdicts about old versions"),
            Err(error) => tracing::warn!(reason = chain(&error), "cannot remove old verdicts"),
        }
        tokio::select! {
            () = tokio::time::sleep(if renewed { interval } else { interval.min(SOON) }) => {}
            Ok(()) = revocations.changed() => {}
            () = app.stopping.cancelled() => return,
        }
    }
}

/// Removes uploads that a crash interrupted.
pub(crate) fn sweep_uploads(app: &App) {
    let dir = app.config.repository_dir();
    // A directory without a repository has no uploads either.
    let Ok(repository) = Repository::open(&dir) else { return };
    if let Err(error) = repository.sweep_incoming() {
        let reason = chain(&error);
        tracing::warn!(repository = %dir.display(), reason, "cannot remove interrupted uploads");
    }
}

/// Removes files of releases that were removed.
async fn collect(app: &App) {
    let Ok(repository) = Repository::open(&app.config.repository_dir()) else { return };
    let _publishing = app.publishing.lock().await;
    match repository.collect(UNUSED_AGE_MIN).await {
        Ok(Collected { files: 0, .. }) => {}
        Ok(Collected { files, bytes }) => {
            tracing::info!(files, bytes, "removed files that no release needs");
        }
        Err(error) => tracing::warn!(reason = chain(&error), "cannot clean up the repository"),
    }
}

/// Renews the signature that confirms that the repository is current, if it is due.
async fn renew_timestamp(app: &App) {
    let (dir, key) = (app.config.repository_dir(), app.config.timestamp_key());
    if !dir.join("metadata/timestamp.json").exists() {
        tracing::debug!(repository = %dir.display(), "no repository yet");
        return;
    }
    let _publishing = app.publishing.lock().await;
    match renew_if_due(&dir, &key).await {
        Ok(expires_at) => {
            app.metrics.repository_expires_at.set(expires_at);
            app.metrics.timestamp_failing.set(0);
            let left_s = expires_at - i64::try_from(now().as_secs()).unwrap_or(i64::MAX);
            if left_s < ALONE_S {
                tracing::warn!(
                    repository = %dir.display(), left_s,
                    "a signature of the repository expires within 30 days: publish a \
                     release or renew it, or servers will refuse new releases"
                );
            }
        }
        Err(error) => {
            app.metrics.timestamp_failing.set(1);
            tracing::error!(
                repository = %dir.display(), key = %key.display(), reason = chain(&error),
                "cannot renew the repository's timestamp: once it has expired, servers cannot \
                 join and releases are refused"
            );
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum CannotRenew {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Returns when the first signature of the repository expires, as Unix time in seconds.
async fn renew_if_due(dir: &Path, key: &Path) -> Result<i64, CannotRenew> {
    let repository = Repository::open(dir)?;
    let before = repository.expiries()?;
    let key = SigningKey::load(key, &no_passphrase)?;
    let after = repository.renew_timestamp_if_due(&[key]).await?;
    if after != before {
        tracing::info!(until = %after.timestamp, "renewed the repository's timestamp");
    }
    Ok(after.nearest().1.as_second())
}

/// Renews the hub's own certificate, if the authority is here: in time, and once somebody has
/// revoked it, because a copy of its key was stolen. Returns false if that did not work.
async fn renew_certificate(app: &App) -> bool {
    let current = app.identity.current();
    let Some(authority) = app.authority.read().clone() else { return true };
    let certified = certified_by(current.chain());
    let revoked = certified.is_ok_and(|own| app.identity.revocations().revokes(&own));
    if !revoked && !current.is_expiring(now()) {
        return true;
    }
    let (peer, dir) = (current.peer().clone(), app.config.identity_dir());
    let issued_at = app.issue_time(&peer);
    let renewed = blocking(move || -> Result<Identity, HubError> {
        let identity = authority.make_identity(&peer, LIFETIME, issued_at)?;
        identity.save(&dir)?;
        Ok(identity)
    });
    match renewed.await.map_err(HubError::Part).flatten() {
        Ok(identity) => {
            app.identity.replace(identity);
            tracing::info!("renewed the hub's certificate");
            true
        }
        Err(error) => {
            tracing::error!(reason = chain(&error), "cannot renew the hub's certificate");
            false
        }
    }
}
