//! The registry over HTTP: reads, transactions, watches; and the whole fleet in one response.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use cohort_identity::{Peer, Role};
use cohort_registry::fleet::{Fleet, read_fleet};
use cohort_registry::{
    RangeAnswer, RangeRequest, Registry as _, RegistryError, Txn, TxnAnswer, WatchReply,
    WatchRequest,
};
use cohort_wire::http::{ApiError, ApiJson, Caller, Certificate};

use crate::app::{App, blocking, now};
use crate::auth::{READERS, check_txn, highest_incarnation};
use crate::refusal::{Answer, Refusal};

pub(crate) async fn range(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiJson(request): ApiJson<RangeRequest>,
) -> Answer<RangeAnswer> {
    caller.require(READERS)?;
    app.metrics.reads.inc();
    Ok(Json(app.registry.range(request).await?))
}

pub(crate) async fn txn(
    State(app): State<Arc<App>>,
    caller: Caller,
    certificate: Certificate,
    ApiJson(txn): ApiJson<Txn>,
) -> Answer<TxnAnswer> {
    let author = app.author(caller, certificate);
    // First without the writer's lock, so that a caller without permission blocks no one.
    app.registry.read(|state| check_txn(&author, &txn, state))?;
    // What the fleet knows and the registry does not is written again, and shows that it is lost.
    let (asked, revision) = (highest_incarnation(&txn), app.registry.revision());
    check_issued(&app, asked)?;
    if asked > revision || app.has_forgotten(&author) {
        went_back(&app, &author.peer, asked, revision).await?;
    }
    app.metrics.changes.inc();
    let made = app
        .registry
        .txn_checked(txn, move |state, txn| check_txn(&author, txn, state).map_err(Refusal::from));
    made.await.map(Json)
}

pub(crate) async fn watch(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiJson(request): ApiJson<WatchRequest>,
) -> Answer<WatchReply> {
    caller.require(READERS)?;
    check_issued(&app, request.from_revision)?;
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
    match answer {
        Ok(answer) => Ok(Json(WatchReply::Changed(answer))),
        Err(RegistryError::Compacted { compacted, revision }) => {
            Ok(Json(WatchReply::Compacted { compacted, revision }))
        }
        Err(RegistryError::WentBack { asked, revision }) => {
            went_back(&app, &caller.0, asked, revision).await?;
            Ok(Json(WatchReply::WentBack { asked, revision }))
        }
        Err(error) => Err(error.into()),
    }
}

/// Refuses a revision that this registry cannot have issued, also before a loss.
fn check_issued(app: &App, asked: u64) -> Result<(), ApiError> {
    if app.registry.may_have_issued(asked, now().as_secs()) {
        return Ok(());
    }
    let revision = app.registry.revision();
    let wrong = format!("the registry is at revision {revision} and never issued {asked}");
    Err(ApiError::bad_request(wrong).hint("read it, and watch from the revision of the answer"))
}

/// A server has seen more than this registry has reached: it counts as restored from now on. What
/// a person asks for proves nothing.
async fn went_back(app: &App, caller: &Peer, asked: u64, revision: u64) -> Result<(), Refusal> {
    match caller.role {
        Role::Agent | Role::Hub => {}
        Role::Viewer | Role::Operator | Role::Publisher => return Ok(()),
    }
    if !app.registry.suspect_restore(asked).await? {
        return Ok(());
    }
    let tokens = Arc::clone(&app.tokens);
    let tokens_revoked = blocking(move || tokens.revoke_unused()).await??;
    tracing::error!(
        %caller, asked, revision, tokens_revoked,
        "registry is behind what a caller knows: lost, or restored from a backup? No group is \
         bootstrapped and no policy is accepted until \
         `cohort hub --config hub.toml --confirm-restored`"
    );
    Ok(())
}

pub(crate) async fn fleet(State(app): State<Arc<App>>, caller: Caller) -> Answer<Fleet> {
    caller.require(READERS)?;
    app.metrics.reads.inc();
    let restored = app.registry.restored();
    Ok(Json(Fleet { restored, ..read_fleet(&app.registry).await? }))
}
