//! From the committed state to the orders of one server.

use crate::ids::{ClockMs, Digest, ServerId};
use crate::orders::{
    ActivationOrder, AppOrders, FetchOrder, MemberAddress, MemberOrder, Orders, Purpose, Source,
};
use crate::phase::Phase;
use crate::policy::{Check, CheckPhase};
use crate::prestage;
use crate::release::Release;
use crate::state::{ActivationStage, App, ServerApp, State};

/// Sources named to one server. 4: enough to survive two that are gone, small in every answer.
pub(crate) const SOURCES_MAX: usize = 4;

impl State {
    /// The orders of one server; none if it is not in the group. `killed` is whether the kill
    /// switch is on at the member that answers.
    #[must_use]
    pub fn orders(&self, server: &ServerId, killed: bool) -> Option<Orders> {
        let known = self.servers.get(server)?;
        let apps = self.apps.iter().filter_map(|(id, app)| {
            let here = app.servers.get(server)?;
            let asked = Asked { state: self, app, server, here, killed };
            Some(AppOrders {
                app: id.clone(),
                fetch: asked.fetches(),
                activation: asked.activation(),
                run: here.running.clone(),
                owes: here.debt.is_some(),
                checks: asked.checks(CheckPhase::Running),
                keep: asked.keeps(),
            })
        });
        Some(Orders {
            group: self.group.clone(),
            incarnation: self.incarnation,
            server: server.clone(),
            apps: apps.collect(),
            member: known.member.map(|member| MemberOrder { member }),
            members: self.member_addresses(),
        })
    }

    /// Where the group's members can be reached.
    #[must_use]
    pub fn member_addresses(&self) -> Vec<MemberAddress> {
        let members = self.servers.iter().filter_map(|(id, server)| {
            let (address, member) = (server.address.clone(), server.member?);
            Some(MemberAddress { server: id.clone(), address, member })
        });
        members.collect()
    }
}

/// What the orders of one server for one app are made from.
struct Asked<'a> {
    state: &'a State,
    app: &'a App,
    server: &'a ServerId,
    here: &'a ServerApp,
    killed: bool,
}

impl Asked<'_> {
    fn fetches(&self) -> Vec<FetchOrder> {
        [self.fetch_coming(), self.fetch_granted(), self.fetch_good()]
            .into_iter()
            .flatten()
            .collect()
    }

    /// The release that rolls out. A mirror is for the leader's server, and for servers of the
    /// wave that got nothing for long: so a release crosses the zone's downlink once.
    fn fetch_coming(&self) -> Option<FetchOrder> {
        let rollout = self.app.phase.forward()?;
        let has = self.here.has(&rollout.release.artifact);
        if self.killed || has || !prestage::is_due(self.state, self.app, rollout, self.server) {
            return None;
        }
        let in_wave = self.app.phase.wave().is_some_and(|(wave, _)| wave.contains(self.server));
        let late = in_wave && self.is_late(rollout.progress);
        Some(self.fetch(&rollout.release, late || rollout.lead == *self.server))
    }

    /// What the server was granted to run, even if it once reported that it has it: disks lose
    /// data. A server that still has it fetches nothing.
    fn fetch_granted(&self) -> Option<FetchOrder> {
        let change = self.here.in_flight()?;
        let release = change.release.as_ref()?;
        if change.stage != ActivationStage::Granted || !self.here.has(&release.artifact) {
            return None;
        }
        Some(self.fetch_from_anywhere(release, change.granted))
    }

    /// The good release, if the server owes it or the group goes back to it. The kill switch does
    /// not stop the way back.
    fn fetch_good(&self) -> Option<FetchOrder> {
        let good = self.app.last_good.as_ref()?;
        let since = match (&self.here.debt, &self.app.phase) {
            (Some(debt), _) => debt.since,
            (None, Phase::RollingBack { since, .. }) => *since,
            (
                None,
                Phase::Empty | Phase::Running { .. } | Phase::Forward { .. } | Phase::Held { .. },
            ) => return None,
        };
        (!self.here.has(&good.artifact)).then(|| self.fetch_from_anywhere(good, since))
    }

    fn fetch(&self, release: &Release, from_mirror: bool) -> FetchOrder {
        FetchOrder { release: release.clone(), from_mirror, sources: self.sources(release) }
    }

    /// From a mirror too if no server has it, or if it has been awaited for long.
    fn fetch_from_anywhere(&self, release: &Release, since: ClockMs) -> FetchOrder {
        let late = self.is_late(since);
        let order = self.fetch(release, late);
        FetchOrder { from_mirror: late || order.sources.is_empty(), ..order }
    }

    /// Whether bytes have been awaited for half of `progress_deadline`: the servers that reported
    /// them may have lost them.
    fn is_late(&self, since: ClockMs) -> bool {
        let deadline = self.app.policy_in_force().update.progress_deadline;
        self.state.clock.since(since) >= deadline.ms / 2
    }

    /// Servers that have the whole release. Each asking server starts at another one, which spreads
    /// the load.
    fn sources(&self, release: &Release) -> Vec<Source> {
        let holds = |(id, other): &(&ServerId, &ServerApp)| {
            *id != self.server && other.has(&release.artifact)
        };
        let holders: Vec<&ServerId> =
            self.app.servers.iter().filter(holds).map(|(id, _)| id).collect();
        let start = self.state.servers.get(self.server).map_or(0, |known| known.joined) as usize;
        let source = |i: usize| {
            let server = holders[(start + i) % holders.len()].clone();
            let address = self.state.servers.get(&server)?.address.clone();
            Some(Source { server, address })
        };
        (0..holders.len().min(SOURCES_MAX)).filter_map(source).collect()
    }

    fn activation(&self) -> Option<ActivationOrder> {
        let activation = self.here.in_flight()?;
        let by_person = matches!(self.app.phase, Phase::RollingBack { by_person: true, .. });
        let update = &self.app.policy_in_force().update;
        Some(ActivationOrder {
            fence: activation.fence,
            release: activation.release.clone(),
            undo_to: activation.before.clone(),
            purpose: activation.purpose,
            avoid: self.avoid(),
            drain_ms: update.drain_time.ms,
            min_healthy_ms: update.min_healthy_time.ms,
            healthy_deadline_ms: update.healthy_deadline.ms,
            confirm_within_ms: update.confirm_within.ms,
            warm_up_ms: update.warm_up_time.ms,
            checks: self.checks(CheckPhase::PreFlight),
            begin: !self.killed || (by_person && activation.purpose == Purpose::RollBack),
        })
    }

    /// Servers that are being changed, or are about to be: leadership should not move there.
    fn avoid(&self) -> Vec<ServerId> {
        match self.app.phase.wave() {
            Some((servers, _)) => servers.iter().cloned().collect(),
            None => self.app.in_flight().map(|(id, _)| id.clone()).collect(),
        }
    }

    fn checks(&self, phase: CheckPhase) -> Vec<Check> {
        let checks = &self.app.policy_in_force().checks;
        checks.iter().filter(|check| check.phase.contains(&phase)).cloned().collect()
    }

    /// Artifacts to keep on disk: what runs, where a roll-back or an undo would go, what comes,
    /// and what the group believes the server has, so that a retry needs no second download.
    fn keeps(&self) -> Vec<Digest> {
        let activation = self.here.activation.as_ref();
        let rollout = self.app.phase.rollout().map(|rollout| &rollout.release);
        let releases = (self.app.last_good.iter())
            .chain(&self.app.good_before)
            .chain(&self.here.running)
            .chain(rollout)
            .chain(activation.and_then(|activation| activation.release.as_ref()))
            .chain(activation.and_then(|activation| activation.before.as_ref()));
        let mut keep: Vec<Digest> = Vec::new();
        for artifact in releases.map(|release| &release.artifact).chain(&self.here.holds) {
            if !keep.contains(artifact) {
                keep.push(artifact.clone());
            }
        }
        keep
    }
}
