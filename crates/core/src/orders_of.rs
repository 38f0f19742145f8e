//! From the committed state to the orders of one server.

use crate::ids::{AppId, ClockMs, Digest, ServerId};
use crate::orders::{
    ActivationOrder, AppOrders, FetchOrder, Hold, MemberAddress, MemberOrder, Orders, Purpose,
    Source, TrialOrder,
};
use crate::phase::Phase;
use crate::policy::CheckPhase;
use crate::prestage;
use crate::release::Release;
use crate::state::{Activation, ActivationStage, App, ServerApp, State};
use crate::survey::Survey;
use crate::trial::TrialResult;

/// Sources named to one server. 4: enough to survive two that are gone, small in every response.
pub(crate) const SOURCES_MAX: usize = 4;

impl State {
    /// The orders of one server; `None` if it is not in the group. `killed`: the kill switch is on
    /// at the member that responds.
    #[must_use]
    pub fn orders(&self, server: &ServerId, killed: bool) -> Option<Orders> {
        self.orders_by(&Survey::default(), server, killed)
    }

    /// The same, for one server of many: they share a survey of this state.
    #[must_use]
    pub fn orders_by(&self, survey: &Survey, server: &ServerId, killed: bool) -> Option<Orders> {
        let known = self.servers.get(server)?;
        let apps = self.apps.iter().filter_map(|(id, app)| {
            let here = app.servers.get(server)?;
            let asked = Asked { state: self, survey, id, app, server, here, killed };
            Some(AppOrders {
                app: id.clone(),
                fetch: asked.fetches(),
                activation: asked.activation(),
                run: here.running.clone(),
                owes: here.debt.is_some(),
                in_service: (!here.unsure).then_some(here.in_service),
                checks: app.check_set(here.checks).in_phase(CheckPhase::Running),
                trial: asked.trial(),
                keep: asked.keeps(),
                holds: here.holds.clone(),
            })
        });
        Some(Orders {
            group: self.group.clone(),
            incarnation: self.incarnation,
            server: server.clone(),
            apps: apps.collect(),
            member: known.member.map(|member| MemberOrder { member }),
            members: survey.members(self).to_vec(),
            heard: known.boot_epoch,
        })
    }

    /// The addresses of the group's members.
    #[must_use]
    pub fn member_addresses(&self) -> Vec<MemberAddress> {
        let members = self.servers.iter().filter_map(|(id, server)| {
            let (address, member) = (server.address.clone(), server.member?);
            Some(MemberAddress { server: id.clone(), address, member })
        });
        members.collect()
    }
}

/// The inputs of one server's orders for one app.
struct Asked<'a> {
    state: &'a State,
    survey: &'a Survey,
    id: &'a AppId,
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

    /// The release being rolled out. Only the leader's server, and servers of the wave that have
    /// waited long, may use a mirror: so a release crosses the zone's downlink once.
    fn fetch_coming(&self) -> Option<FetchOrder> {
        let rollout = self.app.phase.forward()?;
        let has = self.here.has(&rollout.release.artifact);
        let is_next = || self.survey.is_next(self.state, self.id, self.server);
        if self.killed || has || !prestage::is_due(self.app, rollout, self.server, is_next) {
            return None;
        }
        let in_wave = self.app.phase.wave().is_some_and(|(wave, _)| wave.contains(self.server));
        let late = in_wave && self.is_late(rollout.progress);
        Some(self.fetch(&rollout.release, late || rollout.lead == *self.server))
    }

    /// What the server was granted to run, even if it once reported having it, and has begun to: a
    /// server that has lost its disk begins again. One that still has it fetches nothing.
    fn fetch_granted(&self) -> Option<FetchOrder> {
        let change = self.here.in_flight()?;
        let release = change.release.as_ref()?;
        let comes = self.app.phase.forward().is_some_and(|rollout| rollout.release == *release);
        let withdrawn = change.stage == ActivationStage::Withdrawn;
        if withdrawn || (comes && !self.here.has(&release.artifact)) {
            return None;
        }
        Some(self.fetch(release, true))
    }

    /// The good release, if the server is in debt or the group is rolling back. The kill switch
    /// does not stop the way back.
    fn fetch_good(&self) -> Option<FetchOrder> {
        let good = self.app.last_good.as_ref()?;
        match (&self.here.debt, &self.app.phase) {
            (Some(_), _) | (None, Phase::RollingBack { .. }) => {}
            (
                None,
                Phase::Empty
                | Phase::Running { .. }
                | Phase::Forward { .. }
                | Phase::Held { .. }
                | Phase::Removing { .. },
            ) => return None,
        }
        // The mirror too: no server may really have what the group believes.
        (!self.here.has(&good.artifact)).then(|| self.fetch(good, true))
    }

    fn fetch(&self, release: &Release, from_mirror: bool) -> FetchOrder {
        FetchOrder { release: release.clone(), from_mirror, sources: self.sources(release) }
    }

    /// Whether the server has waited for half of `progress_deadline`: the servers that reported the
    /// bytes may have lost them.
    fn is_late(&self, since: ClockMs) -> bool {
        let deadline = self.app.policy_in_force().update.progress_deadline;
        self.state.clock.since(since) >= deadline.ms / 2
    }

    /// Servers that have the whole release. The list starts at a different server for each
    /// requester, which spreads the load.
    fn sources(&self, release: &Release) -> Vec<Source> {
        let holders = self.survey.holders(self.state, self.id, &release.artifact);
        let own = holders.binary_search(self.server).ok();
        let count = holders.len() - usize::from(own.is_some());
        let start = self.state.servers.get(self.server).map_or(0, |known| known.joined) as usize;
        let source = |i: usize| {
            let at = (start + i) % count;
            let server = holders[at + usize::from(own.is_some_and(|own| own <= at))].clone();
            let address = self.state.servers.get(&server)?.address.clone();
            Some(Source { server, address })
        };
        (0..count.min(SOURCES_MAX)).filter_map(source).collect()
    }

    fn activation(&self) -> Option<ActivationOrder> {
        let activation = self.here.in_flight()?;
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
            // A broken hook must not keep a bad or removed release running.
            stop_despite_hooks: activation.purpose != Purpose::Wave || update.stop_despite_hooks,
            checks: self.app.preflight_set(activation.purpose).checks.clone(),
            hold: self.hold(activation.purpose),
        })
    }

    /// An operator can roll back under the kill switch.
    fn hold(&self, purpose: Purpose) -> Option<Hold> {
        let by_person = matches!(self.app.phase, Phase::RollingBack { by_person: true, .. });
        // Before the kill switch: a server that has not begun gives it back, which starts nothing.
        if self.here.in_flight().is_some_and(|it| it.stage == ActivationStage::Withdrawn) {
            Some(Hold::Withdrawn)
        } else if self.killed && !(by_person && purpose == Purpose::RollBack) {
            Some(Hold::KillSwitch)
        } else if self.is_held() {
            Some(Hold::Capacity)
        } else {
            None
        }
    }

    /// Whether there is no room for the granted change any more.
    fn is_held(&self) -> bool {
        let granted = |change: &Activation| change.stage == ActivationStage::Granted;
        self.here.in_flight().is_some_and(granted)
            && self.survey.held(self.state).holds(self.id, self.server)
    }

    /// Servers that are changing, or will soon: do not move leadership there.
    fn avoid(&self) -> Vec<ServerId> {
        match self.app.phase.wave() {
            Some((servers, _)) => servers.iter().cloned().collect(),
            None => self.app.in_flight().map(|(id, _)| id.clone()).collect(),
        }
    }

    /// Under the kill switch, nothing new runs, and neither does a check.
    fn trial(&self) -> Option<TrialOrder> {
        if self.killed {
            return None;
        }
        let set = self.app.on_trial(self.here)?;
        let checks = set.in_phase(CheckPhase::Running);
        let passes = self.here.trial.as_ref().map(|trial| trial.result == TrialResult::Passes);
        Some(TrialOrder { revision: set.revision, checks, passes })
    }

    /// Artifacts to keep on disk: what runs, what a rollback or an undo would restore, what is
    /// coming, and what the group believes the server has, so that a retry needs no second
    /// download.
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
