//! One member: the calls its owner makes.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cohort_store::{
    Batch, Configuration, HardState, Image, Index, LogStore, RaftId, Snapshot, Term,
};
use raft::eraftpb::MessageType;
use raft::{RawNode, ReadOnlyOption, SnapshotStatus, StateRole};

use crate::effects::{Effects, InstalledSnapshot};
use crate::filter::Filter;
use crate::proof::Proof;
use crate::reads::{ReadId, Reads};
use crate::storage::View;
use crate::timeout::Timeouts;
use crate::{
    Config, Envelope, NodeError, PeerProgress, ProposeError, ReadError, Replication, Role, Status,
    TransferError, convert,
};

/// The position and term of the snapshot that founds a group. Members that join later have nothing
/// before it, so they always start from a snapshot.
const FOUNDING: (Index, Term) = (Index(1), Term(1));

/// Ticks between the turns of voters that have lost the connection to their leader: time for one
/// of them to be elected.
const TURN_TICKS: u64 = 2;

/// One member of a group; does no IO.
///
/// The owner drives it from one thread:
///
/// 1. [`tick`](Self::tick) every [`TICK`](crate::TICK), [`receive`](Self::receive) for every
///    message, [`propose`](Self::propose), [`read`](Self::read) and so on for every request;
/// 2. after one or several of them, [`drain`](Self::drain): apply the committed entries that it
///    returns, send its messages in order, and stop the process if it fails.
///
/// Send messages to one peer in the order of the effects, over one connection at a time; the member
/// numbers them, and drops late or duplicate ones. Check `Envelope::from` against the authenticated
/// peer before calling `receive`.
pub struct Node<S: LogStore> {
    pub(crate) raw: RawNode<View<S>>,
    pub(crate) config: Config,
    pub(crate) configuration: Configuration,
    pub(crate) filter: Filter,
    pub(crate) proof: Proof,
    pub(crate) reads: Reads,
    /// Ticks since the start.
    pub(crate) clock: u64,
    pub(crate) timeouts: Timeouts,
    /// The tick of the last message from each peer.
    pub(crate) heard: BTreeMap<RaftId, u64>,
    /// Snapshots in flight, and the tick at which each was sent.
    pub(crate) snapshots_sent: BTreeMap<RaftId, u64>,
    pub(crate) applied: Index,
    /// The library's hard state; the commit position of the stored one may lag.
    pub(crate) hard_state: HardState,
    pub(crate) effects: Effects,
    pub(crate) role_seen: (Role, Term, Option<RaftId>),
    failure: Failure,
}

/// Whether the member has stopped, and whether its owner knows why.
#[derive(Debug)]
enum Failure {
    None,
    /// The next drain returns it.
    New(NodeError),
    /// The owner has received it.
    Told,
}

impl<S: LogStore> Node<S> {
    /// Founds a group: writes its first membership and state to the store of one founder.
    ///
    /// Several founders need the same `voters` and `state`. In production there is one founder and
    /// the others join: [`open`](Self::open) on an empty store, then
    /// [`change_membership`](Self::change_membership) on the leader.
    ///
    /// # Errors
    /// [`NodeError::NotEmpty`] if the store is in use already; [`NodeError::Store`].
    pub fn bootstrap(
        store: &mut S,
        config: &Config,
        voters: impl IntoIterator<Item = RaftId>,
        state: Vec<u8>,
    ) -> Result<(), NodeError> {
        if let Some(problem) = config.problem() {
            return Err(NodeError::Config(problem));
        }
        let configuration = Configuration::of(voters, []);
        if configuration.voters.is_empty() {
            return Err(NodeError::Config("a group needs a voter"));
        }
        if *store.image() != Image::default() {
            return Err(NodeError::NotEmpty);
        }
        let (index, term) = FOUNDING;
        let batch = Batch {
            snapshot: Some(Snapshot { index, term, configuration, data: state }),
            replace_log: true,
            hard_state: Some(HardState { term, vote: None, commit: index }),
            ..Batch::default()
        };
        store.write(&batch).map_err(NodeError::Store)
    }

    /// Starts a member from its store; with an empty store, it waits to be added to a group.
    ///
    /// The first [`drain`](Self::drain) returns the stored snapshot and the entries after it that
    /// are known to be committed: the owner builds its state from them and stores none itself.
    ///
    /// # Errors
    /// [`NodeError::Config`], or [`NodeError::Library`] if the stored state is impossible.
    pub fn open(store: S, config: Config) -> Result<Self, NodeError> {
        if let Some(problem) = config.problem() {
            return Err(NodeError::Config(problem));
        }
        let image = store.image();
        let hard_state = image.hard_state();
        let snapshot = image.snapshot().cloned();
        let proof = Proof::new(&config, image.written(), image.marks().clone());
        let applied = snapshot.as_ref().map_or(Index(0), |s| s.index);
        let configuration = snapshot.as_ref().map(|s| s.configuration.clone()).unwrap_or_default();
        let view = View {
            store,
            configuration_index: applied,
            snapshot_wanted: std::cell::Cell::new(false),
        };
        let library = library_config(&config, applied);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = catch_unwind(AssertUnwindSafe(|| RawNode::new(&library, view, &logger)))
            .map_err(|panic| NodeError::Library(panic_text(panic.as_ref()).into()))?
            .map_err(|error| NodeError::Library(error.into()))?;
        let mut effects = Effects::default();
        if let Some(snapshot) = snapshot {
            effects.configuration = Some(configuration.clone());
            let Snapshot { index, term, data, .. } = snapshot;
            effects.installed_snapshot = Some(InstalledSnapshot { index, term, data });
        }
        let seed = config.seed ^ config.boot_epoch.rotate_left(32) ^ config.id.0.rotate_left(16);
        let mut node = Node {
            raw,
            configuration,
            filter: Filter::new(&config),
            proof,
            reads: Reads::new(&config),
            clock: 0,
            timeouts: Timeouts::new(seed, config.election_ticks_min, config.election_ticks_max),
            heard: BTreeMap::new(),
            snapshots_sent: BTreeMap::new(),
            applied,
            hard_state,
            effects,
            role_seen: (Role::Follower, hard_state.term, None),
            failure: Failure::None,
            config,
        };
        node.timeouts.set(&mut node.raw);
        Ok(node)
    }

    /// One [`TICK`](crate::TICK) has passed.
    ///
    /// Skip missed ticks (a stopped process, a suspended machine) instead of making up for them: a
    /// burst of ticks looks like a silent leader.
    pub fn tick(&mut self) {
        if self.stopped() {
            return;
        }
        if !self.proof.proven() {
            self.clock += 1;
            return self.ask_for_proof();
        }
        // Apply committed entries and persist appended ones before a tick can start an election.
        // (Trap: an election reads all unapplied entries.)
        if self.raw.raft.state != StateRole::Leader && !self.settle() {
            return;
        }
        self.clock += 1;
        let raft = &self.raw.raft;
        let elapsed = raft.election_elapsed + 1;
        let follower = raft.state != StateRole::Leader;
        let fired = follower && elapsed >= raft.randomized_election_timeout();
        self.library(|raw| raw.tick());
        if fired {
            self.timeouts.election_began();
            self.library(|_| ());
        }
        self.reads.tick(self.clock);
        self.expire_snapshots();
        self.drive_membership();
        self.forward_marks();
        self.introduce_again();
    }

    /// The number of ticks from now on that only count, unless there is input before: the owner may
    /// skip them, and make up for them with [`sleep`](Self::sleep). Valid after a drain.
    #[must_use]
    pub fn idle_ticks(&self) -> u64 {
        if !self.proof.proven() || self.is_listened_to() {
            return 0;
        }
        let raft = &self.raw.raft;
        let election = |timeout: usize| timeout.saturating_sub(raft.election_elapsed + 1);
        let idle = if raft.state != StateRole::Leader {
            election(raft.randomized_election_timeout())
        } else if self.snapshots_sent.is_empty() && !self.configuration.is_joint() {
            let heartbeat = raft.heartbeat_timeout().saturating_sub(raft.heartbeat_elapsed() + 1);
            heartbeat.min(election(raft.election_timeout()))
        } else {
            0
        };
        idle as u64
    }

    /// `ticks` have passed, at most [`idle_ticks`](Self::idle_ticks).
    pub fn sleep(&mut self, ticks: u64) {
        debug_assert!(ticks <= self.idle_ticks(), "a tick would have done something");
        self.clock += ticks;
        self.library(|raw| {
            for _ in 0..ticks {
                raw.tick();
            }
        });
        self.reads.tick(self.clock);
        self.expire_snapshots();
    }

    /// Starts an election without waiting for the timeout; for the only voter of a group at its
    /// start. Harmless elsewhere: voters that hear from a leader refuse the pre-vote.
    pub fn campaign(&mut self) {
        if !self.stopped() && self.settle() {
            self.write_proof();
        }
        if !self.stopped() && self.proof.proven() {
            self.timeouts.election_began();
            self.library(|raw| {
                // An error means that it is already the leader, or must not be.
                let _ = raw.campaign();
            });
        }
    }

    /// Handles a message. Drops and counts stray, late and malformed ones.
    pub fn receive(&mut self, envelope: &Envelope) {
        let ours = !self.stopped() && self.filter.is_addressed(envelope);
        if !ours || !self.prove(envelope) || !self.filter.in_order(envelope) {
            return;
        }
        if !self.own().finds_plausible(envelope.from, &envelope.message) {
            self.filter.dropped.implausible += 1;
            return;
        }
        let Ok(message) = convert::message_in(envelope.from, envelope.to, &envelope.message) else {
            self.filter.dropped.malformed += 1;
            return;
        };
        self.heard.insert(envelope.from, self.clock);
        match message.get_msg_type() {
            // The library would forward it in the requesting member's name; a member that asked the
            // wrong one retries.
            MessageType::MsgReadIndex if self.raw.raft.state != StateRole::Leader => return,
            // It starts an election at once, which needs a settled log, as for a tick.
            MessageType::MsgTimeoutNow if !self.settle() => return,
            // A heartbeat tells what this member has confirmed, as far as that is committed. The
            // library would panic.
            MessageType::MsgHeartbeat if message.term >= self.raw.raft.term => {
                let last = Index(self.raw.raft.raft_log.last_index());
                let commit = Index(message.commit);
                if commit > last && !self.config.weaken.no_proof {
                    let by = envelope.from;
                    return self.fail(NodeError::Overtaken { by, commit, last });
                }
            }
            _ => {}
        }
        // An error means that the message was useless, never that the member failed.
        self.library(|raw| {
            let _ = raw.step(message);
        });
    }

    /// Proposes a command; only the leader can. Accepted does not mean committed: the command is
    /// committed once the entry with this index *and this term* shows up in [`Effects::committed`].
    /// If another entry shows up at the index, the command was lost. If the member loses leadership
    /// before either, the outcome is unknown; commands carry their own id, so retrying is safe.
    ///
    /// # Errors
    /// If the command was definitely not accepted.
    pub fn propose(&mut self, data: Vec<u8>) -> Result<(Index, Term), ProposeError> {
        if self.stopped() {
            return Err(ProposeError::Stopped);
        }
        if self.raw.raft.state != StateRole::Leader {
            return Err(ProposeError::NotLeader { leader: self.leader() });
        }
        // It has not applied all that earlier leaders committed: nobody could judge the command.
        if !self.leads() {
            return Err(ProposeError::Busy);
        }
        let limit = self.config.limits.command_bytes_max;
        match data.len() {
            0 => return Err(ProposeError::Empty),
            bytes if bytes > limit => return Err(ProposeError::TooLarge { bytes, limit }),
            _ => {}
        }
        match self.library(|raw| raw.propose(Vec::new(), data)) {
            None => Err(ProposeError::Stopped),
            Some(Err(_)) => Err(ProposeError::Busy),
            Some(Ok(())) => {
                let raft = &self.raw.raft;
                Ok((Index(raft.raft_log.last_index()), Term(raft.term)))
            }
        }
    }

    /// Starts a linearizable read, on any member.
    ///
    /// When the id shows up in [`Effects::reads_ready`], the state after applying those effects is
    /// at least as new as everything acknowledged before this call. It may never show up (no
    /// leader, a lost message): wait with a deadline, then call this again. Ids are never reused.
    ///
    /// # Errors
    /// If there will definitely be no answer.
    pub fn read(&mut self) -> Result<ReadId, ReadError> {
        if self.stopped() {
            return Err(ReadError::Stopped);
        }
        // Trap: the library silently drops such reads; a new leader drops those of others, too.
        let raft = &self.raw.raft;
        if raft.leader_id == raft::INVALID_ID {
            return Err(ReadError::NoLeader);
        }
        if !raft.commit_to_current_term() {
            return Err(ReadError::NotReady);
        }
        let context = self.reads.begin(self.clock).ok_or(ReadError::Busy)?;
        self.library(|raw| raw.read_index(convert::read_in(context))).ok_or(ReadError::Stopped)?;
        Ok(ReadId(context.counter))
    }

    /// Transfers leadership to `to`. Done when [`status`](Self::status) names `to` as the leader;
    /// abandoned after the minimum election timeout. Until then the member refuses proposals as
    /// busy.
    ///
    /// # Errors
    /// If the transfer did not start.
    pub fn transfer_leadership(&mut self, to: RaftId) -> Result<(), TransferError> {
        if self.stopped() {
            return Err(TransferError::Stopped);
        }
        if self.raw.raft.state != StateRole::Leader {
            return Err(TransferError::NotLeader { leader: self.leader() });
        }
        if to == self.config.id {
            return Err(TransferError::AlreadyLeader(to));
        }
        if !self.configuration.voters.contains(&to) {
            return Err(TransferError::NotAVoter(to));
        }
        if self.is_silent(to) {
            return Err(TransferError::Silent(to));
        }
        self.library(|raw| raw.transfer_leader(to.0)).ok_or(TransferError::Stopped)
    }

    /// A new connection to `peer` exists. Messages still in flight on an older one are void.
    pub fn connected(&mut self, peer: RaftId) {
        self.filter.connected(peer);
    }

    /// Sending a message to `peer` failed, or its connection broke.
    pub fn report_unreachable(&mut self, peer: RaftId) {
        self.library(|raw| raw.report_unreachable(peer.0));
        self.lose_snapshot(peer);
    }

    /// The connection to `peer` ended and cannot be made again. If it leads, its process has
    /// probably ended: the voters do not wait for the rest of their election timeouts, but ask for
    /// pre-votes within some ticks, each in its turn. If the leader lives, the voters that still
    /// hear from it refuse, and its next heartbeat ends the attempt.
    pub fn disconnected(&mut self, peer: RaftId) {
        self.proof.disconnected(peer);
        self.report_unreachable(peer);
        let own = self.config.id;
        let raft = &self.raw.raft;
        if raft.state != StateRole::Follower || raft.leader_id != peer.0 {
            return;
        }
        let others = self.configuration.voters.iter().filter(|id| **id != peer);
        let turn = others.take_while(|id| **id != own).count() as u64;
        self.timeouts.soon(1 + turn * TURN_TICKS);
        let shortest = self.config.election_ticks_min as usize;
        // The shortest timeout is over: from here on it also votes for others.
        self.library(|raw| {
            raw.raft.election_elapsed = raw.raft.election_elapsed.max(shortest);
        });
    }

    /// Reports a snapshot in flight as lost: when the peer disconnects, or after
    /// [`Limits::snapshot_ticks_max`](crate::Limits::snapshot_ticks_max).
    fn lose_snapshot(&mut self, peer: RaftId) {
        // Trap: without a final report the library never sends to the peer again.
        if self.config.weaken.no_snapshot_report || self.snapshots_sent.remove(&peer).is_none() {
            return;
        }
        self.library(|raw| raw.report_snapshot(peer.0, SnapshotStatus::Failure));
    }

    fn expire_snapshots(&mut self) {
        let limit = self.config.limits.snapshot_ticks_max;
        let late: Vec<RaftId> = self
            .snapshots_sent
            .iter()
            .filter(|(_, sent)| self.clock - **sent >= limit)
            .map(|(peer, _)| *peer)
            .collect();
        for peer in late {
            self.lose_snapshot(peer);
        }
    }

    /// The leader, if this member knows one.
    #[must_use]
    pub fn leader(&self) -> Option<RaftId> {
        match self.raw.raft.leader_id {
            raft::INVALID_ID => None,
            id => Some(RaftId(id)),
        }
    }

    /// The newest membership that is in effect here.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Whether this member is the leader and has committed in its term.
    #[must_use]
    pub fn leads(&self) -> bool {
        let raft = &self.raw.raft;
        raft.state == StateRole::Leader && raft.commit_to_current_term()
    }

    /// The last entry that a drain has returned.
    #[must_use]
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// This member's number.
    #[must_use]
    pub fn id(&self) -> RaftId {
        self.config.id
    }

    /// The store, as of the last drain.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.raw.store().store
    }

    /// The member's observable state.
    #[must_use]
    pub fn status(&self) -> Status {
        let raft = &self.raw.raft;
        let image = self.store().image();
        let leads = raft.state == StateRole::Leader;
        let peers = raft.prs().iter().filter(|_| leads).map(|(id, progress)| {
            let peer = PeerProgress {
                matched: Index(progress.matched),
                next: Index(progress.next_idx),
                replication: match progress.state {
                    raft::ProgressState::Probe => Replication::Probing,
                    raft::ProgressState::Replicate => Replication::Streaming,
                    raft::ProgressState::Snapshot => Replication::Snapshot,
                },
            };
            (RaftId(*id), peer)
        });
        Status {
            id: self.config.id,
            proven: self.proof.proven(),
            role: raft.state.into(),
            term: Term(raft.term),
            leader: self.leader(),
            commit: Index(raft.raft_log.committed),
            applied: self.applied,
            log: (image.first_index(), image.last_index()),
            snapshot: image.snapshot().map(|s| s.index),
            configuration: self.configuration.clone(),
            configuration_index: self.raw.store().configuration_index,
            change_pending: leads && (raft.has_pending_conf() || self.configuration.is_joint()),
            ready: leads && raft.commit_to_current_term(),
            transfer: raft.lead_transferee.map(RaftId),
            peers: peers.collect(),
            dropped: self.filter.dropped,
        }
    }

    /// How many ticks ago this member last heard a peer in good standing; `None` if it never has.
    #[must_use]
    pub fn heard_ticks_ago(&self, peer: RaftId) -> Option<u64> {
        self.heard.get(&peer).map(|heard| self.clock - heard)
    }

    /// Whether a peer has not responded for the minimum election timeout.
    pub(crate) fn is_silent(&self, peer: RaftId) -> bool {
        let limit = u64::from(self.config.election_ticks_min);
        self.heard.get(&peer).is_none_or(|heard| self.clock - heard >= limit)
    }

    pub(crate) fn stopped(&self) -> bool {
        !matches!(self.failure, Failure::None)
    }

    /// Stops the member; its owner gets the first reason.
    pub(crate) fn fail(&mut self, error: NodeError) {
        if !self.stopped() {
            self.failure = Failure::New(error);
        }
    }

    /// Why the member stopped; later calls return [`NodeError::Stopped`].
    pub(crate) fn failure(&mut self) -> Result<(), NodeError> {
        match std::mem::replace(&mut self.failure, Failure::Told) {
            Failure::None => {
                self.failure = Failure::None;
                Ok(())
            }
            Failure::New(error) => Err(error),
            Failure::Told => Err(NodeError::Stopped),
        }
    }

    /// Calls into the library. It panics on impossible states, such as after a disk lied; the
    /// member then stops permanently.
    pub(crate) fn library<T>(
        &mut self,
        call: impl FnOnce(&mut RawNode<View<S>>) -> T,
    ) -> Option<T> {
        if self.stopped() {
            return None;
        }
        match catch_unwind(AssertUnwindSafe(|| call(&mut self.raw))) {
            Ok(value) => {
                self.timeouts.set(&mut self.raw);
                Some(value)
            }
            Err(panic) => {
                self.fail(NodeError::Library(panic_text(panic.as_ref()).into()));
                None
            }
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

fn library_config(config: &Config, applied: Index) -> raft::Config {
    let limits = &config.limits;
    raft::Config {
        id: config.id.0,
        election_tick: config.election_ticks_min as usize,
        min_election_tick: config.election_ticks_min as usize,
        max_election_tick: config.election_ticks_max as usize,
        heartbeat_tick: config.heartbeat_ticks as usize,
        applied: applied.0,
        max_size_per_msg: limits.append_bytes_max,
        max_inflight_msgs: limits.appends_in_flight_max,
        check_quorum: true,
        pre_vote: true,
        // Trap: lease reads are stale when clocks drift.
        read_only_option: if config.weaken.lease_reads {
            ReadOnlyOption::LeaseBased
        } else {
            ReadOnlyOption::Safe
        },
        max_uncommitted_size: limits.uncommitted_bytes_max as u64,
        max_committed_size_per_ready: limits.apply_bytes_max,
        ..raft::Config::default()
    }
}
