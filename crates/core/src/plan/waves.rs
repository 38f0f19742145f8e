//! A rollout, wave by wave: who may begin, what goes on, and who was lost.

use std::collections::BTreeSet;

use super::Planner;
use crate::capacity;
use crate::command::Body;
use crate::gate;
use crate::ids::{AppId, ClockMs, ServerId};
use crate::orders::Purpose;
use crate::phase::WaveStep;
use crate::report::Step;
use crate::state::{Activation, ActivationStage, App, Rollout};
use crate::transitions::{remaining, waits_for_approval};
use crate::waiting::WaitingOn;
use crate::wave;

impl Planner<'_> {
    /// Paused, killed, or found bad elsewhere: nothing new begins.
    pub(super) fn stopped(&mut self, id: &AppId, rollout: &Rollout) -> bool {
        if let Some(pause) = &rollout.pause {
            let on = WaitingOn::Paused { by: pause.by.clone(), reason: pause.reason.clone() };
            self.wait(id, pause.since, on);
            return true;
        }
        if let Some(reason) = &self.seen.killed {
            self.wait(id, rollout.progress, WaitingOn::KillSwitch { reason: reason.clone() });
            return true;
        }
        let verdict = self
            .seen
            .registry
            .as_ref()
            .and_then(|view| gate::bad_verdict(self.state, view, id, &rollout.release.version))
            .filter(|verdict| !rollout.overruled.contains(&verdict.group));
        if let Some(verdict) = verdict {
            let generation = self.state.apps[id].generation;
            self.propose(Body::PauseForVerdict {
                app: id.clone(),
                generation,
                group: verdict.group.clone(),
                reason: verdict.reason.clone(),
            });
            return true;
        }
        false
    }

    pub(super) fn next_wave(&mut self, id: &AppId, app: &App, rollout: &Rollout) {
        self.find_lost(id, app, rollout);
        if self.newer(id, app, rollout) || self.stopped(id, rollout) {
            return;
        }
        if waits_for_approval(rollout) {
            self.wait(id, rollout.progress, WaitingOn::Approval { wave: rollout.waves });
            return;
        }
        let open = remaining(app, rollout);
        let unreachable_ms = rollout.policy.update.unreachable_after.ms;
        let (silent, reachable): (Vec<ServerId>, Vec<ServerId>) =
            open.into_iter().partition(|server| self.silent_ms(server) > unreachable_ms);
        if reachable.is_empty() {
            for server in silent {
                self.lose(id, app, &server);
            }
            return;
        }
        // A server that joined, or that failed alone, gets the good release before its turn.
        let ready: Vec<ServerId> = reachable
            .iter()
            .filter(|server| {
                app.servers
                    .get(*server)
                    .is_some_and(|here| here.activation.as_ref().is_none_or(|a| !a.in_flight()))
            })
            .cloned()
            .collect();
        if ready.is_empty() {
            self.steps(id, app, rollout.progress, &reachable.into_iter().collect());
            return;
        }
        let number = rollout.waves + 1;
        let size = rollout.policy.update.max_parallel.of_wave(number, self.state.size());
        let servers = wave::choose(self.state, self.leader, &ready, size);
        let (app, generation) = (id.clone(), app.generation);
        self.propose(Body::StartWave { app, generation, number, servers });
    }

    pub(super) fn wave(
        &mut self,
        id: &AppId,
        app: &App,
        rollout: &Rollout,
        servers: &BTreeSet<ServerId>,
        step: WaveStep,
        since: ClockMs,
    ) {
        self.find_lost(id, app, rollout);
        let update = &rollout.policy.update;
        let clock = self.state.clock;
        let open: BTreeSet<ServerId> =
            servers.iter().filter(|server| !rollout.lost.contains(*server)).cloned().collect();
        for server in &open {
            let here = &app.servers[server];
            let settled = here.settled_on(Some(&rollout.release)) && here.in_service;
            if !settled && self.silent_ms(server) > update.unreachable_after.ms {
                self.lose(id, app, server);
            }
        }
        let newer = self.newer(id, app, rollout);
        let stopped = !newer && self.stopped(id, rollout);
        if self.seen.killed.is_none()
            && rollout.pause.is_none()
            && step != WaveStep::Baking
            && clock.since(rollout.progress) > update.progress_deadline.ms
        {
            let stuck: Vec<&str> = open
                .iter()
                .filter(|server| !app.servers[*server].settled_on(Some(&rollout.release)))
                .map(ServerId::as_str)
                .collect();
            let reason = format!(
                "no progress within {} in wave {} ({})",
                update.progress_deadline,
                rollout.waves,
                stuck.join(", ")
            );
            let (app, generation) = (id.clone(), app.generation);
            self.propose(Body::Fail { app, generation, reason });
            return;
        }
        match step {
            WaveStep::Assigned => {
                let servers = open
                    .iter()
                    .filter(|server| !app.servers[*server].has(&rollout.release.artifact))
                    .cloned()
                    .collect();
                self.wait(id, since, WaitingOn::Download { servers });
            }
            WaveStep::Baking => {
                let left_ms = update.bake_time.ms.saturating_sub(clock.since(since));
                self.wait(id, since, WaitingOn::BakeTime { left_ms });
            }
            WaveStep::Downloaded | WaveStep::Applied | WaveStep::Checked => {
                if !newer && !stopped {
                    let waiting: Vec<ServerId> = open
                        .iter()
                        .filter(|server| {
                            let here = &app.servers[*server];
                            // What failed under an older plan, or a debt that failed, is no
                            // obstacle: this release may repair it.
                            here.activation.as_ref().is_none_or(|a| {
                                let own = a.purpose == Purpose::Wave
                                    && a.release.as_ref() == Some(&rollout.release);
                                a.void || (!a.in_flight() && !own)
                            }) && !(here.settled_on(Some(&rollout.release)) && here.in_service)
                        })
                        .cloned()
                        .collect();
                    self.grants(id, app, &waiting, Purpose::Wave, since);
                }
                self.steps(id, app, since, &open);
            }
            WaveStep::Baked => {}
        }
    }

    /// Grants as many as the capacity ledger bears; the rest waits, and says so.
    pub(super) fn grants(
        &mut self,
        id: &AppId,
        app: &App,
        servers: &[ServerId],
        purpose: Purpose,
        since: ClockMs,
    ) {
        let policy = app.phase.rollout().map_or(&app.policy, |rollout| &rollout.policy);
        let max = policy.max_unavailable_of(self.state.size());
        let out = capacity::out_servers_for(self.state, app, purpose);
        // A server that is being brought back from a failure costs nothing; the next ones wait for
        // it nevertheless, so that fewer are out at once.
        let mending = app.in_flight().filter(|(server, activation)| {
            purpose != Purpose::RollBack
                && activation.purpose == Purpose::Debt
                && !out.contains(*server)
                && self.silent_ms(server) <= policy.update.unreachable_after.ms
        });
        let out: BTreeSet<ServerId> =
            out.iter().cloned().chain(mending.map(|(server, _)| server.clone())).collect();
        let mut used = out.clone();
        let mut short = false;
        // Those that cost nothing first.
        let (free, costly): (Vec<&ServerId>, Vec<&ServerId>) =
            servers.iter().partition(|server| !capacity::costs(self.state, server));
        for (server, costs) in
            free.into_iter().map(|s| (s, false)).chain(costly.into_iter().map(|s| (s, true)))
        {
            if let Some(other) = self.other_app(id, server) {
                self.wait(id, since, WaitingOn::OtherApp { server: other });
                continue;
            }
            if costs {
                if !capacity::bears(&used, max, server) {
                    short = true;
                    continue;
                }
                used.insert(server.clone());
            }
            let (app, generation) = (id.clone(), app.generation);
            self.propose(Body::Grant { app, generation, server: server.clone(), purpose });
        }
        if short {
            self.wait(id, since, WaitingOn::Capacity { out, max });
        }
    }

    fn other_app(&self, id: &AppId, server: &ServerId) -> Option<ServerId> {
        self.state
            .apps
            .iter()
            .filter(|(other, _)| *other != id)
            .filter_map(|(_, app)| app.servers.get(server)?.activation.as_ref())
            .any(|activation| activation.in_flight())
            .then(|| server.clone())
    }

    /// What goes on on servers right now.
    pub(super) fn steps(
        &mut self,
        id: &AppId,
        app: &App,
        since: ClockMs,
        servers: &BTreeSet<ServerId>,
    ) {
        let going: Vec<(ServerId, Step)> = servers
            .iter()
            .filter_map(|server| {
                let activation = app.servers.get(server)?.activation.as_ref()?;
                if activation.void {
                    return None;
                }
                let told = match &activation.stage {
                    ActivationStage::Granted => Step::Prepare,
                    ActivationStage::Applied { .. } => Step::Check,
                    ActivationStage::Checked { .. } => Step::WarmUp,
                    ActivationStage::Failed { .. } | ActivationStage::Undone { .. } => return None,
                };
                let key = (id.clone(), server.clone());
                Some((server.clone(), self.seen.doing.get(&key).copied().unwrap_or(told)))
            })
            .collect();
        if !going.is_empty() {
            self.wait(id, since, WaitingOn::Steps { servers: going });
        }
    }

    pub(super) fn lose(&mut self, id: &AppId, app: &App, server: &ServerId) {
        if self.seen.killed.is_some() {
            // Deadlines freeze: it is waited for.
            let on = WaitingOn::ServerUnreachable {
                server: server.clone(),
                for_ms: self.silent_ms(server),
            };
            self.wait(id, self.state.clock, on);
            return;
        }
        let seconds = self.silent_ms(server) / 1000;
        self.propose(Body::LoseServer {
            app: id.clone(),
            generation: app.generation,
            server: server.clone(),
            reason: format!("did not ask for its orders for {seconds} s"),
        });
    }

    /// Lost servers that ask again take part again, once they owe nothing.
    pub(super) fn find_lost(&mut self, id: &AppId, app: &App, rollout: &Rollout) {
        for server in &rollout.lost {
            let Some(here) = app.servers.get(server) else { continue };
            let failed = rollout.failures.iter().any(|failure| failure.server == *server);
            let back = self.heard_within(server, rollout.policy.update.unreachable_after.ms);
            let free =
                here.activation.is_none() || here.activation.as_ref().is_some_and(Activation::open);
            if back && !failed && free {
                self.propose(Body::FindServer {
                    app: id.clone(),
                    generation: app.generation,
                    server: server.clone(),
                });
            }
        }
    }
}
