//! Checks that an operator wants to see, before a policy has them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State as Context;
use cohort_core::policy::validate_checks;
use cohort_host::look_once;
use cohort_wire::agent::{CHECK_MS_MAX, CheckAnswer, CheckRequest, CheckSeen};
use cohort_wire::http::{ApiError, ApiJson};

use crate::shared::Shared;

/// Requests at the same time. One: its checks may start a program each.
pub(crate) const AT_ONCE: usize = 1;

pub(crate) async fn check(
    Context(shared): Context<Arc<Shared>>,
    ApiJson(CheckRequest { app, checks }): ApiJson<CheckRequest>,
) -> Result<Json<CheckAnswer>, ApiError> {
    let _turn = shared
        .checkers
        .try_acquire()
        .map_err(|_| ApiError::unavailable("busy", "somebody else tries checks on this server"))?;
    validate_checks(&checks).map_err(ApiError::bad_request)?;
    // Under the kill switch, nothing new runs.
    if let Some(reason) = shared.kill.subscribe_here().borrow().clone() {
        return Err(ApiError::conflict(format!("the kill switch is on: {reason}"))
            .hint("cohort kill status"));
    }
    let context = shared.check_contexts.lock().get(&app).cloned();
    let context = context.ok_or_else(|| {
        ApiError::not_found(format!("no release of {app} runs on {}", shared.server()))
    })?;
    let looks = look_once(&checks, &context, Duration::from_millis(CHECK_MS_MAX)).await;
    let seen = looks.into_iter().map(|it| CheckSeen { check: it.check, failure: it.failure });
    Ok(Json(CheckAnswer { checks: seen.collect() }))
}

#[cfg(test)]
#[path = "checking_test.rs"]
mod checking_test;
