//! Why a member refuses a request, and what stops it.

use cohort_base::Cause;
use cohort_store::{Index, RaftId, StoreError};

/// Why a member stopped, or cannot start. The process must exit.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("consensus configuration: {0}")]
    Config(&'static str),
    /// A group can only be founded on an empty store.
    #[error("cannot found a group: the member's store is not empty")]
    NotEmpty,
    #[error("the member's store failed")]
    Store(#[source] StoreError),
    /// The consensus library rejected a state that it must accept.
    #[error("the consensus library failed")]
    Library(#[source] Cause),
    /// The disk was restored from an image, or replaced. The member must not be opened again; the
    /// group gives the server another number.
    #[error(
        "this server's disk went back to an earlier state: its log was written {found} times, and \
         member {by} has heard of {written}"
    )]
    WentBack { by: RaftId, found: u64, written: u64 },
    /// The leader counts on entries of this member that its log lacks: another machine acted in its
    /// name while it was away. To be handled as [`NodeError::WentBack`].
    #[error(
        "this server's log ends at {last}, and member {by}, which leads, has heard from this \
         member of entries up to {commit}: another machine acted in its name"
    )]
    Overtaken { by: RaftId, commit: Index, last: Index },
    /// Another process acts as this member at the same time.
    #[error("another machine runs as this server: member {by} hears from it right now")]
    Copied { by: RaftId },
    #[error("the member stopped after an earlier failure; this process must exit")]
    Stopped,
}

impl NodeError {
    /// Whether the member's log is not the newest that was written in its name: it needs another
    /// number.
    #[must_use]
    pub fn is_of_an_old_log(&self) -> bool {
        matches!(self, NodeError::WentBack { .. } | NodeError::Overtaken { .. })
    }
}

/// Why a command was not accepted. A command that *was* accepted may still be lost: its outcome is
/// unknown until it is committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another member is the leader, or there is none.
    #[error("this member is not the leader{}", hint(.leader))]
    NotLeader { leader: Option<RaftId> },
    /// Too much is waiting to be committed, a leadership transfer is in progress, or the leader has
    /// not yet committed in its term; try again.
    #[error("the leader is busy; try again")]
    Busy,
    #[error("the command has {bytes} bytes, the limit is {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the command is empty")]
    Empty,
    #[error("the member stopped after an earlier failure")]
    Stopped,
}

/// Why a read did not start. A read that *did* start may be lost without an answer: the caller
/// waits with a deadline and retries with a new read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("the group's leader is unknown")]
    NoLeader,
    /// The leader has just been elected and has not committed anything yet; try again.
    #[error("the leader has not yet committed in its term; try again")]
    NotReady,
    #[error("too many reads are waiting; try again")]
    Busy,
    #[error("the member stopped after an earlier failure")]
    Stopped,
}

/// Why a leadership transfer did not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Only the leader can transfer leadership.
    #[error("this member is not the leader{}", hint(.leader))]
    NotLeader { leader: Option<RaftId> },
    #[error("member {0} is not a voter of the group")]
    NotAVoter(RaftId),
    #[error("member {0} is already the leader")]
    AlreadyLeader(RaftId),
    /// The member has not responded for an election timeout.
    #[error("member {0} is unreachable")]
    Silent(RaftId),
    #[error("no other voter could take over")]
    NobodyElse,
    #[error("the member stopped after an earlier failure")]
    Stopped,
}

/// Why a membership change did not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Only the leader can change the membership.
    #[error("this member is not the leader{}", hint(.leader))]
    NotLeader { leader: Option<RaftId> },
    /// An earlier change is still in progress, or the leader has just been elected; try again.
    #[error("an earlier membership change is in progress; try again")]
    InProgress,
    /// Too much is waiting to be committed, or a leadership transfer is in progress; try again.
    #[error("the leader is busy; try again")]
    Busy,
    #[error("member {id} cannot vote yet: add it as a standby first")]
    NotAStandby { id: RaftId },
    /// A new voter is behind.
    #[error("member {id} cannot vote yet: its log is at {matched}, the group's at {committed}")]
    Behind { id: RaftId, matched: Index, committed: Index },
    /// A new voter has not responded for an election timeout.
    #[error("member {id} cannot vote yet: it is unreachable")]
    Silent { id: RaftId },
    /// The new voters could decide nothing: too few were heard from for an election timeout.
    #[error("only {heard} of the {voters} voters can be reached; remove or start the others first")]
    NoMajority { heard: usize, voters: usize },
    /// The membership is not valid for any group.
    #[error("invalid membership: {0}")]
    Invalid(&'static str),
    #[error("the member stopped after an earlier failure")]
    Stopped,
}

/// Why a snapshot was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompactError {
    #[error("a snapshot at {found} already exists; one at {asked} is not newer")]
    Old { found: Index, asked: Index },
    #[error("cannot take a snapshot at {asked}: the last applied entry is {applied}")]
    NotApplied { asked: Index, applied: Index },
    /// The membership has changed since that position, so the membership at it is no longer known.
    #[error("the membership changed at {changed}, after {asked}; take a snapshot at a later entry")]
    BeforeMembershipChange { asked: Index, changed: Index },
    #[error("the state has {bytes} bytes, the limit is {limit}")]
    TooLarge { bytes: usize, limit: usize },
    /// A member that has not proved that its disk did not go back writes nothing.
    #[error("the member's peers have not vouched for its disk yet")]
    Unproven,
    /// The member stopped; the next drain says why.
    #[error("the member stopped")]
    Stopped,
}

fn hint(leader: &Option<RaftId>) -> String {
    leader.map_or_else(|| "; the leader is unknown".to_owned(), |id| format!("; member {id} is"))
}
