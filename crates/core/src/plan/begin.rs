//! Whether a release begins, and which.

use super::{Offer, Planner};
use crate::command::Body;
use crate::gate;
use crate::ids::{AppId, ClockMs, ServerId};
use crate::phase::Phase;
use crate::release::Release;
use crate::state::{App, Rollout};
use crate::waiting::WaitingOn;

impl Planner<'_> {
    /// Is there a release to begin with?
    pub(super) fn consider(&mut self, id: &AppId, app: &App, since: ClockMs) {
        if let Some(release) = self.eligible(id, app, since, true) {
            let waits: Vec<ServerId> = app
                .in_flight()
                .filter(|(server, _)| app.servers[*server].debt.is_none())
                .map(|(server, _)| server.clone())
                .collect();
            if !waits.is_empty() {
                for server in &waits {
                    if self.silent_ms(server) > app.policy.update.unreachable_after.ms {
                        self.lose(id, app, server);
                    }
                }
                let version = release.version;
                self.wait(id, since, WaitingOn::NewerRelease { version, servers: waits });
                return;
            }
            if self.too_many_silent(id, app, since) {
                return;
            }
            let (revision, lead) = (app.revision, self.leader.clone());
            self.propose(Body::StartRollout { app: id.clone(), release, revision, lead });
        }
    }

    /// A rollout that would lose more servers than it bears does not begin.
    fn too_many_silent(&mut self, id: &AppId, app: &App, since: ClockMs) -> bool {
        let unreachable_ms = app.policy.update.unreachable_after.ms;
        let silent: Vec<(ServerId, u64)> = app
            .servers
            .keys()
            .map(|server| (server.clone(), self.silent_ms(server)))
            .filter(|(_, silent_ms)| *silent_ms > unreachable_ms)
            .collect();
        let bears = app.policy.surroundings_allowed_of(self.state.size()) as usize;
        if silent.len() <= bears {
            return false;
        }
        for (server, for_ms) in silent {
            self.wait(id, since, WaitingOn::ServerUnreachable { server, for_ms });
        }
        true
    }

    /// The release that may begin in this group, or why none does (told if `tell`).
    fn eligible(&mut self, id: &AppId, app: &App, since: ClockMs, tell: bool) -> Option<Release> {
        let mut reasons = Vec::new();
        let release = self.eligible_or(id, app, &mut reasons);
        if tell {
            for on in reasons {
                self.wait(id, since, on);
            }
        }
        release
    }

    fn eligible_or(&self, id: &AppId, app: &App, reasons: &mut Vec<WaitingOn>) -> Option<Release> {
        let release = match self.seen.offers.get(id) {
            Some(Offer::Release(release)) => release,
            Some(Offer::Refused { reason }) => {
                reasons.push(WaitingOn::ReleaseRefused { reason: reason.clone() });
                return None;
            }
            Some(Offer::Unknown { reason }) => {
                reasons.push(WaitingOn::NoRelease { reason: reason.clone() });
                return None;
            }
            None => {
                let reason = "the repository has not been read yet".into();
                reasons.push(WaitingOn::NoRelease { reason });
                return None;
            }
        };
        for reason in &self.seen.refusals {
            reasons.push(WaitingOn::ReleaseRefused { reason: reason.clone() });
        }
        if matches!(app.phase, Phase::Running { .. }) && app.last_good.as_ref() == Some(release) {
            reasons.push(WaitingOn::NewRelease);
            return None;
        }
        if let Some(rejected) = app.rejection_of(release) {
            reasons.push(WaitingOn::Person {
                version: release.version.clone(),
                reason: rejected.reason.clone(),
            });
            return None;
        }
        if let Some(reason) = &self.seen.killed {
            reasons.push(WaitingOn::KillSwitch { reason: reason.clone() });
            return None;
        }
        if self.state.servers.is_empty() {
            reasons.push(WaitingOn::NoServers);
            return None;
        }
        let Some(view) = &self.seen.registry else {
            reasons.push(WaitingOn::RegistryAway);
            return None;
        };
        if let Some(on) = gate::gate(self.state, view, id, &app.policy, &release.version) {
            reasons.push(on);
            return None;
        }
        Some(release.clone())
    }

    /// A newer release in the middle of a rollout takes over between two steps.
    pub(super) fn newer(&mut self, id: &AppId, app: &App, rollout: &Rollout) -> bool {
        let offered = match self.seen.offers.get(id) {
            Some(Offer::Release(release)) => release,
            Some(Offer::Refused { .. } | Offer::Unknown { .. }) | None => return false,
        };
        if *offered == rollout.release {
            return false;
        }
        let Some(release) = self.eligible(id, app, rollout.progress, false) else { return false };
        self.consider_instead(id, app, rollout, release);
        true
    }

    fn consider_instead(&mut self, id: &AppId, app: &App, rollout: &Rollout, release: Release) {
        let servers: Vec<ServerId> = app
            .in_flight()
            .filter(|(server, _)| app.servers[*server].debt.is_none())
            .map(|(server, _)| server.clone())
            .collect();
        if servers.is_empty() {
            let (revision, lead) = (app.revision, self.leader.clone());
            self.propose(Body::StartRollout { app: id.clone(), release, revision, lead });
        } else {
            let version = release.version;
            self.wait(id, rollout.progress, WaitingOn::NewerRelease { version, servers });
        }
    }
}
