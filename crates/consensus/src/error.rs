//! Why a member refuses a request, and what stops it.

use cohort_store::{Index, RaftId, StoreError};

/// What stops a member, or keeps it from starting. The process must exit.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum NodeError {
    #[error("consensus configuration: {0}")]
    Config(&'static str),
    /// A group can only be founded on an empty store.
    #[error("the member's store is not empty, so no group can be founded on it")]
    NotEmpty,
    #[error("the member's store failed")]
    Store(#[source] StoreError),
    /// The consensus library rejected a state that it must accept.
    #[error("the consensus library failed: {0}")]
    Library(String),
    #[error("the member stopped after an earlier failure; this process must exit")]
    Stopped,
}

/// Why a command was not accepted. A command that *was* accepted may still get lost: its outcome
/// is known only when it is seen committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ProposeError {
    /// Another member leads, or none does.
    #[error("this member does not lead the group{}", hint(.leader))]
    NotLeader { leader: Option<RaftId> },
    /// Too much is waiting to be committed, or leadership is being handed over; try again.
    #[error("the leader is busy; try again")]
    Busy,
    #[error("the command has {bytes} bytes, the limit is {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the command is empty")]
    Empty,
    #[error("the member stopped after an earlier failure")]
    Stopped,
}

/// Why a read was not begun. A read that *was* begun may get lost without an answer: the caller
/// waits with a deadline and asks again, which makes a new read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ReadError {
    #[error("no leader of the group is known")]
    NoLeader,
    /// The leader has just been elected and has not committed anything yet; try again.
    #[error("the leader has not yet committed in its term; try again")]
    NotReady,
    #[error("too many reads are waiting; try again")]
    Busy,
    #[error("the member stopped after an earlier failure")]
    Stopped,
}

/// Why leadership is not handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TransferError {
    /// Only the leader can hand over.
    #[error("this member does not lead the group{}", hint(.leader))]
    NotLeader { leader: Option<RaftId> },
    #[error("member {0} is not a voter of the group")]
    NotAVoter(RaftId),
    #[error("member {0} leads already")]
    AlreadyLeader(RaftId),
    /// Nothing was heard from the member for an election timeout.
    #[error("member {0} is unreachable")]
    Silent(RaftId),
    #[error("no other voter could take over")]
    NobodyElse,
    #[error("the member stopped after an earlier failure")]
    Stopped,
}

/// Why a change of membership was not begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum MembershipError {
    /// Only the leader can change the membership.
    #[error("this member does not lead the group{}", hint(.leader))]
    NotLeader { leader: Option<RaftId> },
    /// An earlier change is not finished, or the leader has just been elected; try again.
    #[error("an earlier change of membership is not finished; try again")]
    InProgress,
    /// Too much is waiting to be committed, or leadership is being handed over; try again.
    #[error("the leader is busy; try again")]
    Busy,
    #[error("member {id} cannot vote yet: it is not a standby; add it as a standby first")]
    NotAStandby { id: RaftId },
    /// A new voter is behind.
    #[error("member {id} cannot vote yet: its log is at {matched}, the group's at {committed}")]
    Behind { id: RaftId, matched: Index, committed: Index },
    /// Nothing was heard from a new voter for an election timeout.
    #[error("member {id} cannot vote yet: it is unreachable")]
    Silent { id: RaftId },
    /// The new voters could decide nothing: too few were heard from for an election timeout.
    #[error("only {heard} of the {voters} voters can be reached; remove or start the others first")]
    NoMajority { heard: usize, voters: usize },
    /// No group can have this membership.
    #[error("invalid membership: {0}")]
    Invalid(&'static str),
    #[error("the member stopped after an earlier failure")]
    Stopped,
}

/// Why a snapshot was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum CompactError {
    #[error("there is a snapshot at {found} already; one at {asked} is not newer")]
    Old { found: Index, asked: Index },
    #[error("entry {asked} has not been handed out yet, only {applied} has")]
    NotApplied { asked: Index, applied: Index },
    /// The membership has changed since that position, so its state there is no longer known.
    #[error("the membership changed at {changed}, after {asked}; take a snapshot at a later entry")]
    BeforeMembershipChange { asked: Index, changed: Index },
    #[error("the state has {bytes} bytes, the limit is {limit}")]
    TooLarge { bytes: usize, limit: usize },
    /// The member stopped; the next drain says why.
    #[error("the member stopped")]
    Stopped,
}

fn hint(leader: &Option<RaftId>) -> String {
    leader.map_or_else(|| "; no leader is known".to_owned(), |id| format!("; member {id} does"))
}
