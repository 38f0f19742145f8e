//! The only writer of the state.

use crate::capacity;
use crate::command::{Body, CLOCK_STEP_MS_MAX, Command, Event, Rejection};
use crate::ids::{AppId, Generation, MemberId, RequestId, ServerId};
use crate::orders::{Fence, Purpose};
use crate::phase::{ARROWS, Phase};
use crate::state::{
    APPS_MAX, Activation, ActivationStage, Answered, App, Debt, REQUESTS_MAX, SERVERS_MAX, Server,
    ServerApp, State,
};

impl State {
    /// Applies one committed command.
    ///
    /// Total and deterministic: every member gets the same state, the same events or the same
    /// rejection. A rejected command changes nothing but the memory of its request.
    ///
    /// # Errors
    /// The reason why the command was refused.
    pub fn apply(&mut self, command: &Command) -> Result<Vec<Event>, Rejection> {
        if command.incarnation != self.incarnation {
            return Err(Rejection::OtherIncarnation { expected: self.incarnation });
        }
        if let Some(request) = &command.request
            && let Some(answered) = self.answered(request)
        {
            return match &answered.refused {
                Some(refused) => Err(Rejection::Repeated { refused: refused.clone() }),
                None => Ok(vec![Event::RequestRepeated { request: request.clone() }]),
            };
        }
        let before: Vec<_> =
            self.apps.iter().map(|(id, app)| (id.clone(), app.phase.name())).collect();
        let mut events = Vec::new();
        let outcome = self.dispatch(&command.actor, &command.body, &mut events);
        if let Some(request) = &command.request {
            self.remember(request, outcome.as_ref().err());
        }
        outcome?;
        self.settle(&mut events, &command.actor);
        for (id, from) in before {
            if let Some(app) = self.apps.get_mut(&id)
                && app.phase.name() != from
            {
                app.record += 1;
            }
        }
        Ok(events)
    }

    fn answered(&self, request: &RequestId) -> Option<&Answered> {
        self.requests.iter().find(|answered| answered.request == *request)
    }

    fn remember(&mut self, request: &RequestId, refused: Option<&Rejection>) {
        if self.requests.len() >= REQUESTS_MAX {
            self.requests.pop_front();
        }
        let refused = refused.map(ToString::to_string);
        self.requests.push_back(Answered { request: request.clone(), refused });
    }

    fn dispatch(
        &mut self,
        actor: &str,
        body: &Body,
        events: &mut Vec<Event>,
    ) -> Result<(), Rejection> {
        match body {
            Body::SetUp { labels, platform } => {
                if self.platform.is_none() {
                    self.labels.clone_from(labels);
                    self.platform = Some(platform.clone());
                }
                Ok(())
            }
            Body::AdvanceClock { from, to } => {
                if *from != self.clock || to < from || to.since(*from) > CLOCK_STEP_MS_MAX {
                    return Err(Rejection::Clock { clock: self.clock });
                }
                self.clock = *to;
                Ok(())
            }
            Body::AddServer { server, address, rack } => {
                self.add_server(server, address, rack.as_deref(), events)
            }
            Body::RemoveServer { server } => self.remove_server(server, events),
            Body::AllocateMember { server } => self.allocate_member(server),
            Body::RetireMember { server, member } => self.retire_member(server, *member),
            Body::PlaceMember { server, carries } => match self.servers.get_mut(server) {
                Some(known) => {
                    known.placed = Some(*carries);
                    Ok(())
                }
                None => Err(Rejection::NoServer { server: server.clone() }),
            },
            Body::RaiseFeatureLevel { level } => {
                self.feature_level = self.feature_level.max(*level);
                Ok(())
            }
            Body::SetPolicy { policy, revision } => self.set_policy(policy, *revision),
            Body::Adopt { app, release } => self.adopt(app, release, actor, events),
            Body::StartRollout { app, release, revision, lead } => {
                self.start_rollout(app, release, *revision, lead, actor, events)
            }
            Body::TakeLead { app, generation, lead } => self.take_lead(app, *generation, lead),
            Body::RecordWritten { app, record } => {
                let app = self.app_mut(app)?;
                let record = (*record).min(app.record);
                app.record_written = app.record_written.max(record);
                let written = app.record_written == app.record;
                if let Phase::MarkedOld { recorded, .. } = &mut app.phase {
                    *recorded |= written;
                }
                Ok(())
            }
            Body::VerdictWritten { app, version, good } => {
                let app = self.app_mut(app)?;
                app.verdicts_due.retain(|due| due.version != *version || due.good != *good);
                Ok(())
            }
            Body::LeaderHolds { app, generation, server } => {
                self.leader_holds(app, *generation, server, actor, events)
            }
            Body::Verify { app, generation, server } => {
                self.verify(app, *generation, server, actor, events)
            }
            Body::StartWave { app, generation, number, servers } => {
                self.start_wave(app, *generation, *number, servers, actor, events)
            }
            Body::Grant { app, generation, server, purpose } => {
                self.grant(app, *generation, server, *purpose, events)
            }
            Body::LoseServer { app, generation, server, reason } => {
                self.lose_server(app, *generation, server, reason, events)
            }
            Body::FindServer { app, generation, server } => {
                let app = self.planned(app, *generation)?;
                if let Some(rollout) = app.phase.rollout_mut() {
                    rollout.lost.remove(server);
                }
                let good = app.last_good.clone();
                if let Some(server) = app.servers.get_mut(server)
                    && server.settled_on(good.as_ref())
                {
                    server.debt = None;
                }
                Ok(())
            }
            Body::Fail { app, generation, reason } => {
                self.planned(app, *generation)?;
                self.fail(app, reason, false, actor, events)
            }
            Body::PauseForVerdict { app, generation, group, reason } => {
                self.pause_for_verdict(app, *generation, group, reason)
            }
            Body::Report { report } => self.report(report, events),
            Body::Pause { app, reason } => self.pause(app, reason, actor),
            Body::Resume { app } => self.resume(app),
            Body::Approve { app } => self.approve(app),
            Body::Abort { app, reason } => {
                let reason = if reason.is_empty() {
                    format!("aborted by {actor}")
                } else {
                    format!("aborted by {actor}: {reason}")
                };
                self.fail(app, &reason, true, actor, events)
            }
            Body::Retry { app } => self.retry(app),
            Body::Undo { app, lead } => self.undo(app, lead, actor, events),
        }
    }

    pub(crate) fn app_mut(&mut self, app: &AppId) -> Result<&mut App, Rejection> {
        self.apps.get_mut(app).ok_or_else(|| Rejection::NoApp { app: app.clone() })
    }

    /// The app, if the command was planned against its present plan.
    pub(crate) fn planned(
        &mut self,
        app: &AppId,
        generation: Generation,
    ) -> Result<&mut App, Rejection> {
        let app = self.app_mut(app)?;
        if app.generation == generation {
            Ok(app)
        } else {
            Err(Rejection::OldPlan { generation: app.generation })
        }
    }

    fn add_server(
        &mut self,
        server: &ServerId,
        address: &str,
        rack: Option<&str>,
        events: &mut Vec<Event>,
    ) -> Result<(), Rejection> {
        events.push(Event::ServersChanged);
        if let Some(known) = self.servers.get_mut(server) {
            known.address = address.to_owned();
            known.rack = rack.map(ToOwned::to_owned);
            return Ok(());
        }
        if self.servers.len() >= SERVERS_MAX {
            events.clear();
            return Err(Rejection::Limit { what: "servers".into(), max: SERVERS_MAX as u64 });
        }
        let joined = self.next_joined;
        self.next_joined += 1;
        self.servers.insert(
            server.clone(),
            Server {
                address: address.to_owned(),
                rack: rack.map(ToOwned::to_owned),
                joined,
                member: None,
                placed: None,
                boot_epoch: crate::ids::BootEpoch(0),
                sequence: 0,
            },
        );
        let clock = self.clock;
        for app in self.apps.values_mut() {
            let debt = app.last_good.as_ref().map(|_| Debt {
                since: clock,
                reason: "joined".into(),
                tries: 0,
            });
            // A server that was here before may have been activated under any plan so far: the
            // next one has to be a new plan.
            let activated = app.generation;
            app.servers
                .insert(server.clone(), ServerApp { debt, activated, ..ServerApp::default() });
        }
        Ok(())
    }

    fn remove_server(
        &mut self,
        server: &ServerId,
        events: &mut Vec<Event>,
    ) -> Result<(), Rejection> {
        if self.servers.remove(server).is_none() {
            return Err(Rejection::NoServer { server: server.clone() });
        }
        for app in self.apps.values_mut() {
            app.servers.remove(server);
            if let Phase::Wave { servers, .. } = &mut app.phase {
                servers.remove(server);
            }
            if let Some(rollout) = app.phase.rollout_mut() {
                rollout.lost.remove(server);
            }
        }
        events.push(Event::ServersChanged);
        Ok(())
    }

    fn allocate_member(&mut self, server: &ServerId) -> Result<(), Rejection> {
        let member = self.next_member;
        let known = self
            .servers
            .get_mut(server)
            .ok_or_else(|| Rejection::NoServer { server: server.clone() })?;
        if known.member.is_some() {
            return Err(Rejection::Busy { server: server.clone() });
        }
        known.member = Some(member);
        self.next_member = member.next();
        Ok(())
    }

    fn retire_member(&mut self, server: &ServerId, member: MemberId) -> Result<(), Rejection> {
        match self.servers.get_mut(server) {
            Some(known) if known.member == Some(member) => {
                known.member = None;
                Ok(())
            }
            Some(_) | None => Err(Rejection::NoServer { server: server.clone() }),
        }
    }

    fn set_policy(
        &mut self,
        policy: &crate::policy::Policy,
        revision: crate::ids::Revision,
    ) -> Result<(), Rejection> {
        if let Some(app) = self.apps.get_mut(&policy.app) {
            if revision > app.revision {
                app.revision = revision;
                app.policy = policy.clone();
            }
            return Ok(());
        }
        if self.apps.len() >= APPS_MAX {
            return Err(Rejection::Limit { what: "apps".into(), max: APPS_MAX as u64 });
        }
        let mut app = App::new(revision, policy.clone());
        app.servers = self.servers.keys().map(|id| (id.clone(), ServerApp::default())).collect();
        self.apps.insert(policy.app.clone(), app);
        Ok(())
    }

    fn grant(
        &mut self,
        app_id: &AppId,
        generation: Generation,
        server_id: &ServerId,
        purpose: Purpose,
        events: &mut Vec<Event>,
    ) -> Result<(), Rejection> {
        self.planned(app_id, generation)?;
        let busy = self.apps.iter().any(|(id, app)| {
            let activation = app.servers.get(server_id).and_then(|s| s.activation.as_ref());
            // A roll-back takes the place of what goes on; so does a debt, where what goes on is
            // no longer wanted.
            let gives_way = |activation: &Activation| {
                id == app_id
                    && match purpose {
                        Purpose::RollBack | Purpose::Debt => !app.wants(activation),
                        Purpose::Wave => false,
                    }
            };
            activation.is_some_and(|a| a.in_flight() && !gives_way(a))
        });
        if busy {
            return Err(Rejection::Busy { server: server_id.clone() });
        }
        let costs = capacity::costs(self, server_id);
        let policy = {
            let app = &self.apps[app_id];
            app.phase.rollout().map_or(&app.policy, |rollout| &rollout.policy)
        };
        if costs {
            let out = capacity::out_servers_for(self, &self.apps[app_id], purpose);
            let max = policy.max_unavailable_of(self.size());
            if !capacity::bears(&out, max, server_id) {
                let out = u32::try_from(out.len()).unwrap_or(u32::MAX);
                return Err(Rejection::Capacity { out, max });
            }
        }
        let clock = self.clock;
        let incarnation = self.incarnation;
        let app = self.app_mut(app_id)?;
        let name = app.phase.name();
        let not_now = |why: &str| Rejection::NotNow { state: name, why: why.into() };
        let release = match (purpose, &app.phase) {
            (Purpose::Wave, Phase::Wave { rollout, servers, step, .. }) => {
                if !servers.contains(server_id) || *step == crate::phase::WaveStep::Assigned {
                    return Err(not_now("the server is not in this wave, or it still downloads"));
                }
                Some(rollout.release.clone())
            }
            (Purpose::RollBack, Phase::RollingBack { .. }) | (Purpose::Debt, _) => {
                app.last_good.clone()
            }
            (Purpose::Wave | Purpose::RollBack, _) => return Err(not_now("no such step")),
        };
        let used = app.servers.get(server_id).map(|server| server.activated);
        let Some(used) = used else {
            return Err(Rejection::NoServer { server: server_id.clone() });
        };
        if used >= app.generation {
            // One activation per server and fence: a second one is a new plan.
            app.generation = app.generation.next();
        }
        let fence = Fence { incarnation, generation: app.generation };
        let server = app.servers.get_mut(server_id).expect("looked up above");
        server.activated = fence.generation;
        // A change that takes the place of one that cost goes on costing: nobody knows whether
        // the server has begun with that one.
        let costs = costs || server.activation.as_ref().is_some_and(|a| a.open() && a.costs);
        if let Some(debt) = &mut server.debt
            && purpose == Purpose::Debt
        {
            debt.tries += 1;
        }
        server.activation = Some(Activation {
            fence,
            release,
            before: server.running.clone(),
            purpose,
            costs,
            void: false,
            granted: clock,
            stage: ActivationStage::Granted,
        });
        if let Some(rollout) = app.phase.rollout_mut() {
            rollout.progress = clock;
        }
        events.push(Event::Granted {
            app: app_id.clone(),
            server: server_id.clone(),
            generation: fence.generation,
            purpose,
        });
        Ok(())
    }

    fn lose_server(
        &mut self,
        app_id: &AppId,
        generation: Generation,
        server_id: &ServerId,
        reason: &str,
        events: &mut Vec<Event>,
    ) -> Result<(), Rejection> {
        let clock = self.clock;
        let app = self.planned(app_id, generation)?;
        let Some(server) = app.servers.get_mut(server_id) else {
            return Err(Rejection::NoServer { server: server_id.clone() });
        };
        let in_flight = server
            .activation
            .as_mut()
            .filter(|activation| activation.in_flight() && !activation.void);
        match app.phase.rollout_mut() {
            Some(rollout) => {
                let news = rollout.lost.insert(server_id.clone());
                if !news && in_flight.is_none() {
                    let why = "the server is lost already".into();
                    return Err(Rejection::NotNow { state: app.phase.name(), why });
                }
                if news {
                    rollout.surroundings_failures += 1;
                    rollout.progress = clock;
                }
            }
            None if in_flight.is_some() => {}
            None => {
                let why = "no rollout, and nothing is being changed there".into();
                return Err(Rejection::NotNow { state: app.phase.name(), why });
            }
        }
        if let Some(activation) = in_flight {
            activation.void = true;
        }
        if server.debt.is_none() {
            server.debt = Some(Debt { since: clock, reason: reason.to_owned(), tries: 0 });
        }
        events.push(Event::ServerLost {
            app: app_id.clone(),
            server: server_id.clone(),
            reason: reason.to_owned(),
        });
        Ok(())
    }

    /// Writes a changed state down as an event, and stops at an arrow that is not drawn.
    pub(crate) fn enter(
        app_id: &AppId,
        app: &mut App,
        to: Phase,
        actor: &str,
        events: &mut Vec<Event>,
    ) {
        let (from, name) = (app.phase.name(), to.name());
        assert!(
            ARROWS.iter().any(|(a, b, _)| *a == from && *b == name),
            "no arrow from {from} to {name}: the state machine is wrong, this replica stops"
        );
        app.phase = to;
        events.push(Event::PhaseChanged {
            app: app_id.clone(),
            from,
            to: name,
            by: actor.to_owned(),
        });
    }
}
