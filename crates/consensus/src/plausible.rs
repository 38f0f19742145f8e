//! Whether a message can be what an honest member sends, as far as this member's own log tells. The
//! library trusts its input: it panics on what cannot be, and takes over any number.
//!
//! Pure, over what one member knows. What is refused here is dropped and counted.

use cohort_store::{Configuration, EntryKind, Index, LogStore, RaftId, Snapshot, Term};
use raft::StateRole;

use crate::convert::Change;
use crate::{AppendReply, Message, Node, TICK};

/// Terms that a group can use up in a second, at most: an election takes a quarter of one at least.
const TERMS_PER_S: u64 = 8;

/// Before any group was founded, as Unix time in seconds: 2020.
const FIRST_S: u64 = 1_577_836_800;

/// How far a message's term may be ahead of this member's where its clock says that not so many can
/// have been reached: some elections.
const TERMS_AHEAD_MAX: u64 = 16;

const TICKS_PER_S: u64 = 1_000 / TICK.as_millis() as u64;

/// The highest position that is accepted at all.
const NUMBER_MAX: u64 = 1 << 56;

/// The highest term that a group can have reached by its elections. It rises with time: a peer that
/// lies can bring a group to it, and cannot end its elections; nor can it part members from each
/// other, because it is the same for all of them.
pub(crate) fn terms_by(unix_s: u64) -> u64 {
    unix_s.saturating_sub(FIRST_S).saturating_mul(TERMS_PER_S)
}

/// The most members in one list of a configuration: far more than a group has.
const IDS_MAX: usize = 1024;

/// What a member knows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) term: Term,
    /// The highest term that can have been reached by now.
    pub(crate) terms: u64,
    /// The position of its last entry; 0 without a log.
    pub(crate) last: Index,
    pub(crate) committed: Index,
    /// The term of the entry there.
    pub(crate) committed_term: Term,
    /// Whether it leads in `term`.
    pub(crate) leads: bool,
    /// The leader of `term` that it follows.
    pub(crate) leader: Option<RaftId>,
}

impl<S: LogStore> Node<S> {
    /// What this member knows of itself.
    pub(crate) fn own(&self) -> Own {
        let raft = &self.raw.raft;
        let committed = raft.raft_log.committed;
        Own {
            term: Term(raft.term),
            terms: terms_by(self.config.unix_s + self.clock / TICKS_PER_S),
            last: Index(raft.raft_log.last_index()),
            committed: Index(committed),
            committed_term: Term(raft.raft_log.term(committed).unwrap_or(0)),
            leads: raft.state == StateRole::Leader,
            leader: self.leader(),
        }
    }
}

impl Own {
    /// Whether `from` can have sent `message` to this member.
    pub(crate) fn finds_plausible(&self, from: RaftId, message: &Message) -> bool {
        let small = |index: Index| index.0 <= NUMBER_MAX;
        // The library looks no further at messages of earlier terms.
        if term_of(message).is_some_and(|term| term.0 > 0 && term < self.term) {
            return true;
        }
        match message {
            Message::Append { term, previous, previous_term, commit, entries } => {
                // Nobody who leads has an entry of an earlier term behind what is committed.
                let behind = *previous >= self.committed && *previous_term < self.committed_term;
                let mut before = *previous_term;
                let rises = entries.iter().all(|entry| {
                    let rises = entry.term >= before && entry.term <= *term;
                    before = entry.term;
                    rises && (entry.kind == EntryKind::Data || changes_members(&entry.data))
                });
                self.leads_there(from, *term)
                    && small(*previous)
                    && small(*commit)
                    && previous_term <= term
                    && !behind
                    && rises
            }
            Message::AppendReply(reply) => self.reaches(reply.term) && self.replied(reply),
            Message::PreVote(request) | Message::Vote(request) => {
                self.reaches(request.term)
                    && request.last_term <= request.term
                    && request.commit_term <= request.last_term
                    && request.commit <= request.last
                    && small(request.last)
            }
            Message::PreVoteReply(reply) | Message::VoteReply(reply) => {
                self.reaches(reply.term) && reply.commit_term <= reply.term && small(reply.commit)
            }
            Message::Snapshot { term, snapshot } => {
                let behind =
                    snapshot.index >= self.committed && snapshot.term < self.committed_term;
                self.leads_there(from, *term)
                    && snapshot.term <= *term
                    && !behind
                    && is_sound_snapshot(snapshot)
            }
            Message::Heartbeat { term, commit, .. } => {
                self.leads_there(from, *term) && small(*commit)
            }
            Message::HeartbeatReply { term, commit, .. } => {
                self.reaches(*term) && (!self.leads_in(*term) || *commit <= self.last)
            }
            Message::TakeOver { term } => self.leads_there(from, *term),
            Message::ReadReply { term, index, .. } => self.reaches(*term) && small(*index),
            Message::ReadRequest { .. }
            | Message::Present { .. }
            | Message::Vouch { .. }
            | Message::Marks { .. } => true,
        }
    }

    fn reaches(&self, term: Term) -> bool {
        term.0 > 0 && term.0 <= self.terms.max(self.term.0.saturating_add(TERMS_AHEAD_MAX))
    }

    fn leads_in(&self, term: Term) -> bool {
        self.leads && term == self.term
    }

    /// Whether `from` can lead in `term`: each term has one leader.
    fn leads_there(&self, from: RaftId, term: Term) -> bool {
        let another = self.leader.is_some_and(|leader| leader != from);
        self.reaches(term) && !(term == self.term && (self.leads || another))
    }

    /// Nobody has entries that this leader has not sent.
    fn replied(&self, reply: &AppendReply) -> bool {
        let ends = reply.rejected.map_or(Index(0), |(hint, _)| hint);
        let highest = reply.index.max(reply.commit).max(ends);
        highest.0 <= NUMBER_MAX && (!self.leads_in(reply.term) || highest <= self.last)
    }
}

fn term_of(message: &Message) -> Option<Term> {
    match message {
        Message::Append { term, .. }
        | Message::Snapshot { term, .. }
        | Message::Heartbeat { term, .. }
        | Message::HeartbeatReply { term, .. }
        | Message::TakeOver { term }
        | Message::ReadReply { term, .. } => Some(*term),
        Message::AppendReply(reply) => Some(reply.term),
        Message::PreVote(request) | Message::Vote(request) => Some(request.term),
        Message::PreVoteReply(reply) | Message::VoteReply(reply) => Some(reply.term),
        Message::ReadRequest { .. }
        | Message::Present { .. }
        | Message::Vouch { .. }
        | Message::Marks { .. } => None,
    }
}

fn is_sound_snapshot(snapshot: &Snapshot) -> bool {
    let Snapshot { index, term, configuration, .. } = snapshot;
    index.0 > 0 && index.0 <= NUMBER_MAX && term.0 > 0 && is_sound(configuration)
}

/// Whether a group can have this membership: the library stops at others.
fn is_sound(configuration: &Configuration) -> bool {
    let Configuration { voters, outgoing, standbys, standbys_next } = configuration;
    let lists = [voters, outgoing, standbys, standbys_next];
    !voters.is_empty()
        && lists.iter().all(|ids| ids.len() <= IDS_MAX && !ids.contains(&RaftId(0)))
        && standbys.is_disjoint(voters)
        && standbys.is_disjoint(outgoing)
        && standbys_next.is_disjoint(voters)
        && standbys_next.is_subset(outgoing)
}

/// Whether an entry is a change of members that a leader makes: no member twice.
fn changes_members(data: &[u8]) -> bool {
    match Change::decode(data) {
        Ok(Change::Leave) => true,
        Ok(Change::Enter(steps)) => {
            let mut ids: Vec<RaftId> = steps.iter().map(|(_, id)| *id).collect();
            ids.sort_unstable();
            ids.dedup();
            ids.len() == steps.len() && steps.len() <= IDS_MAX && ids.first() != Some(&RaftId(0))
        }
        Err(_) => false,
    }
}

#[cfg(test)]
#[path = "plausible_test.rs"]
mod plausible_test;
