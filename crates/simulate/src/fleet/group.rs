//! A group: its committed state, its leader, and its servers.
//!
//! What the leader observes, when it plans and what it writes to the registry is the production
//! code of `cohort-server`; the log itself is a totally ordered list here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cohort_consensus::{Configuration, RaftId};
use cohort_core::command::{Body, COMMAND_VERSION, Command, Event, Rejection};
use cohort_core::doing::Doing;
use cohort_core::gate::{ForeignVerdict, RegistryView};
use cohort_core::ids::{AppId, GroupId, Incarnation, RequestId, ServerId};
use cohort_core::orders::Orders;
use cohort_core::phase::PhaseName;
use cohort_core::release::Release;
use cohort_core::report::{Report, Step};
use cohort_core::state::State;
use cohort_core::waiting::Waiting;
use cohort_core::{Offer, Plan};
use cohort_server::answers::answers_now;
use cohort_server::asking::{Input, ORDERS_VALID_MS, Question, WAIT_MS_MAX};
use cohort_server::contacts::Contacts;
use cohort_server::leading::Leading;
use cohort_server::records::{Record, Written, due};
use cohort_server::transfers::keep_known;
use cohort_transfer::Tracker;
use cohort_transfer::tracker::{Participant, TransferAnswer, TransferRequest};

use super::net::{Message, Net};
use super::server::Server;

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Happened {
    /// When, in milliseconds of the fleet's clock.
    pub at_ms: u64,
    /// The event, as the state machine returned it.
    pub event: Event,
    /// The wave that started with it, and its servers.
    pub wave: Option<(u32, BTreeSet<ServerId>)>,
}

/// A question for changed orders that is held.
#[derive(Debug, Clone)]
struct Held {
    server: ServerId,
    id: u64,
    known: u64,
    until_ms: u64,
    /// How long the log was when it was last looked at, and the kill switch then.
    entries: usize,
    killed: bool,
}

/// A group of servers behind one log.
#[derive(Debug)]
pub struct Group {
    /// Its committed state.
    pub state: State,
    /// Every command, in order, as it was proposed.
    pub log: Vec<Command>,
    /// Its servers, including those that have left.
    pub servers: BTreeMap<ServerId, Server>,
    /// The server whose member leads.
    pub leader: Option<ServerId>,
    /// When the group lost its leader, in milliseconds; none while it has one.
    pub leaderless_ms: Option<u64>,
    /// Messages in flight.
    pub net: Net,
    /// The leader's proposals in flight, and when each reaches the log, in milliseconds.
    pub proposed: Vec<(u64, Body)>,
    /// Everything that happened, for scenarios and invariants.
    pub events: Vec<Happened>,
    /// Why things wait, by the last plan.
    pub waiting: Vec<Waiting>,
    /// Commands that the state machine refused, and why.
    pub refused: Vec<(&'static str, Rejection)>,
    /// The transitions taken, from and to.
    pub arrows: BTreeSet<(PhaseName, PhaseName)>,
    /// The reason given for the kill switch; none while it is off.
    pub killed: Option<String>,
    /// What the channels point to, for this group's platform.
    pub offers: BTreeMap<AppId, Offer>,
    /// What the leader observes; none while nobody leads.
    leading: Option<Leading>,
    contacts: Contacts,
    written: Written,
    /// How far the leader's clock is ahead of the fleet's, in milliseconds: it was stopped.
    ahead_ms: u64,
    /// When the last entry advanced the clock, in milliseconds of the fleet's.
    clock_set_ms: u64,
    requests: u64,
    /// Who sends what to whom, at the leader's server.
    tracker: Tracker,
    held: Vec<Held>,
    given: BTreeMap<ServerId, (u64, Option<Orders>)>,
}

impl Group {
    /// A group that is set up but has no servers yet.
    #[must_use]
    pub fn new(name: &str, platform: &str, labels: &BTreeMap<String, String>) -> Group {
        let id = GroupId::new(name).expect("a group name");
        let mut group = Group {
            state: State::new(id, Incarnation(1)),
            log: Vec::new(),
            servers: BTreeMap::new(),
            leader: None,
            leaderless_ms: None,
            net: Net::default(),
            proposed: Vec::new(),
            events: Vec::new(),
            waiting: Vec::new(),
            refused: Vec::new(),
            arrows: BTreeSet::new(),
            killed: None,
            offers: BTreeMap::new(),
            leading: None,
            contacts: Contacts::default(),
            written: Written::default(),
            ahead_ms: 0,
            clock_set_ms: 0,
            requests: 0,
            tracker: Tracker::default(),
            held: Vec::new(),
            given: BTreeMap::new(),
        };
        let platform = platform.parse().expect("a platform");
        let body = Body::SetUp { labels: labels.clone(), platform };
        group.commit(0, "hub", None, body).expect("the first entry is taken");
        group
    }

    /// Writes one entry to the log and applies it; every invariant holds after it.
    ///
    /// # Errors
    /// Why the command was refused.
    ///
    /// # Panics
    /// When an invariant of the state is broken.
    pub fn commit(
        &mut self,
        now_ms: u64,
        actor: &str,
        request: Option<RequestId>,
        body: Body,
    ) -> Result<Vec<Event>, Rejection> {
        let name = body.name();
        let command = Command {
            version: COMMAND_VERSION,
            incarnation: self.state.incarnation,
            actor: actor.to_owned(),
            request,
            body,
        };
        let outcome = self.state.apply(&command);
        if let Err(broken) = self.state.check() {
            panic!("after {command:?}: {broken}");
        }
        if matches!(command.body, Body::AdvanceClock { .. }) {
            self.clock_set_ms = now_ms;
        }
        self.log.push(command);
        if let Some(leading) = &mut self.leading {
            leading.state_changed();
        }
        match &outcome {
            Ok(events) => {
                for event in events {
                    let mut wave = None;
                    if let Event::PhaseChanged { app, from, to, .. } = event {
                        self.arrows.insert((*from, *to));
                        let phase = &self.state.apps[app].phase;
                        if *to == PhaseName::WAVE_ASSIGNED
                            && let (Some(rollout), Some((servers, _))) =
                                (phase.rollout(), phase.wave())
                        {
                            wave = Some((rollout.waves, servers.clone()));
                        }
                    }
                    self.events.push(Happened { at_ms: now_ms, event: event.clone(), wave });
                }
            }
            Err(rejection) => self.refused.push((name, rejection.clone())),
        }
        outcome
    }

    /// An operator's command, under a fresh request id.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn person(&mut self, now_ms: u64, body: Body) -> Result<Vec<Event>, Rejection> {
        self.requests += 1;
        let request = RequestId(format!("r{}", self.requests));
        self.advance_clock(now_ms);
        self.commit(now_ms, "ana", Some(request), body)
    }

    /// Advances the clock before an entry of somebody else.
    fn advance_clock(&mut self, now_ms: u64) {
        let (now_ms, applied) = (now_ms + self.ahead_ms, self.log.len() as u64);
        let Some(leading) = &mut self.leading else { return };
        if let Some(clock) = leading.clock_due(now_ms, &self.state, applied) {
            leading.proposed(now_ms, applied + 1, &clock);
            let _ = self.commit(now_ms, "leader", None, clock);
        }
    }

    /// Changes the leader; the observations of the old one are lost.
    pub fn elect(&mut self, now_ms: u64, leader: Option<ServerId>) {
        self.leaderless_ms = if leader.is_none() { Some(now_ms) } else { None };
        // Worse than in production, where the new leader's member has heard of some servers itself.
        self.contacts = Contacts::default();
        self.written = Written::default();
        self.leading = leader.clone().map(|leader| {
            let mut leading = Leading::new(leader, self.killed.clone());
            // Every member's ticks run, also before it leads.
            leading.tick(now_ms + self.ahead_ms);
            leading.clock_was_set(self.clock_set_ms + self.ahead_ms);
            leading.began(now_ms + self.ahead_ms);
            leading
        });
        self.leader = leader;
        self.tracker.clear();
    }

    /// The leader's process was stopped for `ms` while everybody else kept running.
    pub fn leap(&mut self, ms: u64) {
        self.ahead_ms += ms;
    }

    /// A server asked for its orders.
    pub fn contact(&mut self, now_ms: u64, server: &ServerId, doing: &BTreeMap<AppId, Step>) {
        let doing = doing.iter().map(|(app, step)| (app.clone(), Doing::Step { step: *step }));
        self.contacts.heard(now_ms + self.ahead_ms, server, 0, doing.collect());
    }

    /// A member is asked; `None` where the answer comes later.
    pub fn ask(
        &mut self,
        now_ms: u64,
        server: &ServerId,
        id: u64,
        question: &Question,
        doing: &BTreeMap<AppId, Step>,
    ) -> Option<Input> {
        match question {
            // A read is answered only where somebody leads a majority.
            Question::Orders if self.leader.is_none() => Some(Input::NoAnswer),
            Question::Orders => {
                self.contact(now_ms, server, doing);
                let (orders, hash) = self.orders(server);
                let orders = orders.map(Box::new);
                let leader = self.leader.clone();
                Some(Input::Orders { orders, valid_ms: ORDERS_VALID_MS, leader, hash })
            }
            Question::Change { known } => {
                self.contact(now_ms, server, doing);
                let until_ms = now_ms + WAIT_MS_MAX;
                let (server, entries, killed) = (server.clone(), usize::MAX, false);
                self.held.push(Held { server, id, known: *known, until_ms, entries, killed });
                None
            }
            Question::Kill => Some(Input::Changed),
            Question::Join => {
                let taken = self.leader.is_some() && self.state.servers.contains_key(server);
                Some(Input::Joined(taken))
            }
        }
    }

    /// A server's orders, with a number that changes whenever they do.
    fn orders(&mut self, server: &ServerId) -> (Option<Orders>, u64) {
        let orders = self.state.orders(server, self.killed.is_some());
        let (number, given) = self.given.entry(server.clone()).or_default();
        if *number == 0 || *given != orders {
            *number += 1;
            given.clone_from(&orders);
        }
        (orders, *number)
    }

    /// Takes out the held questions due now: orders changed, time is up, or there is no leader.
    pub fn answer_held(&mut self, now_ms: u64) -> Vec<(ServerId, u64)> {
        let (mut answered, mut held) = (Vec::new(), std::mem::take(&mut self.held));
        let entries = self.log.len();
        let killed = self.killed.is_some();
        held.retain_mut(|question| {
            let mut over = self.leader.is_none() || question.until_ms <= now_ms;
            if !over && (question.entries, question.killed) != (entries, killed) {
                (question.entries, question.killed) = (entries, killed);
                over = answers_now(true, self.orders(&question.server).1, question.known);
            }
            if over {
                answered.push((question.server.clone(), question.id));
            }
            !over
        });
        self.held = held;
        answered
    }

    /// Appends reports in order. Returns which of them were accepted.
    pub fn report(&mut self, now_ms: u64, reports: Vec<Report>) -> Vec<bool> {
        self.advance_clock(now_ms);
        let commit = |report: Report| {
            let actor = report.server.to_string();
            self.commit(now_ms, &actor, None, Body::Report { report }).is_ok()
        };
        reports.into_iter().map(commit).collect()
    }

    /// A server reports its transfers to the leader's tracker.
    pub fn track(
        &mut self,
        now_ms: u64,
        server: &ServerId,
        mut request: TransferRequest,
    ) -> Option<TransferAnswer> {
        let known = self.state.servers.get(server)?;
        keep_known(&mut request, &self.state);
        let from = Participant {
            server: server.clone(),
            address: known.address.clone(),
            rack: known.rack.clone(),
            leads: self.leader.as_ref() == Some(server),
        };
        self.tracker.report(&from, &request, Duration::from_millis(now_ms)).ok()
    }

    /// Delivers an answer to its server.
    pub fn deliver(&mut self, message: Message) {
        if let Some(server) = self.servers.get_mut(message.server()) {
            server.receive(message);
        }
    }

    /// Advances the leader's clock. Returns whether a plan is due.
    pub fn plan_due(&mut self, now_ms: u64) -> bool {
        let Some(leading) = &mut self.leading else { return false };
        let now_ms = now_ms + self.ahead_ms;
        leading.tick(now_ms);
        leading.due(now_ms, self.log.len() as u64)
    }

    /// The leader's plan, made from what it observes now.
    pub fn plan(&mut self, now_ms: u64, registry: Option<RegistryView>) -> Plan {
        let Some(mut leading) = self.leading.take() else { return Plan::default() };
        let plan = self.plan_of(&mut leading, now_ms, registry);
        self.leading = Some(leading);
        plan
    }

    /// Why things wait, if the leader planned now; asking changes nothing.
    pub fn why(&self, now_ms: u64, registry: Option<RegistryView>) -> Vec<Waiting> {
        let Some(mut leading) = self.leading.clone() else { return Vec::new() };
        self.plan_of(&mut leading, now_ms, registry).waiting
    }

    fn plan_of(&self, leading: &mut Leading, now_ms: u64, registry: Option<RegistryView>) -> Plan {
        leading.registry(registry);
        leading.offers(self.offers.clone(), Vec::new());
        leading.killed(now_ms + self.ahead_ms, self.killed.clone());
        leading.plan(now_ms + self.ahead_ms, &self.state, &self.contacts)
    }

    /// Notes a proposal of the leader, behind `after` others that are still in flight.
    pub fn proposes(&mut self, now_ms: u64, body: &Body, after: usize) {
        let index = (self.log.len() + after + 1) as u64;
        if let Some(leading) = &mut self.leading {
            leading.proposed(now_ms + self.ahead_ms, index, body);
        }
    }

    /// Writes due records to the registry, and acknowledges them to the group.
    pub fn write_records(&mut self, now_ms: u64, registry: &mut RegistryView) {
        let members = self.state.servers.values().filter_map(|server| server.member);
        let voters = Configuration::of(members.map(|member| RaftId(member.0)), []);
        for record in due(&self.state, &voters, &self.written) {
            if let Record::Verdict { app, verdict } = &record {
                let verdict = ForeignVerdict {
                    group: self.state.group.clone(),
                    app: app.clone(),
                    version: verdict.version.clone(),
                    platform: verdict.platform.clone(),
                    bad: verdict.bad.clone(),
                };
                registry.verdicts.retain(|known| {
                    (&known.group, &known.app, &known.version)
                        != (&verdict.group, &verdict.app, &verdict.version)
                });
                registry.verdicts.push(verdict);
            }
            if let Some(body) = self.written.took(record) {
                let _ = self.commit(now_ms, "leader", None, body);
            }
        }
    }

    /// Checks that the group runs `release` everywhere: nothing in flight, no debts, all serving.
    ///
    /// # Errors
    /// The first thing that is not as it should be.
    pub fn settled_on(&self, app: &AppId, release: &Release) -> Result<(), String> {
        let state = &self.state.apps[app];
        if state.phase.name() != PhaseName::Running {
            return Err(format!("{}: {app} is {}", self.state.group, state.phase.name()));
        }
        if state.last_good.as_ref() != Some(release) {
            return Err(format!("{}: {app} has another last good", self.state.group));
        }
        for (id, here) in &state.servers {
            if !here.settled_on(Some(release)) || !here.in_service || here.debt.is_some() {
                return Err(format!("{}: {app} on {id} is {here:?}", self.state.group));
            }
            let service = self.servers.get(id).and_then(|server| server.services.get(app));
            if !service.is_some_and(|s| s.serves() && s.release.as_ref() == Some(release)) {
                return Err(format!("{}: {app} on {id} is really {service:?}", self.state.group));
            }
        }
        Ok(())
    }
}
