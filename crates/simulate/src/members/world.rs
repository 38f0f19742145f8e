//! The group, its network and its clients.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cohort_consensus::{Config, Envelope, Limits, Node, RaftId};
use cohort_core::command::COMMAND_VERSION;
use cohort_core::ids::{GroupId, Incarnation, MemberId, ServerId};
use cohort_core::placement::VOTERS_MAX;
use cohort_core::{Body, Command, State};
use cohort_server::answers::{Committing, Next};
use cohort_server::member::{Input, Output, Proposed, Ticket, View};
use cohort_server::membership::{FIRST_MEMBER, Founder, carries_another, founding_state};
use cohort_store::{Disk, FaultyStore};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::host::Host;
use crate::raft::Network;

/// Servers of the group: one more than carry its log.
const SERVERS: u64 = 6;
/// How far the clock goes at once, in milliseconds.
const STEP_MS: u64 = 5;
/// How long trouble lasts, in milliseconds.
const TROUBLE_MS: u64 = 40_000;
/// How long the healed group may take to be whole: some elections, and one change of membership
/// after the other for every number that has to be given out again.
const HEAL_MS: u64 = 60_000;
/// How often a server without a member looks whether it was given one, in milliseconds.
const CLAIM_EVERY_MS: u64 = 200;
/// How often a client begins something, on average, in milliseconds.
const CLIENT_EVERY_MS: u64 = 60;
/// States that are kept to be compared.
const STATES_MAX: usize = 500;

/// What a run amounted to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Terms that had a leader.
    pub terms: u64,
    /// The last entry that everybody has applied.
    pub applied: u64,
    /// Commands that clients were told to be applied.
    pub acknowledged: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Times that a process ended.
    pub crashes: u64,
    /// Transfers of leadership that succeeded.
    pub transfers: u64,
    /// Members that were created.
    pub members: u64,
    /// Servers that were gone for good.
    pub gone: u64,
}

/// Runs one seed to its end; `talk` prints what happens.
///
/// # Errors
/// The first thing that must never happen.
pub fn run(seed: u64, talk: bool) -> Result<Outcome, String> {
    let mut world = World::new(seed, talk);
    let played = world.play();
    played.map_err(|what| format!("seed {seed}, {} ms: {what}", world.now_ms))?;
    Ok(world.outcome)
}

/// Who waits for an answer.
#[derive(Debug, Clone)]
pub(super) enum Waits {
    /// A client that adds this server.
    Command(ServerId, Committing),
    /// A client that read, when so many commands were acknowledged.
    Read(usize),
    Transfer,
    /// A server that was given this member.
    Claim(ServerId, MemberId),
}

pub(super) struct World {
    pub(super) now_ms: u64,
    pub(super) rng: ChaCha8Rng,
    pub(super) network: Network,
    pub(super) hosts: Vec<Host>,
    pub(super) healing: bool,
    pub(super) outcome: Outcome,
    pub(super) next_trouble_ms: u64,
    pub(super) lost_disk_ms: u64,
    group: GroupId,
    limits: Limits,
    talk: bool,
    /// By arrival.
    mail: BTreeMap<(u64, u64), Envelope>,
    /// By ticket: the host that was asked, and who waits.
    asked: BTreeMap<Ticket, (usize, Waits)>,
    /// Commands that are to be proposed (again), and when.
    later: Vec<(u64, usize, ServerId, Committing)>,
    acknowledged: Vec<ServerId>,
    states: BTreeMap<u64, Arc<State>>,
    next_number: u64,
}

fn server(n: u64) -> ServerId {
    ServerId::new(format!("s{n}")).expect("a server id")
}

fn command(body: Body) -> Command {
    let (version, incarnation) = (COMMAND_VERSION, Incarnation(1));
    Command { version, incarnation, actor: "client".into(), request: None, body }
}

fn add(server: &ServerId) -> Body {
    Body::AddServer { server: server.clone(), address: format!("{server}:7417"), rack: None }
}

impl World {
    fn new(seed: u64, talk: bool) -> World {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let limits = Limits {
            retained_entries: [0, 5, 1024][rng.random_range(0..3)],
            entries_before_snapshot: [30, 4096][rng.random_range(0..2)],
            ..Limits::default()
        };
        World {
            now_ms: 0,
            network: Network::draw(&mut rng),
            rng,
            hosts: (1..=SERVERS).map(|n| Host::new(server(n))).collect(),
            healing: false,
            outcome: Outcome::default(),
            next_trouble_ms: 3_000,
            lost_disk_ms: 0,
            group: GroupId::new("simulated").expect("a group"),
            limits,
            talk,
            mail: BTreeMap::new(),
            asked: BTreeMap::new(),
            later: Vec::new(),
            acknowledged: Vec::new(),
            states: BTreeMap::new(),
            next_number: 0,
        }
    }

    pub(super) fn say(&self, what: impl FnOnce() -> String) {
        if self.talk {
            println!("{:>6} ms  {}", self.now_ms, what());
        }
    }

    fn play(&mut self) -> Result<(), String> {
        self.found()?;
        while self.now_ms < TROUBLE_MS {
            self.advance()?;
            self.trouble()?;
        }
        self.heal()?;
        let end_ms = self.now_ms + HEAL_MS;
        let mut open = String::new();
        while self.now_ms < end_ms {
            self.advance()?;
            if self.now_ms.is_multiple_of(100) {
                match self.whole() {
                    Ok(()) => return Ok(()),
                    Err(what) => open = what,
                }
            }
        }
        Err(format!("not whole {HEAL_MS} ms after the last fault: {open}"))
    }

    /// The first server founds the group, and all servers belong to it.
    fn found(&mut self) -> Result<(), String> {
        let founder = Founder {
            server: server(1),
            address: format!("{}:7417", server(1)),
            rack: None,
            labels: BTreeMap::new(),
            platform: "intel".parse().expect("a platform"),
        };
        let mut state = founding_state(self.group.clone(), Incarnation(1), founder);
        for n in 2..=SERVERS {
            state.apply(&command(add(&server(n)))).map_err(|rejection| format!("{rejection:?}"))?;
        }
        let disk = Disk::new();
        let mut store = FaultyStore::open(&disk).map_err(|error| error.to_string())?;
        let config = Config::new(self.group.as_str(), 1, RaftId(FIRST_MEMBER.0));
        let data = serde_json::to_vec(&state).expect("a state has text keys only");
        Node::bootstrap(&mut store, &config, [config.id], data).map_err(|e| e.to_string())?;
        self.hosts[0].disk = Some((FIRST_MEMBER, disk));
        self.outcome.members = 1;
        for at in 0..self.hosts.len() {
            self.start(at)?;
        }
        Ok(())
    }

    pub(super) fn start(&mut self, at: usize) -> Result<(), String> {
        let seed = self.rng.random();
        self.say(|| format!("s{} starts", at + 1));
        self.hosts[at].start(self.now_ms, &self.group, self.limits, seed)
    }

    /// A process ends; what it was asked gets no answer.
    pub(super) fn crash(&mut self, at: usize, down_ms: u64) {
        self.outcome.crashes += 1;
        self.say(|| format!("s{} goes down", at + 1));
        self.hosts[at].crash(self.now_ms + down_ms);
        let gone: Vec<Ticket> =
            self.asked.iter().filter(|(_, (of, _))| *of == at).map(|(t, _)| *t).collect();
        for ticket in gone {
            if let Some((_, Waits::Command(server, committing))) = self.asked.remove(&ticket) {
                self.retry(at, server, committing, Proposed::Unknown);
            }
        }
    }

    /// A little time passes.
    fn advance(&mut self) -> Result<(), String> {
        self.now_ms += STEP_MS;
        let now_ms = self.now_ms;
        for at in 0..self.hosts.len() {
            let starts_ms = self.hosts[at].starts_ms;
            if starts_ms > 0 && starts_ms <= now_ms {
                self.start(at)?;
            }
        }
        let later = self.mail.split_off(&(now_ms + 1, 0));
        let mut inputs: BTreeMap<usize, Vec<Input>> = BTreeMap::new();
        for (_, envelope) in std::mem::replace(&mut self.mail, later) {
            let carries =
                |host: &Host| host.disk.as_ref().is_some_and(|(m, _)| m.0 == envelope.to.0);
            let Some(at) = self.hosts.iter().position(carries) else { continue };
            if self.hosts[at].paused_until_ms > now_ms {
                // It waits in the socket.
                let number = self.number();
                self.mail.insert((self.hosts[at].paused_until_ms, number), envelope);
            } else {
                inputs.entry(at).or_default().push(Input::Received(Box::new(envelope)));
            }
        }
        for at in 0..self.hosts.len() {
            let inputs = inputs.remove(&at).unwrap_or_default();
            if !inputs.is_empty() || self.hosts[at].is_due(now_ms) {
                self.step(at, inputs)?;
            }
            self.claim(at)?;
        }
        self.clients()
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Asks a host's member.
    pub(super) fn ask(
        &mut self,
        at: usize,
        waits: Waits,
        input: impl FnOnce(Ticket) -> Input,
    ) -> Result<(), String> {
        let ticket = Ticket(self.number());
        self.asked.insert(ticket, (at, waits));
        self.step(at, vec![input(ticket)])
    }

    pub(super) fn step(&mut self, at: usize, inputs: Vec<Input>) -> Result<(), String> {
        let Some(outputs) = self.hosts[at].step(self.now_ms, inputs)? else {
            let down_ms = self.rng.random_range(1..2_000);
            self.crash(at, down_ms);
            return Ok(());
        };
        for output in outputs {
            match output {
                Output::Send(envelope) => self.send(&envelope),
                Output::View(view) => self.viewed(at, view)?,
                Output::Answer { ticket, outcome } => {
                    let Waits::Command(server, committing) = self.answered(at, ticket)? else {
                        return Err(format!("{ticket:?} was answered as a command"));
                    };
                    self.retry(at, server, committing, outcome);
                }
                Output::Read { ticket, fresh } => {
                    let Waits::Read(floor) = self.answered(at, ticket)? else {
                        return Err(format!("{ticket:?} was answered as a read"));
                    };
                    if fresh {
                        self.outcome.reads += 1;
                        self.shows(at, floor)?;
                    }
                }
                Output::Transferred { ticket, outcome } => {
                    self.answered(at, ticket)?;
                    self.outcome.transfers += u64::from(outcome.is_ok());
                }
                Output::Claimed { ticket, granted } => {
                    let Waits::Claim(server, member) = self.answered(at, ticket)? else {
                        return Err(format!("{ticket:?} was answered as a claim"));
                    };
                    if granted == Some(true) {
                        self.create(&server, member)?;
                    }
                }
                Output::Stopped => {
                    let down_ms = self.rng.random_range(1..2_000);
                    self.crash(at, down_ms);
                    return Ok(());
                }
                Output::Noted(note) => self.say(|| format!("s{}: {note:?}", at + 1)),
                Output::Happened { .. } => {}
            }
        }
        Ok(())
    }

    fn answered(&mut self, at: usize, ticket: Ticket) -> Result<Waits, String> {
        match self.asked.remove(&ticket) {
            Some((asked, waits)) if asked == at => Ok(waits),
            other => Err(format!("s{} answers {ticket:?}, asked by {other:?}", at + 1)),
        }
    }

    fn send(&mut self, envelope: &Envelope) {
        for after_ms in self.network.arrivals(envelope, &mut self.rng) {
            let number = self.number();
            self.mail.insert((self.now_ms + after_ms, number), envelope.clone());
        }
    }

    /// A member has something new to show: the same entries give the same state.
    fn viewed(&mut self, at: usize, view: Arc<View>) -> Result<(), String> {
        let applied = view.raft.applied.0;
        self.outcome.terms = self.outcome.terms.max(view.raft.term.0);
        let known = self.states.entry(applied).or_insert_with(|| Arc::clone(&view.state));
        if *known != view.state {
            return Err(format!("s{} has another state at entry {applied}", at + 1));
        }
        if self.states.len() > STATES_MAX {
            self.states.pop_first();
        }
        self.hosts[at].view = Some(view);
        Ok(())
    }

    /// What was acknowledged first is in the state that a host shows.
    fn shows(&self, at: usize, floor: usize) -> Result<(), String> {
        let Some(view) = &self.hosts[at].view else { return Err("a read without a view".into()) };
        let missing = |server: &&ServerId| !view.state.servers.contains_key(*server);
        match self.acknowledged[..floor].iter().find(missing) {
            None => Ok(()),
            Some(server) => Err(format!("s{} answered a read without {server}", at + 1)),
        }
    }

    /// A command's outcome is known, or it has to be proposed again.
    fn retry(&mut self, at: usize, server: ServerId, committing: Committing, outcome: Proposed) {
        match committing.proposed(self.now_ms, outcome) {
            Next::Done { rejection: None, .. } => self.acknowledged.push(server),
            Next::Done { .. } | Next::GiveUp => {}
            Next::Forward { to, .. } => {
                let carries =
                    |host: &Host| host.disk.as_ref().is_some_and(|(member, _)| *member == to);
                let to = self.hosts.iter().position(carries).unwrap_or(at);
                self.later.push((self.now_ms + 1, to, server, committing));
            }
            Next::Again { after_ms } => {
                self.later.push((self.now_ms + after_ms, at, server, committing));
            }
        }
    }

    fn clients(&mut self) -> Result<(), String> {
        let now_ms = self.now_ms;
        let due: Vec<_> = self.later.extract_if(.., |(at_ms, ..)| *at_ms <= now_ms).collect();
        for (_, at, server, committing) in due {
            self.propose(at, server, committing)?;
        }
        if self.healing || self.rng.random_range(0..CLIENT_EVERY_MS / STEP_MS) > 0 {
            return Ok(());
        }
        let at = self.rng.random_range(0..self.hosts.len());
        let Some((member, _)) = self.hosts[at].disk.as_ref() else { return Ok(()) };
        let committing = Committing::begin(now_ms, *member);
        if self.rng.random_bool(0.5) {
            let name = format!("x{}", self.number());
            self.propose(at, ServerId::new(name).expect("a server id"), committing)
        } else if self.hosts[at].member.is_some() && self.hosts[at].paused_until_ms <= now_ms {
            let floor = self.acknowledged.len();
            self.ask(at, Waits::Read(floor), |ticket| Input::Read { ticket })
        } else {
            Ok(())
        }
    }

    fn propose(
        &mut self,
        at: usize,
        server: ServerId,
        committing: Committing,
    ) -> Result<(), String> {
        let host = &self.hosts[at];
        if host.member.is_none() || host.paused_until_ms > self.now_ms {
            self.retry(at, server, committing, Proposed::Busy);
            return Ok(());
        }
        let command = Box::new(command(add(&server)));
        let waits = Waits::Command(server, committing);
        self.ask(at, waits, |ticket| Input::Propose { ticket, command })
    }

    /// The host whose member leads, by its own account.
    pub(super) fn leader(&self) -> Option<usize> {
        let leads = |host: &Host| host.view.as_ref().is_some_and(|view| view.leads());
        let led = self.hosts.iter().enumerate().filter(|(_, host)| leads(host));
        led.max_by_key(|(_, host)| host.view.as_ref().map(|view| view.raft.term)).map(|(at, _)| at)
    }

    /// A server does what its orders say about its member.
    fn claim(&mut self, at: usize) -> Result<(), String> {
        let host = &self.hosts[at];
        if host.starts_ms > 0 || host.claims_ms > self.now_ms || host.paused_until_ms > self.now_ms
        {
            return Ok(());
        }
        let Some(leader) =
            self.leader().filter(|at| self.hosts[*at].paused_until_ms <= self.now_ms)
        else {
            return Ok(());
        };
        let view = self.hosts[leader].view.clone();
        let server = host.server.clone();
        if self.reaches(at, leader) {
            self.hosts[leader].contacts.heard(self.now_ms, &server, 0, BTreeMap::new());
        }
        let orders = view.and_then(|view| view.state.orders(&server, false));
        let Some(orders) = orders else { return Ok(()) };
        self.hosts[at].claims_ms = self.now_ms + CLAIM_EVERY_MS;
        let ordered = orders.member.as_ref().map(|order| order.member);
        match (&self.hosts[at].disk, ordered) {
            (Some((own, _)), _) if carries_another(&orders, Incarnation(1), *own) => {
                // What a leader that is cut off says is not fresh: see `leads`.
                if self.hears(leader) {
                    self.say(|| format!("s{} carries another member", at + 1));
                    self.crash(at, 1);
                    self.hosts[at].disk = None;
                }
                Ok(())
            }
            (None, Some(member)) => {
                let waits = Waits::Claim(server.clone(), member);
                self.ask(leader, waits, |ticket| Input::Claim { ticket, server, member })
            }
            (Some(_), _) | (None, None) => Ok(()),
        }
    }

    /// Whether two servers can speak with each other.
    fn reaches(&self, one: usize, other: usize) -> bool {
        let id = |at: usize| self.hosts[at].disk.as_ref().map(|(member, _)| RaftId(member.0));
        let cut = |(one, other)| self.network.cut.contains(&(one, other));
        !id(one).zip(id(other)).is_some_and(cut)
    }

    /// Whether a leader is still one: a majority has not voted in a later term.
    fn hears(&self, leader: usize) -> bool {
        let Some(view) = &self.hosts[leader].view else { return false };
        self.outcome.terms == view.raft.term.0
    }

    fn create(&mut self, server: &ServerId, member: MemberId) -> Result<(), String> {
        let Some(at) = self.hosts.iter().position(|host| host.server == *server) else {
            return Ok(());
        };
        if self.hosts[at].disk.is_some() || self.hosts[at].starts_ms > 0 {
            return Ok(());
        }
        self.say(|| format!("s{} creates member {member}", at + 1));
        self.outcome.members += 1;
        self.hosts[at].disk = Some((member, Disk::new()));
        self.start(at)
    }

    /// Whether everything is as it should be.
    fn whole(&mut self) -> Result<(), String> {
        let leader = self.leader().ok_or("nobody leads")?;
        let Some(view) = self.hosts[leader].view.clone() else { return Err("no view".into()) };
        let raft = &view.raft;
        if raft.configuration.is_joint() || raft.configuration.voters.len() != VOTERS_MAX {
            return Err(format!("the membership is {}", raft.configuration));
        }
        let members: BTreeSet<u64> = raft.configuration.voters.iter().map(|id| id.0).collect();
        let carried: BTreeSet<u64> =
            self.hosts.iter().filter_map(|host| Some(host.disk.as_ref()?.0.0)).collect();
        if !members.is_subset(&carried) {
            return Err(format!("{} has voters that nobody carries", raft.configuration));
        }
        for host in &self.hosts {
            let voter = host.disk.as_ref().is_some_and(|(member, _)| members.contains(&member.0));
            let applied = host.view.as_ref().map(|view| view.raft.applied);
            if voter && applied != Some(raft.applied) {
                return Err(format!("{} has applied {applied:?} of {}", host.server, raft.applied));
            }
        }
        if !self.asked.is_empty() || !self.later.is_empty() {
            return Err(format!("{:?} and {:?} wait", self.asked, self.later));
        }
        self.shows(leader, self.acknowledged.len())?;
        self.outcome.applied = raft.applied.0;
        self.outcome.acknowledged = self.acknowledged.len() as u64;
        Ok(())
    }
}
