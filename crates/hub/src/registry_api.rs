//! The registry over HTTP: reads, transactions, watches; and the fleet in one answer.

use std::sync::Arc;

use axum::extract::State;
use cohort_registry::fleet::{Fleet, read_fleet};
use cohort_registry::{
    RangeAnswer, RangeRequest, Registry as _, RegistryError, Txn, TxnAnswer, Unmade, WatchReply,
    WatchRequest,
};
use cohort_wire::http::{ApiError, ApiJson, Caller};

use crate::app::App;
use crate::auth::{Need, check_txn, highest_incarnation, require};
use crate::metrics::Metrics;

/// What a failed registry means for who asked over HTTP.
pub(crate) fn explain(error: &RegistryError) -> ApiError {
    match error {
        RegistryError::Invalid { .. } => ApiError::bad_request(error.to_string()),
        RegistryError::Conflict { .. }
        | RegistryError::Compacted { .. }
        | RegistryError::WentBack { .. }
        | RegistryError::Contended { .. } => ApiError::conflict(error.to_string()),
        RegistryError::RestoredUnconfirmed => {
            ApiError::new(axum::http::StatusCode::CONFLICT, "restored", error.to_string())
                .hint("on the hub's machine: cohort hub --confirm-restored")
        }
        RegistryError::Forbidden { .. } => ApiError::forbidden(error.to_string()),
        RegistryError::Unavailable { .. } => {
            ApiError::unavailable("unavailable", error.to_string())
        }
        RegistryError::Full { .. } => ApiError::unavailable("full", error.to_string()),
        RegistryError::Corrupt { .. } => ApiError::internal(error.to_string()),
        RegistryError::Storage { source, .. } => {
            tracing::error!(%error, %source, "registry storage fails");
            ApiError::unavailable("storage", error.to_string())
                .hint("look at the hub's log and its disk; it must be restarted")
        }
    }
}

pub(crate) async fn range(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiJson(request): ApiJson<RangeRequest>,
) -> Result<ApiJson<RangeAnswer>, ApiError> {
    require(Some(&caller.0), Need::Read)?;
    Metrics::add(&app.metrics.reads);
    app.registry.range(request).await.map(ApiJson).map_err(|error| explain(&error))
}

pub(crate) async fn txn(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiJson(txn): ApiJson<Txn>,
) -> Result<ApiJson<TxnAnswer>, ApiError> {
    // First without the writer's lock, so that whoever may not write does not hold up those who may.
    app.registry.read(|state| check_txn(Some(&caller.0), &txn, state))?;
    let (asked, revision) = (highest_incarnation(&txn), app.registry.revision());
    if asked > revision {
        went_back(&app, &caller, asked, revision).await?;
        // Told as what it means, so that the writer waits for a person and does not try again.
        return Err(explain(&RegistryError::RestoredUnconfirmed));
    }
    Metrics::add(&app.metrics.changes);
    let peer = caller.0;
    let made = app.registry.txn_checked(txn, move |state, txn| check_txn(Some(&peer), txn, state));
    made.await.map(ApiJson).map_err(|unmade| match unmade {
        Unmade::Refused(refusal) => refusal,
        Unmade::Failed(error) => explain(&error),
    })
}

pub(crate) async fn watch(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiJson(request): ApiJson<WatchRequest>,
) -> Result<ApiJson<WatchReply>, ApiError> {
    require(Some(&caller.0), Need::Read)?;
    let Ok(_permit) = app.watches.try_acquire() else {
        Metrics::add(&app.metrics.watches_refused);
        return Err(ApiError::overloaded("too many watches wait at this hub"));
    };
    let answer = tokio::select! {
        answer = app.registry.watch(request) => answer,
        () = app.stopping.cancelled() => {
            return Err(ApiError::unavailable("stopping", "the hub is stopping"));
        }
    };
    match answer {
        Ok(answer) => Ok(ApiJson(WatchReply::Changed(answer))),
        Err(RegistryError::Compacted { compacted, revision }) => {
            Ok(ApiJson(WatchReply::Compacted { compacted, revision }))
        }
        Err(RegistryError::WentBack { asked, revision }) => {
            went_back(&app, &caller, asked, revision).await?;
            Ok(ApiJson(WatchReply::WentBack { asked, revision }))
        }
        Err(error) => Err(explain(&error)),
    }
}

/// An asker has seen what this registry has not reached: from now on it counts as restored.
async fn went_back(app: &App, caller: &Caller, asked: u64, revision: u64) -> Result<(), ApiError> {
    tracing::error!(
        caller = %caller.0, asked, revision,
        "registry is behind what an asker has seen: restored from a backup? \
         No group is bootstrapped until `cohort hub --confirm-restored`"
    );
    app.registry.suspect_restore().await.map_err(|error| explain(&error))
}

pub(crate) async fn fleet(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<ApiJson<Fleet>, ApiError> {
    require(Some(&caller.0), Need::Read)?;
    Metrics::add(&app.metrics.reads);
    read_fleet(&app.registry).await.map(ApiJson).map_err(|error| explain(&error))
}
