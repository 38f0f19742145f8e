//! The observable state of a member.

use std::collections::BTreeMap;

use cohort_store::{Configuration, Index, RaftId, Term};
use raft::StateRole;
use serde::Serialize;

/// A member's role in the group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Follows a leader, or waits for one.
    #[default]
    Follower,
    /// Asks whether it would win an election.
    PreCandidate,
    Candidate,
    Leader,
}

impl From<StateRole> for Role {
    fn from(state: StateRole) -> Self {
        match state {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        }
    }
}

/// How the leader sends entries to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Replication {
    /// Searching for the position up to which the logs match.
    Probing,
    Streaming,
    /// Waiting for a snapshot to arrive.
    Snapshot,
}

/// The leader's knowledge of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PeerProgress {
    /// The last position the member is known to have.
    pub matched: Index,
    /// The next position to send to it; always after `matched`.
    pub next: Index,
    /// How it receives entries.
    pub replication: Replication,
}

/// Counts of dropped messages, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// From another group or incarnation, or for another member.
    pub strangers: u64,
    /// Late, duplicated, or from an older session.
    pub late: u64,
    /// Undecodable, or invalid for a member in this role.
    pub malformed: u64,
    /// What no honest member sends to one with this log.
    pub implausible: u64,
}

/// A member at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    pub id: RaftId,
    /// Whether its peers have vouched for its disk; it does nothing before.
    pub proven: bool,
    pub role: Role,
    pub term: Term,
    /// The leader, if the member knows one.
    pub leader: Option<RaftId>,
    /// The last position known to be committed.
    pub commit: Index,
    /// The last entry that a drain has returned.
    pub applied: Index,
    /// The first and the last stored position.
    pub log: (Index, Index),
    /// The newest snapshot, if any.
    pub snapshot: Option<Index>,
    /// The membership as of `applied`.
    pub configuration: Configuration,
    /// The position of the last membership change; after a start, at least the snapshot's.
    pub configuration_index: Index,
    /// On the leader: whether a membership change may be in progress.
    pub change_pending: bool,
    /// On the leader: whether it has committed in its term, and can answer reads.
    pub ready: bool,
    /// On the leader: the member it is transferring leadership to.
    pub transfer: Option<RaftId>,
    /// On the leader: all members, itself included.
    pub peers: BTreeMap<RaftId, PeerProgress>,
    /// Messages dropped since the start.
    pub dropped: Dropped,
}

impl Status {
    /// Whether the member is the leader.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }
}
