//! Asking for orders: which member, when, and how fresh a response is.
//!
//! One request is open at a time. The shell sends it to a member and steps with the response; after
//! [`Effect::Obey`] the orders are in force, and go stale by this server's own clock.
//!
//! One server's key speaks for one server, so no member commands others alone: what it says counts
//! once a second one says the same. A server that carries a member takes its own word, and a group
//! that has one member takes that one's.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::{AppId, Incarnation, ServerId};
use cohort_core::orders::{AppOrders, MemberAddress, Orders};

use crate::answers::hash_of;
use crate::copies::RETURNS_MS;

/// How long orders are valid, in milliseconds from the request, by the server's own clock. 5 s:
/// longer than the pauses of a busy machine, shorter than a partitioned server needs to do harm.
pub const ORDERS_VALID_MS: u64 = 5_000;
/// How long a member holds a request for changed orders, in milliseconds. 2 s: a server is heard
/// from at least that often.
pub const WAIT_MS_MAX: u64 = 2_000;
/// Longest wait for the response to a held request, in milliseconds: a member that is silent for
/// longer is gone, and another one is asked.
pub const CHANGE_MS_MAX: u64 = WAIT_MS_MAX + 1_000;
/// Longest wait for a response to a request for orders, in milliseconds: two read rounds.
pub const ANSWER_MS_MAX: u64 = 3_000;

/// Members that must say the same.
const WITNESSES: usize = 2;
/// Requests for changed orders to one member until the next one gets one, so that no member holds
/// back new orders for ever. 15: half a minute.
const HELD_BY_ONE_MAX: u32 = 15;

/// How long it counts that a member said that another agent speaks for this server, in
/// milliseconds. 2 min: two machines that run as one displace each other within seconds.
const DISPLACED_MS_MAX: u64 = 120_000;

/// Shortest pause after no member responded, in milliseconds; doubled with each round.
const PAUSE_MS_MIN: u64 = 100;
/// Longest pause, in milliseconds.
const PAUSE_MS_MAX: u64 = 1_000;

/// Orders, and how long they are valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub orders: Orders,
    /// When they were requested, in milliseconds of the boot-time clock.
    pub asked_ms: u64,
    /// How long they are valid from then, in milliseconds; at most [`ORDERS_VALID_MS`].
    pub valid_ms: u64,
    /// The leader's server, as far as the member knew.
    pub leader: Option<ServerId>,
    /// The servers whose members vote.
    pub voters: BTreeSet<ServerId>,
}

impl Received {
    /// Whether a member said the same here as in `other`.
    fn says(&self, other: &Received) -> bool {
        (&self.orders, &self.voters) == (&other.orders, &other.voters)
    }

    /// Whether these orders still permit starting something disruptive.
    #[must_use]
    pub fn fresh(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.asked_ms) < self.valid_ms
    }

    /// The part for one app; `None` if the group does not have it.
    #[must_use]
    pub fn of(&self, app: &AppId) -> Option<&AppOrders> {
        self.orders.apps.iter().find(|orders| orders.app == *app)
    }
}

/// A member of the group and its peer port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whom {
    pub server: ServerId,
    pub address: String,
}

/// A request to a member. The shell answers each with one [`Input`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// For orders, read through the leader. The response may take [`ANSWER_MS_MAX`].
    Orders,
    /// For orders with another hash: held for up to [`WAIT_MS_MAX`]; says nothing about freshness.
    Change { known: u64 },
    /// To join the group, or to update this server's address and rack.
    Join,
    /// For the kill registers only: a minority has no orders to give, but servers forward the kill
    /// switch to each other.
    Kill,
}

/// What the shell should do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// These orders are in force from now on.
    Obey(Box<Received>),
    /// A server responded for an old incarnation; its orders are ignored.
    OldIncarnation { server: ServerId, incarnation: Incarnation },
    /// The group took this agent in, and now another one speaks for the server, on this host.
    Displaced { host: String },
    /// Look up the group's members in the registry.
    AskRegistry {
        /// Tell it first where this server is: no member answered where it says that they are. A
        /// machine that the leader has refused must not divert what is meant for another one; but
        /// a group that has lost its leader since then may need it to find itself again.
        tell: bool,
    },
    /// Send this request to this member.
    Ask(Whom, Question),
    /// Do nothing until this time of the boot-time clock, in milliseconds; then [`Input::Woken`].
    Rest { until_ms: u64 },
}

/// The outcome of the last effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The start, or the end of a rest.
    Woken,
    /// The registry was queried; if it responded, its members are now among those known.
    RegistryAsked,
    /// A member answered [`Question::Orders`].
    Orders {
        /// The orders; `None` if the group does not have this server, or another agent speaks for
        /// it.
        orders: Option<Box<Orders>>,
        /// The host of that agent.
        elsewhere: Option<String>,
        /// How long they are valid, in milliseconds, according to the member.
        valid_ms: u64,
        /// The leader's server, as far as the member knows.
        leader: Option<ServerId>,
        /// The servers whose members vote.
        voters: BTreeSet<ServerId>,
    },
    /// [`Question::Change`] was answered, or is not needed any more; or [`Question::Kill`] ended.
    Changed,
    /// Whether the group accepted this server; false if it refused, or did not answer.
    Joined(bool),
    /// The group refused this agent: another one runs as its server, on this host.
    RunsElsewhere { host: String },
    /// The member did not respond, or refused.
    NoAnswer,
}

/// The group's members, as far as known now.
#[derive(Debug, Clone, Copy)]
pub struct Members<'a> {
    pub known: &'a [MemberAddress],
    /// The servers whose members vote; empty if that is not known.
    pub voters: &'a BTreeSet<ServerId>,
    /// This server's own address, if it carries a member itself.
    pub own: Option<&'a str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Open {
    Nothing,
    Registry { then_rest: bool },
    Orders(Whom),
    Change,
    Kill,
    // Waiting to join; without orders, there is nothing to do but wait.
    Join { whom: Whom, after: AfterJoin },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterJoin {
    Rest,
    Change { known: u64 },
}

/// Asks the members of the group in turn.
#[derive(Debug, Clone)]
pub struct Asking {
    server: ServerId,
    /// The newest incarnation of the group known to this server.
    incarnation: Incarnation,
    preferred: Option<ServerId>,
    turn: usize,
    /// Requests for changed orders so far.
    held: u32,
    /// Members that answered when they were asked last.
    answering: BTreeSet<ServerId>,
    /// What members said that no other one has confirmed yet.
    said: BTreeMap<ServerId, Received>,
    /// The orders that were obeyed last.
    in_force: Option<Received>,
    pause_ms: u64,
    /// Rounds of all members without an answer.
    rounds: u32,
    /// How often a member took this server in since the last orders.
    joins: usize,
    /// The group has this server's current address and agent.
    introduced: bool,
    /// When the leader said last that another machine runs as this server.
    refused_ms: Option<u64>,
    /// How often another agent spoke for the server after that.
    displaced: u32,
    /// The members that said so, and when.
    displaced_by: BTreeMap<ServerId, u64>,
    asked_ms: u64,
    open: Open,
}

impl Asking {
    /// The initial state. `incarnation` is the newest on this server's disk.
    #[must_use]
    pub fn new(server: ServerId, incarnation: Incarnation) -> Asking {
        Asking {
            server,
            incarnation,
            preferred: None,
            turn: 0,
            held: 0,
            answering: BTreeSet::new(),
            said: BTreeMap::new(),
            in_force: None,
            pause_ms: PAUSE_MS_MIN,
            rounds: 0,
            joins: 0,
            introduced: false,
            refused_ms: None,
            displaced: 0,
            displaced_by: BTreeMap::new(),
            asked_ms: 0,
            open: Open::Nothing,
        }
    }

    /// Processes the outcome of the last effect and returns what to do next: exactly one of
    /// [`Effect::AskRegistry`], [`Effect::Ask`] and [`Effect::Rest`], and it comes last.
    pub fn step(&mut self, now_ms: u64, members: Members<'_>, input: Input) -> Vec<Effect> {
        match input {
            Input::RunsElsewhere { .. } => self.refused_ms = Some(now_ms),
            Input::Joined(true) => self.refused_ms = None,
            _ => {}
        }
        match (std::mem::replace(&mut self.open, Open::Nothing), input) {
            (Open::Registry { then_rest: true }, _) => vec![self.rest(now_ms)],
            (Open::Registry { then_rest: false }, _) => match self.candidates(members).is_empty() {
                true => vec![self.rest(now_ms)],
                false => self.ask(now_ms, members),
            },
            (
                Open::Orders(whom),
                Input::Orders { orders: Some(orders), valid_ms, leader, voters, .. },
            ) => {
                let (orders, asked_ms) = (*orders, self.asked_ms);
                // A hostile member must not make orders valid forever.
                let valid_ms = valid_ms.min(ORDERS_VALID_MS);
                let received = Received { orders, asked_ms, valid_ms, leader, voters };
                self.answered(now_ms, members, received, whom)
            }
            (Open::Orders(whom), Input::Orders { orders: None, elsewhere, .. }) => {
                // While the group refuses this agent, it asks less and less often; and the others
                // next, because one that says so falsely must not keep this server to itself.
                self.rounds = 0;
                let elsewhere = elsewhere.filter(|_| std::mem::take(&mut self.introduced));
                let displaced =
                    elsewhere.and_then(|host| self.displaced(now_ms, members, &whom, host));
                displaced.into_iter().chain([self.join(whom, AfterJoin::Rest)]).collect()
            }
            (Open::Orders(whom), _) => {
                self.answering.remove(&whom.server);
                self.turn = self.turn.wrapping_add(1);
                self.open = Open::Kill;
                vec![Effect::Ask(whom, Question::Kill)]
            }
            (Open::Kill, _) => self.ask_on(now_ms, members),
            (Open::Join { whom, after: AfterJoin::Rest }, input) => {
                self.turn = self.turn.wrapping_add(1);
                match input {
                    // It can ask for orders immediately; but not for ever, if they do not come.
                    Input::Joined(true) => {
                        self.introduced = true;
                        self.joins += 1;
                        match self.joins <= self.candidates(members).len() {
                            true => self.ask(now_ms, members),
                            false => vec![self.rest(now_ms)],
                        }
                    }
                    // What it knows is from before the other one took its place.
                    Input::RunsElsewhere { host } if self.displaced > 0 => {
                        let displaced = self.displaced(now_ms, members, &whom, host);
                        displaced.into_iter().chain([self.rest(now_ms)]).collect()
                    }
                    _ => vec![self.rest(now_ms)],
                }
            }
            (Open::Join { whom, after: AfterJoin::Change { known } }, input) => {
                self.introduced = input == Input::Joined(true);
                vec![self.hold(members, whom, known)]
            }
            // Not the same one again: it may be gone, and others know where the leader is.
            (Open::Change, Input::NoAnswer) => {
                self.turn = self.turn.wrapping_add(1);
                self.ask_on(now_ms, members)
            }
            (Open::Change | Open::Nothing, _) => self.ask(now_ms, members),
        }
    }

    fn answered(
        &mut self,
        now_ms: u64,
        members: Members<'_>,
        received: Received,
        whom: Whom,
    ) -> Vec<Effect> {
        self.answering.insert(whom.server.clone());
        let incarnation = received.orders.incarnation;
        if incarnation < self.incarnation {
            self.turn = self.turn.wrapping_add(1);
            let server = whom.server;
            self.open = Open::Registry { then_rest: true };
            let ask = Effect::AskRegistry { tell: false };
            return vec![Effect::OldIncarnation { server, incarnation }, ask];
        }
        let Some(received) = self.witnessed(now_ms, members, &whom, received) else {
            self.turn = self.turn.wrapping_add(1);
            return self.ask_on(now_ms, members);
        };
        self.heard(&whom);
        self.incarnation = incarnation;
        let known = hash_of(Some(&received.orders));
        let next = if self.introduced {
            self.hold(members, whom, known)
        } else {
            // Reports a new address to the group; the same one changes nothing.
            self.join(whom, AfterJoin::Change { known })
        };
        vec![Effect::Obey(Box::new(received)), next]
    }

    /// The orders, if enough members say the same, or said so before. They are valid from the
    /// earlier request on: either member may be the one that is to be believed.
    fn witnessed(
        &mut self,
        now_ms: u64,
        members: Members<'_>,
        whom: &Whom,
        received: Received,
    ) -> Option<Received> {
        let alone = self.suffices(members, whom)
            || self.in_force.as_ref().is_some_and(|it| it.says(&received));
        let says_the_same = |(server, said): &(&ServerId, &Received)| {
            **server != whom.server && said.fresh(now_ms) && said.says(&received)
        };
        let confirmed_ms = match alone {
            true => Some(received.asked_ms),
            false => self.said.iter().filter(says_the_same).map(|(_, said)| said.asked_ms).max(),
        };
        let Some(confirmed_ms) = confirmed_ms else {
            self.said.insert(whom.server.clone(), received);
            return None;
        };
        self.said.clear();
        self.in_force = Some(received.clone());
        Some(Received { asked_ms: received.asked_ms.min(confirmed_ms), ..received })
    }

    /// Whether a member's word is enough: it is this server's own, the only voter's, or that of
    /// the only member.
    fn suffices(&self, members: Members<'_>, whom: &Whom) -> bool {
        let candidates = self.candidates(members);
        let mut others = candidates.iter().filter(|other| other.server != self.server);
        let only_voter = members.voters.len() == 1 && members.voters.contains(&whom.server);
        whom.server == self.server || only_voter || others.all(|other| other == whom)
    }

    /// A member says that another agent speaks for this server.
    fn displaced(
        &mut self,
        now_ms: u64,
        members: Members<'_>,
        whom: &Whom,
        host: String,
    ) -> Option<Effect> {
        self.displaced += 1;
        self.displaced_by.insert(whom.server.clone(), now_ms);
        // A lie of long ago is no witness.
        self.displaced_by.retain(|_, at_ms| now_ms < *at_ms + DISPLACED_MS_MAX);
        // Once: a request of an earlier process that came late.
        let displaced = self.displaced > 1
            && (self.suffices(members, whom) || self.displaced_by.len() >= WITNESSES);
        displaced.then_some(Effect::Displaced { host })
    }

    fn hold(&mut self, members: Members<'_>, mut whom: Whom, known: u64) -> Effect {
        self.open = Open::Change;
        self.held = self.held.wrapping_add(1);
        if whom.server != self.server && self.held.is_multiple_of(HELD_BY_ONE_MAX) {
            let candidates = self.candidates(members);
            let own = |other: &Whom| other.server == self.server && members.own.is_some();
            let other = |other: &Whom| {
                *other != whom && (own(other) || self.answering.contains(&other.server))
            };
            if let Some(turn) = candidates.iter().position(other) {
                self.turn = turn;
                whom = candidates[turn].clone();
            }
        }
        Effect::Ask(whom, Question::Change { known })
    }

    fn join(&mut self, whom: Whom, after: AfterJoin) -> Effect {
        self.open = Open::Join { whom: whom.clone(), after };
        Effect::Ask(whom, Question::Join)
    }

    fn heard(&mut self, whom: &Whom) {
        (self.pause_ms, self.rounds, self.joins) = (PAUSE_MS_MIN, 0, 0);
        self.preferred = Some(whom.server.clone());
        self.turn = 0;
    }

    /// After a member that did not respond: the next one, or after all of them, a rest.
    fn ask_on(&mut self, now_ms: u64, members: Members<'_>) -> Vec<Effect> {
        if self.turn.is_multiple_of(self.candidates(members).len().max(1)) {
            // Perhaps the members have moved.
            self.open = Open::Registry { then_rest: true };
            self.rounds = self.rounds.saturating_add(1);
            let refused = self.refused_ms.is_some_and(|at_ms| now_ms < at_ms + RETURNS_MS);
            return vec![Effect::AskRegistry { tell: self.rounds > 1 && !refused }];
        }
        self.ask(now_ms, members)
    }

    fn ask(&mut self, now_ms: u64, members: Members<'_>) -> Vec<Effect> {
        let candidates = self.candidates(members);
        if candidates.is_empty() {
            self.open = Open::Registry { then_rest: false };
            return vec![Effect::AskRegistry { tell: false }];
        }
        let whom = candidates[self.turn % candidates.len()].clone();
        self.asked_ms = now_ms;
        self.open = Open::Orders(whom.clone());
        vec![Effect::Ask(whom, Question::Orders)]
    }

    fn rest(&mut self, now_ms: u64) -> Effect {
        let until_ms = now_ms + self.pause_ms;
        self.pause_ms = (self.pause_ms * 2).min(PAUSE_MS_MAX);
        Effect::Rest { until_ms }
    }

    /// Members to ask, best first: the last to respond, this server's own member, then the others.
    fn candidates(&self, members: Members<'_>) -> Vec<Whom> {
        // The group may still have an earlier address of this server itself.
        let own = |member: &MemberAddress| members.own.filter(|_| member.server == self.server);
        let whom = |member: &MemberAddress| Whom {
            server: member.server.clone(),
            address: own(member).unwrap_or(&member.address).to_owned(),
        };
        let mut candidates: Vec<Whom> = members.known.iter().map(whom).collect();
        if let Some(address) = members.own
            && !candidates.iter().any(|whom| whom.server == self.server)
        {
            candidates.push(Whom { server: self.server.clone(), address: address.to_owned() });
        }
        if !candidates.is_empty() {
            // Every server starts at a different member, so that none has to answer all.
            let sum = |sum: usize, byte: u8| sum.wrapping_mul(31).wrapping_add(usize::from(byte));
            let start = self.server.as_str().bytes().fold(0, sum) % candidates.len();
            candidates.rotate_left(start);
        }
        candidates.sort_by_key(|whom| {
            (Some(&whom.server) != self.preferred.as_ref(), whom.server != self.server)
        });
        candidates
    }
}

#[cfg(test)]
#[path = "asking_test.rs"]
mod asking_test;
