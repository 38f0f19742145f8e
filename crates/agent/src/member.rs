//! The member: a thread of its own that owns the log and the state.
//!
//! Everything comes in through one queue and is handled in order; what is decided goes out as a
//! [`View`]. One turn of the loop is: take what has come, make it durable, apply, answer, and, on
//! the leader, plan and propose. Nothing here waits for the network.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use cohort_consensus::{
    Committed, Effects, Envelope, Handover, Node, NodeError, ProposeError, RaftId, ReadId, Role,
    Status, TICK,
};
use cohort_core::command::COMMAND_VERSION;
use cohort_core::gate::RegistryView;
use cohort_core::ids::{AppId, MemberId, ServerId};
use cohort_core::waiting::Waiting;
use cohort_core::{Body, Command, Event, Offer, State};
use cohort_store::RedbStore;
use tokio::sync::{oneshot, watch};

use crate::contacts::Contacts;

mod lead;

use lead::Leading;

/// Inputs taken in one turn before they are made durable together. 256: one sync for a wave's
/// worth of reports, and heartbeats are never held up for long.
const INPUTS_PER_TURN_MAX: usize = 256;
/// Inputs that wait. 8,192: more than all servers of the largest group and all peers have to say
/// within a sync of the slowest disk.
const INPUTS_MAX: usize = 8_192;
/// Ticks made up for after a pause of the process; more would only start needless elections.
const TICKS_CAUGHT_UP_MAX: u32 = 5;
/// How long a hand-over before a stop may take, in ticks: 2 s.
const HANDOVER_TICKS_MAX: u32 = 40;

/// What comes in.
#[derive(Debug)]
pub(crate) enum Input {
    /// A message of a peer.
    Received(Box<Envelope>),
    /// A connection to a peer was made.
    Connected(RaftId),
    /// A peer cannot be reached.
    Unreachable(RaftId),
    /// A command, and who waits for its outcome.
    Propose(Box<Command>, oneshot::Sender<Proposed>),
    /// A linearizable read: answered when the view shows at least what was committed by now.
    Read(oneshot::Sender<bool>),
    /// Hand leadership over, to this member or to whoever is best prepared.
    Transfer(Option<RaftId>, oneshot::Sender<Result<RaftId, String>>),
    /// May a server create the member that it was given?
    Claim(ServerId, MemberId, oneshot::Sender<Option<bool>>),
    /// What the registry says; none while it does not answer.
    Registry(Option<RegistryView>),
    /// What the channels point to, and what was refused.
    Offers(BTreeMap<AppId, Offer>, Vec<String>),
    /// The kill switch.
    Kill(Option<String>),
    /// Hand over and end.
    Stop(oneshot::Sender<()>),
}

/// The way in: bounded, so that nobody can make a member run out of memory.
#[derive(Debug, Clone)]
pub(crate) struct Inputs(SyncSender<Input>);

impl Inputs {
    /// A queue and its way in.
    pub(crate) fn queue() -> (Inputs, Receiver<Input>) {
        let (sender, receiver) = sync_channel(INPUTS_MAX);
        (Inputs(sender), receiver)
    }

    /// For messages and requests: false when the member is behind, or gone. Who sent it sends it
    /// again.
    pub(crate) fn offer(&self, input: Input) -> bool {
        self.0.try_send(input).is_ok()
    }

    /// For what must not get lost: waits for room. False when the member is gone.
    pub(crate) async fn put(&self, input: Input) -> bool {
        let mut input = input;
        loop {
            match self.0.try_send(input) {
                Ok(()) => return true,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(back)) => {
                    input = back;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }
}

/// What came of a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Proposed {
    /// Committed and applied, here.
    Applied {
        /// Where.
        index: u64,
        /// Why it was refused; none when it was carried out.
        rejection: Option<String>,
    },
    /// This member does not lead.
    NotLeader {
        /// Who does.
        leader: Option<RaftId>,
    },
    /// Not now; certainly not taken.
    Busy,
    /// Perhaps taken, perhaps lost: ask again with the same request.
    Unknown,
}

/// What everybody may look at: consistent, as of `applied`.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// The state.
    pub state: Arc<State>,
    /// The member.
    pub raft: Status,
    /// What waits, as the leader's last plan says; empty on the others.
    pub waiting: Vec<Waiting>,
    /// Whether the registry answers; none on a member that does not lead.
    pub registry: Option<bool>,
    /// What was refused lately.
    pub refusals: Vec<String>,
    /// The kill switch.
    pub killed: Option<String>,
}

impl View {
    /// The server whose agent leads.
    pub(crate) fn leader(&self) -> Option<&ServerId> {
        self.state.server_of(MemberId(self.raft.leader?.0))
    }

    /// Whether this member leads and has committed in its term.
    pub(crate) fn leads(&self) -> bool {
        self.raft.is_leader() && self.raft.ready
    }
}

/// Where messages and views go.
pub(crate) struct Outputs {
    /// Messages to peers, in order.
    pub send: Box<dyn Fn(Envelope) + Send>,
    /// The view.
    pub view: watch::Sender<Arc<View>>,
    /// What happened, one by one, for logs and metrics.
    pub events: Tell,
}

/// Takes what happened, with the state after it.
pub(crate) type Tell = Box<dyn Fn(&State, &Event) + Send>;

pub(crate) struct Member {
    server: ServerId,
    node: Node<RedbStore>,
    state: Arc<State>,
    outputs: Outputs,
    /// By position: the term it was proposed in, and who waits.
    proposals: BTreeMap<u64, (u64, oneshot::Sender<Proposed>)>,
    /// Reads under way, and those that begin with the next round.
    reading: Option<(ReadId, Instant, Vec<oneshot::Sender<bool>>)>,
    next_readers: Vec<oneshot::Sender<bool>>,
    leading: Leading,
    waiting: Vec<Waiting>,
    registry: Option<RegistryView>,
    offers: BTreeMap<AppId, Offer>,
    refusals: Vec<String>,
    contacts: Arc<Contacts>,
    killed: Option<String>,
    dirty: bool,
    changed: bool,
    /// Up to where the last view goes.
    shown: u64,
    stopping: Option<(Handover, oneshot::Sender<()>)>,
    transfer: Option<(oneshot::Sender<Result<RaftId, String>>, Instant)>,
}

/// Why a member ended.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// The log cannot be trusted any more.
    #[error("the member of this group stopped")]
    Node(#[source] NodeError),
    /// An entry that this version does not understand.
    #[error(
        "entry {index} of the group's log is not understood by this version ({reason}); \
         install the version that the other members run"
    )]
    UnknownEntry {
        /// Which entry.
        index: u64,
        /// Why.
        reason: String,
    },
    /// A snapshot that this version does not understand.
    #[error("the group's snapshot is not understood by this version ({reason})")]
    UnknownSnapshot {
        /// Why.
        reason: String,
    },
    /// An invariant is broken.
    #[error("the group's state is broken after entry {index}: {reason}; this replica stops")]
    Broken {
        /// After which entry.
        index: u64,
        /// Which invariant.
        reason: String,
    },
}

impl Member {
    pub(crate) fn new(
        server: ServerId,
        node: Node<RedbStore>,
        state: State,
        killed: Option<String>,
        contacts: Arc<Contacts>,
        outputs: Outputs,
    ) -> Member {
        Member {
            server,
            node,
            state: Arc::new(state),
            outputs,
            proposals: BTreeMap::new(),
            reading: None,
            next_readers: Vec::new(),
            leading: Leading::default(),
            waiting: Vec::new(),
            registry: None,
            offers: BTreeMap::new(),
            refusals: Vec::new(),
            contacts,
            killed,
            dirty: true,
            changed: true,
            shown: 0,
            stopping: None,
            transfer: None,
        }
    }

    /// Runs until it is told to stop, or cannot go on.
    pub(crate) fn run(mut self, inputs: &Receiver<Input>) -> Result<(), MemberError> {
        let mut next_tick = Instant::now() + TICK;
        let status = self.node.status();
        if status.configuration.voters.len() == 1 && status.configuration.is_voter(status.id) {
            // Nobody else could: the only voter need not wait for an election timeout.
            self.node.campaign();
        }
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            match inputs.recv_timeout(wait) {
                Ok(input) => {
                    self.take(input);
                    for _ in 1..INPUTS_PER_TURN_MAX {
                        match inputs.try_recv() {
                            Ok(input) => self.take(input),
                            Err(_) => break,
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            let now = Instant::now();
            let mut ticks = 0;
            while next_tick <= now {
                if ticks < TICKS_CAUGHT_UP_MAX {
                    self.tick();
                    ticks += 1;
                }
                next_tick += TICK;
            }
            self.turn()?;
            if self.stopping.as_ref().is_some_and(|(handover, _)| handover.is_over()) {
                if let Some((_, done)) = self.stopping.take() {
                    let _ = done.send(());
                }
                return Ok(());
            }
        }
    }

    fn tick(&mut self) {
        self.node.tick();
        if let Some((handover, _)) = &mut self.stopping {
            handover.poll(&mut self.node);
        }
        // A read that got lost is begun anew by those who wait, or given up by them.
        if let Some((_, since, _)) = &self.reading
            && since.elapsed() > Duration::from_millis(500)
            && let Some((_, _, readers)) = self.reading.take()
        {
            self.next_readers.extend(readers);
        }
        if let Some((reply, since)) = self.transfer.take() {
            let status = self.node.status();
            match status.leader {
                Some(leader) if leader != status.id => {
                    let _ = reply.send(Ok(leader));
                }
                _ if since.elapsed() > Duration::from_secs(3) => {
                    let _ = reply.send(Err("nobody took over within 3 s".into()));
                }
                _ => self.transfer = Some((reply, since)),
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Received(envelope) => self.node.receive(&envelope),
            Input::Connected(peer) => self.node.connected(peer),
            Input::Unreachable(peer) => self.node.report_unreachable(peer),
            Input::Propose(command, reply) => {
                self.propose(&command, Some(reply));
            }
            Input::Read(reply) => self.next_readers.push(reply),
            Input::Transfer(to, reply) => {
                let begun = match to {
                    Some(to) => self.node.transfer_leadership(to).map(|()| to),
                    None => self.node.hand_over(),
                };
                match begun {
                    Ok(_) => {
                        tracing::info!("leadership is given away");
                        self.transfer = Some((reply, Instant::now()));
                    }
                    Err(error) => {
                        let _ = reply.send(Err(error.to_string()));
                    }
                }
            }
            Input::Claim(server, member, reply) => {
                let _ = reply.send(self.claim(&server, member));
            }
            Input::Registry(view) => {
                if view != self.registry {
                    self.registry = view;
                    self.dirty = true;
                }
            }
            Input::Offers(offers, refusals) => {
                if (&offers, &refusals) != (&self.offers, &self.refusals) {
                    self.offers = offers;
                    self.refusals = refusals;
                    self.dirty = true;
                }
            }
            Input::Kill(killed) => {
                if killed != self.killed {
                    self.killed = killed;
                    self.dirty = true;
                    self.changed = true;
                }
            }
            Input::Stop(done) => {
                let handover = Handover::begin(&mut self.node, HANDOVER_TICKS_MAX);
                self.stopping = Some((handover, done));
            }
        }
    }

    /// A member's number that ever had a log is not given to an empty disk.
    fn claim(&mut self, server: &ServerId, member: MemberId) -> Option<bool> {
        let status = self.node.status();
        if !(status.is_leader() && status.ready) {
            return None;
        }
        let mine = self.state.servers.get(server).and_then(|known| known.member) == Some(member);
        let id = RaftId(member.0);
        let used = status.configuration.is_voter(id)
            || status.peers.get(&id).is_some_and(|peer| peer.matched.0 > 0);
        if mine && used {
            let body = Body::RetireMember { server: server.clone(), member };
            self.propose_own(body);
        }
        Some(mine && !used)
    }

    fn propose(&mut self, command: &Command, reply: Option<oneshot::Sender<Proposed>>) -> u64 {
        let data = serde_json::to_vec(command).expect("a command has text keys only");
        let (outcome, position) = match self.node.propose(data) {
            Ok((index, term)) => {
                if let Some(reply) = reply {
                    self.proposals.insert(index.0, (term.0, reply));
                }
                return index.0;
            }
            Err(ProposeError::NotLeader { leader }) => (Proposed::NotLeader { leader }, 0),
            Err(ProposeError::Busy) => (Proposed::Busy, 0),
            Err(ProposeError::Stopped) => (Proposed::Unknown, 0),
            Err(error @ (ProposeError::TooLarge { .. } | ProposeError::Empty)) => {
                // Trying again would not help.
                let rejection = Some(error.to_string());
                (Proposed::Applied { index: 0, rejection }, 0)
            }
        };
        if let Some(reply) = reply {
            let _ = reply.send(outcome);
        }
        position
    }

    fn propose_own(&mut self, body: Body) -> u64 {
        let command = Command {
            version: COMMAND_VERSION,
            incarnation: self.state.incarnation,
            actor: format!("leader {}", self.server),
            request: None,
            body,
        };
        self.propose(&command, None)
    }

    /// Makes durable, applies, answers, plans; again until nothing is left to do.
    fn turn(&mut self) -> Result<(), MemberError> {
        loop {
            self.begin_reads();
            let effects = self.node.drain().map_err(MemberError::Node)?;
            self.apply(effects)?;
            if !self.lead() {
                break;
            }
        }
        if self.changed {
            self.publish();
        }
        Ok(())
    }

    fn begin_reads(&mut self) {
        self.next_readers.retain(|reader| !reader.is_closed());
        if self.reading.is_some() || self.next_readers.is_empty() {
            return;
        }
        // Without a leader those who wait have a deadline of their own.
        if let Ok(id) = self.node.read() {
            let readers = std::mem::take(&mut self.next_readers);
            self.reading = Some((id, Instant::now(), readers));
        }
    }

    fn apply(&mut self, effects: Effects) -> Result<(), MemberError> {
        let Effects {
            installed_snapshot,
            committed,
            applied,
            configuration,
            reads_ready,
            role_changed,
            messages,
            snapshot_wanted,
        } = effects;
        // What is promised in the messages is durable: let them go before the state is changed.
        for message in messages {
            (self.outputs.send)(message);
        }
        if let Some(snapshot) = installed_snapshot {
            let state: State = serde_json::from_slice(&snapshot.data)
                .map_err(|error| MemberError::UnknownSnapshot { reason: error.to_string() })?;
            state
                .check()
                .map_err(|reason| MemberError::Broken { index: snapshot.index.0, reason })?;
            self.state = Arc::new(state);
            self.changed = true;
        }
        for entry in committed {
            self.apply_one(&entry)?;
        }
        if configuration.is_some() {
            self.changed = true;
            self.dirty = true;
        }
        if let Some((role, term, leader)) = role_changed {
            tracing::info!(?role, term = term.0, leader = leader.map(|id| id.0), "raft role");
            self.changed = true;
            // What an earlier leadership saw is old by now: a plan is made from fresh looks only.
            self.registry = None;
            self.offers.clear();
            self.refusals.clear();
            if role == Role::Leader {
                let now = Instant::now();
                self.leading =
                    Leading { since: Some(now), clock_mark: Some(now), ..Leading::default() };
                self.dirty = true;
            } else {
                self.leading = Leading::default();
                self.waiting.clear();
                // Nobody knows whether these made it; whoever asked asks again.
                for (_, (_, reply)) in std::mem::take(&mut self.proposals) {
                    let _ = reply.send(Proposed::Unknown);
                }
            }
        }
        if applied.0 != self.shown {
            // Also what carries no command, such as a new leader's first entry: how far this
            // member is must not look old while the group is at rest.
            self.shown = applied.0;
            self.changed = true;
        }
        if snapshot_wanted {
            let data = serde_json::to_vec(&*self.state).expect("a state has text keys only");
            if let Err(error) = self.node.compact(applied, data) {
                tracing::warn!(%error, "the log was not compacted");
            }
        }
        let mut ready = Vec::new();
        if let Some((id, _, _)) = &self.reading
            && reads_ready.iter().any(|(read, _)| read == id)
            && let Some((_, _, readers)) = self.reading.take()
        {
            ready = readers;
        }
        if !ready.is_empty() {
            if self.changed {
                self.publish();
            }
            for reader in ready {
                let _ = reader.send(true);
            }
        }
        Ok(())
    }

    fn apply_one(&mut self, entry: &Committed) -> Result<(), MemberError> {
        let index = entry.index.0;
        let command: Command = serde_json::from_slice(&entry.data)
            .map_err(|error| MemberError::UnknownEntry { index, reason: error.to_string() })?;
        if command.version != COMMAND_VERSION {
            let reason = format!("command version {}", command.version);
            return Err(MemberError::UnknownEntry { index, reason });
        }
        let state = Arc::make_mut(&mut self.state);
        let outcome = state.apply(&command);
        if cfg!(debug_assertions) {
            state.check().map_err(|reason| MemberError::Broken { index, reason })?;
        }
        match &outcome {
            Ok(events) => {
                for event in events {
                    (self.outputs.events)(&self.state, event);
                }
            }
            Err(rejection) => {
                tracing::debug!(index, command = command.body.name(), %rejection, "rejected");
            }
        }
        if let Some((term, reply)) = self.proposals.remove(&index) {
            let outcome = if term == entry.term.0 {
                let rejection = outcome.err().map(|rejection| rejection.to_string());
                Proposed::Applied { index, rejection }
            } else {
                Proposed::Unknown
            };
            let _ = reply.send(outcome);
        }
        self.changed = true;
        self.dirty = true;
        Ok(())
    }

    fn publish(&mut self) {
        self.changed = false;
        let view = View {
            state: Arc::clone(&self.state),
            raft: self.node.status(),
            waiting: self.waiting.clone(),
            registry: self.leading.since.map(|_| self.registry.is_some()),
            refusals: self.refusals.clone(),
            killed: self.killed.clone(),
        };
        self.outputs.view.send_replace(Arc::new(view));
    }
}
