//! What operators change: policies, the kill switch, the life of a group.

use std::sync::Arc;

use axum::extract::{Path, State};
use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_identity::Role;
use cohort_registry::records::{PolicyRecord, SCHEMA, ServerRecord, decode};
use cohort_registry::typed::{read_members, recover_group, write_policy};
use cohort_registry::{Compare, Op, Registry as _, Txn, keys};
use cohort_wire::http::{ApiError, ApiJson, Caller};
use cohort_wire::hub::{KillAnswer, PolicyAnswer, PolicyRequest, RecoverAnswer, RecoverRequest};
use cohort_wire::kill::{KillEntry, KillError, KillScope, Merged, SignedKill};

use crate::app::{App, blocking, now};
use crate::auth::{Need, check_policy, require};
use crate::registry_api::explain;

pub(crate) async fn policy(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    ApiJson(request): ApiJson<PolicyRequest>,
) -> Result<ApiJson<PolicyAnswer>, ApiError> {
    let by = require(Some(&caller.0), Need::Operate)?.clone();
    let name = AppId::new(name).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let policy = check_policy(&request.policy)?;
    if policy.app != name {
        let other = policy.app;
        return Err(ApiError::bad_request(format!("the policy is for app {other}, not {name}")));
    }
    let record = PolicyRecord {
        schema: SCHEMA,
        app: name.clone(),
        policy: request.policy,
        by: by.to_string(),
        at: now().as_secs(),
    };
    let written = write_policy(&app.registry, &record, request.expected).await;
    match written.map_err(|error| explain(&error))? {
        Some(revision) => {
            tracing::info!(%by, app = %name, %revision, "policy written");
            Ok(ApiJson(PolicyAnswer { revision }))
        }
        None => Err(ApiError::conflict(format!("policy of app {name} has changed meanwhile"))
            .hint("look at it with `cohort app diff`, then apply again")),
    }
}

pub(crate) async fn recover(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    ApiJson(request): ApiJson<RecoverRequest>,
) -> Result<ApiJson<RecoverAnswer>, ApiError> {
    let by = require(Some(&caller.0), Need::Operate)?.clone();
    let group = GroupId::new(name).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let RecoverRequest { incarnation, first_server, because } = request;
    let record = app.registry.get(&keys::server(&first_server));
    let known = record.map(|pair| decode(&pair)).transpose().map_err(|error| explain(&error))?;
    if known.is_none_or(|record: ServerRecord| record.group != group) {
        return Err(ApiError::bad_request(format!(
            "server {first_server} is not in group {group}"
        )));
    }
    let next = recover_group(&app.registry, &group, incarnation, &first_server, &because).await;
    match next.map_err(|error| explain(&error))? {
        Some(bootstrap) => {
            let next = bootstrap.incarnation;
            tracing::warn!(%by, %group, old = %incarnation, %next, because, "group recovered");
            Ok(ApiJson(RecoverAnswer { incarnation: next }))
        }
        None => Err(ApiError::conflict(format!(
            "group {group} is not in its life {incarnation} any more"
        ))
        .hint(format!("look again: cohort group show {group}"))),
    }
}

/// Forgets a server. Taking its member out of the group is the group's business, and comes first.
pub(crate) async fn remove_server(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<ApiJson<()>, ApiError> {
    let by = require(Some(&caller.0), Need::Operate)?.clone();
    let server = ServerId::new(name).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let key = keys::server(&server);
    let Some(pair) = app.registry.get(&key) else {
        return Err(ApiError::not_found(format!("server {server} is not known"))
            .hint("cohort group list shows every server"));
    };
    let record: ServerRecord = decode(&pair).map_err(|error| explain(&error))?;
    let members = read_members(&app.registry, &record.group).await.map_err(|e| explain(&e))?;
    if members.is_some_and(|known| known.members.iter().any(|member| member.server == server)) {
        let group = record.group;
        return Err(ApiError::conflict(format!("server {server} is a member of group {group}"))
            .hint(format!("first: cohort group remove-server {group} {server}")));
    }
    let txn = Txn {
        compare: vec![Compare::unchanged_since(&key, pair.mod_revision)],
        then: vec![Op::Delete { key }],
        otherwise: vec![],
    };
    let answer = app.registry.txn(txn).await.map_err(|error| explain(&error))?;
    if !answer.succeeded {
        return Err(ApiError::conflict(format!("server {server} has just changed: try again")));
    }
    tracing::warn!(%by, %server, "server removed");
    Ok(ApiJson(()))
}

pub(crate) async fn kill_status(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<ApiJson<KillAnswer>, ApiError> {
    require(Some(&caller.0), Need::Read)?;
    Ok(ApiJson(answer(&app, false)))
}

/// Takes a signed register. Who carries it here does not matter: the operator's signature does.
pub(crate) async fn kill(
    State(app): State<Arc<App>>,
    caller: Caller,
    ApiJson(signed): ApiJson<SignedKill>,
) -> Result<ApiJson<KillAnswer>, ApiError> {
    let by = caller.require(&[Role::Operator, Role::Agent, Role::Hub])?.clone();
    let roots = app.identity.current();
    let registers = Arc::clone(&app.kill);
    let offered = signed.clone();
    let merged = blocking(move || registers.offer(&offered, roots.roots(), now()))
        .await?
        .map_err(|error| explain_kill(&error))?;
    let (_, register) = signed
        .verify(app.identity.current().roots(), now())
        .map_err(|error| explain_kill(&error))?;
    if merged == Merged::Take {
        tracing::warn!(
            %by, scope = scope_text(&register.scope), on = register.on, epoch = register.epoch,
            reason = register.reason, "kill switch"
        );
    }
    // Also when it was known: a crash may have come between the latch and the registry.
    publish_kill(&app).await?;
    Ok(ApiJson(answer(&app, merged == Merged::Take)))
}

/// Puts every latched register where agents watch for it.
pub(crate) async fn publish_kill(app: &App) -> Result<(), ApiError> {
    let _publishing = app.publishing_kill.lock().await;
    for (scope, entry) in app.kill.entries() {
        let KillEntry::Said { signed, .. } = entry else { continue };
        let key = keys::kill(&scope_text(&scope));
        let value = serde_json::to_string(&signed)
            .map_err(|error| ApiError::internal(error.to_string()))?;
        if app.registry.get(&key).is_some_and(|pair| pair.value == value) {
            continue;
        }
        let txn = Txn { then: vec![Op::put(key, value)], ..Txn::default() };
        app.registry.txn(txn).await.map_err(|error| explain(&error))?;
    }
    Ok(())
}

/// The scope as it stands in keys and on the command line.
fn scope_text(scope: &KillScope) -> String {
    match scope {
        KillScope::Fleet => "fleet".to_owned(),
        KillScope::Group(group) => format!("group/{group}"),
    }
}

fn answer(app: &App, changed: bool) -> KillAnswer {
    let damaged = app.kill.entries().into_values().filter_map(|entry| match entry {
        KillEntry::Damaged { reason, .. } => Some(reason),
        KillEntry::Said { .. } => None,
    });
    KillAnswer { changed, registers: app.kill.signed(), damaged: damaged.collect() }
}

fn explain_kill(error: &KillError) -> ApiError {
    let mut reason = error.to_string();
    if let Some(source) = std::error::Error::source(error) {
        reason = format!("{reason}: {source}");
    }
    match error {
        KillError::Statement(_) => ApiError::forbidden(reason)
            .hint("a kill switch is signed with an operator's certificate: cohort kill on|off"),
        KillError::Malformed { .. } | KillError::Reason { .. } | KillError::Epoch { .. } => {
            ApiError::bad_request(reason)
        }
        KillError::TooMany => ApiError::unavailable("full", reason),
        _ => ApiError::internal(reason),
    }
}
