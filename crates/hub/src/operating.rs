//! Operators' changes: policies, the kill switch, the incarnation of a group.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Path, State};
use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_core::phase::PhaseName;
use cohort_identity::{Peer, RedeemError, Role};
use cohort_registry::fleet::{Fleet, FleetGroup, read_fleet};
use cohort_registry::records::{ServerRecord, decode, encode};
use cohort_registry::state::State as Content;
use cohort_registry::typed::{
    IntentPut, read_members, recover_group, remove_group as remove_group_records, write_intent,
};
use cohort_registry::{Compare, Op, Registry as _, RegistryError, Txn, keys};
use cohort_wire::entry;
use cohort_wire::http::{ApiError, ApiJson, Caller};
use cohort_wire::hub::{
    PolicyAnswer, PolicyRequest, RecoverAnswer, RecoverRequest, RemoveAppAnswer, RemoveAppRequest,
    RemoveGroupRequest,
};
use cohort_wire::intent::{AppIntent, SignedIntent, Wanted};
use cohort_wire::kill::{KillAnswer, KillEntry, KillError, SignedKill};
use cohort_wire::revocation::{RevocationsAnswer, RevocationsExchange};

use crate::app::{App, blocking, now};
use crate::audit;
use crate::auth::check_policy;
use crate::heard::LastWord;
use crate::refusal::Answer;
use crate::room;

pub(crate) async fn policy(
    State(app): State<Arc<App>>,
    Caller(by): Caller,
    Path(name): Path<String>,
    ApiJson(request): ApiJson<PolicyRequest>,
) -> Answer<PolicyAnswer> {
    let name = AppId::new(name)?;
    let (signer, intent) = proven(&app, &name, &request.signed)?;
    let Wanted::Policy(policy) = &intent.wanted else {
        return Err(ApiError::bad_request("this removes the app: it is not a policy").into());
    };
    let policy = check_policy(policy)?;
    if policy.app != name {
        let wrong = format!("the policy is for app {}, not {name}", policy.app);
        return Err(ApiError::bad_request(wrong).into());
    }
    let fleet = read_fleet(&app.registry).await?;
    still_being_removed(&fleet, &name)?;
    room::for_app(&fleet, &name)?;
    let revision = intent.revision;
    audit::record(format!("policy of {name}, revision {revision}, signed by {signer}")).await?;
    match write_intent(&app.registry, &request.signed, &intent, request.expected).await? {
        IntentPut::Written => {
            tracing::info!(%by, %signer, app = %name, %revision, "policy written");
            Ok(Json(PolicyAnswer { revision }))
        }
        IntentPut::Changed | IntentPut::NoApp => Err(changed(&name).into()),
    }
}

fn changed(app: &AppId) -> ApiError {
    ApiError::conflict(format!("the policy of app {app} has changed meanwhile"))
        .hint("see the change with `cohort app diff -f FILE`, then apply again")
}

/// Verifies what an operator wants of `name`, as every group will.
fn proven(app: &App, name: &AppId, signed: &SignedIntent) -> Result<(Peer, AppIntent), ApiError> {
    let (signer, intent) = signed.verify(app.identity.current().roots(), now())?;
    if app.identity.revocations().revokes_author_of(&signed.0) {
        return Err(ApiError::forbidden(format!("the certificate of {signer} is revoked")));
    }
    if intent.app != *name {
        let wrong = format!("it is about app {}, not {name}", intent.app);
        return Err(ApiError::bad_request(wrong));
    }
    // Groups compare the two, to tell a registry that was restored.
    let next = app.registry.read(Content::revision) + 1;
    if intent.revision.0 > next {
        let late = format!("revision {} is beyond {next}, the registry's next", intent.revision);
        return Err(ApiError::conflict(late).hint("run the command again"));
    }
    Ok((signer, intent))
}

/// An app may be added again once every group has stopped it.
fn still_being_removed(fleet: &Fleet, app: &AppId) -> Result<(), ApiError> {
    let removed = fleet.removed.contains_key(app);
    let mut groups = groups_with(fleet, app, |_| removed);
    let Some(group) = groups.next() else { return Ok(()) };
    let still = format!("app {app} is still being removed from {group}{}", more(groups.count()));
    Err(ApiError::conflict(still).hint(format!("see what it waits for: cohort why {group}")))
}

/// The groups whose record of the app is such.
fn groups_with<'a>(
    fleet: &'a Fleet,
    app: &'a AppId,
    is: impl Fn(PhaseName) -> bool + 'a,
) -> impl Iterator<Item = &'a GroupId> {
    let has = move |known: &FleetGroup| known.apps.iter().any(|it| it.app == *app && is(it.state));
    fleet.groups.iter().filter(move |(_, known)| has(known)).map(|(group, _)| group)
}

fn more(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => " and 1 more group".to_owned(),
        count => format!(" and {count} more groups"),
    }
}

/// Removes an app from every group. One that is being rolled out only if the caller says so.
pub(crate) async fn remove_app(
    State(app): State<Arc<App>>,
    Caller(by): Caller,
    Path(name): Path<String>,
    ApiJson(request): ApiJson<RemoveAppRequest>,
) -> Answer<RemoveAppAnswer> {
    let name = AppId::new(name)?;
    let (signer, intent) = proven(&app, &name, &request.signed)?;
    if intent.wanted != Wanted::Removal {
        return Err(ApiError::bad_request("this is a policy: it does not remove the app").into());
    }
    let fleet = read_fleet(&app.registry).await?;
    let moves = |state| matches!(state, PhaseName::Forward(_) | PhaseName::RollingBack);
    let mut moving = groups_with(&fleet, &name, moves);
    if let Some(group) = moving.next().filter(|_| !request.mid_rollout) {
        let rest = more(moving.count());
        let busy = format!("app {name} is being rolled out or back in {group}{rest}");
        return Err(ApiError::conflict(busy)
            .hint(format!("wait for it: cohort status {group}"))
            .hint(format!("or remove it mid-rollout: cohort app remove {name} --mid-rollout"))
            .into());
    }
    let (revision, has_policy) = (intent.revision, fleet.policies.contains_key(&name));
    if has_policy {
        audit::record(format!("{name} removed, revision {revision}, signed by {signer}")).await?;
    }
    let put = write_intent(&app.registry, &request.signed, &intent, None).await?;
    let changed = match put {
        IntentPut::Written => has_policy,
        IntentPut::Changed => return Err(changed(&name).into()),
        IntentPut::NoApp => {
            return Err(ApiError::not_found(format!("no app {name}"))
                .hint("list all apps: cohort app show")
                .into());
        }
    };
    if changed {
        tracing::warn!(%by, %signer, app = %name, %revision, "app removed");
    }
    let groups = groups_with(&fleet, &name, |_| true).cloned().collect();
    Ok(Json(RemoveAppAnswer { revision, changed, groups }))
}

pub(crate) async fn recover(
    State(app): State<Arc<App>>,
    Caller(by): Caller,
    Path(name): Path<String>,
    ApiJson(request): ApiJson<RecoverRequest>,
) -> Answer<RecoverAnswer> {
    let group = GroupId::new(name)?;
    let RecoverRequest { incarnation, first_server, because } = request;
    entry::sentence("the reason", &because)?;
    let record = app.registry.get(&keys::server(&first_server));
    let known = record.map(|pair| decode(&pair)).transpose()?;
    if known.is_none_or(|record: ServerRecord| record.group != group) {
        let wrong = format!("server {first_server} is not in group {group}");
        return Err(ApiError::bad_request(wrong).into());
    }
    audit::record(format!("group {group} recovered, after {incarnation}: {because}")).await?;
    let next = recover_group(&app.registry, &group, incarnation, &first_server, &because).await?;
    match next {
        Some(bootstrap) => {
            let next = bootstrap.incarnation;
            tracing::warn!(%by, %group, old = %incarnation, %next, because, "group recovered");
            Ok(Json(RecoverAnswer { incarnation: next }))
        }
        None => {
            let late = format!("group {group} is no longer in incarnation {incarnation}");
            let hint = format!("see which one: cohort group show {group}");
            Err(ApiError::conflict(late).hint(hint).into())
        }
    }
}

/// Removes a group. One that still lists servers only if the caller says that they are lost.
pub(crate) async fn remove_group(
    State(app): State<Arc<App>>,
    Caller(by): Caller,
    Path(name): Path<String>,
    ApiJson(request): ApiJson<RemoveGroupRequest>,
) -> Answer<()> {
    let group = GroupId::new(name)?;
    let fleet = read_fleet(&app.registry).await?;
    let servers = fleet.servers.into_iter().filter(|server| server.group == group);
    let servers: Vec<ServerId> = servers.map(|record| record.server).collect();
    if let Some(server) = servers.first() {
        if !request.servers_are_lost {
            let more = servers.len() - 1;
            let still = format!("group {group} still has {server} and {more} more servers");
            return Err(ApiError::conflict(still)
                .hint(format!(
                    "if all are lost permanently: cohort group remove {group} --servers-are-lost"
                ))
                .into());
        }
        is_lost(&app, &group)?;
    }
    audit::record(format!("group {group} removed")).await?;
    if !servers.is_empty() {
        // First: from then on they write nothing, so that nothing that is removed comes back.
        let removed = Arc::clone(&app.removed);
        let remove = move || servers.iter().try_for_each(|server| removed.add(server, now()));
        blocking(remove).await??;
    }
    if !remove_group_records(&app.registry, &group).await? {
        return Err(ApiError::not_found(format!("no group {group}"))
            .hint("list all groups: cohort group list")
            .into());
    }
    tracing::warn!(%by, %group, "group removed");
    Ok(Json(()))
}

/// Checks that a group's servers are as silent as lost ones.
///
/// # Errors
/// 409 while the hub has heard one of them recently, or has not listened for long enough.
fn is_lost(app: &App, group: &GroupId) -> Result<(), ApiError> {
    let enough = app.config.group_silent;
    let (age, living) = match app.heard.last(Instant::now(), group) {
        LastWord::Of(server, age) => {
            let living = format!("{group} lives: {server} called {} s ago", age.as_secs());
            let hint = format!(
                "stop its agents first, or remove its servers one at a time: \
                 cohort group remove-server {group} {server}"
            );
            (age, ApiError::conflict(living).hint(hint))
        }
        LastWord::None(age) => {
            let up_s = age.as_secs();
            let early = format!("the hub has been up for only {up_s} s: {group} may live");
            let left_s = enough.saturating_sub(age).as_secs() + 1;
            (age, ApiError::conflict(early).hint(format!("retry in {left_s} s")))
        }
    };
    if age < enough { Err(living) } else { Ok(()) }
}

/// Removes a server: its certificate counts no more, whether or not the registry has a record of
/// it. If it is a member of its group, the group has to remove it first. Idempotent.
pub(crate) async fn remove_server(
    State(app): State<Arc<App>>,
    Caller(by): Caller,
    Path(name): Path<String>,
) -> Answer<()> {
    let server = ServerId::new(name)?;
    let key = keys::server(&server);
    let pair = app.registry.get(&key);
    if let Some(pair) = &pair {
        let ServerRecord { group, .. } = decode(pair)?;
        let members = read_members(&app.registry, &group).await?;
        if members.is_some_and(|known| known.members.iter().any(|member| member.server == server)) {
            return Err(ApiError::conflict(format!(
                "server {server} is a member of group {group}"
            ))
            .hint(format!("first: cohort group remove-server {group} {server}"))
            .into());
        }
    }
    audit::record(format!("server {server} removed")).await?;
    let (removed, gone) = (Arc::clone(&app.removed), server.clone());
    blocking(move || removed.add(&gone, now())).await??;
    if let Some(pair) = pair {
        let compare = vec![Compare::unchanged_since(&key, pair.mod_revision)];
        let then = vec![Op::Delete { key }];
        let txn = Txn { compare, then, ..Txn::default() };
        if !app.registry.txn(txn).await?.succeeded {
            let changed = format!("server {server} has just changed: retry");
            return Err(ApiError::conflict(changed).into());
        }
    }
    tracing::warn!(%by, %server, "server removed");
    Ok(Json(()))
}

pub(crate) async fn kill_status(State(app): State<Arc<App>>) -> Answer<KillAnswer> {
    Ok(Json(app.kill.answer(false)))
}

/// Accepts a signed register from any caller: only the operator's signature counts.
pub(crate) async fn kill(
    State(app): State<Arc<App>>,
    Caller(by): Caller,
    ApiJson(signed): ApiJson<SignedKill>,
) -> Answer<KillAnswer> {
    if app.identity.revocations().revokes_author_of(&signed.0) {
        return Err(ApiError::from(KillError::Revoked).into());
    }
    let roots = app.identity.current();
    let registers = Arc::clone(&app.kill);
    let offered = signed.clone();
    let changed = blocking(move || registers.offer(&offered, roots.roots(), now())).await??;
    let (signer, register) = signed.verify(app.identity.current().roots(), now())?;
    if changed {
        let (scope, to) = (&register.scope, if register.on { "on" } else { "off" });
        let reason = &register.reason;
        let what = format!("kill switch of {scope} {to}, signed by {signer}: {reason}");
        // It stops the fleet whether or not there is room for an entry, and its signature is kept.
        let _ = audit::record(what).await;
        app.metrics.kill_registers_latched.inc();
        tracing::warn!(
            %by, scope = %register.scope, on = register.on, epoch = register.epoch,
            reason = register.reason, "kill switch"
        );
    }
    // Even if it is not new: a crash may have happened between the latch and the registry.
    publish_kill(&app).await?;
    Ok(Json(app.kill.answer(changed)))
}

/// Exchanges revocations with any caller: only operators' signatures in them count.
pub(crate) async fn revocations(
    State(app): State<Arc<App>>,
    ApiJson(exchange): ApiJson<RevocationsExchange>,
) -> Answer<RevocationsAnswer> {
    let (slot, tokens) = (Arc::clone(&app.identity), Arc::clone(&app.tokens));
    let registers = Arc::clone(&app.kill);
    let exchange = move || {
        let operators = || {
            let all = slot.revocations().all();
            all.into_iter().filter(|it| it.role == Role::Operator).collect::<Vec<_>>()
        };
        let (before, had) = (operators(), slot.revocations().has());
        let answer = slot.revocations().exchange(&exchange, slot.current().roots(), now());
        if operators() != before {
            registers.forget_revoked(slot.revocations());
            // Whoever stole an operator's key may have made tokens with it.
            let revoked = tokens.revoke_unused()?;
            tracing::warn!(revoked, "an operator is revoked: unused join tokens are, too");
        }
        let has = slot.revocations().has();
        let news = has.into_iter().filter(|(peer, at)| had.get(peer) != Some(at));
        let news: Vec<String> = news.map(|(peer, _)| peer).collect();
        Ok::<_, RedeemError>((answer, news))
    };
    let (answer, news) = blocking(exchange).await??;
    if !news.is_empty() {
        // Signed by operators, whoever brings it: `cohort person revoked` says by whom.
        // They count whether or not there is room for an entry.
        let _ = audit::record(format!("certificates revoked: {}", news.join(", "))).await;
    }
    Ok(Json(answer))
}

/// Writes every latched register to where agents watch for it.
pub(crate) async fn publish_kill(app: &App) -> Result<(), RegistryError> {
    let _publishing = app.publishing_kill.lock().await;
    let mut failed = None;
    for (scope, entry) in app.kill.entries().iter() {
        let KillEntry::Said { signed, .. } = entry else { continue };
        let key = keys::kill(scope);
        let value = encode(signed);
        if app.registry.get(&key).is_some_and(|pair| pair.value == value) {
            continue;
        }
        let txn = Txn { then: vec![Op::put(key, value)], ..Txn::default() };
        // One that the registry refuses does not hold up the others.
        if let Err(error) = app.registry.txn(txn).await {
            failed = Some(error);
        }
    }
    failed.map_or(Ok(()), Err)
}
