//! The registry over HTTP: reads, transactions, watches; and the whole fleet in one response.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use cohort_identity::Peer;
use cohort_registry::fleet::{Fleet, read_fleet};
use cohort_registry::{
    RangeAnswer, RangeRequest, Registry as _, RegistryError, Txn, TxnAnswer, WatchReply,
    WatchRequest,
};
use cohort_wire::http::{ApiError, ApiJson, Caller, CertifiedGroup};

use crate::app::App;
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
    certified: CertifiedGroup,
    ApiJson(txn): ApiJson<Txn>,
) -> Answer<TxnAnswer> {
    let author = app.author(caller, certified);
    // First without the writer's lock, so that a caller without permission blocks no one.
    app.registry.read(|state| check_txn(&author, &txn, state))?;
    // What the fleet knows and the registry does not is written again, and shows that it is lost.
    let (asked, revision) = (highest_incarnation(&txn), app.registry.revision());
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

/// A caller has seen more than this registry has reached: it counts as restored from now on.
async fn went_back(
    app: &App,
    caller: &Peer,
    asked: u64,
    revision: u64,
) -> Result<(), RegistryError> {
    if app.registry.restored() {
        return Ok(());
    }
    tracing::error!(
        %caller, asked, revision,
        "registry is behind what a caller knows: lost, or restored from a backup? No group is \
         bootstrapped and no policy is accepted until `cohort hub --confirm-restored`"
    );
    app.registry.suspect_restore().await
}

pub(crate) async fn fleet(State(app): State<Arc<App>>, caller: Caller) -> Answer<Fleet> {
    caller.require(READERS)?;
    app.metrics.reads.inc();
    let restored = app.registry.restored();
    Ok(Json(Fleet { restored, ..read_fleet(&app.registry).await? }))
}
