//! The registry over HTTP: reads, transactions, watches; and the whole fleet in one response.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use cohort_identity::Role;
use cohort_registry::fleet::{Fleet, read_fleet};
use cohort_registry::{
    Answered, Asked, RangeAnswer, RangeRequest, Registry as _, RegistryError, Seen, Txn, TxnAnswer,
    WatchReply, WatchRequest,
};
use cohort_wire::http::{ApiError, ApiJson, Caller, Certificate};

use crate::app::{App, blocking, now};
use crate::auth::{Author, check_txn, highest_incarnation};
use crate::refusal::{Answer, Refusal};
use crate::standing::attesters;

pub(crate) async fn range(
    State(app): State<Arc<App>>,
    caller: Caller,
    certificate: Certificate,
    ApiJson(Asked { request, seen }): ApiJson<Asked<RangeRequest>>,
) -> Answer<Answered<RangeAnswer>> {
    note_seen(&app, &app.author(caller, certificate), seen).await?;
    app.metrics.reads.inc();
    let answer = app.registry.range(request).await?;
    Ok(tell(&app, answer))
}

pub(crate) async fn txn(
    State(app): State<Arc<App>>,
    caller: Caller,
    certificate: Certificate,
    ApiJson(Asked { request: txn, seen }): ApiJson<Asked<Txn>>,
) -> Answer<Answered<TxnAnswer>> {
    let author = app.author(caller, certificate);
    // First without the writer's lock, so that a caller without permission blocks no one.
    let attesters = attesters(&app, &author, &txn)?;
    let restored = app.registry.restored();
    app.registry.read(|state| check_txn(&author, &attesters, &txn, (state, restored)))?;
    note_seen(&app, &author, seen).await?;
    // What the fleet knows and the registry does not is written again, and shows that it is lost.
    if app.has_forgotten(&author) {
        went_back(&app, &author, 0).await?;
    }
    check_issued(&app, highest_incarnation(&txn))?;
    app.metrics.changes.inc();
    // What came with this request may have shown that the registry was restored.
    let restored = app.registry.restored();
    let made = app.registry.txn_checked(txn, move |state, txn| {
        check_txn(&author, &attesters, txn, (state, restored)).map_err(Refusal::from)
    });
    let answer = made.await?;
    Ok(tell(&app, answer))
}

pub(crate) async fn watch(
    State(app): State<Arc<App>>,
    caller: Caller,
    certificate: Certificate,
    ApiJson(Asked { request, seen }): ApiJson<Asked<WatchRequest>>,
) -> Answer<Answered<WatchReply>> {
    note_seen(&app, &app.author(caller, certificate), seen).await?;
    let Ok(_permit) = app.watches.try_acquire() else {
        app.metrics.watches_refused.inc();
        return Err(ApiError::overloaded("this hub has too many watches").into());
    };
    let answer = tokio::select! {
        answer = app.registry.watch(request) => answer,
        () = app.stopping.cancelled() => {
            return Err(ApiError::unavailable("stopping", "the hub is stopping").into());
        }
    };
    let reply = match answer {
        Ok(answer) => WatchReply::Changed(answer),
        Err(RegistryError::Compacted { compacted, revision }) => {
            WatchReply::Compacted { compacted, revision }
        }
        Err(RegistryError::WentBack { asked, revision }) => {
            WatchReply::WentBack { asked, revision }
        }
        Err(error) => return Err(error.into()),
    };
    Ok(tell(&app, reply))
}

/// An answer, with proof of the revision that its reader has seen then.
fn tell<T>(app: &App, answer: T) -> Json<Answered<T>> {
    let seen = Seen::new(app.registry.revision(), &app.secret);
    Json(Answered { answer, seen })
}

/// Refuses an incarnation that this registry never issued: incarnations are its revisions. While it
/// counts as restored, those may return that a confirmation skips.
fn check_issued(app: &App, incarnation: u64) -> Result<(), ApiError> {
    if app.registry.may_have_issued(incarnation, now().as_secs()) {
        return Ok(());
    }
    let revision = app.registry.revision();
    let wrong =
        format!("incarnation {incarnation} was never issued: the registry is at {revision}");
    Err(ApiError::forbidden(wrong).hint(
        "if registry.redb was restored in place: stop the hub, replace the file by a copy of \
         itself (cp, then mv), and start the hub",
    ))
}

/// An agent proves that a registry of this fleet has reached a higher revision: this one counts as
/// restored from now on. Nothing else that a caller says of revisions has an effect.
async fn note_seen(app: &App, author: &Author, seen: Option<Seen>) -> Result<(), Refusal> {
    let Some(seen) = seen.filter(|seen| seen.revision > app.registry.revision()) else {
        return Ok(());
    };
    if author.peer.role != Role::Agent || author.removed {
        return Ok(());
    }
    match seen.proven(&app.secret) {
        Some(revision) => went_back(app, author, revision).await,
        None => Ok(()),
    }
}

/// The registry counts as restored from now on: `author` has proven that one of this fleet was at
/// revision `proven`, or had its record (0).
async fn went_back(app: &App, author: &Author, proven: u64) -> Result<(), Refusal> {
    let revision = app.registry.revision();
    if !app.registry.suspect_restore(proven).await? {
        return Ok(());
    }
    let tokens = Arc::clone(&app.tokens);
    let tokens_revoked = blocking(move || tokens.revoke_unused()).await??;
    let caller = &author.peer;
    tracing::error!(
        %caller, proven, revision, tokens_revoked,
        "registry is behind what an agent proves: lost, or restored from a backup. No group is \
         bootstrapped and no policy is accepted until \
         `cohort hub --config hub.toml --confirm-restored`"
    );
    Ok(())
}

pub(crate) async fn fleet(State(app): State<Arc<App>>) -> Answer<Fleet> {
    app.metrics.reads.inc();
    let restored = app.registry.restored();
    Ok(Json(Fleet { restored, ..read_fleet(&app.registry).await? }))
}
