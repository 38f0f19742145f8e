//! The group as this agent sees it: the answer to `GET /v1/status`.

use std::collections::BTreeSet;

use cohort_artifact::Manifest;
use cohort_consensus::RaftId;
use cohort_core::capacity::{self, Standing};
use cohort_core::doing::Doing;
use cohort_core::errand::{Errand, HubFault};
use cohort_core::ids::{AppId, ClockMs, MemberId, ServerId};
use cohort_core::orders::MemberAddress;
use cohort_core::phase::{Milestone, Phase};
use cohort_core::reason::Unfit;
use cohort_core::release::Release;
use cohort_core::state::{App, Failure};
use cohort_distribute::TransferView;
use cohort_server::contacts::Contacts;
use cohort_server::errands::Lasting;
use cohort_wire::agent::{
    AppStatus, CONTROL_VERSION, CopyStatus, ErrandStatus, FailureStatus, GroupStatus,
    PlacingStatus, ServerAppStatus, ServerStatus, TransferStatus, WaitingStatus,
};

use crate::contacts::monotonic_ms;
use crate::member::View;
use crate::shared::Shared;
use crate::transfer_status::{Named, transfers};

/// `linearizable`: this member is the leader, and had a quorum just now.
pub(crate) fn group_status(shared: &Shared, view: &View, linearizable: bool) -> GroupStatus {
    let state = &view.state;
    let contacts = shared.contacts.all();
    let now_ms = monotonic_ms();
    let places = |ids: &BTreeSet<RaftId>| -> Vec<MemberAddress> {
        ids.iter()
            .filter_map(|id| {
                let member = MemberId(id.0);
                let server = state.server_of(member)?.clone();
                let address = state.servers.get(&server)?.address.clone();
                Some(MemberAddress { server, address, member })
            })
            .collect()
    };
    let now = Now { view, contacts: &contacts, now_ms, linearizable };
    let faults = shared.contacts.faults();
    let servers = state.servers.iter().map(|(id, server)| {
        let contact_age_ms = contacts.of(id).map(|contact| now_ms.saturating_sub(contact.at_ms));
        let status = ServerStatus {
            address: server.address.clone(),
            rack: server.rack.clone(),
            joined: server.joined,
            member: server.member,
            contact_age_ms,
            silent_ms: view.silent_ms(id, &contacts, now_ms),
            clock_ahead_ms: faults.get(id).and_then(|it| it.clock_ahead_ms).unwrap_or(0),
            disk: faults.get(id).map_or_else(Default::default, |faults| faults.disk),
            stopped: faults.get(id).is_some_and(|faults| faults.stopped),
            copy: view.copies.of(id, now_ms).map(|refusal| CopyStatus {
                host: refusal.host.clone(),
                for_ms: now_ms.saturating_sub(refusal.since_ms),
                age_ms: now_ms.saturating_sub(refusal.at_ms),
            }),
            unknown: now.is_unknown(id),
        };
        (id.clone(), status)
    });
    let apps = state.apps.iter().map(|(id, app)| (id.clone(), app_status(&now, id, app)));
    GroupStatus {
        version: CONTROL_VERSION,
        group: state.group.clone(),
        incarnation: state.incarnation,
        labels: (*state.labels).clone(),
        platform: state.platform.clone(),
        answered_by: shared.server().clone(),
        leader: view.leader().cloned(),
        term: view.raft.term.0,
        commit: view.raft.commit.0,
        applied: view.raft.applied.0,
        linearizable,
        elsewhere: shared.elsewhere(),
        clock: view.clock(now_ms),
        killed: view.killed.clone(),
        registry_reachable: view.registry,
        errands: errands(view, now_ms),
        voters: places(&view.raft.configuration.voters),
        standbys: places(&view.raft.configuration.standbys),
        mute: view.mute.clone(),
        placing: view
            .placing
            .clone()
            .map(|(on, since_ms)| PlacingStatus { on, for_ms: now_ms.saturating_sub(since_ms) }),
        servers: servers.collect(),
        out: out_servers(&now),
        apps: apps.collect(),
        refusals: view.refusals.clone(),
        transfers: if view.leads() { transfers_of(shared, view) } else { Vec::new() },
        downlink_bytes_per_second: shared.downloads.context().guides.downlink_rate(),
        download_limit_bytes_per_second: shared.downloads.context().download.limit(),
    }
}

fn errands(view: &View, now_ms: u64) -> Vec<ErrandStatus> {
    let status = |(errand, lasting): (&Errand, &Lasting<HubFault>)| ErrandStatus {
        errand: errand.clone(),
        why: lasting.why.clone(),
        for_ms: now_ms.saturating_sub(lasting.since_ms),
    };
    view.errands.failing().map(status).collect()
}

/// Only the leader's tracker receives reports.
fn transfers_of(shared: &Shared, view: &View) -> Vec<TransferStatus> {
    let views = shared.tracker.view();
    transfers(views, |transfer| named(shared, view, transfer))
}

/// The release of an artifact: one that the log knows, or one that the artifact is a delta to.
fn named(shared: &Shared, view: &View, transfer: &TransferView) -> Option<Named> {
    let known = || view.state.apps.iter().flat_map(|(id, app)| releases(app).map(move |r| (id, r)));
    let (app, release, delta) = known()
        .find(|(_, release)| release.artifact == transfer.artifact)
        .map(|(app, release)| (app, release, false))
        .or_else(|| {
            let mut differing = known().filter(|(app, release)| {
                let repository = shared.repository.as_ref();
                let bytes = repository.and_then(|repository| {
                    repository.cached_manifest_bytes(app, &release.version, &release.platform)
                });
                let manifest = bytes.and_then(|bytes| Manifest::parse(&bytes).ok());
                manifest.is_some_and(|manifest| {
                    manifest.deltas.iter().any(|delta| delta.root == transfer.artifact)
                })
            });
            differing.next().map(|(app, release)| (app, release, true))
        })?;
    Some(Named { app: app.clone(), version: release.version.clone(), delta })
}

/// The release that was rejected, while the group is held.
fn rejected(app: &App) -> Option<&Release> {
    match &app.phase {
        Phase::Held { rejected, .. } => Some(rejected),
        Phase::Empty
        | Phase::Running { .. }
        | Phase::Forward { .. }
        | Phase::RollingBack { .. }
        | Phase::Removing { .. } => None,
    }
}

/// Every release of an app that may be in transfer, the likeliest first.
fn releases(app: &App) -> impl Iterator<Item = &Release> {
    let rollout = app.phase.rollout().map(|rollout| &rollout.release);
    rollout
        .into_iter()
        .chain(&app.last_good)
        .chain(rejected(app))
        .chain(app.good_before.iter().rev())
}

/// What is known at one moment.
struct Now<'a> {
    view: &'a View,
    contacts: &'a Contacts,
    now_ms: u64,
    linearizable: bool,
}

impl Now<'_> {
    /// Without a quorum, nothing is known to be true now, whatever the log says.
    fn is_unknown(&self, server: &ServerId) -> bool {
        !self.linearizable || self.view.is_unknown(server, self.contacts, self.now_ms)
    }
}

/// The servers that count as out of service. Of one that runs nothing, it does not matter that it
/// is unknown.
fn out_servers(now: &Now<'_>) -> BTreeSet<ServerId> {
    let state = &now.view.state;
    let mut out = capacity::out_servers(state);
    let may_serve = |server: &&ServerId| {
        now.is_unknown(server) && capacity::standing(state, server) != Standing::Idle
    };
    out.extend(state.servers.keys().filter(may_serve).cloned());
    out
}

fn app_status(now: &Now<'_>, id: &AppId, app: &App) -> AppStatus {
    let Now { view, contacts, now_ms, .. } = *now;
    let clock = view.clock(now_ms);
    let (since, reason, wave, wave_servers) = match &app.phase {
        Phase::Empty => (ClockMs(0), None, 0, Vec::new()),
        Phase::Running { since } => (*since, None, 0, Vec::new()),
        Phase::Forward { rollout, at } => match at {
            Milestone::MarkedOld { .. } | Milestone::LeaderHolds | Milestone::Verified => {
                (rollout.started, None, 0, Vec::new())
            }
            Milestone::Wave { servers, since, .. } => {
                (*since, None, rollout.waves, servers.iter().cloned().collect())
            }
        },
        Phase::RollingBack { reason, since, rollout, .. } => {
            (*since, Some(reason.clone()), rollout.waves, Vec::new())
        }
        Phase::Held { reason, since, .. } => (*since, Some(reason.clone()), 0, Vec::new()),
        Phase::Removing { since, .. } => (*since, None, 0, Vec::new()),
    };
    let target = rejected(app).or_else(|| app.phase.rollout().map(|rollout| &rollout.release));
    let servers = app.servers.iter().map(|(server, here)| {
        let doing = contacts.of(server).and_then(|contact| contact.doing.get(id)).cloned();
        let in_service = capacity::serves(here, doing.as_ref().map(Doing::step));
        let leaving = (here.in_service && !in_service).then_some(Unfit::Changing);
        let status = ServerAppStatus {
            running: here.running.as_ref().map(|release| release.version.clone()),
            in_service,
            unknown: here.unsure || now.is_unknown(server),
            unfit: leaving.or_else(|| here.unfit.clone()),
            holds_target: target.is_some_and(|release| here.has(&release.artifact)),
            activation: here.activation.as_ref().map(|activation| activation.stage.clone()),
            doing,
            debt: here.debt.as_ref().map(|debt| debt.reason.clone()),
            ignored_hook: here.ignored_hook.clone(),
        };
        (server.clone(), status)
    });
    let of_it = view.waiting.iter().filter(|waiting| waiting.app == *id);
    let waiting = of_it
        .map(|waiting| WaitingStatus { on: waiting.on.clone(), for_ms: clock.since(waiting.since) })
        .collect();
    AppStatus {
        state: app.phase.name(),
        since,
        last_good: app.last_good.as_ref().map(|release| release.version.clone()),
        target: target.map(|release| release.version.clone()),
        reason,
        wave,
        wave_servers,
        generation: app.generation,
        paused: app.pause.is_some(),
        servers: servers.collect(),
        waiting,
        history: app.history.to_vec(),
        failures: app
            .phase
            .rollout()
            .map_or_else(Vec::new, |rollout| rollout.failures.iter().map(failure).collect()),
    }
}

fn failure(failure: &Failure) -> FailureStatus {
    let Failure { server, step, reason, .. } = failure;
    FailureStatus { server: server.clone(), step: *step, reason: reason.clone() }
}

#[cfg(test)]
#[path = "status_test.rs"]
mod status_test;
