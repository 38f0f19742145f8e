//! The only writer of the state.

use std::collections::BTreeMap;

use crate::command::{Body, CLOCK_STEP_MS_MAX, Command, Event, Limited, Rejection, WhyNot};
use crate::ids::{BootEpoch, ClockMs, MemberId, Platform, Revision, ServerId};
use crate::phase::Phase;
use crate::policy::{Policy, Proof};
use crate::reason::DebtReason;
use crate::shared::Shared;
use crate::state::{
    APPS_MAX, Answered, App, Process, REQUESTS_MAX, SERVER_APPS_MAX, SERVERS_MAX, Server,
    ServerApp, State, push_bounded,
};
use crate::turn::Applied;

impl State {
    /// Applies one committed command.
    ///
    /// Total and deterministic: every member gets the same state and the same events, or the same
    /// rejection. A repeated request changes nothing and gets its first answer again.
    ///
    /// # Errors
    /// The reason for the refusal; then only the record of the request changes.
    pub fn apply(&mut self, command: &Command) -> Result<Vec<Event>, Rejection> {
        if command.incarnation != self.incarnation {
            return Err(Rejection::OtherIncarnation { expected: self.incarnation });
        }
        if let Some(request) = &command.request
            && let Some(answered) = self.requests.iter().find(|known| known.request == *request)
        {
            return match &answered.refused {
                Some(rejection) => Err(rejection.clone()),
                None => Ok(vec![Event::RequestRepeated { request: request.clone() }]),
            };
        }
        let mut events = Vec::new();
        if let Some(app) = command.body.steers() {
            let (app, by) = (app.clone(), command.actor.clone());
            events.push(Event::Steered { app, command: command.body.name().to_owned(), by });
        }
        let outcome = self.dispatch(&command.actor, &command.body, &mut events);
        if let Some(request) = &command.request {
            let answered = Answered { request: request.clone(), refused: outcome.clone().err() };
            push_bounded(&mut self.requests, answered, REQUESTS_MAX);
        }
        outcome?;
        // The two that come in numbers change one app only.
        let about = match &command.body {
            Body::Report { report } => Some(&report.app),
            Body::Plan { app, .. } => Some(app),
            _ => None,
        };
        self.settle(about, &command.actor, &mut events);
        Ok(events)
    }

    fn dispatch(&mut self, actor: &str, body: &Body, events: &mut Vec<Event>) -> Applied {
        match body {
            Body::SetUp { labels, platform } => self.set_up(labels, platform),
            Body::AdvanceClock { to } => self.advance_clock(*to),
            Body::AddServer { server, address, rack, process } => {
                self.add_server(server, (address, rack.as_deref(), process), events)
            }
            Body::MoveServer { server, address, process } => {
                self.move_server(server, address, process, events)
            }
            Body::RemoveServer { server } => self.remove_server(server, events),
            Body::AllocateMember { server } => self.allocate_member(server),
            Body::RetireMember { server, member } => self.retire_member(server, *member),
            Body::PlaceMember { server, carries } => {
                self.server_mut(server)?.placed = Some(*carries);
                Ok(())
            }
            Body::RaiseFeatureLevel { level } => {
                self.feature_level = self.feature_level.max(*level);
                Ok(())
            }
            Body::SetPolicy { policy, revision, proof } => {
                self.set_policy(policy, *revision, proof)
            }
            Body::Report { report } => self.report(report, actor, events),
            Body::Plan { app, generation, step } => {
                let costs = self.clear(app, step)?;
                self.planned(app, *generation, actor, events)?.take(step, costs)
            }
            Body::RemoveApp { app, revision, proof } => {
                self.turn(app, actor, events)?.remove(*revision, proof)
            }
            Body::Adopt { app, release } => self.turn(app, actor, events)?.adopt(release),
            Body::StartRollout { app, release, revision, lead } => {
                self.turn(app, actor, events)?.start_offered(release, *revision, lead)
            }
            Body::RecordWritten { app, record } => {
                self.turn(app, actor, events)?.record_written(*record)
            }
            Body::VerdictWritten { app, version, good } => {
                self.turn(app, actor, events)?.verdict_written(version, *good)
            }
            Body::Pause { app, reason, for_ms } => {
                self.turn(app, actor, events)?.pause(reason, *for_ms)
            }
            Body::Resume { app } => self.turn(app, actor, events)?.resume(),
            Body::Approve { app } => self.turn(app, actor, events)?.approve(),
            Body::Abort { app, reason } => self.turn(app, actor, events)?.abort(reason),
            Body::Retry { app } => self.turn(app, actor, events)?.retry(),
            Body::Undo { app, lead } => self.turn(app, actor, events)?.undo(lead),
            Body::Restart { app, servers } => self.turn(app, actor, events)?.restart(servers),
        }
    }

    fn set_up(&mut self, labels: &BTreeMap<String, String>, platform: &Platform) -> Applied {
        if self.platform.is_none() {
            self.labels = labels.clone().into();
            self.platform = Some(platform.clone());
        }
        Ok(())
    }

    fn advance_clock(&mut self, to: ClockMs) -> Applied {
        if to < self.clock || to.since(self.clock) > CLOCK_STEP_MS_MAX {
            return Err(Rejection::Clock { clock: self.clock });
        }
        self.clock = to;
        Ok(())
    }

    fn server_mut(&mut self, server: &ServerId) -> Result<&mut Server, Rejection> {
        match self.servers.get_mut(server) {
            Some(known) => Ok(known),
            None => Err(Rejection::NoServer { server: server.clone() }),
        }
    }

    fn add_server(
        &mut self,
        server: &ServerId,
        (address, rack, process): (&str, Option<&str>, &Process),
        events: &mut Vec<Event>,
    ) -> Applied {
        if self.servers.contains_key(server) {
            return self.move_server(server, address, process, events);
        }
        let (address, rack) = (address.to_owned(), rack.map(ToOwned::to_owned));
        let process = process.clone();
        if self.servers.len() >= SERVERS_MAX {
            return Err(Rejection::Limit { what: Limited::Servers, max: SERVERS_MAX as u64 });
        } else if !State::fits(self.servers.len() + 1, self.apps.len()) {
            let max = SERVER_APPS_MAX as u64;
            return Err(Rejection::Limit { what: Limited::ServerApps, max });
        } else {
            let (joined, boot_epoch) = (self.next_joined, BootEpoch(0));
            self.next_joined += 1;
            let (member, placed, sequence) = (None, None, 0);
            let joins =
                Server { address, rack, joined, member, placed, process, boot_epoch, sequence };
            self.servers.insert(server.clone(), joins.into());
            for app in self.apps.values_mut() {
                // The server may have been here before, activated under any earlier generation.
                let mut here = ServerApp { activated: app.generation, ..ServerApp::default() };
                if app.last_good.is_some() {
                    here.owe(self.clock, DebtReason::Joined);
                }
                app.servers.insert(server.clone(), here.into());
            }
        }
        events.push(Event::ServerJoined { server: server.clone() });
        Ok(())
    }

    /// Its rack is the one it joined with: voters are spread over racks, so a server that could
    /// change its own could get itself a vote.
    fn move_server(
        &mut self,
        server: &ServerId,
        address: &str,
        process: &Process,
        events: &mut Vec<Event>,
    ) -> Applied {
        let known = self.server_mut(server)?;
        let restarts = known.process.life != process.life;
        (known.address, known.process) = (address.to_owned(), process.clone());
        for app in self.apps.values_mut().filter(|_| restarts) {
            // What it said was before its start: the machine may have been without power since.
            if let Some(here) = app.servers.get_mut(server).filter(|it| it.running.is_some()) {
                here.unsure = true;
            }
        }
        events.push(Event::ServerMoved { server: server.clone() });
        Ok(())
    }

    fn remove_server(&mut self, server: &ServerId, events: &mut Vec<Event>) -> Applied {
        self.server_mut(server)?;
        self.servers.remove(server);
        for app in self.apps.values_mut() {
            app.servers.remove(server);
            app.phase.forget(server);
        }
        events.push(Event::ServerRemoved { server: server.clone() });
        Ok(())
    }

    fn allocate_member(&mut self, server: &ServerId) -> Applied {
        let member = self.next_member;
        let known = self.server_mut(server)?;
        if known.member.is_some() {
            return Err(Rejection::Busy { server: server.clone() });
        }
        known.member = Some(member);
        self.next_member = member.next();
        Ok(())
    }

    fn retire_member(&mut self, server: &ServerId, member: MemberId) -> Applied {
        let known = self.server_mut(server)?;
        if known.member != Some(member) {
            return Err(Rejection::NoServer { server: server.clone() });
        }
        known.member = None;
        Ok(())
    }

    fn set_policy(&mut self, policy: &Policy, revision: Revision, proof: &Proof) -> Applied {
        if let Some(app) = self.apps.get_mut(&policy.app) {
            if matches!(app.phase, Phase::Removing { .. }) {
                let (state, why) = (app.phase.name(), WhyNot::BeingRemoved);
                return Err(Rejection::NotNow { state, why });
            }
            if revision > app.revision {
                app.revision = revision;
                app.policy = policy.clone().into();
                app.proof = proof.clone();
                app.set_checks(revision, &policy.checks);
            }
        } else if self.outlived(&policy.app, revision) {
            // From a registry that is older than the removal.
        } else if self.apps.len() >= APPS_MAX {
            return Err(Rejection::Limit { what: Limited::Apps, max: APPS_MAX as u64 });
        } else if !State::fits(self.servers.len(), self.apps.len() + 1) {
            let max = SERVER_APPS_MAX as u64;
            return Err(Rejection::Limit { what: Limited::ServerApps, max });
        } else {
            let mut app = App::new(revision, policy.clone());
            app.proof = proof.clone();
            app.generation = self.first_generation;
            let servers = self.servers.keys().map(|id| (id.clone(), Shared::default()));
            app.servers = servers.collect::<BTreeMap<_, _>>().into();
            self.removed.remove(&policy.app);
            self.apps.insert(policy.app.clone(), app);
        }
        Ok(())
    }
}
