//! Whether a rollout starts, and of which release.

use std::collections::BTreeSet;

use super::{Offer, Planner};
use crate::command::Planned;
use crate::gate;
use crate::ids::{ClockMs, ServerId};
use crate::phase::Phase;
use crate::refused::WhyRefused;
use crate::release::Release;
use crate::state::{Pause, Rollout};
use crate::waiting::{Waiting, WaitingOn};

impl Planner<'_> {
    /// Starts the offered release, or says why not. Call only while no rollout is in progress.
    pub(super) fn consider(&mut self, since: ClockMs) {
        let mut reasons = Vec::new();
        if !self.offer_says_why() {
            self.not_refreshed();
        }
        let release = self.eligible(&mut reasons);
        for on in reasons {
            self.wait(since, on);
        }
        let Some(release) = release else { return };
        for server in self.app.blocking_takeover() {
            if self.is_silent(&server) {
                self.lose(&server);
            }
        }
        if !self.is_blocked(&release, since) && !self.too_many_silent(since) {
            self.start_rollout(release);
        }
    }

    /// Whether a newer eligible release is offered: it takes over between two steps.
    pub(super) fn newer(&mut self, rollout: &Rollout) -> bool {
        let Some(release) = self.newer_than(rollout) else { return false };
        self.take_over(release, rollout.progress);
        true
    }

    /// A newer eligible release takes over from a rollback that is stuck: it may be the cure of
    /// what the way back cannot repair. Returns whether one does.
    pub(super) fn relieves(&mut self, rollout: &Rollout, owing: &BTreeSet<ServerId>) -> bool {
        let (since, clock) = (rollout.progress, self.state.clock);
        let good = self.app.last_good.as_ref();
        let newer = self.newer_than(rollout).filter(|release| good != Some(release));
        let stuck = rollout.is_stuck(clock);
        match newer {
            Some(release) if stuck => return self.take_over(release, since),
            Some(Release { version, .. }) => {
                let within_ms = rollout.policy.update.progress_deadline.ms;
                let left_ms = within_ms.saturating_sub(clock.since(since));
                self.wait(since, WaitingOn::RollbackFirst { version, left_ms });
            }
            None if stuck => {
                let servers = owing.iter().cloned().collect();
                self.wait(since, WaitingOn::RollbackStuck { servers });
            }
            None => {}
        }
        false
    }

    /// Starts the release, unless a server is mid-change. Returns whether it starts.
    fn take_over(&mut self, release: Release, since: ClockMs) -> bool {
        let blocked = self.is_blocked(&release, since);
        if !blocked {
            self.start_rollout(release);
        }
        !blocked
    }

    /// The eligible release that is offered, unless it is this rollout's.
    fn newer_than(&self, rollout: &Rollout) -> Option<Release> {
        match self.seen.offers.get(self.id) {
            Some(Offer::Release(release)) if *release != rollout.release => {
                self.eligible(&mut Vec::new())
            }
            Some(Offer::Release(_) | Offer::Refused(_) | Offer::Unknown(_)) | None => None,
        }
    }

    /// Whether servers have to finish their change before the rollout can start.
    fn is_blocked(&mut self, release: &Release, since: ClockMs) -> bool {
        let servers = self.app.blocking_takeover();
        let blocked = !servers.is_empty();
        if blocked {
            let version = release.version.clone();
            self.wait(since, WaitingOn::NewerRelease { version, servers });
        }
        blocked
    }

    /// A rollout does not start if it would immediately lose more servers than it tolerates.
    fn too_many_silent(&mut self, since: ClockMs) -> bool {
        let silent: Vec<&ServerId> =
            self.app.servers.keys().filter(|server| self.is_silent(server)).collect();
        let tolerated = self.app.policy.surroundings_allowed_of(self.state.size()) as usize;
        if silent.len() <= tolerated {
            return false;
        }
        for server in silent {
            let for_ms = self.silent_ms(server);
            self.wait(since, WaitingOn::ServerUnreachable { server: server.clone(), for_ms });
        }
        true
    }

    /// The release that may start in this group, or the reasons why none can.
    fn eligible(&self, reasons: &mut Vec<WaitingOn>) -> Option<Release> {
        let release = match self.seen.offers.get(self.id) {
            Some(Offer::Release(release)) => release,
            Some(Offer::Refused(refused)) => {
                reasons.push(WaitingOn::ReleaseRefused(refused.clone()));
                return None;
            }
            Some(Offer::Unknown(refused)) => {
                reasons.push(WaitingOn::NoRelease(refused.clone()));
                return None;
            }
            None => {
                reasons.push(WaitingOn::NoRelease(WhyRefused::NotRead.into()));
                return None;
            }
        };
        reasons.extend(self.seen.refusals.iter().cloned().map(WaitingOn::ReleaseRefused));
        let obstacle = self.obstacle(release);
        let eligible = obstacle.is_none().then(|| release.clone());
        // An offer from old metadata does not prove that the group is up to date.
        let refreshed = self.seen.not_refreshed.is_none();
        reasons.extend(obstacle.filter(|on| *on != WaitingOn::NewRelease || refreshed));
        eligible
    }

    /// Newer releases may be unknown: for as long as the metadata has not been refreshed.
    pub(super) fn not_refreshed(&mut self) {
        if let Some((refused, for_ms)) = &self.seen.not_refreshed {
            let since = self.state.clock.minus(*for_ms);
            self.wait(since, WaitingOn::NotRefreshed(refused.clone()));
        }
    }

    /// Whether the offer or the refusals already say why newer releases may be unknown.
    fn offer_says_why(&self) -> bool {
        self.seen.not_refreshed.as_ref().is_some_and(|(stale, _)| {
            match self.seen.offers.get(self.id) {
                Some(Offer::Refused(refused) | Offer::Unknown(refused)) => refused == stale,
                Some(Offer::Release(_)) => self.seen.refusals.contains(stale),
                None => false,
            }
        })
    }

    fn paused(&self, pause: &Pause, holds: Option<&Release>) -> WaitingOn {
        let left_ms = pause.until.map(|until| until.since(self.state.clock));
        let holds = holds.map(|release| release.version.clone());
        WaitingOn::Paused { by: pause.by.clone(), left_ms, holds }
    }

    /// Says that the app is paused where nothing else does: what is not offered yet, or could take
    /// over from a rollback, does not start.
    pub(super) fn say_paused(&mut self) {
        let Some(pause) = &self.app.pause else { return };
        let said = |waiting: &Waiting| {
            waiting.app == *self.id && matches!(waiting.on, WaitingOn::Paused { .. })
        };
        if !self.plan.waiting.iter().any(said) {
            self.wait(pause.since, self.paused(pause, None));
        }
    }

    /// What keeps an offered release from starting, if anything.
    fn obstacle(&self, release: &Release) -> Option<WaitingOn> {
        let app = self.app;
        let version = release.version.clone();
        if matches!(app.phase, Phase::Running { .. }) && app.last_good.as_ref() == Some(release) {
            Some(WaitingOn::NewRelease)
        } else if let Some(rejected) = app.rejection_of(release) {
            Some(WaitingOn::Person { version, reason: rejected.reason.clone() })
        } else if let Some(reason) = &self.seen.killed {
            Some(WaitingOn::KillSwitch { reason: reason.clone() })
        } else if let Some(pause) = &app.pause {
            Some(self.paused(pause, Some(release)))
        } else if self.state.servers.is_empty() {
            Some(WaitingOn::NoServers)
        } else if let Some(view) = &self.seen.registry {
            gate::gate(self.state, view, self.id, &app.policy, &version)
        } else {
            Some(WaitingOn::RegistryAway)
        }
    }

    /// Whether the rollout has to stop between two steps: for a newer release that takes over, a
    /// pause, the kill switch, or another group's bad verdict.
    pub(super) fn is_interrupted(&mut self, rollout: &Rollout) -> bool {
        self.newer(rollout) || self.is_stopped(rollout)
    }

    /// Whether the rollout is paused, killed, or found bad by another group.
    pub(super) fn is_stopped(&mut self, rollout: &Rollout) -> bool {
        if let Some(pause) = self.app.pause_of(rollout) {
            self.wait(pause.since, self.paused(pause, Some(&rollout.release)));
            return true;
        }
        if self.is_killed(rollout.progress) {
            return true;
        }
        let view = self.seen.registry.as_ref();
        let verdict = view
            .and_then(|view| gate::bad_verdict(self.state, view, self.id, &rollout.release.version))
            .filter(|(group, _)| !rollout.overruled.contains(*group));
        if let Some((group, reason)) = verdict {
            let (group, reason) = (group.clone(), reason.clone());
            self.propose(Planned::PauseForVerdict { group, reason });
        }
        verdict.is_some()
    }
}
