//! One run: a group is founded, suffers faults, heals, and must converge.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;

use cohort_consensus::{Config, Envelope, Index, Limits, Node, RaftId, Role, Timing, Weaken};
use cohort_store::{Disk, FaultyStore, WriteFault};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::chaos::{self, Chaos};
use super::checker::{Checker, NOT_CONVERGED};
use super::lies::{Lies, alter};
use super::member::{After, Machine, Member};
use super::network::Network;

mod trouble;

/// Servers in the group.
const SERVERS: u64 = 5;
/// The production tick, in milliseconds; some servers' clocks run faster or slower.
const TICK_MS: u64 = 50;
/// Maximum milliseconds between two troubles.
const TROUBLE_MS_MAX: u64 = 60;
/// Maximum downtime of a process, in milliseconds.
const DOWN_MS_MAX: u64 = 3000;
/// How long the healed group may take to converge, in milliseconds: enough for a few elections,
/// timeouts of lost snapshots, and completing a joint change.
const HEAL_MS: u64 = 60_000;
/// Pause between two final commands proposed to the healed group, in milliseconds.
const HEAL_PROPOSE_MS: u64 = 500;

/// The member that lies, in runs with lies: a founder, and the only voter of some groups.
const LIAR: RaftId = RaftId(1);

/// The extremes of election timeout and heartbeat, and the defaults, in milliseconds.
const TIMINGS_MS: [(u64, u64); 4] = [(250, 50), (2_000, 400), (2_000, 50), (500, 100)];

/// What to simulate.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Determines the whole run.
    pub seed: u64,
    /// Events before all faults heal.
    pub steps: u64,
    /// Rules to switch off.
    pub weaken: Weaken,
    /// Whether every disk reports syncs that it did not do.
    pub lying_disks: bool,
    /// Whether members draw election timeouts and heartbeats within the bounds, each its own.
    pub timings: bool,
    /// What one member lies about until everything heals.
    pub lies: Lies,
    /// Whether to record a line for every event.
    pub trace: bool,
}

impl Setup {
    /// All rules on.
    #[must_use]
    pub fn new(seed: u64, steps: u64) -> Self {
        Setup {
            seed,
            steps,
            weaken: Weaken::default(),
            lying_disks: false,
            timings: false,
            lies: Lies::Nothing,
            trace: false,
        }
    }
}

/// Statistics of a successful run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Events, healing included.
    pub steps: u64,
    /// The last term that had a leader.
    pub last_term: u64,
    /// The last position that all members have applied.
    pub applied: u64,
    /// Commands acknowledged to clients as committed.
    pub acknowledged: u64,
    /// How often a process ended.
    pub crashes: u64,
    /// Restored disks that were found out.
    pub went_back: u64,
    /// Snapshots sent to a member.
    pub snapshots: u64,
    /// Configurations that took effect on any member, including joint ones.
    pub configurations: u64,
    /// Reads answered.
    pub reads: u64,
    /// Messages delivered.
    pub messages: u64,
    /// Faults that were drawn; neither requests nor the end of a fault.
    pub faults: u64,
}

/// A broken invariant.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The run.
    pub setup: Setup,
    /// The event after which the check failed.
    pub step: u64,
    /// The broken rule, and how it was broken.
    pub what: String,
    /// The events, when `trace` is on.
    pub trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        let Setup { seed, steps, timings, .. } = self.setup;
        let timings = if timings { " with timings" } else { "" };
        write!(f, "seed {seed} of {steps} steps{timings}, step {}: {}", self.step, self.what)
    }
}

/// Runs one seed to its end.
///
/// # Errors
/// The first violation.
pub fn run(setup: Setup) -> Result<Outcome, Box<Violation>> {
    let mut world = World::new(setup);
    let mut result = world.play();
    if setup.lies == Lies::Everything && result.is_err() {
        // Nobody promised anything: only a panic is a violation.
        result = Ok(());
    }
    let World { outcome, trace, .. } = world;
    match result {
        Ok(()) => Ok(outcome),
        Err(what) => Err(Box::new(Violation { setup, step: outcome.steps, what, trace })),
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tick(RaftId),
    Deliver(u64),
    Start(RaftId),
    Trouble,
}

struct World {
    setup: Setup,
    rng: ChaCha8Rng,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    counter: u64,
    mail: BTreeMap<u64, Envelope>,
    network: Network,
    chaos: Chaos,
    healing: bool,
    members: BTreeMap<RaftId, Member>,
    next_id: u64,
    next_command: u64,
    limits: Limits,
    checker: Checker,
    outcome: Outcome,
    trace: Vec<String>,
}

impl World {
    fn new(setup: Setup) -> Self {
        let mut rng = chaos::rng(setup.seed);
        // Small limits, so that snapshots and full windows are common.
        let limits = Limits {
            retained_entries: [0, 3, 50][rng.random_range(0..3)],
            entries_before_snapshot: [30, 1000][rng.random_range(0..2)],
            append_bytes_max: [64, 1024, 1 << 20][rng.random_range(0..3)],
            appends_in_flight_max: [1, 4, 64][rng.random_range(0..3)],
            apply_bytes_max: [1, 200, 1 << 20][rng.random_range(0..3)],
            promote_lag_entries_max: 4,
            ..Limits::default()
        };
        World {
            network: Network::draw(&mut rng),
            chaos: Chaos::draw(&mut rng),
            setup,
            rng,
            now: 0,
            queue: BinaryHeap::new(),
            counter: 0,
            mail: BTreeMap::new(),
            healing: false,
            members: BTreeMap::new(),
            next_id: 1,
            next_command: 1,
            limits,
            checker: Checker::default(),
            outcome: Outcome::default(),
            trace: Vec::new(),
        }
    }

    fn play(&mut self) -> Result<(), String> {
        let founders = [1, 3, 5][self.rng.random_range(0..3)];
        for _ in 0..SERVERS {
            self.new_server(founders)?;
        }
        self.schedule(TROUBLE_MS_MAX, Event::Trouble);
        while self.outcome.steps < self.setup.steps {
            self.step()?;
        }
        self.heal()?;
        let deadline = self.now + HEAL_MS;
        let (mut last, mut again) = (None, self.now);
        while self.now < deadline {
            self.step()?;
            // A deposed leader that does not know it yet may have accepted the command.
            if self.now >= again {
                last = self.propose_last().or(last);
                again = self.now + HEAL_PROPOSE_MS;
            }
            if let Some(last) = last
                && self.converged(last)
            {
                self.outcome.applied = last.0;
                self.outcome.acknowledged = self.checker.acknowledged.len() as u64;
                return self.checker.acknowledged_kept();
            }
        }
        let states: Vec<String> = self.members.values().map(describe).collect();
        Err(format!("{NOT_CONVERGED}:\n  {}", states.join("\n  ")))
    }

    /// A server with an empty disk; a founder of the group if its number is among the first.
    fn new_server(&mut self, founders: u64) -> Result<(), String> {
        let id = RaftId(self.next_id);
        self.next_id += 1;
        let mut config = Config::new("simulated", 1, id);
        config.limits = self.limits;
        config.weaken = self.setup.weaken;
        config.seed = self.rng.random();
        config.boot_epoch = 0;
        if self.setup.timings {
            let (election_ms, heartbeat_ms) =
                TIMINGS_MS[self.rng.random_range(0..TIMINGS_MS.len())];
            let timing = Timing::new(election_ms, heartbeat_ms);
            config.set_timing(timing.map_err(|error| error.to_string())?);
        }
        let disk = Disk::new();
        if id.0 <= founders {
            let founding = Config { boot_epoch: 1, ..config.clone() };
            let mut store = FaultyStore::open(&disk).map_err(|error| error.to_string())?;
            let voters = (1..=founders).map(RaftId);
            Node::bootstrap(&mut store, &founding, voters, Machine::default().encode())
                .map_err(|error| error.to_string())?;
        }
        // Clocks run up to half as fast and twice as fast as they should.
        let tick_ms = match self.rng.random_range(0..3) {
            0 => self.rng.random_range(TICK_MS / 2..=TICK_MS * 2),
            _ => TICK_MS,
        };
        let (image, restored, process, paused_until) = (None, false, None, 0);
        let member = Member { disk, config, image, restored, process, tick_ms, paused_until };
        self.members.insert(id, member);
        self.start(id)?;
        self.schedule(tick_ms, Event::Tick(id));
        Ok(())
    }

    fn schedule(&mut self, after_ms: u64, event: Event) {
        self.counter += 1;
        self.queue.push(Reverse((self.now + after_ms, self.counter, event)));
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if self.setup.trace {
            let line = format!("{:>6} {:>7} ms  {}", self.outcome.steps, self.now, line());
            self.trace.push(line);
        }
    }

    /// Runs the next event.
    fn step(&mut self) -> Result<(), String> {
        let Some(Reverse((at, _, event))) = self.queue.pop() else {
            return Err("no events left".to_owned());
        };
        self.now = at;
        self.outcome.steps += 1;
        match event {
            Event::Tick(id) => {
                let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
                let tick_ms = member.tick_ms;
                if member.paused_until <= self.now
                    && let Some(process) = &mut member.process
                {
                    process.node.tick();
                }
                self.schedule(tick_ms, Event::Tick(id));
                self.settle(id)
            }
            Event::Deliver(number) => self.deliver(number),
            Event::Start(id) => self.start(id),
            Event::Trouble => self.trouble(),
        }
    }

    fn deliver(&mut self, number: u64) -> Result<(), String> {
        let Some(envelope) = self.mail.remove(&number) else { return Ok(()) };
        let to = envelope.to;
        let Some(member) = self.members.get_mut(&to) else { return Ok(()) };
        if member.paused_until > self.now {
            // The message waits in the socket.
            let wait = member.paused_until - self.now;
            self.mail.insert(number, envelope);
            self.schedule(wait, Event::Deliver(number));
            return Ok(());
        }
        if self.setup.trace {
            self.note(|| format!("{} -> {to} {:?}", envelope.from, envelope.message));
        }
        self.outcome.messages += 1;
        if let Some(member) = self.members.get_mut(&to) {
            member.receive(&envelope);
        }
        self.settle(to)
    }

    fn start(&mut self, id: RaftId) -> Result<(), String> {
        let lying = self.setup.lying_disks && !self.healing;
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        if member.process.is_some() {
            return Ok(());
        }
        if lying {
            member.set_fault(WriteFault::Lie);
        }
        member.start().map_err(|what| format!("{id} cannot start: {what}"))?;
        self.note(|| format!("{id} starts"));
        self.settle(id)
    }

    /// Drains a member, checks its effects and sends its messages.
    fn settle(&mut self, id: RaftId) -> Result<(), String> {
        let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
        if member.process.is_none() {
            return Ok(());
        }
        match member.settle(&mut self.checker)? {
            After::Died => {
                self.note(|| format!("{id} exits: its disk failed"));
                self.down(id);
            }
            After::WentBack => {
                self.note(|| format!("{id} exits: its disk went back"));
                self.members.remove(&id);
                self.outcome.went_back += 1;
                return self.new_server(0);
            }
            After::Panicked(text) if self.setup.lies == Lies::Everything && id != LIAR => {
                panic!("seed {}: {id} was made to panic: {text}", self.setup.seed)
            }
            After::Panicked(text) => return Err(format!("{id}: the library panicked: {text}")),
            After::Runs(effects) => {
                if let Some((role, term, leader)) = effects.role_changed {
                    self.note(|| format!("{id} is {role:?} in {term}, leader {leader:?}"));
                    if role == Role::Leader {
                        self.outcome.last_term = self.outcome.last_term.max(term.0);
                    }
                }
                if let Some(configuration) = &effects.configuration {
                    self.outcome.configurations += 1;
                    self.note(|| format!("{id} is in {configuration}"));
                }
                self.outcome.reads += effects.reads_ready.len() as u64;
                if effects.snapshot_wanted && (self.healing || self.rng.random_range(0..4) > 0) {
                    self.compact(id);
                }
                for envelope in effects.messages {
                    self.send(*envelope);
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, mut envelope: Envelope) {
        let lies = if self.healing { Lies::Nothing } else { self.setup.lies };
        if lies != Lies::Nothing && envelope.from == LIAR && self.rng.random_ratio(1, 3) {
            alter(&mut envelope, lies, &mut self.rng);
        }
        let envelope = &envelope;
        if matches!(envelope.message, cohort_consensus::Message::Snapshot { .. }) {
            self.outcome.snapshots += 1;
        }
        for after in self.network.arrivals(envelope, &mut self.rng) {
            self.mail.insert(self.counter + 1, envelope.clone());
            self.schedule(after, Event::Deliver(self.counter + 1));
        }
    }

    fn compact(&mut self, id: RaftId) {
        self.note(|| format!("{id} takes a snapshot"));
        let Some(member) = self.members.get_mut(&id) else { return };
        member.compact();
        if member.process.is_none() {
            self.down(id);
        }
    }

    /// A process has ended; schedules its restart.
    fn down(&mut self, id: RaftId) {
        self.outcome.crashes += 1;
        // Some connections end with the process, others are found out later.
        for member in self.members.values_mut() {
            if let Some(process) = &mut member.process
                && self.rng.random_bool(0.5)
            {
                process.node.disconnected(id);
            }
        }
        let after = self.rng.random_range(1..=DOWN_MS_MAX);
        self.schedule(after, Event::Start(id));
    }

    fn someone(&mut self) -> RaftId {
        let at = self.rng.random_range(0..self.members.len());
        self.members.keys().nth(at).copied().unwrap_or(RaftId(1))
    }

    /// A leader if there is one, else any member.
    fn someone_leading(&mut self) -> RaftId {
        let leads = |member: &Member| {
            member.process.as_ref().is_some_and(|process| process.node.status().is_leader())
        };
        let leaders: Vec<RaftId> =
            self.members.iter().filter(|(_, member)| leads(member)).map(|(id, _)| *id).collect();
        match leaders.len() {
            0 => self.someone(),
            count => leaders[self.rng.random_range(0..count)],
        }
    }

    fn process(&mut self, id: RaftId) -> Option<&mut super::member::Process> {
        self.members.get_mut(&id)?.process.as_mut()
    }

    fn command(&mut self) -> Vec<u8> {
        let number = self.next_command;
        self.next_command += 1;
        let mut command = number.to_le_bytes().to_vec();
        command.resize(8 + self.rng.random_range(0..40), 0);
        command
    }

    /// Ends all faults.
    fn heal(&mut self) -> Result<(), String> {
        self.note(|| "all faults heal".to_owned());
        self.healing = true;
        self.network = Network::healed();
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            if let Some(member) = self.members.get_mut(&id) {
                member.paused_until = self.now;
                member.tick_ms = TICK_MS;
                member.set_fault(WriteFault::None);
            }
            self.start(id)?;
        }
        Ok(())
    }

    /// Proposes a final command, if there is an established leader.
    fn propose_last(&mut self) -> Option<Index> {
        let leaders: Vec<RaftId> = self.members.keys().copied().collect();
        for id in leaders {
            let command = self.next_command.to_le_bytes().to_vec();
            let Some(process) = self.process(id) else { continue };
            let status = process.node.status();
            // All members must agree that it is the leader, or the command may still be lost.
            if !status.ready || status.change_pending || status.transfer.is_some() {
                continue;
            }
            if let Ok((index, _)) = process.node.propose(command) {
                return Some(index);
            }
        }
        None
    }

    /// Whether every member of the configuration has applied `last`, and all agree.
    fn converged(&self, last: Index) -> bool {
        let leader = self
            .members
            .values()
            .filter_map(|member| member.process.as_ref())
            .filter(|process| process.node.status().ready)
            .max_by_key(|process| process.node.status().term);
        let Some(leader) = leader else { return false };
        let configuration = leader.node.status().configuration;
        !configuration.is_joint()
            && configuration.members().iter().all(|id| match self.members.get(id) {
                None => true,
                Some(member) => member.process.as_ref().is_some_and(|process| {
                    process.applied >= last && process.machine == leader.machine
                }),
            })
    }
}

fn describe(member: &Member) -> String {
    match &member.process {
        None => format!("{} is down", member.config.id),
        Some(process) => {
            let status = process.node.status();
            format!(
                "{} {:?} term {} leader {:?} commit {} applied {} log {:?} snapshot {:?} in {}; \
                 peers {:?}",
                status.id,
                status.role,
                status.term,
                status.leader,
                status.commit,
                status.applied,
                status.log,
                status.snapshot,
                status.configuration,
                status.peers,
            )
        }
    }
}
