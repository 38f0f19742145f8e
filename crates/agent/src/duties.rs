//! What the leader does beside planning: read the registry and the repository, write records.
//! The tasks run on every member and rest while another one leads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cohort_artifact::TrustedRepository;
use cohort_core::gate::{ForeignVerdict, GroupInfo, RegistryView};
use cohort_core::ids::{AppId, MemberId};
use cohort_core::phase::Phase;
use cohort_core::policy::Policy;
use cohort_core::state::App;
use cohort_core::{Body, Offer};
use cohort_registry::records::{
    GroupInfo as GroupInfoRecord, GroupRecord, GroupVerdict, MemberRecord, MembersRecord, SCHEMA,
    Stamp, Verdict, VerdictRecord,
};
use cohort_registry::{RegistryError, Selector, WatchRequest, keys, typed};
use cohort_wire::agent::{CONTACTS, CONTROL_VERSION, ContactsRequest};
use cohort_wire::http::Call;
use cohort_wire::hub::KILL as HUB_KILL;
use cohort_wire::kill::SignedKill;
use tokio_util::sync::CancellationToken;

use crate::member::{Input, View};
use crate::shared::{MemberHandle, Shared};

/// How long one watch of the registry is held, in milliseconds; a hub that hangs is noticed then.
const WATCH_MS: u64 = 10_000;
/// Pauses after a registry that did not answer.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Servers told of in one call: their bounded details stay far below a request's limit.
const CONTACTS_PER_CALL: usize = 50;
/// How often members tell the leader whom they have heard of.
const CONTACTS_EVERY: Duration = Duration::from_millis(500);

/// Starts them for one member; they end with `stop`.
pub(crate) fn spawn(
    shared: &Arc<Shared>,
    handle: &MemberHandle,
    repository: Option<&Arc<TrustedRepository>>,
    stop: &CancellationToken,
) {
    let start = |task: futures_util::future::BoxFuture<'static, ()>| {
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    };
    start(Box::pin(read_registry(Arc::clone(shared), handle.clone())));
    start(Box::pin(write_records(Arc::clone(shared), handle.clone())));
    start(Box::pin(tell_contacts(Arc::clone(shared), handle.clone())));
    start(Box::pin(watch_kill(Arc::clone(shared), handle.clone())));
    if let Some(repository) = repository {
        let repository = Arc::clone(repository);
        start(Box::pin(read_repository(Arc::clone(shared), handle.clone(), repository)));
    }
}

/// Waits until this member leads; false when it has ended.
async fn until_leading(handle: &mut MemberHandle) -> bool {
    handle.view.wait_for(|view| view.leads()).await.is_ok()
}

async fn watch_kill(shared: Arc<Shared>, handle: MemberHandle) {
    let mut on = shared.kill.subscribe();
    loop {
        let now = on.borrow_and_update().clone();
        shared.metrics.set("cohort_kill_switch", &[], if now.is_some() { 1.0 } else { 0.0 });
        if !handle.inputs.put(Input::Kill(now)).await || on.changed().await.is_err() {
            return;
        }
    }
}

async fn read_registry(shared: Arc<Shared>, mut handle: MemberHandle) {
    let mut pause = RETRY_MIN;
    loop {
        if !until_leading(&mut handle).await {
            return;
        }
        match follow_registry(&shared, &handle).await {
            Ok(()) => pause = RETRY_MIN,
            Err(error) => {
                tracing::debug!(%error, "the registry does not answer");
                if !handle.inputs.put(Input::Registry(None)).await {
                    return;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Reads everything, then again after every change, for as long as this member leads.
async fn follow_registry(shared: &Arc<Shared>, handle: &MemberHandle) -> Result<(), RegistryError> {
    let registry = &*shared.registry;
    let mut kill = shared.kill.subscribe();
    let term = handle.view.borrow().raft.term;
    loop {
        kill.mark_unchanged();
        let (_, revision) = typed::list(registry, keys::SWITCHES).await?;
        for (_, text) in typed::kill_switches(registry).await? {
            match serde_json::from_str::<SignedKill>(&text) {
                Ok(register) => {
                    if let Err(error) = shared.kill.offer(vec![register]).await {
                        tracing::warn!(%error, "a kill register of the registry was not taken");
                    }
                }
                Err(error) => tracing::warn!(%error, "a kill register that cannot be read"),
            }
        }
        carry_kill(shared).await;
        let view = read_view(registry).await?;
        if !handle.inputs.put(Input::Registry(Some(view))).await {
            return Ok(());
        }
        let mut from_revision = revision + 1;
        loop {
            if !still_leads(handle, term) {
                return Ok(());
            }
            let select = Selector::Prefix(keys::ROOT.to_owned());
            let request = WatchRequest { select, from_revision, wait_ms: WATCH_MS };
            let mut views = handle.view.clone();
            let watched = tokio::select! {
                watched = registry.watch(request) => watched,
                // Led by another, or anew: the next leadership reads everything itself.
                _ = views.wait_for(|view| !(view.leads() && view.raft.term == term)) => {
                    return Ok(());
                }
                // Given to an agent: the hub hears of it from the leader.
                _ = kill.changed() => break,
            };
            let answer = match watched {
                Ok(answer) => answer,
                Err(RegistryError::Compacted { .. }) => break,
                Err(error) => return Err(error),
            };
            from_revision = answer.revision + 1;
            // Records of progress are written by the hundred and decide nothing here.
            let matters = answer.events.iter().any(|event| {
                let key = event.key();
                key.starts_with(keys::POLICIES)
                    || key.starts_with(keys::VERDICTS)
                    || key.starts_with(keys::SWITCHES)
                    || key.ends_with("/info")
            });
            if matters {
                break;
            }
        }
    }
}

/// Whether this member leads, without a break since that term.
fn still_leads(handle: &MemberHandle, term: cohort_consensus::Term) -> bool {
    let view = handle.view.borrow();
    view.leads() && view.raft.term == term
}

/// Carries kill registers that were given to an agent to the hub: only the operator's signature in
/// them counts there as well.
async fn carry_kill(shared: &Shared) {
    for register in shared.kill.signed() {
        for target in &shared.hub {
            let call = Call::post(HUB_KILL, &register).deadline(Duration::from_secs(5));
            match shared.client.call(target, call.idempotent()).await {
                Ok(_) => break,
                Err(error) => tracing::debug!(%error, "a kill register was not carried to the hub"),
            }
        }
    }
}

async fn read_view(
    registry: &dyn cohort_registry::Registry,
) -> Result<RegistryView, RegistryError> {
    let mut view = RegistryView::default();
    for policy in typed::policies(registry).await? {
        let app = policy.record.app.clone();
        match serde_json::from_value::<Policy>(policy.record.policy) {
            Ok(parsed) if parsed.app == app => {
                view.policies.insert(app, (policy.revision, parsed));
            }
            Ok(_) => tracing::warn!(%app, "a policy that names another app is left alone"),
            Err(error) => tracing::warn!(%app, %error, "a policy that this version cannot read"),
        }
    }
    for info in typed::group_infos(registry).await? {
        view.groups.insert(info.group, GroupInfo { labels: info.labels, platform: info.platform });
    }
    let (pairs, _) = typed::list(registry, keys::VERDICTS).await?;
    for pair in &pairs {
        if let Some(found) = typed::decode_verdict(pair)? {
            view.verdicts.push(ForeignVerdict {
                group: found.group,
                app: found.app,
                version: found.version,
                platform: found.platform,
                good: found.record.verdict == Verdict::Good,
                reason: found.record.reason,
            });
        }
    }
    Ok(view)
}

async fn read_repository(
    shared: Arc<Shared>,
    mut handle: MemberHandle,
    repository: Arc<TrustedRepository>,
) {
    let every = Duration::from_millis(shared.config.poll_interval.ms.max(100));
    loop {
        if !until_leading(&mut handle).await {
            return;
        }
        let refreshed = repository.refresh().await;
        let mut refusals: Vec<String> = repository
            .refusals()
            .into_values()
            .filter(|refusal| !refusal.error.kind.is_unreachable())
            .map(|refusal| refusal.error.to_string())
            .collect();
        refusals.sort();
        let view = handle.view.borrow().clone();
        let mut offers = BTreeMap::new();
        for (app, known) in &view.state.apps {
            let Some(platform) = &view.state.platform else { break };
            let offer = match repository.offer(app, &known.policy.channel, platform).await {
                Ok(offer) => Offer::Release(offer.manifest.release()),
                Err(error) => match &refreshed {
                    // What the mirrors said is more telling than that nothing is known.
                    Err(refused) if !refused.kind.is_unreachable() => {
                        Offer::Refused { reason: refused.to_string() }
                    }
                    _ if matches!(
                        error.kind,
                        cohort_artifact::TrustErrorKind::NotFound { .. }
                            | cohort_artifact::TrustErrorKind::Unreachable { .. }
                    ) =>
                    {
                        Offer::Unknown { reason: error.to_string() }
                    }
                    _ => Offer::Refused { reason: error.to_string() },
                },
            };
            offers.insert(app.clone(), offer);
        }
        if !handle.inputs.put(Input::Offers(offers, refusals)).await {
            return;
        }
        // A new app is looked up at once; else by the clock.
        let apps: Vec<AppId> = view.state.apps.keys().cloned().collect();
        let mut views = handle.view.clone();
        let term = view.raft.term;
        let new_app =
            views.wait_for(|now| now.raft.term != term || !now.state.apps.keys().eq(apps.iter()));
        let _ = tokio::time::timeout(every, new_app).await;
    }
}

async fn write_records(shared: Arc<Shared>, mut handle: MemberHandle) {
    let mut members_written: Option<MembersRecord> = None;
    let mut info_written = false;
    loop {
        if !until_leading(&mut handle).await {
            return;
        }
        let view = Arc::clone(&handle.view.borrow_and_update());
        let done =
            write_all(&shared, &handle, &view, &mut members_written, &mut info_written).await;
        let pause = match done {
            Ok(()) => Duration::from_secs(30),
            Err(error) => {
                tracing::debug!(%error, "the registry did not take the group's records");
                tokio::time::sleep(RETRY_MIN).await;
                Duration::from_millis(750)
            }
        };
        let _ = tokio::time::timeout(pause, handle.view.changed()).await;
    }
}

async fn write_all(
    shared: &Arc<Shared>,
    handle: &MemberHandle,
    view: &View,
    members_written: &mut Option<MembersRecord>,
    info_written: &mut bool,
) -> Result<(), RegistryError> {
    let registry = &*shared.registry;
    let state = &view.state;
    let stamp = Stamp {
        incarnation: state.incarnation,
        term: view.raft.term.0,
        index: view.raft.applied.0,
    };
    if !*info_written && let Some(platform) = &state.platform {
        let info = GroupInfoRecord {
            schema: SCHEMA,
            group: state.group.clone(),
            labels: state.labels.clone(),
            platform: platform.clone(),
        };
        if typed::read_group_info(registry, &state.group).await?.as_ref() != Some(&info) {
            typed::write_group_info(registry, &info).await?;
        }
        *info_written = true;
    }
    let members: Vec<MemberRecord> = state
        .member_addresses()
        .into_iter()
        .map(|member| MemberRecord {
            voter: view.raft.configuration.is_voter(cohort_consensus::RaftId(member.member.0)),
            server: member.server,
            address: member.address,
            member: member.member,
        })
        .collect();
    if members_written.as_ref().is_none_or(|written| written.members != members) {
        let record = MembersRecord { schema: SCHEMA, group: state.group.clone(), stamp, members };
        let _ = typed::write_members(registry, &record).await?;
        *members_written = Some(record);
    }
    for (id, app) in &state.apps {
        if app.record_written < app.record {
            let record = group_record(view, id, app, stamp);
            let _ = typed::write_group_record(registry, &record).await?;
            let body = Body::RecordWritten { app: id.clone(), record: app.record };
            acknowledge(shared, handle, body).await;
        }
        for due in &app.verdicts_due {
            let verdict = GroupVerdict {
                app: id.clone(),
                version: due.version.clone(),
                platform: due.platform.clone(),
                group: state.group.clone(),
                record: VerdictRecord {
                    schema: SCHEMA,
                    verdict: if due.good { Verdict::Good } else { Verdict::Bad },
                    reason: due.reason.clone(),
                    stamp,
                },
            };
            let _ = typed::write_verdict(registry, &verdict).await?;
            let (app, version, good) = (id.clone(), due.version.clone(), due.good);
            acknowledge(shared, handle, Body::VerdictWritten { app, version, good }).await;
        }
    }
    Ok(())
}

/// Tells the group that the registry has something; if that gets lost, it is written once more.
async fn acknowledge(shared: &Arc<Shared>, handle: &MemberHandle, body: Body) {
    let actor = format!("leader {}", shared.server());
    let command = Shared::command(handle, actor, None, body);
    if let Err(error) = shared.propose_here(handle, command).await {
        tracing::debug!(%error, "an acknowledgement of the registry was not proposed");
    }
}

fn group_record(view: &View, id: &AppId, app: &App, stamp: Stamp) -> GroupRecord {
    let target = match &app.phase {
        Phase::Held { rejected, .. } => Some(rejected.version.clone()),
        Phase::Empty
        | Phase::Running { .. }
        | Phase::MarkedOld { .. }
        | Phase::LeaderHolds { .. }
        | Phase::Verified { .. }
        | Phase::Wave { .. }
        | Phase::RollingBack { .. } => {
            app.phase.rollout().map(|rollout| rollout.release.version.clone())
        }
    };
    let held_reason = match &app.phase {
        Phase::Held { reason, .. } | Phase::RollingBack { reason, .. } => Some(reason.clone()),
        Phase::Empty
        | Phase::Running { .. }
        | Phase::MarkedOld { .. }
        | Phase::LeaderHolds { .. }
        | Phase::Verified { .. }
        | Phase::Wave { .. } => None,
    };
    let detail = match &app.phase {
        Phase::Wave { number, servers, .. } => format!("wave {number}, {} servers", servers.len()),
        _ => String::new(),
    };
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    GroupRecord {
        schema: SCHEMA,
        group: view.state.group.clone(),
        app: id.clone(),
        stamp,
        sequence: app.record,
        state: app.phase.name().to_string(),
        running: app.last_good.as_ref().map(|release| release.version.clone()),
        target,
        held_reason,
        detail,
        since,
    }
}

async fn tell_contacts(shared: Arc<Shared>, handle: MemberHandle) {
    loop {
        tokio::time::sleep(CONTACTS_EVERY).await;
        let leader = {
            let view = handle.view.borrow();
            if view.raft.is_leader() { None } else { view.raft.leader }
        };
        let Some((server, address)) = leader.and_then(|id| shared.book.of(MemberId(id.0))) else {
            continue;
        };
        let now = std::time::Instant::now();
        // What is older was told before, or is told by the member that is asked now.
        let recent: Vec<_> = shared
            .contacts
            .all()
            .into_iter()
            .filter(|(_, contact)| now.saturating_duration_since(contact.at) <= 4 * CONTACTS_EVERY)
            .collect();
        // At least one call, for the kill registers.
        let calls = recent.len().div_ceil(CONTACTS_PER_CALL).max(1);
        for call in 0..calls {
            let some = recent.iter().skip(call * CONTACTS_PER_CALL).take(CONTACTS_PER_CALL);
            let mut request = ContactsRequest {
                version: CONTROL_VERSION,
                group: shared.group.clone(),
                age_ms: BTreeMap::new(),
                doing: BTreeMap::new(),
                kill: shared.kill.signed(),
            };
            for (id, contact) in some {
                let age = now.saturating_duration_since(contact.at);
                let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
                request.age_ms.insert(id.clone(), age_ms);
                request.doing.insert(id.clone(), contact.doing.clone());
            }
            let call = Call::post(CONTACTS, &request).deadline(Duration::from_secs(2));
            let target = shared.target(&server, &address);
            match shared.client.call_json::<Vec<SignedKill>>(&target, call).await {
                Ok(registers) => {
                    if let Err(error) = shared.kill.offer(registers).await {
                        tracing::warn!(%error, "a kill register of the leader was not taken");
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the leader was not told whom this member heard of");
                }
            }
        }
    }
}
