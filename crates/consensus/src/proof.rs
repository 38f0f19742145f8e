//! A member proves at its start that its disk is not older than what its peers have heard of it.
//!
//! A disk restored from an image has forgotten promises: votes, and entries that it acknowledged. A
//! machine copied with its disk makes promises in the name of another one. So a starting member is
//! *unproven*: it keeps still until its peers have vouched for it.
//!
//! ```text
//!   starting member                              peer
//!     Present { found }          ───────────▶    compares with its mark of the sender
//!     (life, written)            ◀───────────    Vouch { verdict, leader, voters }
//! ```
//!
//! Every message carries the sender's *life* (its process) and how often it has *written* to its
//! log. A peer remembers the newest of both as its *mark* of the sender, on disk within a second;
//! the leader forwards its marks to the other members. Proven is who was vouched for by so many
//! voters that they are a majority with it, and by the leader that they name. It then writes once,
//! so that an image taken before this start is older than any mark taken after it.
//!
//! Two lives of one member do not overlap: a peer that still hears the old one vouches for no
//! other.

use std::collections::{BTreeMap, BTreeSet};

use cohort_store::{Batch, Index, LogStore, Mark, RaftId};
use raft::StateRole;

use crate::{Config, Envelope, Message, Node, NodeError, Verdict};

/// Ticks between two introductions to one peer: a round trip.
const ASK_TICKS: u64 = 2;
/// Ticks between two introductions to a peer that has vouched already, while that does not suffice:
/// the leader that it named may have gone.
const REFRESH_TICKS: u64 = 10;
/// Ticks of silence after which the earlier life of a member has ended: longer than the pause
/// between two messages of any living member, a candidate's included.
const LIFE_TICKS: u64 = 30;
/// Ticks between two introductions of one life that count as one attempt.
const ATTEMPT_TICKS: u64 = 20;
/// Ticks that an earlier life may still be heard before this one is a copy: 10 s.
const COPY_TICKS: u64 = 200;
/// Ticks between the first word that the disk went back and its effect: 1 s. A copy looks the same
/// to peers that the original does not talk to; those that hear it have spoken by then.
const OLDER_TICKS: u64 = 20;
/// Ticks between two writes of the marks, and between two messages that forward them: 1 s.
const MARKS_TICKS: u64 = 20;
/// Marks kept: more than a group has members.
const MARKS_MAX: usize = 256;

/// A life of a peer that this member has vouched for.
#[derive(Debug, Clone, Copy)]
struct Life {
    life: u64,
    /// The tick of its last message; `None` once its connection has ended.
    heard: Option<u64>,
}

/// The ticks of the first and of the last of a life's introductions that go on right now.
#[derive(Debug, Clone, Copy)]
struct Introduced {
    since: u64,
    last: u64,
}

#[derive(Debug)]
pub(crate) struct Proof {
    own: RaftId,
    life: u64,
    /// [`Image::written`](cohort_store::Image::written) at the start.
    found: u64,
    /// Whether this member may act.
    proven: bool,
    /// Whether the write that follows the proof was made.
    began: bool,
    off: bool,
    election_ticks: u64,
    /// The voters by the newest configuration heard of, and its position.
    voters: (Index, BTreeSet<RaftId>),
    /// Who vouched for this life, and the leader that each named. They take our messages.
    fine: BTreeMap<RaftId, Option<RaftId>>,
    /// Who still hears an earlier life of this member, and the tick at which each said so.
    elsewhere: BTreeMap<RaftId, u64>,
    /// Who said first that this disk went back, how often it had been written, and when.
    older: Option<(RaftId, u64, u64)>,
    /// The tick since which an earlier life was heard without a pause.
    contested: Option<u64>,
    /// The tick of the last introduction to each peer.
    asked: BTreeMap<RaftId, u64>,
    /// What waits for a peer to vouch: the last request for its vote. Members that have only ever
    /// followed have never met, and an election does not repeat its requests.
    held: BTreeMap<RaftId, Message>,
    lives: BTreeMap<RaftId, Life>,
    /// The peers that said that they do not know this life, and until which tick it goes on
    /// introducing itself to each: one answer may be lost, and who is gone gives none.
    listening: BTreeMap<RaftId, u64>,
    /// The lives of peers that introduce themselves right now: two of one peer, where a copy runs.
    newcomers: BTreeMap<(RaftId, u64), Introduced>,
    /// The life of each peer that takes itself for known here and is not, and the tick at which it
    /// was heard.
    strangers: BTreeMap<RaftId, (u64, u64)>,
    marks: BTreeMap<RaftId, Mark>,
    /// What the leader last forwarded, and when.
    forwarded: (u64, BTreeMap<RaftId, Mark>),
    /// The tick of the last write of the marks.
    stored: u64,
    /// Whether a message has come since the last drain. Only then are marks written: a member does
    /// the same whether it sleeps or not.
    touched: bool,
}

impl Proof {
    pub(crate) fn new(config: &Config, found: u64, marks: BTreeMap<RaftId, Mark>) -> Proof {
        let off = config.weaken.no_proof;
        Proof {
            own: config.id,
            life: config.life,
            found,
            proven: off,
            began: off,
            off,
            election_ticks: u64::from(config.election_ticks_max),
            voters: (Index(0), BTreeSet::new()),
            fine: BTreeMap::new(),
            elsewhere: BTreeMap::new(),
            older: None,
            contested: None,
            asked: BTreeMap::new(),
            held: BTreeMap::new(),
            lives: BTreeMap::new(),
            listening: BTreeMap::new(),
            newcomers: BTreeMap::new(),
            strangers: BTreeMap::new(),
            marks,
            forwarded: (0, BTreeMap::new()),
            stored: 0,
            touched: false,
        }
    }

    /// Whether this member may act.
    pub(crate) fn proven(&self) -> bool {
        self.proven
    }

    /// Whether a peer takes our messages.
    pub(crate) fn is_introduced(&self, peer: RaftId) -> bool {
        self.off || self.fine.contains_key(&peer)
    }

    /// The connection to a peer ended: its life has probably ended too.
    pub(crate) fn disconnected(&mut self, peer: RaftId) {
        self.held.remove(&peer);
        self.listening.remove(&peer);
        self.strangers.remove(&peer);
        if let Some(life) = self.lives.get_mut(&peer) {
            life.heard = None;
        }
    }

    /// Whether an introduction to `peer` is due, `ticks` after the last one.
    fn asks(&mut self, clock: u64, peer: RaftId, ticks: u64) -> bool {
        let due = self.asked.get(&peer).is_none_or(|asked| asked + ticks <= clock);
        if due {
            self.asked.insert(peer, clock);
        }
        due
    }

    /// Whether a message comes from a life that this member has vouched for.
    fn knows(&mut self, clock: u64, envelope: &Envelope) -> bool {
        let Some(life) = self.lives.get_mut(&envelope.from) else { return self.off };
        if life.life != envelope.life {
            return self.off;
        }
        life.heard = Some(clock);
        self.mark(envelope.from, mark_of(envelope));
        true
    }

    /// Takes a newer mark.
    fn mark(&mut self, of: RaftId, mark: Mark) {
        if self.marks.len() < MARKS_MAX || self.marks.contains_key(&of) {
            let known = self.marks.entry(of).or_default();
            if (mark.written, mark.boot_epoch) > (known.written, known.boot_epoch) {
                *known = mark;
            }
        }
    }

    /// Judges a starting peer, whose log had `found` batches when it started.
    fn judge(&mut self, clock: u64, envelope: &Envelope, found: u64) -> Verdict {
        let (of, mark) = (envelope.from, mark_of(envelope));
        let marked = self.marks.get(&of).copied();
        let since = self.introduces_itself_since(clock, of, mark.life);
        // First: the disk of a copy is old as soon as the original writes. A member that has just
        // started hears the original before it knows it.
        let known = self.lives.get(&of).and_then(|life| Some((life.life, life.heard?)));
        let mut others = known.iter().chain(self.strangers.get(&of));
        // A life that has only introduced itself gives way to the one that acted last.
        let acted_last = |life: u64| marked.is_some_and(|marked| marked.life == life);
        let heard = |(life, heard): &(u64, u64)| {
            let yields = acted_last(mark.life) && !acted_last(*life);
            *life != mark.life && heard + LIFE_TICKS > clock && !yields
        };
        if others.any(heard) {
            return Verdict::Elsewhere;
        }
        let Some(marked) = marked.filter(|marked| marked.life != mark.life) else {
            return Verdict::Fine;
        };
        if marked.written > found || marked.boot_epoch > mark.boot_epoch {
            return Verdict::Older { written: marked.written };
        }
        if self.lives.get(&of).is_some_and(|life| life.life == mark.life) {
            return Verdict::Fine;
        }
        // The earlier life may have been out of reach until now: two that come back with the
        // network introduce themselves in any order.
        match since + LIFE_TICKS <= clock {
            true => Verdict::Fine,
            false => Verdict::Unknown,
        }
    }

    /// The tick of the first of the introductions of this life that go on right now.
    fn introduces_itself_since(&mut self, clock: u64, of: RaftId, life: u64) -> u64 {
        self.newcomers.retain(|_, introduced| introduced.last + ATTEMPT_TICKS >= clock);
        if self.newcomers.len() >= MARKS_MAX && !self.newcomers.contains_key(&(of, life)) {
            return clock;
        }
        let first = Introduced { since: clock, last: clock };
        let introduced = self.newcomers.entry((of, life)).or_insert(first);
        introduced.last = clock;
        introduced.since
    }

    /// Forgets what has left the group, by the log of this member, which is up to `configured`, and
    /// by what peers have said since: the leader may have joined.
    fn keep(&mut self, mut members: BTreeSet<RaftId>, configured: Index) {
        if self.voters.0 > configured {
            members.extend(&self.voters.1);
        }
        self.marks.retain(|id, _| members.contains(id));
        self.lives.retain(|id, _| members.contains(id));
        self.fine.retain(|id, _| members.contains(id));
        self.asked.retain(|id, _| members.contains(id));
        self.held.retain(|id, _| members.contains(id));
        self.listening.retain(|id, _| members.contains(id));
        self.strangers.retain(|id, _| members.contains(id));
    }

    /// Whether the answers so far suffice.
    fn suffices(&self) -> bool {
        let voters = &self.voters.1;
        let others = voters.iter().filter(|id| **id != self.own);
        let fine = others.filter(|id| self.fine.contains_key(id)).count();
        let mut leaders = self.fine.values().flatten().filter(|leader| **leader != self.own);
        fine >= (voters.len() / 2).max(1)
            && self.older.is_none()
            && self.elsewhere.is_empty()
            && leaders.all(|leader| self.fine.contains_key(leader))
    }
}

fn mark_of(envelope: &Envelope) -> Mark {
    Mark {
        boot_epoch: crate::filter::boot_epoch_of(envelope.session),
        life: envelope.life,
        written: envelope.written,
    }
}

impl<S: LogStore> Node<S> {
    /// Handles what concerns the proof, of the sender's or of this member's. Returns whether the
    /// message remains to be handled, as one of a member in good standing.
    pub(crate) fn prove(&mut self, envelope: &Envelope) -> bool {
        let (from, clock) = (envelope.from, self.clock);
        self.proof.touched = true;
        match &envelope.message {
            Message::Present { found } => self.vouch(envelope, *found),
            Message::Vouch { life, verdict, leader, configured, voters } => {
                if *life == self.proof.life {
                    if *configured > self.proof.voters.0 && voters.len() <= MARKS_MAX {
                        self.proof.voters = (*configured, voters.clone());
                    }
                    self.vouched(from, *verdict, *leader);
                }
            }
            Message::Marks { marks } => {
                if self.proof.knows(clock, envelope) && self.is_led_by(from) {
                    self.learn(from, marks);
                }
            }
            _ if self.proof.knows(clock, envelope) => {
                if !self.proof.proven {
                    self.introduce(from);
                }
                return self.proof.proven;
            }
            _ => {
                self.filter.dropped.strangers += 1;
                let strangers = &mut self.proof.strangers;
                if strangers.len() < MARKS_MAX || strangers.contains_key(&from) {
                    strangers.insert(from, (envelope.life, clock));
                }
                if self.proof.asks(clock, from, ASK_TICKS) {
                    let found = self.proof.found;
                    self.post(from, Message::Present { found });
                    // It may believe that it is known here.
                    self.answer(envelope, Verdict::Unknown);
                }
            }
        }
        false
    }

    fn vouch(&mut self, envelope: &Envelope, found: u64) {
        let (from, clock) = (envelope.from, self.clock);
        let verdict = self.proof.judge(clock, envelope, found);
        if verdict == Verdict::Fine {
            let known = self.proof.lives.get(&from);
            if known.is_none_or(|known| known.life != envelope.life) {
                self.filter.forget(from);
                // The new process does not know this one.
                self.proof.fine.remove(&from);
                self.introduce(from);
                let life = Life { life: envelope.life, heard: Some(clock) };
                self.proof.lives.insert(from, life);
            }
            // No mark: it may be a copy, which is never proven, and has promised nothing.
        }
        self.answer(envelope, verdict);
    }

    fn answer(&mut self, to: &Envelope, verdict: Verdict) {
        let limit = self.proof.election_ticks;
        let heard = |id: &RaftId| {
            let heard = self.heard.get(id);
            *id == self.config.id || heard.is_some_and(|heard| heard + limit > self.clock)
        };
        let leader = self.leader().filter(heard);
        let configuration = &self.configuration;
        let voters = configuration.voters.union(&configuration.outgoing).copied().collect();
        let configured = self.raw.store().configuration_index;
        let message = Message::Vouch { life: to.life, verdict, leader, configured, voters };
        self.post(to.from, message);
    }

    fn vouched(&mut self, by: RaftId, verdict: Verdict, leader: Option<RaftId>) {
        let clock = self.clock;
        let proof = &mut self.proof;
        match verdict {
            Verdict::Fine => {
                proof.fine.insert(by, leader);
                proof.listening.remove(&by);
                proof.elsewhere.remove(&by);
                if let Some(request) = proof.held.remove(&by) {
                    self.post(by, request);
                }
            }
            Verdict::Elsewhere => {
                proof.fine.remove(&by);
                proof.elsewhere.insert(by, clock);
            }
            Verdict::Unknown => {
                proof.fine.remove(&by);
                if proof.listening.len() < MARKS_MAX {
                    proof.listening.insert(by, clock + ATTEMPT_TICKS);
                }
            }
            // One that acts already was vouched for by enough; only its leader can still object.
            Verdict::Older { .. } if proof.proven => {}
            Verdict::Older { written } => self.went_back(by, written),
        }
        let proof = &mut self.proof;
        if !proof.proven && proof.suffices() {
            proof.proven = true;
        }
    }

    /// The process of a member that is heard right now and acts, as its `life`; this member's own,
    /// too. One that has only introduced itself may be a copy.
    #[must_use]
    pub fn life_of(&self, peer: RaftId) -> Option<u64> {
        if peer == self.config.id {
            return Some(self.proof.life);
        }
        let acts =
            |life: &&Life| self.proof.marks.get(&peer).is_some_and(|it| it.life == life.life);
        let known = self.proof.lives.get(&peer).filter(acts)?;
        let heard = known.heard.is_some_and(|heard| heard + LIFE_TICKS > self.clock);
        heard.then_some(known.life)
    }

    /// Whether a peer is the leader, as this member knows it or as its peers say.
    fn is_led_by(&self, peer: RaftId) -> bool {
        if self.proof.proven {
            return self.leader() == Some(peer);
        }
        self.proof.fine.values().flatten().any(|leader| *leader == peer)
    }

    /// Takes the marks that the leader forwards; one of them may be of this member.
    fn learn(&mut self, from: RaftId, marks: &BTreeMap<RaftId, Mark>) {
        for (of, mark) in marks {
            if *of != self.config.id {
                self.proof.mark(*of, *mark);
            } else {
                // A machine restored with its memory is the same process, and has forgotten too.
                let known = match mark.life == self.proof.life {
                    true => self.store().image().written(),
                    false => self.proof.found,
                };
                if mark.written > known {
                    self.went_back(from, mark.written);
                }
            }
        }
    }

    /// A peer says that this disk went back.
    fn went_back(&mut self, by: RaftId, written: u64) {
        if self.proof.proven {
            let found = self.proof.found;
            self.fail(NodeError::WentBack { by, found, written });
        } else if self.proof.older.is_none() {
            self.proof.older = Some((by, written, self.clock));
        }
    }

    /// Introduces this life to a peer that has not vouched for it, at most every [`ASK_TICKS`].
    pub(crate) fn introduce(&mut self, to: RaftId) {
        if !self.proof.is_introduced(to) && self.proof.asks(self.clock, to, ASK_TICKS) {
            let found = self.proof.found;
            self.post(to, Message::Present { found });
        }
    }

    /// Introduces this life to a peer before `message`, of which only a request for a vote waits
    /// until the peer has vouched.
    pub(crate) fn introduce_for(&mut self, to: RaftId, message: Message) {
        self.introduce(to);
        if matches!(message, Message::PreVote(_) | Message::Vote(_)) {
            self.proof.held.insert(to, message);
        }
    }

    /// Goes on introducing this life to peers that listen for a while before they vouch.
    pub(crate) fn introduce_again(&mut self) {
        let clock = self.clock;
        self.proof.listening.retain(|_, until| *until > clock);
        for peer in self.proof.listening.keys().copied().collect::<Vec<_>>() {
            self.introduce(peer);
        }
    }

    /// Whether a peer listens for introductions of this life.
    pub(crate) fn is_listened_to(&self) -> bool {
        !self.proof.listening.is_empty()
    }

    /// Sends a message that needs no introduction.
    pub(crate) fn post(&mut self, to: RaftId, message: Message) {
        let written = self.store().image().written();
        let envelope = self.filter.envelope(to, written, message);
        self.effects.messages.push(Box::new(envelope));
    }

    /// A tick of an unproven member.
    pub(crate) fn ask_for_proof(&mut self) {
        let (clock, proof) = (self.clock, &mut self.proof);
        proof.elsewhere.retain(|_, said| *said + REFRESH_TICKS > clock);
        if let Some((by, _)) = proof.elsewhere.first_key_value() {
            let by = *by;
            if clock - *proof.contested.get_or_insert(clock) >= COPY_TICKS {
                return self.fail(NodeError::Copied { by });
            }
        } else {
            proof.contested = None;
            if let Some((by, written, since)) = proof.older
                && since + OLDER_TICKS <= clock
            {
                let found = proof.found;
                return self.fail(NodeError::WentBack { by, found, written });
            }
        }
        let leaders = proof.fine.values().flatten();
        let targets: BTreeSet<RaftId> = proof.voters.1.iter().chain(leaders).copied().collect();
        for peer in targets {
            let proof = &mut self.proof;
            let ticks = if proof.fine.contains_key(&peer) { REFRESH_TICKS } else { ASK_TICKS };
            if peer != self.config.id && proof.asks(clock, peer, ticks) {
                let found = proof.found;
                self.post(peer, Message::Present { found });
            }
        }
    }

    /// Forwards the marks to all members, on the leader.
    pub(crate) fn forward_marks(&mut self) {
        let proof = &mut self.proof;
        if proof.off
            || self.raw.raft.state != StateRole::Leader
            // With the heartbeats: a leader sleeps in between.
            || self.raw.raft.heartbeat_elapsed() > 0
            || proof.forwarded.0 + MARKS_TICKS > self.clock
            || proof.forwarded.1 == proof.marks
        {
            return;
        }
        let members = self.configuration.members();
        let marks: BTreeMap<RaftId, Mark> = proof.marks.clone();
        proof.forwarded = (self.clock, marks.clone());
        let told = members.iter().filter(|id| proof.is_introduced(**id)).copied();
        for peer in told.collect::<Vec<_>>() {
            if peer != self.config.id {
                self.post(peer, Message::Marks { marks: marks.clone() });
            }
        }
    }

    /// Whether a peer was ever heard of under this number, by this member or by a leader that it
    /// followed: its log has been written.
    #[must_use]
    pub fn has_met(&self, peer: RaftId) -> bool {
        self.proof.marks.contains_key(&peer)
    }

    /// The marks, if they have to be stored now.
    pub(crate) fn marks_due(&mut self) -> Option<BTreeMap<RaftId, Mark>> {
        let waits = self.proof.stored + MARKS_TICKS > self.clock;
        if self.proof.off || waits || self.proof.marks == *self.store().image().marks() {
            return None;
        }
        self.proof.stored = self.clock;
        let members = self.configuration.members();
        if !members.is_empty() {
            self.proof.keep(members, self.raw.store().configuration_index);
        }
        Some(self.proof.marks.clone())
    }

    /// Writes once after the proof, and the marks when they are due.
    pub(crate) fn write_proof(&mut self) {
        if self.stopped() {
            return;
        }
        if !self.proof.proven {
            let (configured, configuration) =
                (self.raw.store().configuration_index, &self.configuration);
            if configured >= self.proof.voters.0 {
                let voters = configuration.voters.union(&configuration.outgoing);
                self.proof.voters = (configured, voters.copied().collect());
            }
            // The only voter has no peer that could know better.
            self.proof.proven = self.proof.voters.1.iter().eq([&self.config.id]);
            if !self.proof.proven {
                return;
            }
        }
        let began = std::mem::replace(&mut self.proof.began, true);
        let hard_state = (!began).then(|| self.store().image().hard_state());
        let touched = std::mem::take(&mut self.proof.touched);
        let marks = if touched { self.marks_due() } else { None };
        let batch = Batch { hard_state, marks, ..Batch::default() };
        if !batch.is_empty()
            && let Err(error) = self.raw.mut_store().store.write(&batch)
        {
            self.fail(NodeError::Store(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use cohort_store::{Index, RaftId};

    use super::{BTreeMap, BTreeSet, Config, Life, Proof};

    /// A member whose log is older than the leader's membership goes on hearing it.
    #[test]
    fn a_leader_that_joined_since_is_not_forgotten() {
        let config = Config::new("g", 1, RaftId(3));
        let mut proof = Proof::new(&config, 0, BTreeMap::new());
        proof.voters = (Index(9), BTreeSet::from([RaftId(5)]));
        for id in [2, 4, 5] {
            proof.lives.insert(RaftId(id), Life { life: 1, heard: Some(1) });
        }
        let members = [1, 2, 3].map(RaftId).into();
        proof.keep(BTreeSet::clone(&members), Index(8));
        assert_eq!(proof.lives.keys().collect::<Vec<_>>(), [&RaftId(2), &RaftId(5)]);
        proof.keep(members, Index(9));
        assert_eq!(proof.lives.into_keys().collect::<Vec<_>>(), [RaftId(2)]);
    }
}
