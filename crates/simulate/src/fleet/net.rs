//! The network of one group: each packet may be lost, come twice, or come late.

use std::collections::{BTreeMap, BTreeSet};

use cohort_consensus::{Envelope, Message};
use cohort_core::ability::Ability;
use cohort_core::command::Rejection;
use cohort_core::doing::Doing;
use cohort_core::ids::{AppId, MemberId, ServerId};
use cohort_core::machine::Machine;
use cohort_core::report::Report;
use cohort_core::{Command, State};
use cohort_server::asking::{Input, Question};
use cohort_transfer::tracker::{TransferAnswer, TransferRequest};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::chaos::Mutation;
use super::place::Place;
use super::server::Kill;

/// How late a late packet can be, in milliseconds: longer than two election timeouts.
const LATE_MS_MAX: u64 = 3_000;

/// A packet between two machines.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) from: Place,
    pub(crate) to: Place,
    /// Pairs an answer with its question, as a connection does.
    pub(crate) id: u64,
    pub(crate) what: What,
    /// The sender's kill registers.
    pub(crate) kill: Option<Kill>,
}

/// What a packet says: to a member, to the agent around it, or (answers) to a server.
#[derive(Debug, Clone)]
pub(crate) enum What {
    Raft(Box<Envelope>),
    Ask {
        question: Question,
        doing: BTreeMap<AppId, Doing>,
        machine: Machine,
    },
    Answer(Input),
    /// A server reports what it did; oldest first, never empty.
    Report(Vec<Report>),
    /// Which of the reports were accepted; `None`: the member did not take the request.
    Taken(Option<Vec<bool>>),
    /// A server tells the leader's tracker how far its transfers are.
    Transfer(TransferRequest),
    Guided(Option<TransferAnswer>),
    /// A member passes a command on to the leader.
    Forward(Box<Command>),
    /// Whether it was refused; `None`: its outcome is unknown.
    Forwarded(Option<Option<Rejection>>),
    /// A server asks for permission to create its member.
    Claim(MemberId),
    /// Whether it may; `None`: that member does not lead.
    Claimed(Option<bool>),
    /// A member passes on, with ages in milliseconds, which servers it has heard from, and what its
    /// own server reaches; and what they say of their machines.
    Contacts(
        BTreeMap<ServerId, (u64, BTreeMap<AppId, Doing>)>,
        BTreeMap<ServerId, Machine>,
        Ability,
    ),
    /// The answer, which has nothing but kill registers.
    Noted,
}

impl What {
    /// Whether it is for the tasks of an agent that wait for it.
    pub(crate) fn is_answer(&self) -> bool {
        use What::{Answer, Claimed, Guided, Noted, Taken};
        matches!(self, Answer(_) | Taken(_) | Guided(_) | Claimed(_) | Noted)
    }

    /// What comes back from a server without a member, or whose agent is down, or where nobody is.
    pub(crate) fn refusal(&self) -> Option<What> {
        match self {
            What::Ask { .. } => Some(What::Answer(Input::NoAnswer)),
            What::Report(_) => Some(What::Taken(None)),
            What::Transfer(_) => Some(What::Guided(None)),
            What::Forward(_) => Some(What::Forwarded(None)),
            What::Claim(_) => Some(What::Claimed(None)),
            _ => None,
        }
    }
}

impl Packet {
    pub(crate) fn new(from: Place, to: Place, id: u64, what: What) -> Packet {
        Packet { from, to, id, what, kill: None }
    }

    /// Alters what it carries from one log to another.
    pub(crate) fn alter(&mut self, mutation: Mutation) {
        let What::Raft(envelope) = &mut self.what else { return };
        match (&mut envelope.message, mutation) {
            (Message::Append { entries, .. }, Mutation::AltersEntry) => {
                for entry in entries {
                    alter::<Command>(&mut entry.data, |command| command.actor.push('!'));
                }
            }
            (Message::Snapshot { snapshot, .. }, Mutation::Diverges) => {
                alter::<State>(&mut snapshot.data, |state| state.clock = state.clock.plus(1));
            }
            _ => {}
        }
    }

    /// Whether a member asks with it who would vote for it.
    pub(crate) fn is_candidacy(&self) -> bool {
        let What::Raft(envelope) = &self.what else { return false };
        matches!(envelope.message, Message::PreVote(_))
    }
}

fn alter<T: DeserializeOwned + Serialize>(data: &mut Vec<u8>, change: impl FnOnce(&mut T)) {
    // A membership change, and the first entry of a term, are no commands.
    if let Ok(mut value) = serde_json::from_slice(data) {
        change(&mut value);
        *data = serde_json::to_vec(&value).expect("only text keys");
    }
}

/// How the network behaves; lost, twice and late in parts of a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Weather {
    pub(crate) lost: u32,
    pub(crate) twice: u32,
    /// Packets that come up to [`LATE_MS_MAX`] late.
    pub(crate) late: u32,
    /// The longest way of all others, in milliseconds; 0: they come at once.
    pub(crate) delay_ms_max: u64,
}

impl Weather {
    /// Whether nothing is lost, and nothing late.
    pub(crate) fn is_calm(self) -> bool {
        self.lost == 0 && self.late == 0
    }

    /// When something that is sent now and not lost arrives.
    pub(crate) fn arrives_ms(self, now_ms: u64, rng: &mut ChaCha8Rng) -> u64 {
        let late = self.late > 0 && rng.random_range(0..1000) < self.late;
        let max_ms = if late { LATE_MS_MAX } else { self.delay_ms_max };
        now_ms + if max_ms > 0 { rng.random_range(1..=max_ms) } else { 0 }
    }
}

/// The packets of one group that are in flight.
#[derive(Debug, Default)]
pub(crate) struct Net {
    /// Directed pairs of servers between which nothing passes.
    pub(crate) cut: BTreeSet<(ServerId, ServerId)>,
    /// By arrival; at the same moment, what members say to each other comes first, so that a
    /// network without delays has settled one request before the next.
    in_flight: BTreeMap<(u64, bool, u64), Packet>,
    sent: u64,
    /// How often a request of a server for orders or with reports, or its answer, was lost.
    lost_requests: BTreeMap<ServerId, u64>,
}

impl Net {
    pub(crate) fn send(
        &mut self,
        now_ms: u64,
        packet: Packet,
        weather: Weather,
        rng: &mut ChaCha8Rng,
    ) {
        let mut hits = |part: u32| part > 0 && rng.random_range(0..1000) < part;
        if hits(weather.lost) {
            return self.lose(&packet);
        }
        if self.is_cut(&packet.from.server, &packet.to.server) {
            return;
        }
        let twice = hits(weather.twice);
        let mut arrives_ms = || weather.arrives_ms(now_ms, rng);
        if twice {
            let at_ms = arrives_ms();
            self.put(at_ms, packet.clone());
        }
        let at_ms = arrives_ms();
        self.put(at_ms, packet);
    }

    fn lose(&mut self, packet: &Packet) {
        let asker = match &packet.what {
            What::Ask { .. } | What::Report(_) => &packet.from.server,
            What::Answer(_) | What::Taken(_) => &packet.to.server,
            _ => return,
        };
        *self.lost_requests.entry(asker.clone()).or_default() += 1;
    }

    /// How often the server's requests, or the answers to them, were lost in this weather.
    pub(crate) fn lost_requests(&self, server: &ServerId) -> u64 {
        self.lost_requests.get(server).copied().unwrap_or(0)
    }

    fn is_cut(&self, from: &ServerId, to: &ServerId) -> bool {
        !self.cut.is_empty() && self.cut.contains(&(from.clone(), to.clone()))
    }

    pub(crate) fn put(&mut self, at_ms: u64, packet: Packet) {
        self.sent += 1;
        let request = !matches!(packet.what, What::Raft(_));
        self.in_flight.insert((at_ms, request, self.sent), packet);
    }

    /// When the next packet arrives; at the end of time if none is in flight.
    pub(crate) fn next_ms(&self) -> u64 {
        self.in_flight.first_key_value().map_or(u64::MAX, |((at_ms, ..), _)| *at_ms)
    }

    /// Takes the next packet that has arrived into `arrived`, which is empty; with the first one
    /// from a member, all that have arrived for the same member.
    pub(crate) fn next(&mut self, now_ms: u64, arrived: &mut Vec<Packet>) {
        let first = self.in_flight.first_entry().filter(|first| first.key().0 <= now_ms);
        let Some(first) = first else { return };
        let first = first.remove();
        let to = matches!(first.what, What::Raft(_)).then(|| first.to.clone());
        arrived.push(first);
        if let Some(to) = to.filter(|_| self.next_ms() <= now_ms) {
            let until = (now_ms, false, u64::MAX);
            let others = self.in_flight.extract_if(..=until, |_, packet| packet.to == to);
            arrived.extend(others.map(|(_, packet)| packet));
        }
    }
}
