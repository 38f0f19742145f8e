//! From the committed state to the orders of one server.

use crate::ids::{ClockMs, Digest, ServerId};
use crate::orders::{
    ActivationOrder, AppOrders, FetchOrder, MemberAddress, MemberOrder, Orders, Purpose, Source,
};
use crate::phase::Phase;
use crate::policy::{CheckPhase, Policy};
use crate::prestage;
use crate::release::Release;
use crate::state::{ActivationStage, App, ServerApp, State};

/// Sources named to one server. 4: enough to survive two that are gone, small in every answer.
pub(crate) const SOURCES_MAX: usize = 4;

impl State {
    /// What one server is to do now; none when it does not belong to the group.
    ///
    /// `killed` is the latch of the kill switch on the member that answers.
    #[must_use]
    pub fn orders(&self, server: &ServerId, killed: bool) -> Option<Orders> {
        let known = self.servers.get(server)?;
        let apps = self
            .apps
            .iter()
            .filter_map(|(id, app)| {
                let here = app.servers.get(server)?;
                let policy = app.phase.rollout().map_or(&app.policy, |rollout| &rollout.policy);
                Some(AppOrders {
                    app: id.clone(),
                    fetch: self.fetches(app, server, here, killed),
                    activation: self.activation_order(app, policy, here, killed),
                    run: here.running.clone(),
                    owes: here.debt.is_some(),
                    checks: policy
                        .checks
                        .iter()
                        .filter(|check| check.phase.contains(&CheckPhase::Running))
                        .cloned()
                        .collect(),
                    keep: keeps(app, here),
                })
            })
            .collect();
        Some(Orders {
            group: self.group.clone(),
            incarnation: self.incarnation,
            server: server.clone(),
            apps,
            member: known.member.map(|member| MemberOrder { member }),
            members: self.member_addresses(),
        })
    }

    /// Where the group's members are.
    #[must_use]
    pub fn member_addresses(&self) -> Vec<MemberAddress> {
        self.servers
            .iter()
            .filter_map(|(id, server)| {
                server.member.map(|member| MemberAddress {
                    server: id.clone(),
                    address: server.address.clone(),
                    member,
                })
            })
            .collect()
    }

    fn fetches(
        &self,
        app: &App,
        server: &ServerId,
        here: &ServerApp,
        killed: bool,
    ) -> Vec<FetchOrder> {
        let mut fetches = Vec::new();
        // The kill switch stops what is new, never the way back.
        if let Some(rollout) = app.phase.forward()
            && !killed
            && !here.has(&rollout.release.artifact)
            && prestage::is_due(self, app, rollout, server)
        {
            let awaited = match &app.phase {
                Phase::Wave { servers, .. } => servers.contains(server),
                Phase::Empty
                | Phase::Running { .. }
                | Phase::MarkedOld { .. }
                | Phase::LeaderHolds { .. }
                | Phase::Verified { .. }
                | Phase::RollingBack { .. }
                | Phase::Held { .. } => false,
            };
            let lead = rollout.lead == *server;
            let from_mirror = lead || (awaited && self.is_late(app, rollout.progress));
            let sources = self.sources(app, server, &rollout.release);
            // Bytes flow while the leader's own copy is still arriving. Who may ask a mirror by itself is the leader's server, and whoever got
            // nothing for long, so that a release crosses the zone's downlink once.
            fetches.push(FetchOrder { release: rollout.release.clone(), from_mirror, sources });
        }
        // What it is to run it needs even where it once said that it has it: disks lose things. A
        // server that does have it fetches nothing.
        if let Some(activation) = here.activation.as_ref().filter(|a| a.in_flight())
            && activation.stage == ActivationStage::Granted
            && let Some(release) = &activation.release
            && here.has(&release.artifact)
        {
            let sources = self.sources(app, server, release);
            let from_mirror = sources.is_empty() || self.is_late(app, activation.granted);
            fetches.push(FetchOrder { release: release.clone(), from_mirror, sources });
        }
        let needed_since = match (&here.debt, &app.phase) {
            (Some(debt), _) => Some(debt.since),
            (None, Phase::RollingBack { since, .. }) => Some(*since),
            (
                None,
                Phase::Empty
                | Phase::Running { .. }
                | Phase::MarkedOld { .. }
                | Phase::LeaderHolds { .. }
                | Phase::Verified { .. }
                | Phase::Wave { .. }
                | Phase::Held { .. },
            ) => None,
        };
        if let Some(good) = &app.last_good
            && let Some(since) = needed_since
            && !here.has(&good.artifact)
        {
            let sources = self.sources(app, server, good);
            let from_mirror = sources.is_empty() || self.is_late(app, since);
            fetches.push(FetchOrder { release: good.clone(), from_mirror, sources });
        }
        fetches
    }

    /// Whether bytes have been awaited for half the time that a wave has: the servers that said
    /// that they hold them may have lost them, and a mirror is asked as well.
    fn is_late(&self, app: &App, since: ClockMs) -> bool {
        let policy = app.phase.rollout().map_or(&app.policy, |rollout| &rollout.policy);
        self.clock.since(since) >= policy.update.progress_deadline.ms / 2
    }

    /// Who has it whole, beginning at another one for every server, so that the load spreads.
    fn sources(&self, app: &App, server: &ServerId, release: &Release) -> Vec<Source> {
        let holders: Vec<&ServerId> = app
            .servers
            .iter()
            .filter(|(id, other)| *id != server && other.has(&release.artifact))
            .map(|(id, _)| id)
            .collect();
        let start = self.servers.get(server).map_or(0, |known| known.joined) as usize;
        (0..holders.len().min(SOURCES_MAX))
            .filter_map(|i| {
                let id = holders[(start + i) % holders.len()];
                let address = self.servers.get(id)?.address.clone();
                Some(Source { server: id.clone(), address })
            })
            .collect()
    }

    fn activation_order(
        &self,
        app: &App,
        policy: &Policy,
        here: &ServerApp,
        killed: bool,
    ) -> Option<ActivationOrder> {
        let activation = here.activation.as_ref().filter(|activation| activation.in_flight())?;
        let by_person = matches!(app.phase, Phase::RollingBack { by_person: true, .. });
        let update = &policy.update;
        Some(ActivationOrder {
            fence: activation.fence,
            release: activation.release.clone(),
            undo_to: activation.before.clone(),
            purpose: activation.purpose,
            avoid: avoid(app),
            drain_ms: update.drain_time.ms,
            min_healthy_ms: update.min_healthy_time.ms,
            healthy_deadline_ms: update.healthy_deadline.ms,
            confirm_within_ms: update.confirm_within.ms,
            warm_up_ms: update.warm_up_time.ms,
            checks: policy
                .checks
                .iter()
                .filter(|check| check.phase.contains(&CheckPhase::PreFlight))
                .cloned()
                .collect(),
            begin: !killed || (by_person && activation.purpose == Purpose::RollBack),
        })
    }
}

/// Servers that are being changed, or whose wave it is: leadership should not go there.
fn avoid(app: &App) -> Vec<ServerId> {
    match &app.phase {
        Phase::Wave { servers, .. } => servers.iter().cloned().collect(),
        Phase::Empty
        | Phase::Running { .. }
        | Phase::MarkedOld { .. }
        | Phase::LeaderHolds { .. }
        | Phase::Verified { .. }
        | Phase::RollingBack { .. }
        | Phase::Held { .. } => app.in_flight().map(|(id, _)| id.clone()).collect(),
    }
}

/// Artifacts that must stay on disk: what runs, where a roll-back or an undo goes, what comes.
fn keeps(app: &App, here: &ServerApp) -> Vec<Digest> {
    let mut keep: Vec<Digest> = Vec::new();
    let rollout = app.phase.rollout().map(|rollout| &rollout.release);
    let activation = here.activation.as_ref();
    let releases = app
        .last_good
        .iter()
        .chain(&app.good_before)
        .chain(&here.running)
        .chain(rollout)
        .chain(activation.and_then(|a| a.release.as_ref()))
        .chain(activation.and_then(|a| a.before.as_ref()));
    for release in releases {
        if !keep.contains(&release.artifact) {
            keep.push(release.artifact.clone());
        }
    }
    // What the group believes to be there stays there: a retry needs no second download.
    for artifact in &here.holds {
        if !keep.contains(artifact) {
            keep.push(artifact.clone());
        }
    }
    keep
}
