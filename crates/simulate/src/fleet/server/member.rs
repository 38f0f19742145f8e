//! The group's log on a virtual server: the production member, and what the agent around it does
//! for those who ask it.

use std::collections::BTreeMap;
use std::sync::Arc;

use cohort_consensus::{Config, Limits, NodeError, RaftId, TICK};
use cohort_core::ability::Ability;
use cohort_core::command::{Body, COMMAND_VERSION, Command};
use cohort_core::doing::Doing;
use cohort_core::ids::{AppId, GroupId, Incarnation, MemberId, RequestId, ServerId};
use cohort_core::machine::Machine;
use cohort_core::orders::Orders;
use cohort_server::answers::{self, Committing};
use cohort_server::asking::Input as Answer;
use cohort_server::contacts::{Contacts, PASS_ON_EVERY_MS};
use cohort_server::health_pace::HealthPace;
use cohort_server::leading::Placer;
use cohort_server::machines::Machines;
use cohort_server::member::{
    Input, Member, MemberError, Note, Output, Proposed, Ticket, View, serialized,
};
use cohort_store::FaultyStore;
use cohort_transfer::Tracker;

use super::Book;
use crate::fleet::chaos::Mutation;
use crate::fleet::log::Log;
use crate::fleet::net::{Packet, What};
use crate::fleet::place::Place;

mod commits;
mod errands;
mod reports;
mod requests;

use errands::Read;
use reports::Batch;
pub(in crate::fleet) use reports::start_of;

/// The only incarnation of a simulated group.
pub(crate) const INCARNATION: Incarnation = Incarnation(1);
/// Steps of a member at one moment for each server of its group: a plan looks ahead, but not
/// forever.
const STEPS_AT_ONCE_MAX: usize = 1_000;

/// What the members of a group are opened with.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) group: GroupId,
    pub(crate) limits: Limits,
    /// How leaders place voters.
    pub(crate) placer: Placer,
    /// How many racks its servers are in, by their numbers; 0: each is its own.
    pub(crate) racks: usize,
    /// Makes the members of one run differ from those of another.
    pub(crate) seed: u64,
    /// The protection that is switched off.
    pub(crate) mutation: Option<Mutation>,
    /// Members step at every tick, although they could sleep.
    pub(crate) every_tick: bool,
}

/// A request to whose sender an answer goes back.
#[derive(Debug)]
struct Request {
    from: Place,
    id: u64,
}

impl Request {
    /// The life of the agent that sent it, as its numbers say.
    fn life(&self) -> u64 {
        self.id >> 32
    }
}

/// What an agent says with each question.
type Said = (BTreeMap<AppId, Doing>, Machine);

/// Who waits for an answer of the member.
#[derive(Debug)]
enum Waits {
    /// A server, for orders no older than that entry.
    Orders(Request, Said, u64),
    Commit(Box<Commit>),
    /// Another member, on behalf of its own client.
    Forward(Request),
    Claim(Request),
    /// Nobody: leadership is to move,
    Transfer,
    /// or the group hears of a record that the registry has. If lost, it is written again.
    Record,
}

/// A command on its way into the log.
#[derive(Debug)]
struct Commit {
    command: Command,
    committing: Committing,
    client: Client,
}

#[derive(Debug)]
enum Client {
    /// A server that reports.
    Reports(Batch),
    /// A server that wants to be taken in.
    Join(Request),
    Person(u64),
}

/// A question for changed orders that is held.
#[derive(Debug)]
struct Held {
    request: Request,
    /// The orders that the server has.
    orders: Option<Orders>,
    until_ms: u64,
}

/// A running member, and the agent's part that serves it. All times are by the server's clock.
pub(crate) struct Carried {
    /// What the member last showed.
    pub(crate) view: Arc<View>,
    pub(crate) outgoing: Vec<Packet>,
    here: Place,
    book: Book,
    own: MemberId,
    member: Member<FaultyStore>,
    opened_ms: u64,
    /// It steps at every tick, although it could sleep.
    every_tick: bool,
    racks: usize,
    now_ms: u64,
    contacts: Contacts,
    machines: Machines,
    health_pace: HealthPace,
    tracker: Tracker,
    asked: BTreeMap<Ticket, Waits>,
    held: Vec<Held>,
    /// Orders and their hashes by the view, as far as servers have asked.
    orders: BTreeMap<(ServerId, u64), (Option<Orders>, u64)>,
    /// Orders may have changed since held questions were last looked at.
    orders_change: bool,
    /// Commands to be proposed again, and when.
    again: Vec<(u64, Commit)>,
    /// Commands passed on to the leader, by packet, and until when the answer is waited for.
    forwarded: BTreeMap<u64, (u64, Commit)>,
    inputs: Vec<Input>,
    pass_on_ms: u64,
    read: Read,
    mutation: Option<Mutation>,
    /// What its server reaches, of what a leader needs.
    ability: Ability,
    /// When the member wants to step again.
    wakes_ms: u64,
    /// Numbers tickets and packets.
    last_id: u64,
    /// How often it stepped at the moment.
    steps: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The member runs.
    Not,
    /// It was asked to stop, and may.
    Stopped,
    Failed,
    /// The disk is an earlier one.
    WentBack,
    /// Another machine runs the same member.
    Copied,
}

impl Carried {
    /// Opens the member whose log is in `store`.
    pub(crate) fn open(
        now_ms: u64,
        (here, boot_epoch, life): (Place, u64, u64),
        own: MemberId,
        store: FaultyStore,
        setup: &Setup,
        killed: Option<String>,
        book: Book,
    ) -> Carried {
        let mut config = Config::new(setup.group.as_str(), INCARNATION.0, RaftId(own.0));
        (config.boot_epoch, config.life) = (boot_epoch, life);
        config.limits = setup.limits;
        config.seed = setup.seed;
        config.weaken.lease_reads = setup.mutation == Some(Mutation::StaleReads);
        let (name, group) = (here.server.clone(), setup.group.clone());
        let member = Member::open(now_ms, name, group, store, config, killed);
        let mut member = member.expect("a member wrote this log");
        member.place_by(setup.placer);
        Carried {
            view: Arc::new(member.view()),
            outgoing: Vec::new(),
            here,
            book,
            own,
            member,
            opened_ms: now_ms,
            every_tick: setup.every_tick,
            racks: setup.racks,
            now_ms,
            contacts: Contacts::default(),
            machines: Machines::default(),
            health_pace: HealthPace::default(),
            tracker: Tracker::default(),
            asked: BTreeMap::new(),
            held: Vec::new(),
            orders: BTreeMap::new(),
            orders_change: false,
            again: Vec::new(),
            forwarded: BTreeMap::new(),
            inputs: Vec::new(),
            pass_on_ms: now_ms + PASS_ON_EVERY_MS,
            read: Read::default(),
            mutation: setup.mutation,
            ability: Ability::FULL,
            wakes_ms: now_ms,
            last_id: life << 32,
            steps: 0,
        }
    }

    /// How often it has written to its log.
    pub(crate) fn written(&self) -> u64 {
        self.member.log().written()
    }

    /// How often a member had written to its log, as far as this one's disk knows.
    pub(crate) fn knows_written(&self, of: MemberId) -> u64 {
        self.member.log().marks().get(&RaftId(of.0)).map_or(0, |mark| mark.written)
    }

    /// When it wants to step again, by the server's clock.
    pub(crate) fn wakes_ms(&self) -> u64 {
        self.wakes_ms
    }

    /// A command of a person, or in another's name. [`Self::step`] follows.
    pub(crate) fn say(&mut self, now_ms: u64, number: u64, actor: &str, body: Body) {
        self.clock(now_ms);
        let request = answers::for_people(&body).then(|| RequestId(format!("r{number}")));
        self.commit(actor.to_owned(), request, body, Client::Person(number));
    }

    /// Leadership is to move, to the member on that server or to the best prepared one.
    /// [`Self::step`] follows.
    pub(crate) fn transfer(&mut self, to: Option<&ServerId>) {
        let to = to.and_then(|to| self.view.state.servers.get(to)?.member);
        let ticket = self.wait(Waits::Transfer);
        self.inputs.push(Input::Transfer { ticket, to: to.map(|to| RaftId(to.0)) });
    }

    /// An input that nobody waits for. [`Self::step`] follows.
    pub(crate) fn input(&mut self, input: Input) {
        self.inputs.push(input);
    }

    /// The process has died: its connections end, and every client sees that.
    pub(crate) fn hang_up(self) -> Vec<Packet> {
        let (mut ended, mut commits) = (Vec::new(), Vec::new());
        commits.extend(self.again.into_iter().map(|(_, commit)| commit));
        commits.extend(self.forwarded.into_values().map(|(_, commit)| commit));
        for waits in self.asked.into_values() {
            match waits {
                Waits::Orders(request, ..) => ended.push((request, What::Answer(Answer::NoAnswer))),
                Waits::Commit(commit) => commits.push(*commit),
                Waits::Forward(request) => ended.push((request, What::Forwarded(None))),
                Waits::Claim(request) => ended.push((request, What::Claimed(None))),
                Waits::Transfer | Waits::Record => {}
            }
        }
        for commit in commits {
            match commit.client {
                Client::Reports(batch) => ended.push((batch.request, What::Taken(None))),
                Client::Join(request) => ended.push((request, What::Answer(Answer::NoAnswer))),
                Client::Person(_) => {}
            }
        }
        let held = self.held.into_iter();
        ended.extend(held.map(|held| (held.request, What::Answer(Answer::NoAnswer))));
        let from = self.here;
        let packet = |(Request { from: to, id }, what)| Packet::new(from.clone(), to, id, what);
        ended.into_iter().map(packet).collect()
    }

    fn clock(&mut self, now_ms: u64) {
        if self.now_ms != now_ms {
            (self.now_ms, self.steps) = (now_ms, 0);
        }
    }

    fn id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn wait(&mut self, waits: Waits) -> Ticket {
        let ticket = Ticket(self.id());
        self.asked.insert(ticket, waits);
        ticket
    }

    fn send(&mut self, to: Place, id: u64, what: What) {
        self.outgoing.push(Packet::new(self.here.clone(), to, id, what));
    }

    /// Where this server tries a member.
    fn place_of(&self, member: RaftId) -> Option<Place> {
        let book = self.book.borrow();
        book.of(MemberId(member.0)).map(|(server, address)| Place::of(server, address))
    }

    fn reply(&mut self, request: Request, what: What) {
        self.send(request.from, request.id, what);
    }

    /// Takes the inputs, and what they lead to at once. `disk_fails`: a write was made to fail.
    pub(crate) fn step(&mut self, now_ms: u64, disk_fails: bool, log: &mut Log) -> Ended {
        self.clock(now_ms);
        self.timers(log);
        loop {
            self.steps += 1;
            let most = STEPS_AT_ONCE_MAX * log.state.servers.len().max(1);
            assert!(self.steps < most, "{} never rests", self.here.server);
            let mut inputs = std::mem::take(&mut self.inputs);
            if self.mutation == Some(Mutation::Silence) {
                self.hear_everybody();
            }
            let outputs = match self.member.step(now_ms, &self.contacts, inputs.drain(..)) {
                Ok(outputs) => outputs,
                Err(MemberError::Node(error)) if error.is_of_an_old_log() => {
                    return Ended::WentBack;
                }
                Err(MemberError::Node(NodeError::Copied { .. })) => return Ended::Copied,
                Err(MemberError::Node(_)) if disk_fails => return Ended::Failed,
                Err(error) => {
                    panic!("{} ms: {} stopped: {error:?}", log.now_ms, self.here.server)
                }
            };
            self.inputs = inputs;
            let shown = outputs.iter().rev().find_map(|output| match output {
                Output::View(view) => Some(&view.raft),
                _ => None,
            });
            if let Some(raft) = shown {
                log.applied(raft, self.view.raft.applied, self.member.log());
            }
            for output in outputs {
                if output == Output::Stopped {
                    return Ended::Stopped;
                }
                self.perform(output, log);
            }
            if std::mem::take(&mut self.orders_change) {
                self.answer_held();
            }
            if self.inputs.is_empty() {
                let tick_ms = self.every_tick.then(|| self.next_tick_ms());
                let wakes_ms = self.member.wake_ms(now_ms).min(self.due_ms());
                self.wakes_ms = tick_ms.map_or(wakes_ms, |tick_ms| tick_ms.min(wakes_ms));
                return Ended::Not;
            }
        }
    }

    fn perform(&mut self, output: Output, log: &mut Log) {
        match output {
            Output::Send(envelope) => {
                // A number that the group has not named has no connection.
                if let Some(to) = self.place_of(envelope.to) {
                    self.send(to, 0, What::Raft(envelope));
                }
            }
            Output::View(view) => {
                log.shown(&view, &self.view, self.member.log());
                let news = !Arc::ptr_eq(&view.state, &self.view.state);
                if news {
                    let known = &view.state.servers;
                    self.contacts.retain(|server| known.contains_key(server));
                    self.machines.retain(|server| known.contains_key(server));
                }
                if view.state.servers != self.view.state.servers
                    || view.raft.configuration != self.view.raft.configuration
                {
                    let mut book = self.book.borrow_mut();
                    book.learn(&view.state.member_addresses());
                    book.voters = view.voters();
                }
                if news || view.killed != self.view.killed {
                    self.orders.clear();
                    self.orders_change = true;
                }
                self.orders_change |= view.raft.leader.is_none();
                self.view = view;
            }
            Output::Restored { .. } => {}
            Output::Happened { index, event, .. } => log.happened(index, &event),
            Output::Answer { ticket, outcome } => match self.answered(ticket) {
                Waits::Commit(commit) => self.proposed(*commit, outcome, log),
                Waits::Forward(request) => {
                    let outcome = match outcome {
                        Proposed::Done { rejection, .. } => Some(rejection),
                        Proposed::NotLeader { .. }
                        | Proposed::Busy
                        | Proposed::NoSpace
                        | Proposed::Unknown => None,
                    };
                    self.reply(request, What::Forwarded(outcome));
                }
                Waits::Record => {}
                other => panic!("{other:?} was answered as a command"),
            },
            Output::Read { ticket, fresh } => {
                let Waits::Orders(request, said, floor) = self.answered(ticket) else {
                    panic!("{ticket:?} was answered as a read");
                };
                if fresh {
                    log.read(floor, &self.view);
                    self.heard(&request, said);
                }
                let answer = if fresh { self.orders(&request) } else { Answer::NoAnswer };
                self.reply(request, What::Answer(answer));
            }
            Output::Transferred { ticket, outcome } => {
                assert!(matches!(self.answered(ticket), Waits::Transfer), "{ticket:?}");
                log.transfers += u64::from(outcome.is_ok());
            }
            Output::Claimed { ticket, granted } => {
                let Waits::Claim(request) = self.answered(ticket) else {
                    panic!("{ticket:?} was answered as a claim");
                };
                self.reply(request, What::Claimed(granted));
            }
            Output::Compact { index, state } => {
                let data = serialized(&state);
                self.inputs.push(Input::Snapshot { index, data });
            }
            Output::Noted(Note::Rejected { index, .. }) => log.changed_nothing(index),
            Output::Noted(_) | Output::Stopped => {}
        }
    }

    fn answered(&mut self, ticket: Ticket) -> Waits {
        self.asked.remove(&ticket).unwrap_or_else(|| panic!("{ticket:?} was answered twice"))
    }

    fn next_tick_ms(&self) -> u64 {
        let tick_ms = TICK.as_millis() as u64;
        self.opened_ms + ((self.now_ms - self.opened_ms) / tick_ms + 1) * tick_ms
    }

    /// When something of the agent's part is due.
    fn due_ms(&self) -> u64 {
        let held = self.held.iter().map(|held| held.until_ms);
        let again = self.again.iter().map(|(at_ms, _)| *at_ms);
        let forwarded = self.forwarded.values().map(|(until_ms, _)| *until_ms);
        held.chain(again).chain(forwarded).fold(self.pass_on_ms, u64::min)
    }

    /// What is due by the clock.
    fn timers(&mut self, log: &mut Log) {
        let now_ms = self.now_ms;
        if now_ms < self.due_ms() {
            return;
        }
        if self.held.iter().any(|held| held.until_ms <= now_ms) {
            self.answer_held();
        }
        let again: Vec<_> = self.again.extract_if(.., |(at_ms, _)| *at_ms <= now_ms).collect();
        for (_, commit) in again {
            self.propose(commit);
        }
        let late = |_: &u64, (until_ms, _): &mut (u64, Commit)| *until_ms <= now_ms;
        let late: Vec<_> = self.forwarded.extract_if(.., late).collect();
        for (_, (_, commit)) in late {
            self.failed(commit, log);
        }
        if self.pass_on_ms <= now_ms {
            self.pass_on_ms = now_ms + PASS_ON_EVERY_MS;
            self.pass_on_contacts();
        }
    }
}

pub(crate) fn command(actor: String, request: Option<RequestId>, body: Body) -> Command {
    Command { version: COMMAND_VERSION, incarnation: INCARNATION, actor, request, body }
}
