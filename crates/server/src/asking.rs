//! Asking for orders: which member, when, and how fresh an answer is.
//!
//! One question is open at a time. The shell carries it to a member and steps with what came back;
//! after [`Effect::Obey`] the orders are in force, and go stale by this server's own clock.

use cohort_core::ids::{Incarnation, ServerId};
use cohort_core::orders::{MemberAddress, Orders};

/// How long orders are valid, in milliseconds, from when the server asked, by its own clock. 5 s:
/// longer than a busy machine pauses, shorter than a cut-off server can do harm.
pub const ORDERS_VALID_MS: u64 = 5_000;
/// How long a member holds a question for changed orders, in milliseconds. 2 s: a server is heard
/// of at least that often.
pub const WAIT_MS_MAX: u64 = 2_000;
/// How long an answer to a question for orders may take, in milliseconds: a read round, twice.
pub const ANSWER_MS_MAX: u64 = 3_000;

/// Shortest pause after no member answered, in milliseconds; it doubles with each round.
const PAUSE_MS_MIN: u64 = 100;
/// Longest pause, in milliseconds.
const PAUSE_MS_MAX: u64 = 1_000;

/// Orders, and until when they are valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub orders: Orders,
    /// When they were asked for, in milliseconds of the boot-time clock.
    pub asked_ms: u64,
    /// How long they are valid from then, in milliseconds.
    pub valid_ms: u64,
    /// The server whose agent leads, as far as the member knew.
    pub leader: Option<ServerId>,
}

impl Received {
    /// Whether something disruptive may begin on the strength of them.
    #[must_use]
    pub fn fresh(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.asked_ms) < self.valid_ms
    }
}

/// A member of the group and its peer port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whom {
    pub server: ServerId,
    /// `host:port`.
    pub address: String,
}

/// A question to a member. The shell answers each with one [`Input`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// For orders, read through the leader. [`ANSWER_MS_MAX`] for the answer.
    Orders,
    /// For orders with another hash: held up to [`WAIT_MS_MAX`], promises nothing about freshness.
    Change { known: u64 },
    /// To be taken into the group, or to have its address and rack brought up to date.
    Join,
    /// For the kill registers only: a minority has no orders to give, but the kill switch passes
    /// from server to server.
    Kill,
}

/// What the shell is to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// These orders are in force from now on.
    Obey(Box<Received>),
    /// A server answered for an old incarnation; its orders are ignored.
    OldIncarnation { server: ServerId, incarnation: Incarnation },
    /// Look up in the registry where the group's members are.
    AskRegistry,
    /// Ask this member.
    Ask(Whom, Question),
    /// Nothing until then, by the boot-time clock in milliseconds; then [`Input::Woken`].
    Rest { until_ms: u64 },
}

/// What came of the last effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The start, or the end of a rest.
    Woken,
    /// The registry was asked; its members are among those known from now on, if it answered.
    RegistryAsked,
    /// A member answered [`Question::Orders`].
    Orders {
        /// What to do; `None` when the group does not have this server.
        orders: Option<Box<Orders>>,
        /// How long they are valid, in milliseconds.
        valid_ms: u64,
        /// The server whose agent leads, as far as the member knows.
        leader: Option<ServerId>,
        hash: u64,
    },
    /// [`Question::Change`] or [`Question::Kill`] ended: answered, or its time was up.
    Changed,
    /// Whether the group has taken this server in: not if it refused.
    Joined(bool),
    /// The member did not answer, or refused.
    NoAnswer,
}

/// Where the group's members are, as known at the moment.
#[derive(Debug, Clone, Copy)]
pub struct Members<'a> {
    pub known: &'a [MemberAddress],
    /// This server's own address, when it carries a member itself.
    pub own: Option<&'a str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Open {
    Nothing,
    Registry { then_rest: bool },
    Orders(Whom),
    Change,
    Kill,
    // To be taken in; without orders there is nothing to do but rest.
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
    /// The newest incarnation of the group that this server has heard of.
    incarnation: Incarnation,
    preferred: Option<ServerId>,
    turn: usize,
    pause_ms: u64,
    /// The group has this server's present address and rack.
    introduced: bool,
    asked_ms: u64,
    open: Open,
}

impl Asking {
    /// Begins with nothing asked. `incarnation` is the newest on this server's disk.
    #[must_use]
    pub fn new(server: ServerId, incarnation: Incarnation) -> Asking {
        Asking {
            server,
            incarnation,
            preferred: None,
            turn: 0,
            pause_ms: PAUSE_MS_MIN,
            introduced: false,
            asked_ms: 0,
            open: Open::Nothing,
        }
    }

    /// Takes what came of the last effect and says what to do next: exactly one of
    /// [`Effect::AskRegistry`], [`Effect::Ask`] and [`Effect::Rest`], and it comes last.
    pub fn step(&mut self, now_ms: u64, members: Members<'_>, input: Input) -> Vec<Effect> {
        match (std::mem::replace(&mut self.open, Open::Nothing), input) {
            (Open::Registry { then_rest: true }, _) => vec![self.rest(now_ms)],
            (Open::Registry { then_rest: false }, _) => match self.candidates(members).is_empty() {
                true => vec![self.rest(now_ms)],
                false => self.ask(now_ms, members),
            },
            (
                Open::Orders(whom),
                Input::Orders { orders: Some(orders), valid_ms, leader, hash },
            ) => {
                let (orders, asked_ms) = (*orders, self.asked_ms);
                self.answered(Received { orders, asked_ms, valid_ms, leader }, hash, whom)
            }
            (Open::Orders(whom), Input::Orders { orders: None, .. }) => {
                self.heard(&whom);
                vec![self.join(whom, AfterJoin::Rest)]
            }
            (Open::Orders(whom), _) => {
                self.next_member();
                self.open = Open::Kill;
                vec![Effect::Ask(whom, Question::Kill)]
            }
            (Open::Kill, _) => self.ask_on(now_ms, members),
            (Open::Join { after: AfterJoin::Rest, .. }, input) => match input {
                // Its orders can be asked for at once.
                Input::Joined(true) => self.ask(now_ms, members),
                _ => vec![self.rest(now_ms)],
            },
            (Open::Join { whom, after: AfterJoin::Change { known } }, input) => {
                self.introduced = input == Input::Joined(true);
                self.open = Open::Change;
                vec![Effect::Ask(whom, Question::Change { known })]
            }
            (Open::Change | Open::Nothing, _) => self.ask(now_ms, members),
        }
    }

    fn answered(&mut self, received: Received, hash: u64, whom: Whom) -> Vec<Effect> {
        let incarnation = received.orders.incarnation;
        if incarnation < self.incarnation {
            self.next_member();
            let server = whom.server;
            self.open = Open::Registry { then_rest: true };
            return vec![Effect::OldIncarnation { server, incarnation }, Effect::AskRegistry];
        }
        self.heard(&whom);
        self.incarnation = incarnation;
        let next = if self.introduced {
            self.open = Open::Change;
            Effect::Ask(whom, Question::Change { known: hash })
        } else {
            // The group learns of a new address; the same one changes nothing.
            self.join(whom, AfterJoin::Change { known: hash })
        };
        vec![Effect::Obey(Box::new(received)), next]
    }

    fn join(&mut self, whom: Whom, after: AfterJoin) -> Effect {
        self.open = Open::Join { whom: whom.clone(), after };
        Effect::Ask(whom, Question::Join)
    }

    fn heard(&mut self, whom: &Whom) {
        self.pause_ms = PAUSE_MS_MIN;
        self.preferred = Some(whom.server.clone());
        self.turn = 0;
    }

    fn next_member(&mut self) {
        self.preferred = None;
        self.turn = self.turn.wrapping_add(1);
    }

    /// After a member that did not answer: the next one, or, after all of them, a rest.
    fn ask_on(&mut self, now_ms: u64, members: Members<'_>) -> Vec<Effect> {
        if self.turn.is_multiple_of(self.candidates(members).len().max(1)) {
            // Perhaps they have moved.
            self.open = Open::Registry { then_rest: true };
            return vec![Effect::AskRegistry];
        }
        self.ask(now_ms, members)
    }

    fn ask(&mut self, now_ms: u64, members: Members<'_>) -> Vec<Effect> {
        let candidates = self.candidates(members);
        if candidates.is_empty() {
            self.open = Open::Registry { then_rest: false };
            return vec![Effect::AskRegistry];
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

    /// Whom to ask, best first: who answered last, this server's own member, then the others.
    fn candidates(&self, members: Members<'_>) -> Vec<Whom> {
        let whom = |member: &MemberAddress| Whom {
            server: member.server.clone(),
            address: member.address.clone(),
        };
        let mut candidates: Vec<Whom> = members.known.iter().map(whom).collect();
        if let Some(address) = members.own
            && !candidates.iter().any(|whom| whom.server == self.server)
        {
            candidates.push(Whom { server: self.server.clone(), address: address.to_owned() });
        }
        if !candidates.is_empty() {
            // Every server starts at another member, so that none answers them all.
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
