//! The routes of the API (mutual TLS) and of the plain port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::Router;
use axum::extract::{ConnectInfo, MatchedPath, Query, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use cohort_base::chain;
use cohort_base::metrics::Gauge;
use cohort_identity::{Peer, Role, TokenState};
use cohort_wire::agent::REVOCATIONS;
use cohort_wire::audit::{AUDIT, AuditPage};
use cohort_wire::http::{ApiError, Caller, Certificate, Endpoints, Routes, Who};
use cohort_wire::hub::{
    AUTHORITY, FINISH_AUTHORITY, FLEET, JOIN, KILL, REGISTRY_RANGE, REGISTRY_TXN, REGISTRY_WATCH,
    RENEW, REVOKE_TOKEN, ROTATE_AUTHORITY, TOKEN,
};
use serde::Deserialize;

use crate::app::{App, blocking, now};
use crate::audit::{Author, Recorder};
use crate::auth::{FORWARDERS, OPERATORS, PUBLISHERS, READERS, WRITERS};
use crate::config::RepositoryAccess;
use crate::metrics::{OfRole, Route};
use crate::refusal::Answer;
use crate::{authority, joining, operating, registry_api, upload};

/// The API, and who may use what of it; only joining needs no certificate.
pub(crate) fn endpoints() -> (Router<Arc<App>>, Endpoints) {
    let (all, readers) = (Who::Roles(&Role::ALL), Who::Roles(READERS));
    let (operators, publishers) = (Who::Roles(OPERATORS), Who::Roles(PUBLISHERS));
    Routes::default()
        .post(JOIN, Who::Anyone, joining::join)
        .post(RENEW, all, joining::renew)
        .post(TOKEN, operators, joining::token)
        .get(TOKEN, operators, joining::tokens)
        .post(REVOKE_TOKEN, operators, joining::revoke_token)
        .post(REGISTRY_RANGE, readers, registry_api::range)
        .post(REGISTRY_TXN, Who::Roles(WRITERS), registry_api::txn)
        .post(REGISTRY_WATCH, readers, registry_api::watch)
        .get(FLEET, readers, registry_api::fleet)
        .get(AUDIT, operators, audit_after)
        .get(KILL, readers, operating::kill_status)
        .post(KILL, Who::Roles(FORWARDERS), operating::kill)
        .post(REVOCATIONS, Who::Roles(FORWARDERS), operating::revocations)
        .post(AUTHORITY, Who::Roles(&[Role::Agent]), authority::follow)
        .get(AUTHORITY, operators, authority::status)
        .post(ROTATE_AUTHORITY, operators, authority::rotate)
        .post(FINISH_AUTHORITY, operators, authority::finish)
        .post("/v1/policies/{app}", operators, operating::policy)
        .post("/v1/policies/{app}/remove", operators, operating::remove_app)
        .post("/v1/groups/{group}/recover", operators, operating::recover)
        .post("/v1/groups/{group}/remove", operators, operating::remove_group)
        .add(&Method::DELETE, "/v1/servers/{server}", operators, operating::remove_server)
        .add(&Method::PUT, "/v1/repository/{*path}", publishers, upload::put)
        .build()
}

/// The API.
pub(crate) fn api(app: &Arc<App>) -> Router {
    let (routes, _) = endpoints();
    routes
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(app), measure))
        .with_state(Arc::clone(app))
}

/// The plain port: the repository, unless only the fleet may read it, probes, metrics. All of it is
/// read-only.
pub(crate) fn plain(app: &Arc<App>) -> Router {
    let own = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .with_state(Arc::clone(app));
    match app.config.repository_access {
        RepositoryAccess::Anyone => {
            own.merge(cohort_mirror::static_files(&app.config.repository_dir()))
        }
        RepositoryAccess::Fleet => own,
    }
}

/// The repository, for those with a certificate.
pub(crate) fn repository(app: &Arc<App>) -> Router {
    cohort_mirror::static_files(&app.config.repository_dir())
        .layer(middleware::from_fn_with_state(Arc::clone(app), with_certificate))
}

async fn with_certificate(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let extensions = request.extensions();
    let (peer, certificate) = (extensions.get::<Peer>(), extensions.get::<Certificate>());
    let Some((peer, certificate)) = peer.cloned().zip(certificate.cloned()) else {
        return ApiError::unauthenticated().into_response();
    };
    if let Err(removed) = app.author(Caller(peer), certificate).refuse_removed() {
        return removed.into_response();
    }
    next.run(request).await
}

/// The lines to start after.
#[derive(Debug, Deserialize)]
struct After {
    after: u64,
}

async fn audit_after(
    State(app): State<Arc<App>>,
    Query(After { after }): Query<After>,
) -> Answer<AuditPage> {
    Ok(Json(blocking(move || app.audit.after(after)).await??))
}

async fn readyz(State(app): State<Arc<App>>) -> Response {
    if app.stopping.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    if app.registry.failed() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the registry's disk failed\n").into_response();
    }
    "ok\n".into_response()
}

async fn show_metrics(State(app): State<Arc<App>>) -> Response {
    let kind = [(CONTENT_TYPE, cohort_base::metrics::CONTENT_TYPE)];
    (kind, render(&app)).into_response()
}

/// All metrics, with current gauges.
fn render(app: &App) -> String {
    let metrics = &app.metrics;
    let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    set(&metrics.revision, app.registry.revision());
    set(&metrics.kill_switches_on, app.kill.on_count() as u64);
    set(&metrics.restored, app.registry.restored().into());
    let watches = app.config.watches_max - app.watches.available_permits();
    set(&metrics.watches, watches as u64);
    let expires = app.identity.current().validity().not_after.as_secs();
    set(&metrics.certificate_left, expires.saturating_sub(now().as_secs()));
    let tokens = app.tokens.list();
    for role in Role::ALL {
        let unused = tokens
            .iter()
            .filter(|token| token.grant.role == role && matches!(token.state, TokenState::Unused));
        let gauge = metrics.tokens_unused.get_or_create(&OfRole { role: role.as_str() });
        set(&gauge, unused.count() as u64);
    }
    metrics.text()
}

async fn unknown(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(80).collect();
    ApiError::not_found(format!("the hub has no route `{path}`"))
        .hint("check that the command line and the hub have the same version")
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(80).collect();
    let error = format!("`{path}` does not accept {method}");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", error)
}

/// Handles every request. A change goes on to its end, with its entry in the audit trail, also if
/// its caller hangs up.
async fn measure(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let reads = [REGISTRY_RANGE, REGISTRY_WATCH].contains(&request.uri().path());
    if reads || request.method() == Method::GET {
        return measured(app, request, next).await;
    }
    let handled = tokio::spawn(measured(app, request, next)).await;
    handled.unwrap_or_else(|error| {
        tracing::error!(reason = chain(&error), "a request was not handled to its end");
        ApiError::internal("the hub could not handle this to its end").into_response()
    })
}

/// Measures a request; refuses servers that were removed; counts and logs those refused.
async fn measured(app: Arc<App>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().cloned();
    let mut removed = None;
    if let Some(peer) = peer.clone()
        && let Some(certificate) = request.extensions().get::<Certificate>().cloned()
    {
        let author = app.author(Caller(peer), certificate);
        app.note_heard(&author);
        removed = author.refuse_removed().err();
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let matched = request.extensions().get::<MatchedPath>();
    let route = matched.map_or("other", MatchedPath::as_str).to_owned();
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|from| from.0.ip());
    let valid_from = request.extensions().get::<Certificate>().map(|it| it.not_before.as_secs());
    let begun = Instant::now();
    let proof = valid_from.map_or_else(
        || "its join token".to_owned(),
        |at| format!("its certificate, valid from {at}"),
    );
    let by = peer.as_ref().map_or_else(|| "nobody".to_owned(), Peer::to_string);
    let from = from.map_or_else(String::new, |from| from.to_string());
    let recorder = Recorder::new(&app.audit, Author { by, proof, from });
    let failed = |response: &Response| {
        (!response.status().is_success()).then(|| response.status().to_string())
    };
    let response = match removed {
        Some(refusal) => refusal.into_response(),
        None => recorder.around(next.run(request), failed).await,
    };
    let seconds = begun.elapsed().as_secs_f64();
    app.metrics.request_seconds.get_or_create(&Route { route }).observe(seconds);
    if matches!(response.status(), StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) {
        app.metrics.refused.inc();
        let peer = peer.map_or_else(|| "nobody".to_owned(), |peer| peer.to_string());
        tracing::warn!(peer, %method, path, "refused");
    }
    response
}
