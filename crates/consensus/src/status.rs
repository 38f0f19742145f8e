//! What can be seen of a member.

use std::collections::BTreeMap;

use cohort_store::{Configuration, Index, RaftId, Term};
use serde::Serialize;

/// What a member is at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Takes the leader's entries, or waits for one.
    #[default]
    Follower,
    /// Asks whether an election would be won.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// How the leader sends entries to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Replication {
    /// It looks for the place where the logs match.
    Probing,
    /// It streams.
    Streaming,
    /// It has sent a snapshot and waits.
    Snapshot,
}

/// What the leader knows of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PeerProgress {
    /// The last position that the member is known to have.
    pub matched: Index,
    /// The next position that will be sent to it; always after `matched`.
    pub next: Index,
    /// Whether it has answered since the leader last checked its quorum.
    pub recent_active: bool,
    /// Ticks since this member last heard of it; `None` if it never did.
    pub silent_ticks: Option<u64>,
    /// How entries are sent to it.
    pub replication: Replication,
}

/// Messages that were dropped, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// Of another group or incarnation, or for another member.
    pub strangers: u64,
    /// Late, doubled, or of an older session.
    pub late: u64,
    /// Not to be understood, or not to be said to this member in its role.
    pub malformed: u64,
}

/// A member at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The member.
    pub id: RaftId,
    /// What it is.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// Who leads, as far as it knows.
    pub leader: Option<RaftId>,
    /// How far the log is committed, as far as it knows.
    pub commit: Index,
    /// The last entry that was handed out by a drain.
    pub applied: Index,
    /// The first and the last stored position.
    pub log: (Index, Index),
    /// Bytes of commands in the stored log.
    pub log_bytes: usize,
    /// The newest snapshot, if any.
    pub snapshot: Option<Index>,
    /// The membership as of `applied`.
    pub configuration: Configuration,
    /// Where it last changed; at least the snapshot's position after a start.
    pub configuration_index: Index,
    /// On the leader: whether a change of membership could be under way.
    pub change_pending: bool,
    /// On the leader: whether it has committed in its term, so that reads are answered.
    pub ready: bool,
    /// On the leader: to whom leadership is being handed over.
    pub transfer: Option<RaftId>,
    /// On the leader: every member, itself included.
    pub peers: BTreeMap<RaftId, PeerProgress>,
    /// Messages that were dropped.
    pub dropped: Dropped,
}

impl Status {
    /// Whether the member leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }
}
