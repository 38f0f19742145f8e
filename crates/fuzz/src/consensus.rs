//! What members send to each other, and a member among hostile ones.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cohort_consensus::{
    AppendReply, Config, Configuration, ENVELOPE_BYTES_MAX, Envelope, Index, Mark, Message, Node,
    RaftId, ReadContext, Snapshot, Term, Verdict, VoteReply, VoteRequest,
};
use cohort_core::command::COMMAND_VERSION;
use cohort_core::ids::{GroupId, Incarnation, ServerId};
use cohort_core::state::Process;
use cohort_core::{Body, Command, State};
use cohort_server::contacts::Contacts;
use cohort_server::member::{Input, Member, MemberError, Output, Ticket, serialized};
use cohort_server::membership::{Founder, founding_state};
use cohort_store::{Disk, Entry, EntryKind, FaultyStore, encoding};

use crate::script::Script;

/// A message is bytes, and the same bytes again.
pub(crate) fn envelope(bytes: &[u8]) {
    let Ok(envelope) = Envelope::decode(bytes) else { return };
    assert!(bytes.len() <= ENVELOPE_BYTES_MAX);
    assert_eq!(envelope.encode(), bytes, "one encoding per message");
}

const HONEST: u64 = 3;
const VOTERS: u64 = 5;
const TICK_MS: u64 = 50;
/// Messages that are delivered in one turn, at most.
const DELIVERED_MAX: usize = 200;
/// Turns of one script, at most: a second's worth of a slow machine.
const TURNS_MAX: usize = 200;
/// Commands of every kind, one per line.
const ENTRIES: &str = include_str!("../../core/tests/golden/entries.jsonl");

/// Whatever two of five voters send to the others, in any role: no member stops, except one that
/// finds that its log is an old one, which is one of the lies, or is given an entry that it cannot
/// read, which a leader can do.
pub(crate) fn member(bytes: &[u8]) {
    let mut group = Group::founded();
    let mut script = Script::new(bytes);
    for sequence in 1_000_000..1_000_000 + TURNS_MAX as u64 {
        if script.is_over() {
            break;
        }
        match script.below(8) {
            0 => group.run_ms(u64::from(script.byte()) * 10),
            1 => group.ask(&mut script),
            _ => group.lie(&mut script, sequence),
        }
    }
    group.run_ms(TICK_MS);
}

struct Group {
    now_ms: u64,
    members: BTreeMap<u64, Member<FaultyStore>>,
    mail: VecDeque<Envelope>,
    contacts: Contacts,
}

fn server(n: u64) -> ServerId {
    ServerId::new(format!("s{n}")).expect("a name")
}

fn group() -> GroupId {
    GroupId::new("web").expect("a name")
}

fn state() -> State {
    let founder = Founder {
        server: server(1),
        address: "s1:1".into(),
        rack: None,
        process: Process::default(),
        labels: BTreeMap::new(),
        platform: "intel".parse().expect("a platform"),
    };
    let mut state = founding_state(group(), Incarnation(1), founder);
    for n in 2..=VOTERS {
        let (server, process) = (server(n), Process::default());
        let address = format!("{server}:1");
        let add = Body::AddServer { server: server.clone(), address, rack: None, process };
        for body in [add, Body::AllocateMember { server }] {
            state.apply(&command(body)).expect("a new server");
        }
    }
    state
}

fn command(body: Body) -> Command {
    let (version, incarnation) = (COMMAND_VERSION, Incarnation(1));
    Command { version, incarnation, actor: "fuzz".into(), request: None, body }
}

impl Group {
    /// Five voters, of which three run; one of them is the leader.
    fn founded() -> Group {
        let data = serialized(&state());
        let (now_ms, members) = (1_000, BTreeMap::new());
        let mut group =
            Group { now_ms, members, mail: VecDeque::new(), contacts: Contacts::default() };
        for n in 1..=HONEST {
            let mut store = FaultyStore::open(&Disk::new()).expect("an empty disk");
            let mut config = Config::new("web", 1, RaftId(n));
            (config.boot_epoch, config.life) = (1, n);
            Node::bootstrap(&mut store, &config, (1..=VOTERS).map(RaftId), data.clone())
                .expect("an empty store");
            let member = Member::open(now_ms, server(n), self::group(), store, config, None);
            group.members.insert(n, member.expect("a new store"));
        }
        group.run_ms(3_000);
        group
    }

    fn run_ms(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(TICK_MS) {
            self.now_ms += TICK_MS;
            for n in 1..=HONEST {
                self.step(n, Vec::new());
            }
            self.deliver();
        }
    }

    fn deliver(&mut self) {
        for _ in 0..DELIVERED_MAX {
            let Some(envelope) = self.mail.pop_front() else { return };
            self.step(envelope.to.0, vec![Input::Received(Box::new(envelope))]);
        }
        self.mail.clear();
    }

    /// A step of a member, which is dropped if it may stop. Others never hear of it again.
    fn step(&mut self, n: u64, inputs: Vec<Input>) {
        let Some(member) = self.members.get_mut(&n) else { return };
        let outputs = match member.step(self.now_ms, &self.contacts, inputs) {
            Ok(outputs) => outputs,
            Err(MemberError::Node(error)) if error.is_of_an_old_log() => {
                Vec::from([Output::Stopped])
            }
            Err(MemberError::UnknownEntry { .. } | MemberError::UnknownSnapshot { .. }) => {
                Vec::from([Output::Stopped])
            }
            Err(error) => panic!("member {n} stops: {}", cohort_base::chain(&error)),
        };
        for output in outputs {
            match output {
                Output::Send(envelope) => self.mail.push_back(*envelope),
                Output::Stopped => {
                    self.members.remove(&n);
                }
                _ => {}
            }
        }
    }

    /// Requests of honest clients.
    fn ask(&mut self, script: &mut Script<'_>) {
        let (n, ticket) = (1 + u64::from(script.below(3)), Ticket(0));
        let input = match script.below(6) {
            0 => Input::Read { ticket },
            1 => Input::Transfer { ticket, to: Some(RaftId(u64::from(script.below(7)))) },
            2 => Input::Connected(RaftId(u64::from(script.below(7)))),
            3 => Input::Unreachable(RaftId(u64::from(script.below(7)))),
            4 => Input::Disconnected(RaftId(u64::from(script.below(7)))),
            _ => match a_command(script) {
                Some(command) => Input::Propose { ticket, command: Box::new(command) },
                None => return,
            },
        };
        self.step(n, vec![input]);
        self.deliver();
    }

    /// A hostile member's message, on its last connection.
    fn lie(&mut self, script: &mut Script<'_>, sequence: u64) {
        let to = 1 + u64::from(script.below(3));
        let from = HONEST + 1 + u64::from(script.below(2));
        let Some(member) = self.members.get(&to) else { return };
        let view = member.view().raft;
        let near = Near { term: view.term.0, index: view.applied.0 };
        let message = near.message(script);
        let envelope = Envelope {
            group: "web".to_owned(),
            incarnation: 1,
            from: RaftId(from),
            to: RaftId(to),
            life: from,
            written: 100,
            session: (1 << 25) - 1,
            sequence,
            message,
        };
        self.step(to, vec![Input::Received(Box::new(envelope))]);
        self.deliver();
    }
}

fn a_command(script: &mut Script<'_>) -> Option<Command> {
    let all = ENTRIES.lines().count();
    let line = ENTRIES.lines().nth(usize::from(script.byte()) % all)?;
    serde_json::from_str(line).ok()
}

/// Where the member is that a lie goes to: numbers near that are more interesting.
struct Near {
    term: u64,
    index: u64,
}

impl Near {
    fn term(&self, script: &mut Script<'_>) -> Term {
        Term(script.near(self.term))
    }

    fn index(&self, script: &mut Script<'_>) -> Index {
        Index(script.near(self.index))
    }

    fn vote(&self, script: &mut Script<'_>) -> VoteRequest {
        VoteRequest {
            term: self.term(script),
            last: self.index(script),
            last_term: self.term(script),
            commit: self.index(script),
            commit_term: self.term(script),
            handed_over: script.is_set(),
        }
    }

    fn vote_reply(&self, script: &mut Script<'_>) -> VoteReply {
        VoteReply {
            term: self.term(script),
            refused: script.is_set(),
            commit: self.index(script),
            commit_term: self.term(script),
        }
    }

    fn read(&self, script: &mut Script<'_>) -> ReadContext {
        let member = RaftId(u64::from(script.below(7)));
        ReadContext { member, boot_epoch: script.near(1), counter: script.near(1) }
    }

    fn entry(&self, script: &mut Script<'_>, index: u64) -> Entry {
        let index = if script.below(8) == 0 { self.index(script).0 } else { index };
        let (kind, data) = match script.below(6) {
            0 => (EntryKind::Membership, change(script)),
            1 => (EntryKind::Membership, script.take(8).to_vec()),
            2 => (EntryKind::Data, script.take(8).to_vec()),
            3 => (EntryKind::Data, Vec::new()),
            _ => {
                let command = a_command(script).map(|command| serde_json::to_vec(&command));
                (EntryKind::Data, command.and_then(Result::ok).unwrap_or_default())
            }
        };
        Entry { index: Index(index), term: self.term(script), kind, data }
    }

    fn message(&self, script: &mut Script<'_>) -> Message {
        match script.below(18) {
            0..=3 => {
                let previous = self.index(script);
                let entries = (1..=u64::from(script.below(4)))
                    .map(|nth| self.entry(script, previous.0.wrapping_add(nth)))
                    .collect();
                let (term, previous_term) = (self.term(script), self.term(script));
                Message::Append {
                    term,
                    previous,
                    previous_term,
                    commit: self.index(script),
                    entries,
                }
            }
            4 | 5 => {
                let rejected = script.is_set().then(|| (self.index(script), self.term(script)));
                let (term, index) = (self.term(script), self.index(script));
                Message::AppendReply(AppendReply {
                    term,
                    index,
                    commit: self.index(script),
                    rejected,
                })
            }
            6 => Message::PreVote(self.vote(script)),
            7 => Message::Vote(self.vote(script)),
            8 => Message::PreVoteReply(self.vote_reply(script)),
            9 => Message::VoteReply(self.vote_reply(script)),
            10 => {
                let data = match script.below(3) {
                    0 => serialized(&state()),
                    1 => script.take(16).to_vec(),
                    _ => Vec::new(),
                };
                let (index, term) = (self.index(script), self.term(script));
                let snapshot = Snapshot { index, term, configuration: configuration(script), data };
                Message::Snapshot { term: self.term(script), snapshot }
            }
            11 => {
                let read = script.is_set().then(|| self.read(script));
                Message::Heartbeat { term: self.term(script), commit: self.index(script), read }
            }
            12 => {
                let read = script.is_set().then(|| self.read(script));
                Message::HeartbeatReply {
                    term: self.term(script),
                    commit: self.index(script),
                    read,
                }
            }
            13 => Message::TakeOver { term: self.term(script) },
            14 => Message::ReadRequest { read: self.read(script) },
            15 => {
                let (term, index) = (self.term(script), self.index(script));
                Message::ReadReply { term, index, read: self.read(script) }
            }
            16 => Message::Present { found: script.near(100) },
            _ if script.is_set() => {
                let verdict = match script.below(4) {
                    0 => Verdict::Fine,
                    1 => Verdict::Older { written: script.near(100) },
                    2 => Verdict::Elsewhere,
                    _ => Verdict::Unknown,
                };
                let leader = script.is_set().then(|| RaftId(u64::from(script.below(7))));
                let (life, configured) = (script.near(1), self.index(script));
                Message::Vouch { life, verdict, leader, configured, voters: members(script) }
            }
            _ => {
                let mark = |script: &mut Script<'_>| {
                    let (boot_epoch, life) = (script.near(1), script.near(1));
                    Mark { boot_epoch, life, written: script.near(100) }
                };
                let marks = members(script).into_iter().map(|id| (id, mark(script))).collect();
                Message::Marks { marks }
            }
        }
    }
}

/// Some of the numbers from 0 to 7, by their bits: 0 is none of a member.
fn members(script: &mut Script<'_>) -> BTreeSet<RaftId> {
    let bits = script.byte();
    (0..8).filter(|id| bits >> id & 1 == 1).map(RaftId).collect()
}

fn configuration(script: &mut Script<'_>) -> Configuration {
    let voters = if script.is_set() { (1..=VOTERS).map(RaftId).collect() } else { members(script) };
    let outgoing = if script.is_set() { members(script) } else { BTreeSet::new() };
    let standbys = if script.is_set() { members(script) } else { BTreeSet::new() };
    let standbys_next = if script.is_set() { members(script) } else { BTreeSet::new() };
    Configuration { voters, outgoing, standbys, standbys_next }
}

/// The bytes of a membership change: leave, or enter with steps, each what a member becomes.
fn change(script: &mut Script<'_>) -> Vec<u8> {
    const VERSION: u8 = 1;
    if script.below(4) == 0 {
        return encoding::encode(VERSION, &0_u8);
    }
    let steps = script.below(4);
    let step = |script: &mut Script<'_>| (script.below(3), u64::from(script.below(7)));
    let steps: Vec<(u8, u64)> = (0..steps).map(|_| step(script)).collect();
    encoding::encode(VERSION, &(1_u8, steps))
}
