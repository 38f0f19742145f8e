//! A group: its committed state, whoever leads, and its servers.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::command::{Body, COMMAND_VERSION, Command, Event, Rejection};
use cohort_core::ids::{AppId, GroupId, Incarnation, RequestId, ServerId};
use cohort_core::orders::Orders;
use cohort_core::phase::PhaseName;
use cohort_core::release::Release;
use cohort_core::report::{Report, Step};
use cohort_core::state::State;
use cohort_core::waiting::Waiting;
use cohort_core::{Observations, Offer, Plan};
use cohort_server::asking::{Input, ORDERS_VALID_MS, Question, WAIT_MS_MAX};

use super::net::{Message, Net};
use super::server::Server;

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Happened {
    /// When, in milliseconds of the fleet's clock.
    pub at_ms: u64,
    /// What.
    pub event: Event,
    /// The wave that began with it.
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
#[derive(Debug, Clone)]
pub struct Group {
    /// Its committed state.
    pub state: State,
    /// Every command, in order, as it was proposed.
    pub log: Vec<Command>,
    /// Its servers, those as well that have left.
    pub servers: BTreeMap<ServerId, Server>,
    /// Who leads.
    pub leader: Option<ServerId>,
    /// Since when nobody leads, in milliseconds.
    pub leaderless_ms: Option<u64>,
    /// Messages on their way.
    pub net: Net,
    /// What the leader proposed and what is not in the log yet: when it gets there.
    pub proposed: Vec<(u64, Body)>,
    /// What happened, for scenarios and invariants: when, and what.
    pub events: Vec<Happened>,
    /// The last plan's reasons.
    pub waiting: Vec<Waiting>,
    /// Commands that were refused, and why.
    pub refused: Vec<(&'static str, Rejection)>,
    /// The states that were entered, from and to.
    pub arrows: BTreeSet<(PhaseName, PhaseName)>,
    /// The kill switch, as the members have it.
    pub killed: Option<String>,
    /// What the channels point to, for this group's platform.
    pub offers: BTreeMap<AppId, Offer>,
    /// Added to what the leader measures: a leader that slept.
    pub leap_ms: u64,
    led_ms: u64,
    clock_ms: u64,
    contact_ms: BTreeMap<ServerId, u64>,
    doing: BTreeMap<(AppId, ServerId), Step>,
    requests: u64,
    held: Vec<Held>,
    given: BTreeMap<ServerId, (u64, Option<Orders>)>,
}

impl Group {
    /// A group that was set up and has no servers.
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
            leap_ms: 0,
            led_ms: 0,
            clock_ms: 0,
            contact_ms: BTreeMap::new(),
            doing: BTreeMap::new(),
            requests: 0,
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
        let advanced = matches!(body, Body::AdvanceClock { .. });
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
        self.log.push(command);
        match &outcome {
            Ok(events) => {
                if advanced {
                    self.clock_ms = now_ms;
                    self.leap_ms = 0;
                }
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

    /// A person says something, once.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn person(&mut self, now_ms: u64, body: Body) -> Result<Vec<Event>, Rejection> {
        self.requests += 1;
        let request = RequestId(format!("r{}", self.requests));
        self.commit(now_ms, "ana", Some(request), body)
    }

    /// Another server leads from now on; what the old one knew is forgotten.
    pub fn elect(&mut self, now_ms: u64, leader: Option<ServerId>) {
        self.leaderless_ms = if leader.is_none() { Some(now_ms) } else { None };
        self.leader = leader;
        self.led_ms = now_ms;
        self.clock_ms = now_ms;
        self.leap_ms = 0;
        self.contact_ms.clear();
        self.doing.clear();
    }

    /// A server asked for its orders.
    pub fn contact(&mut self, now_ms: u64, server: &ServerId, doing: &BTreeMap<AppId, Step>) {
        self.contact_ms.insert(server.clone(), now_ms);
        self.doing.retain(|(_, other), _| other != server);
        for (app, step) in doing {
            self.doing.insert((app.clone(), server.clone()), *step);
        }
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
                Some(Input::Orders { orders, valid_ms: ORDERS_VALID_MS, hash })
            }
            Question::Change { known } => {
                self.contact(now_ms, server, doing);
                let until_ms = now_ms + WAIT_MS_MAX;
                let (server, entries, killed) = (server.clone(), usize::MAX, false);
                self.held.push(Held { server, id, known: *known, until_ms, entries, killed });
                None
            }
            Question::Join => {
                let taken = self.leader.is_some() && self.state.servers.contains_key(server);
                Some(Input::Joined(taken))
            }
        }
    }

    /// A server's orders, numbered: the same orders have the same number.
    fn orders(&mut self, server: &ServerId) -> (Option<Orders>, u64) {
        let orders = self.state.orders(server, self.killed.is_some());
        let (number, given) = self.given.entry(server.clone()).or_default();
        if *number == 0 || *given != orders {
            *number += 1;
            given.clone_from(&orders);
        }
        (orders, *number)
    }

    /// The held questions that are answered now: orders have changed, time is up, or nobody leads.
    pub fn answer_held(&mut self, now_ms: u64) -> Vec<(ServerId, u64)> {
        let (mut answered, mut held) = (Vec::new(), std::mem::take(&mut self.held));
        let entries = self.log.len();
        let killed = self.killed.is_some();
        held.retain_mut(|question| {
            let mut over = self.leader.is_none() || question.until_ms <= now_ms;
            if !over && (question.entries, question.killed) != (entries, killed) {
                (question.entries, question.killed) = (entries, killed);
                over = self.orders(&question.server).1 != question.known;
            }
            if over {
                answered.push((question.server.clone(), question.id));
            }
            !over
        });
        self.held = held;
        answered
    }

    /// Reports go into the log one after the other; which of them were accepted.
    pub fn report(&mut self, now_ms: u64, reports: Vec<Report>) -> Vec<bool> {
        let commit = |report: Report| {
            let actor = report.server.to_string();
            self.commit(now_ms, &actor, None, Body::Report { report }).is_ok()
        };
        reports.into_iter().map(commit).collect()
    }

    /// An answer reaches a server.
    pub fn deliver(&mut self, message: Message) {
        if let Some(server) = self.servers.get_mut(message.server()) {
            server.receive(message);
        }
    }

    /// What the leader plans.
    pub fn plan(&self, now_ms: u64, registry: Option<cohort_core::gate::RegistryView>) -> Plan {
        let contact_age_ms =
            self.contact_ms.iter().map(|(server, at)| (server.clone(), now_ms - at)).collect();
        cohort_core::plan(
            &self.state,
            &Observations {
                leader: self.leader.clone(),
                elapsed_ms: now_ms - self.clock_ms + self.leap_ms,
                leading_for_ms: now_ms - self.led_ms,
                killed: self.killed.clone(),
                registry,
                offers: self.offers.clone(),
                contact_age_ms,
                doing: self.doing.clone(),
                refusals: Vec::new(),
            },
        )
    }

    /// Whether everything is where it should be: nothing in flight, nothing owed, all serve.
    ///
    /// # Errors
    /// The first thing that is not.
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
