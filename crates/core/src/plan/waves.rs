//! A rollout wave by wave: which servers may start, what is in progress, who is lost.

use std::collections::BTreeSet;

use super::{Planner, is_counted_on};
use crate::capacity;
use crate::command::Planned;
use crate::ids::{AppId, ClockMs, ServerId};
use crate::orders::Purpose;
use crate::phase::WaveStep;
use crate::policy::Prestage;
use crate::reason::Reason;
use crate::report::Step;
use crate::state::{Activation, ActivationStage, App, Rollout};
use crate::waiting::WaitingOn;
use crate::wave;

impl Planner<'_> {
    pub(super) fn next_wave(&mut self, rollout: &Rollout) {
        self.find_lost(rollout);
        if self.is_interrupted(rollout) {
            return;
        }
        if rollout.awaits_approval() {
            self.wait(rollout.progress, WaitingOn::Approval { wave: rollout.waves });
            return;
        }
        let (silent, reachable): (BTreeSet<ServerId>, BTreeSet<ServerId>) =
            self.app.remaining(rollout).cloned().partition(|server| self.is_silent(server));
        if reachable.is_empty() {
            for server in silent {
                self.lose(&server);
            }
            return;
        }
        // A server that is still on its way back does not delay the release that may be its cure.
        let is_ready = |server: &&ServerId| {
            let change = self.app.servers[*server].in_flight();
            change.is_none_or(|change| change.purpose != Purpose::Wave)
        };
        let ready: Vec<ServerId> = reachable.iter().filter(is_ready).cloned().collect();
        if ready.is_empty() {
            self.steps(rollout.progress, &reachable);
            return;
        }
        let servers = wave::choose(self.state, self.app, rollout, self.leader, &ready);
        self.propose(Planned::StartWave { number: rollout.waves + 1, servers });
    }

    pub(super) fn wave(
        &mut self,
        rollout: &Rollout,
        servers: &BTreeSet<ServerId>,
        step: WaveStep,
        since: ClockMs,
    ) {
        if step == WaveStep::Baked {
            return self.next_wave(rollout);
        }
        self.find_lost(rollout);
        self.lose_silent(rollout, servers);
        let open: BTreeSet<ServerId> = servers.difference(&rollout.lost).cloned().collect();
        let interrupted = self.is_interrupted(rollout);
        if step != WaveStep::Baking && self.is_stuck(rollout, &open) {
            return;
        }
        match step {
            WaveStep::Assigned => {
                let has =
                    |server: &ServerId| self.app.servers[server].has(&rollout.release.artifact);
                let servers = open.iter().filter(|server| !has(server)).cloned().collect();
                self.wait(since, WaitingOn::Download { servers });
            }
            WaveStep::Baking => {
                let watched_ms = self.state.clock.since(since);
                let left_ms = rollout.policy.update.bake_time.ms.saturating_sub(watched_ms);
                self.wait(since, WaitingOn::BakeTime { left_ms });
            }
            WaveStep::Downloaded | WaveStep::Applied | WaveStep::Checked => {
                if !interrupted {
                    let has =
                        |server: &ServerId| self.app.servers[server].has(&rollout.release.artifact);
                    let waiting = open.iter().filter(|server| self.may_start(rollout, server));
                    // One may have lost it since. Without the bytes a grant would outlive its plan
                    // and block the next one.
                    let (waiting, lacking): (Vec<ServerId>, Vec<ServerId>) =
                        waiting.cloned().partition(has);
                    if !lacking.is_empty() {
                        let servers = lacking.into_iter().collect();
                        self.wait(since, WaitingOn::Download { servers });
                    }
                    let short = self.grants(&waiting, Purpose::Wave, since);
                    let flies = |id: &ServerId| self.app.servers[id].in_flight().is_some();
                    if short && step == WaveStep::Downloaded && !open.iter().any(flies) {
                        self.widen(rollout, servers);
                    }
                }
                self.steps(since, &open);
            }
            WaveStep::Baked => {}
        }
    }

    /// Declares lost what is silent in the wave, or served the release when it was last heard: it
    /// may be the release that silenced it, so it counts against the budget, and is not watched.
    fn lose_silent(&mut self, rollout: &Rollout, wave: &BTreeSet<ServerId>) {
        let app = self.app;
        if !self.any_is_silent() {
            return;
        }
        for (server, here) in &app.servers {
            let moved = here.serves(&rollout.release);
            let silent = self.is_silent(server)
                && (!moved || self.silent_ms(server) >= capacity::COUNTED_ON_MS);
            if (moved || wave.contains(server)) && !rollout.lost.contains(server) && silent {
                self.lose(server);
            }
        }
    }

    /// Fails the rollout if nothing progressed within `progress_deadline`, which is suspended under
    /// the kill switch, while the rollout is paused, and while no server may act: waiting for
    /// capacity is no fault of the release. Nor are servers that cannot download what others have.
    fn is_stuck(&mut self, rollout: &Rollout, open: &BTreeSet<ServerId>) -> bool {
        let within = rollout.policy.update.progress_deadline;
        let acts = |server: &ServerId| {
            !self.app.servers[server].has(&rollout.release.artifact) || self.acts(server)
        };
        let stuck = self.seen.killed.is_none()
            && self.app.pause_of(rollout).is_none()
            && open.iter().any(acts)
            && self.state.clock.since(rollout.progress) > within.ms;
        let late = if stuck { self.cannot_download(rollout, open) } else { Vec::new() };
        if !late.is_empty() {
            late.into_iter().for_each(|server| self.propose(Planned::LeaveOut { server }));
        } else if stuck {
            let release = Some(&rollout.release);
            let settled = |server: &ServerId| self.app.servers[server].settled_on(release);
            let servers = open.iter().filter(|server| !settled(server)).cloned().collect();
            let reason = Reason::NoProgress { wave: rollout.waves, within, servers };
            self.propose(Planned::Fail { reason });
        }
        stuck
    }

    /// The servers of the wave that have not downloaded the release, if no more than have it lack
    /// it, of all that were to download it.
    fn cannot_download(&self, rollout: &Rollout, open: &BTreeSet<ServerId>) -> Vec<ServerId> {
        let everyone = rollout.policy.update.prestage == Prestage::All;
        let has = |server: &ServerId| self.app.servers[server].has(&rollout.release.artifact);
        let (having, lacking): (Vec<&ServerId>, Vec<&ServerId>) =
            self.app.servers.keys().partition(|server| has(server));
        let lacks = |server: &&&ServerId| {
            !rollout.lost.contains(**server)
                && (open.contains(**server) || (everyone && self.is_heard(server)))
        };
        if lacking.iter().filter(lacks).count() > having.len() {
            return Vec::new();
        }
        open.iter().filter(|server| !has(server)).cloned().collect()
    }

    /// Whether a server of the wave still needs a grant. A change of an older plan that failed or
    /// leads back does not prevent one: this release may repair it.
    fn may_start(&self, rollout: &Rollout, server: &ServerId) -> bool {
        let here = &self.app.servers[server];
        let own = |change: &Activation| {
            change.purpose == Purpose::Wave && change.release.as_ref() == Some(&rollout.release)
        };
        let free = here.activation.as_ref().is_none_or(|change| {
            change.purpose != Purpose::Wave || change.void || (!change.in_flight() && !own(change))
        });
        free && !here.serves(&rollout.release)
    }

    /// Takes a broken server that nothing else repairs into the wave, which waits for room.
    fn widen(&mut self, rollout: &Rollout, wave: &BTreeSet<ServerId>) {
        let broken = self.app.remaining(rollout).find(|server| {
            let here = &self.app.servers[*server];
            // One that has just restarted is about to say what it is.
            !wave.contains(*server)
                && !here.unsure
                && here.in_flight().is_none()
                && capacity::is_down(self.app, server)
                && self.is_heard(server)
                && here.debt.as_ref().is_none_or(|debt| {
                    self.rest(here, debt).is_some() || self.app.last_good.is_none()
                })
        });
        if let Some(server) = broken.cloned() {
            self.propose(Planned::WidenWave { server });
        }
    }

    /// Grants as many changes as capacity allows; records which servers the rest is waiting for.
    /// Returns whether any had to be left out for lack of room.
    pub(super) fn grants(
        &mut self,
        servers: &[ServerId],
        purpose: Purpose,
        since: ClockMs,
    ) -> bool {
        if servers.is_empty() {
            return false;
        }
        let max = self.app.max_unavailable(self.state.size());
        let mut short = false;
        let seen = self.seen;
        let voters = &seen.voters;
        let mut short_of_voters = false;
        // Free ones first.
        let (free, costly): (Vec<&ServerId>, Vec<&ServerId>) =
            servers.iter().partition(|server| !self.costs(server, purpose));
        for (at, server) in free.iter().chain(&costly).enumerate() {
            if self.waits_for_another_app(server) {
                continue;
            }
            let votes = purpose == Purpose::Wave && voters.contains(*server);
            if votes && !wave::spares_majority(self.state, voters, server) {
                short_of_voters = true;
                continue;
            }
            if at >= free.len() {
                if !capacity::has_room(&self.round.used, max, server) {
                    short = true;
                    continue;
                }
                self.round.used.insert((*server).clone());
            }
            let voters = if votes { voters.clone() } else { BTreeSet::new() };
            self.propose(Planned::Grant { server: (*server).clone(), purpose, voters });
        }
        if short {
            self.wait_for_room(since, max);
        }
        if short_of_voters {
            let max = u32::try_from(wave::margin(voters.len())).unwrap_or(u32::MAX);
            let voters = wave::at_risk(self.state, voters);
            self.wait(since, WaitingOn::QuorumMargin { voters, max });
        }
        short
    }

    fn wait_for_room(&mut self, since: ClockMs, max: u32) {
        let out = self.round.out.clone();
        for server in &out {
            if !self.is_counted_on(server) {
                let (server, for_ms) = (server.clone(), self.silent_ms(server));
                self.wait(since, WaitingOn::ServerUnreachable { server, for_ms });
            }
        }
        self.wait(since, WaitingOn::Capacity { out, max });
    }

    fn is_counted_on(&self, server: &ServerId) -> bool {
        is_counted_on(self.seen, self.leader, self.round.counted_on_ms, server)
    }

    /// Whether another app is changing on the server; if so, waits for it.
    pub(super) fn waits_for_another_app(&mut self, server: &ServerId) -> bool {
        let busy = self.changed_by_others(server).next().is_some();
        if busy {
            self.wait(self.state.clock, WaitingOn::OtherApp { server: server.clone() });
        }
        busy
    }

    /// The other apps that are changing on the server.
    fn changed_by_others<'b>(&'b self, server: &'b ServerId) -> impl Iterator<Item = &'b AppId> {
        let others = self.state.apps.iter().filter(|(other, _)| *other != self.id);
        let flies = |app: &App| app.servers.get(server).is_some_and(|it| it.in_flight().is_some());
        others.filter(move |(_, app)| flies(app)).map(|(other, _)| other)
    }

    pub(super) fn costs(&self, server: &ServerId, purpose: Purpose) -> bool {
        capacity::costs(self.state, self.app, server, purpose)
    }

    /// Whether a server is changing, and is not held for lack of room.
    fn acts(&self, server: &ServerId) -> bool {
        self.app.servers.get(server).is_some_and(|here| here.in_flight().is_some())
            && (self.has_begun(server) || !self.round.held.holds(self.id, server))
    }

    /// Whether a server says that it has begun its change.
    fn has_begun(&self, server: &ServerId) -> bool {
        super::says_begun(self.seen, self.id, server)
    }

    /// Takes back what was granted and either has no room any more or is no longer wanted. A grant
    /// that may not begin would block other apps, newer releases and the way back, which may be
    /// what makes room; one that leads where the plan no longer goes, a server that cannot begin.
    pub(super) fn withdraw(&mut self) {
        for (server, change) in self.app.in_flight() {
            let may_begin = self.app.wants(change) && !self.round.held.holds(self.id, server);
            let granted = change.stage == ActivationStage::Granted;
            if granted && !may_begin && !self.has_begun(server) {
                self.propose(Planned::Withdraw { server: server.clone() });
            }
        }
    }

    /// Waits for the steps that these servers are taking, and for room if they may not begin.
    pub(super) fn steps(&mut self, since: ClockMs, servers: &BTreeSet<ServerId>) {
        let flies = |server: &&ServerId| {
            self.app.servers.get(*server).is_some_and(|here| here.in_flight().is_some())
        };
        let (servers, held): (BTreeSet<&ServerId>, BTreeSet<&ServerId>) =
            servers.iter().filter(flies).partition(|server| self.acts(server));
        if !held.is_empty() {
            let max = self.app.max_unavailable(self.state.size());
            self.wait_for_room(since, max);
        }
        for server in &servers {
            if !self.is_counted_on(server) {
                let (server, for_ms) = ((*server).clone(), self.silent_ms(server));
                self.wait(since, WaitingOn::ServerUnreachable { server, for_ms });
            }
        }
        let step = |server: &&ServerId| {
            let change = self.app.servers.get(*server)?.in_flight()?;
            let reported = match &change.stage {
                ActivationStage::Granted | ActivationStage::Withdrawn => Step::Prepare,
                ActivationStage::Applied { .. } => Step::Check,
                ActivationStage::Checked { .. } => Step::WarmUp,
                ActivationStage::Failed { .. } | ActivationStage::Undone { .. } => return None,
            };
            let doing = self.seen.doing.get(&(self.id.clone(), (*server).clone()));
            Some(((*server).clone(), doing.copied().unwrap_or(reported)))
        };
        let servers: Vec<(ServerId, Step)> = servers.iter().filter_map(step).collect();
        if !servers.is_empty() {
            self.wait(since, WaitingOn::Steps { servers });
        }
    }

    /// Declares a silent server lost; under the kill switch, waits for it instead.
    pub(super) fn lose(&mut self, server: &ServerId) {
        let (server, silent_ms) = (server.clone(), self.silent_ms(server));
        if self.seen.killed.is_some() {
            let on = WaitingOn::ServerUnreachable { server, for_ms: silent_ms };
            self.wait(self.state.clock, on);
        } else {
            self.propose(Planned::LoseServer { server, silent_ms });
        }
    }

    /// Lost servers that are back and did not fail rejoin.
    pub(super) fn find_lost(&mut self, rollout: &Rollout) {
        for server in &rollout.lost {
            let Some(here) = self.app.servers.get(server) else { continue };
            let failed = rollout.failed.contains(server);
            let free = here.activation.as_ref().is_none_or(Activation::open);
            let lacks = rollout.unfetched.contains(server) && !here.has(&rollout.release.artifact);
            if self.is_heard(server) && !failed && free && !lacks {
                self.propose(Planned::FindServer { server: server.clone() });
            }
        }
    }
}
