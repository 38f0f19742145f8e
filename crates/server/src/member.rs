//! The member: the group's log and state on one server, without the server around it.
//!
//! [`Member::step`] takes the inputs and the time, and returns what to do about them, as plain
//! data: requests are answered by their [`Ticket`]. Nothing in here blocks. One step is:
//!
//! ```text
//!   take inputs ─► tick ─► plan (if the leader) ─► persist ─► send ─► apply ─► answer
//! ```
//!
//! What a step proposes and what it received are persisted together, with one sync. If
//! [`Member::wake_ms`] is in the past, there is already work for another step.

use std::collections::BTreeMap;
use std::sync::Arc;

use cohort_consensus::{
    Config, Envelope, Handover, Image, Index, LogStore, MembershipError, Node, NodeError,
    ProposeError, RaftId, ReadId, Role, Term, TransferError,
};
use cohort_core::ability::Ability;
use cohort_core::command::{COMMAND_VERSION, Limited, Rejection};
use cohort_core::errand::{Errand, HubFault};
use cohort_core::gate::RegistryView;
use cohort_core::ids::{AppId, GroupId, Incarnation, MemberId, ServerId};
use cohort_core::machine::DiskSpace;
use cohort_core::refused::Refused;
use cohort_core::shared::Shared;
use cohort_core::state::HistoryEntry;
use cohort_core::survey::Survey;
use cohort_core::waiting::Waiting;
use cohort_core::{Body, Command, Event, Offer, State};

use crate::contacts::Contacts;
use crate::copies::{Introduced, Introduction};
use crate::leading::{Leading, Placer};

mod apply;
mod clock;
mod lead;
mod view;

pub use view::View;

/// How long a leadership transfer before a stop may take, in ticks: 2 s.
const HANDOVER_TICKS_MAX: u32 = 40;
/// A read without a response for this long is retried, in milliseconds.
const READ_LOST_MS: u64 = 500;
/// How long a read may take in total, in milliseconds: longer than an election, so that it survives
/// a change of leader.
pub const READ_MS_MAX: u64 = 1_500;
/// How long a leadership transfer may take, in milliseconds.
const TRANSFER_MS_MAX: u64 = 3_000;

/// Identifies a request, so that it can be answered; issued by the caller, once each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Inputs. One with a ticket is answered by the output that its comment names.
#[derive(Debug, Clone)]
pub enum Input {
    /// A peer's message, from an authenticated connection.
    Received(Box<Envelope>),
    /// A new connection to a peer: messages still in transit over an older one are void.
    Connected(RaftId),
    /// A peer is unreachable.
    Unreachable(RaftId),
    /// An established connection to a peer ended, and a new one could not be made: the peer's
    /// process has probably exited.
    Disconnected(RaftId),
    /// Append a command to the log: [`Output::Answer`].
    Propose { ticket: Ticket, command: Box<Command> },
    /// Request a linearizable read, on any member: [`Output::Read`].
    Read { ticket: Ticket },
    /// Transfer leadership to this member, or to the best prepared voter: [`Output::Transferred`].
    Transfer { ticket: Ticket, to: Option<RaftId> },
    /// May a server create the member that its orders name? [`Output::Claimed`].
    Claim { ticket: Ticket, server: ServerId, member: MemberId },
    /// The registry's content; `None` while it does not respond.
    Registry(Option<RegistryView>),
    /// How an errand at the hub ended.
    Errand { errand: Errand, ended: Result<(), HubFault> },
    /// The channels' targets, what was refused recently (mirrors and releases, for people), and
    /// whether the metadata that the targets are from was refreshed.
    Offers {
        offers: BTreeMap<AppId, Offer>,
        refusals: Vec<Refused>,
        refreshed: Result<(), Refused>,
    },
    /// The space on this server's disk.
    Disk(DiskSpace),
    /// What the server of another voter reaches, as it says.
    Reaches { voter: ServerId, ability: Ability },
    /// The reason for the kill switch; `None` while it is off.
    Kill(Option<String>),
    /// The answer to [`Output::Compact`]: the state as of entry `index`, [`serialized`].
    Snapshot { index: u64, data: Vec<u8> },
    /// Transfer leadership, then stop.
    Stop,
}

/// What to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send this to a peer; what it promises has been persisted.
    Send(Box<Envelope>),
    /// The outcome of [`Input::Propose`].
    Answer { ticket: Ticket, outcome: Proposed },
    /// The outcome of [`Input::Read`]. If `fresh`, the last [`Output::View`] shows at least
    /// everything that was acknowledged when the read came in. If not, no majority responded in
    /// [`READ_MS_MAX`].
    Read { ticket: Ticket, fresh: bool },
    /// The outcome of [`Input::Transfer`]: the new leader.
    Transferred { ticket: Ticket, outcome: Result<RaftId, TransferFailure> },
    /// The outcome of [`Input::Claim`]: whether the number has never been used; `None` if this
    /// member is not the leader.
    Claimed { ticket: Ticket, granted: Option<bool> },
    /// Entry `index` was applied and caused this event; with the rollout that it ended, if any, as
    /// recorded in the history.
    Happened { index: u64, event: Event, ended: Option<Box<HistoryEntry>> },
    /// A snapshot of entry `index` has replaced the state: events of entries before it are not
    /// told.
    Restored { index: u64 },
    /// The member's public view has changed.
    View(Arc<View>),
    /// The log has grown long: return this state of entry `index`, [`serialized`], as
    /// [`Input::Snapshot`]. Not on the member's thread: in a large group it takes longer than a
    /// heartbeat.
    Compact { index: u64, state: Arc<State> },
    /// For the agent's log.
    Noted(Note),
    /// Leadership was transferred if possible: drop the member.
    Stopped,
}

/// The outcome of proposing a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proposed {
    /// Committed and applied here, or permanently rejected. The index is 0 for a command that
    /// exceeds the size of an entry.
    Done { index: u64, rejection: Option<Rejection> },
    /// Another member is the leader, if this one knows of any.
    NotLeader { leader: Option<RaftId> },
    /// Not accepted at the moment.
    Busy,
    /// Not accepted: this member is the leader, and its disk is full.
    NoSpace,
    /// It may be committed, or lost. Retrying with the same request id is safe.
    Unknown,
}

/// Why leadership was not transferred.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferFailure {
    /// The transfer did not start.
    #[error(transparent)]
    Refused(TransferError),
    /// Another transfer, or a stop, is in progress.
    #[error("leadership is already being transferred")]
    Underway,
    #[error("no other member took over within {} s", TRANSFER_MS_MAX / 1_000)]
    TimedOut,
}

/// For the agent's log; decides nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    /// The member's role, term or leader has changed.
    Role { role: Role, term: Term, leader: Option<RaftId> },
    /// This member is the leader and has committed in its term.
    Leads { term: Term },
    /// A leadership transfer started.
    GivesAway,
    /// A leadership transfer to a server that reaches more than this one, which reaches this.
    HandsOver { to: ServerId, reaches: Ability },
    /// The state machine refused a command.
    Rejected { index: u64, command: &'static str, rejection: Rejection },
    /// A membership change towards these voters and standbys.
    Membership { voters: Vec<RaftId>, standbys: Vec<RaftId>, begun: Result<(), MembershipError> },
    /// No snapshot was taken; it is retried.
    NotCompacted(cohort_consensus::CompactError),
}

/// Why a member cannot continue; the agent exits.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// The log can no longer be trusted.
    #[error("this server's member of the group stopped")]
    Node(#[source] NodeError),
    /// An entry that this version cannot read.
    #[error(
        "this version cannot read entry {index} of the group's log; install the version that the \
         other members run"
    )]
    UnknownEntry {
        index: u64,
        #[source]
        source: Unreadable,
    },
    /// A snapshot that this version cannot read.
    #[error("this version cannot read the group's snapshot at entry {index}")]
    UnknownSnapshot {
        index: u64,
        #[source]
        source: serde_json::Error,
    },
    /// An invariant of the state is broken. It is never repaired silently.
    #[error("the group's state is broken after entry {index}: {reason}; this replica stops")]
    Broken { index: u64, reason: String },
}

/// A state as a snapshot has it.
///
/// # Panics
/// Never: a state has text keys only.
#[must_use]
pub fn serialized(state: &State) -> Vec<u8> {
    serde_json::to_vec(state).expect("a state has text keys only")
}

/// Why an entry cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("not a command")]
    Encoding(#[source] serde_json::Error),
    #[error("command version {0}, this agent knows {COMMAND_VERSION}")]
    Version(u32),
}

#[derive(Debug)]
struct Reader {
    ticket: Ticket,
    since_ms: u64,
}

/// One member of the group, over its store.
pub struct Member<S: LogStore> {
    node: Node<S>,
    state: Arc<State>,
    survey: Arc<Survey>,
    leading: Leading,
    waiting: Shared<Vec<Waiting>>,
    /// By index: the term in which it was proposed, and the ticket to answer.
    proposals: BTreeMap<u64, (Term, Ticket)>,
    /// The round of reads in flight, and its start.
    reading: Option<(ReadId, u64, Vec<Reader>)>,
    /// Reads that start with the next round.
    next_readers: Vec<Reader>,
    transfer: Option<(Ticket, u64)>,
    /// The term in which this member is the leader; `None` if it is not.
    led: Option<Term>,
    stopping: Option<Handover>,
    next_tick_ms: u64,
    changed: bool,
    /// The applied index that the last view shows.
    shown: u64,
    /// A snapshot was requested, and has not come back.
    compacting: bool,
    /// Whether this member's leadership has been logged.
    announced: bool,
    /// Whether the last view shows that the voters are asked what they reach.
    asks: bool,
    outputs: Vec<Output>,
}

impl<S: LogStore> Member<S> {
    /// Starts a member from its store. The first step restores the state.
    ///
    /// # Errors
    /// If the store or the configuration is unusable.
    pub fn open(
        now_ms: u64,
        server: ServerId,
        group: GroupId,
        store: S,
        config: Config,
        killed: Option<String>,
    ) -> Result<Member<S>, MemberError> {
        let state = State::new(group, Incarnation(config.incarnation));
        let mut node = Node::open(store, config).map_err(MemberError::Node)?;
        let status = node.status();
        if status.configuration.voters.len() == 1 && status.configuration.is_voter(status.id) {
            // The only voter need not wait for an election timeout: no other could become leader.
            node.campaign();
        }
        Ok(Member {
            node,
            state: Arc::new(state),
            survey: Arc::default(),
            leading: Leading::new(server, killed),
            waiting: Shared::default(),
            proposals: BTreeMap::new(),
            reading: None,
            next_readers: Vec::new(),
            transfer: None,
            led: None,
            stopping: None,
            next_tick_ms: now_ms,
            changed: true,
            shown: 0,
            compacting: false,
            announced: false,
            asks: false,
            outputs: Vec::new(),
        })
    }

    /// Sets how this member places voters while it is the leader.
    pub fn place_by(&mut self, placer: Placer) {
        self.leading.place_by(placer);
    }

    /// The member's log, as stored.
    #[must_use]
    pub fn log(&self) -> &Image {
        self.node.store().image()
    }

    /// The member's current view.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            state: Arc::clone(&self.state),
            survey: Arc::clone(&self.survey),
            raft: self.node.status(),
            waiting: self.waiting.clone(),
            placing: self.leading.placing().cloned(),
            mute: self.leading.mute().clone(),
            registry: self.leading.registry_answers(),
            errands: self.leading.errands().clone(),
            refusals: self.leading.refusals().to_vec(),
            copies: self.leading.copies().clone(),
            killed: self.leading.why_killed().map(str::to_owned),
            clock: self.leading.clock(&self.state),
            clock_at_ms: self.leading.ticked_ms(),
            listens_since_ms: self.leading.listens_since_ms(),
            asks_voters: self.leading.asks_voters(),
        }
    }

    /// Processes inputs, and returns what to do.
    ///
    /// `now_ms` is on a monotonic clock, the same as that of `contacts`.
    ///
    /// # Errors
    /// The member cannot continue and must be dropped; pending requests get no answer.
    pub fn step(
        &mut self,
        now_ms: u64,
        contacts: &Contacts,
        inputs: impl IntoIterator<Item = Input>,
    ) -> Result<Vec<Output>, MemberError> {
        self.catch_up(now_ms);
        for input in inputs {
            self.take(now_ms, contacts, input);
        }
        self.ticks(now_ms);
        if self.may_plan(now_ms) {
            self.lead(now_ms, contacts);
        }
        self.begin_reads(now_ms);
        let effects = self.node.drain().map_err(MemberError::Node)?;
        self.apply(now_ms, effects)?;
        if self.changed {
            self.publish();
        }
        if self.stopping.as_ref().is_some_and(Handover::is_over) {
            self.outputs.push(Output::Stopped);
        }
        Ok(std::mem::take(&mut self.outputs))
    }

    fn take(&mut self, now_ms: u64, contacts: &Contacts, input: Input) {
        match input {
            Input::Received(envelope) => self.node.receive(&envelope),
            Input::Connected(peer) => self.node.connected(peer),
            Input::Unreachable(peer) => self.node.report_unreachable(peer),
            Input::Disconnected(peer) => self.node.disconnected(peer),
            Input::Propose { ticket, command } => match self.refuses(now_ms, contacts, &command) {
                Some(outcome) => self.outputs.push(Output::Answer { ticket, outcome }),
                None => self.propose_for(now_ms, ticket, &command),
            },
            Input::Read { ticket } => self.next_readers.push(Reader { ticket, since_ms: now_ms }),
            Input::Transfer { ticket, to } => self.transfer(now_ms, ticket, to),
            Input::Claim { ticket, server, member } => {
                let granted = self.claim(&server, member);
                self.outputs.push(Output::Claimed { ticket, granted });
            }
            Input::Registry(view) => self.leading.registry(view),
            Input::Errand { errand, ended } => {
                self.changed |= self.leading.errand(now_ms, errand, ended);
            }
            Input::Offers { offers, refusals, refreshed } => {
                self.leading.offers(now_ms, offers, refusals, refreshed);
            }
            Input::Disk(disk) => self.leading.disk(now_ms, disk),
            Input::Reaches { voter, ability } => {
                self.leading.voter_reaches(now_ms, voter, ability);
            }
            Input::Kill(reason) => self.changed |= self.leading.killed(now_ms, reason),
            Input::Snapshot { index, data } => self.compact(Index(index), data),
            Input::Stop => {
                if self.stopping.is_none() {
                    let handover = Handover::begin(&mut self.node, HANDOVER_TICKS_MAX);
                    self.stopping = Some(handover);
                }
            }
        }
    }

    fn expire_reads(&mut self, now_ms: u64) {
        if self.reading.as_ref().is_some_and(|(_, since, _)| now_ms - since > READ_LOST_MS)
            && let Some((_, _, readers)) = self.reading.take()
        {
            self.next_readers.extend(readers);
        }
        let given_up = |reader: &mut Reader| now_ms - reader.since_ms > READ_MS_MAX;
        for reader in self.next_readers.extract_if(.., given_up) {
            self.outputs.push(Output::Read { ticket: reader.ticket, fresh: false });
        }
    }

    fn begin_reads(&mut self, now_ms: u64) {
        if self.reading.is_none() && !self.next_readers.is_empty()
            // Without a leader they wait; `expire_reads` ends that.
            && let Ok(id) = self.node.read()
        {
            self.reading = Some((id, now_ms, std::mem::take(&mut self.next_readers)));
        }
    }

    fn transfer(&mut self, now_ms: u64, ticket: Ticket, to: Option<RaftId>) {
        if self.transfer.is_some() || self.stopping.is_some() {
            let outcome = Err(TransferFailure::Underway);
            self.outputs.push(Output::Transferred { ticket, outcome });
            return;
        }
        let begun = match to {
            Some(to) => self.node.transfer_leadership(to),
            None => self.node.hand_over().map(|_| ()),
        };
        match begun {
            Ok(()) => {
                self.transfer = Some((ticket, now_ms));
                self.outputs.push(Output::Noted(Note::GivesAway));
            }
            Err(error) => {
                let outcome = match error {
                    // Already as requested: an election was faster.
                    TransferError::AlreadyLeader(own) => Ok(own),
                    refused => Err(TransferFailure::Refused(refused)),
                };
                self.outputs.push(Output::Transferred { ticket, outcome });
            }
        }
    }

    fn watch_transfer(&mut self, now_ms: u64) {
        let Some((ticket, since_ms)) = self.transfer else { return };
        let outcome = match self.node.leader() {
            Some(leader) if leader != self.node.id() => Ok(leader),
            _ if now_ms - since_ms > TRANSFER_MS_MAX => Err(TransferFailure::TimedOut),
            _ => return,
        };
        self.transfer = None;
        self.outputs.push(Output::Transferred { ticket, outcome });
    }

    /// A number that ever had a log is not given to an empty disk: it may have made promises.
    fn claim(&mut self, server: &ServerId, member: MemberId) -> Option<bool> {
        if !self.node.leads() {
            return None;
        }
        let mine = self.state.servers.get(server).and_then(|known| known.member) == Some(member);
        let id = RaftId(member.0);
        let status = self.node.status();
        let used = status.configuration.is_voter(id)
            || self.node.has_met(id)
            || status.peers.get(&id).is_some_and(|peer| peer.matched.0 > 0);
        if mine && used {
            self.propose_own(Body::RetireMember { server: server.clone(), member });
        }
        Some(mine && !used)
    }

    /// The answer to an agent that may not speak for its server, if this member is the leader.
    fn refuses(&mut self, now_ms: u64, contacts: &Contacts, command: &Command) -> Option<Proposed> {
        let (Body::AddServer { server, process, .. } | Body::MoveServer { server, process, .. }) =
            &command.body
        else {
            return None;
        };
        if !self.node.leads() {
            return None;
        }
        let member = self.state.servers.get(server).and_then(|known| known.member);
        let member_life = member.and_then(|member| self.node.life_of(RaftId(member.0)));
        let introduced = Introduced { server, process, member_life };
        let (judged, news) = self.leading.introduced(now_ms, &self.state, contacts, &introduced);
        self.changed |= news;
        match judged {
            Introduction::Accepted => None,
            Introduction::TooEarly => Some(Proposed::Busy),
            Introduction::Elsewhere { host } => {
                let rejection = Rejection::RunsElsewhere { server: server.clone(), host };
                let index = self.node.applied().0;
                Some(Proposed::Done { index, rejection: Some(rejection) })
            }
        }
    }

    fn propose_for(&mut self, now_ms: u64, ticket: Ticket, command: &Command) {
        if !self.leading.may_write() && self.node.leads() {
            self.outputs.push(Output::Answer { ticket, outcome: Proposed::NoSpace });
            return;
        }
        let applied = self.node.applied().0;
        if let Some(clock) = self.leading.clock_due(now_ms, &self.state, applied)
            && let Some(index) = self.propose_own(clock.clone())
        {
            self.leading.proposed(now_ms, index, &clock);
        }
        let outcome = match self.propose(command) {
            Ok((index, term)) => {
                self.proposals.insert(index, (term, ticket));
                return;
            }
            Err(ProposeError::NotLeader { leader }) => Proposed::NotLeader { leader },
            Err(ProposeError::Busy) => Proposed::Busy,
            // Its sender would only send it again.
            Err(ProposeError::TooLarge { limit, .. }) => {
                let rejection = Rejection::Limit { what: Limited::CommandBytes, max: limit as u64 };
                Proposed::Done { index: 0, rejection: Some(rejection) }
            }
            Err(ProposeError::Stopped | ProposeError::Empty) => Proposed::Unknown,
        };
        self.outputs.push(Output::Answer { ticket, outcome });
    }

    /// Proposes in the leader's own name. Returns the entry's future index, unless it is lost.
    fn propose_own(&mut self, body: Body) -> Option<u64> {
        let command = Command {
            version: COMMAND_VERSION,
            incarnation: self.state.incarnation,
            actor: format!("leader {}", self.leading.server()),
            request: None,
            body,
        };
        self.propose(&command).ok().map(|(index, _)| index)
    }

    fn propose(&mut self, command: &Command) -> Result<(u64, Term), ProposeError> {
        let data = serde_json::to_vec(command).expect("a command has text keys only");
        self.node.propose(data).map(|(index, term)| (index.0, term))
    }

    fn publish(&mut self) {
        self.changed = false;
        let view = Arc::new(self.view());
        self.outputs.push(Output::View(view));
    }
}
