//! Why a request to a member is refused, and what stops a member.

use cohort_store::{Index, RaftId, StoreError};

/// What stops a member, or keeps it from starting. The process must exit.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration cannot be used.
    #[error("consensus configuration: {0}")]
    Config(&'static str),
    /// A group can only be founded on an empty store.
    #[error("the store of this member is not empty, so that no group can be founded on it")]
    NotEmpty,
    /// The store failed.
    #[error("the member's store failed")]
    Store(#[source] StoreError),
    /// The consensus library refused a state that it must accept.
    #[error("the consensus library failed: {0}")]
    Library(String),
    /// The member stopped because of an earlier failure.
    #[error("the member stopped after an earlier failure; this process must exit")]
    Stopped,
}

/// Why a command was not accepted. A command that *was* accepted may still get lost: its outcome
/// is known only when it is seen committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another member leads, or none does.
    #[error("this member does not lead the group{}", hint(.leader))]
    NotLeader {
        /// Who does, as far as this member knows.
        leader: Option<RaftId>,
    },
    /// Too much is waiting to be committed, or leadership is being handed over; try again.
    #[error("the leader is busy; try again")]
    Busy,
    /// The command is larger than the limit.
    #[error("the command has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The command has no bytes.
    #[error("the command is empty")]
    Empty,
    /// The member stopped because of an earlier failure.
    #[error("the member stopped after an earlier failure")]
    Stopped,
}

/// Why a read was not begun. A read that *was* begun may get lost without an answer: the caller
/// waits with a deadline and asks again, which makes a new read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader is known.
    #[error("no leader of the group is known")]
    NoLeader,
    /// The leader has just been elected and has not committed anything yet; try again.
    #[error("the leader has not yet committed in its term; try again")]
    NotReady,
    /// Too many reads wait.
    #[error("too many reads are waiting; try again")]
    Busy,
    /// The member stopped because of an earlier failure.
    #[error("the member stopped after an earlier failure")]
    Stopped,
}

/// Why leadership is not handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Only the leader can hand over.
    #[error("this member does not lead the group{}", hint(.leader))]
    NotLeader {
        /// Who does, as far as this member knows.
        leader: Option<RaftId>,
    },
    /// The member named cannot lead.
    #[error("member {0} is not a voter of the group")]
    NotAVoter(RaftId),
    /// The member named leads already.
    #[error("member {0} leads already")]
    AlreadyLeader(RaftId),
    /// The member named has not been heard of for an election timeout.
    #[error("member {0} has not been heard of lately")]
    Silent(RaftId),
    /// There is no other voter that could lead.
    #[error("no other voter could take over")]
    NobodyElse,
    /// The member stopped because of an earlier failure.
    #[error("the member stopped after an earlier failure")]
    Stopped,
}

/// Why a change of membership was not begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Only the leader can change the membership.
    #[error("this member does not lead the group{}", hint(.leader))]
    NotLeader {
        /// Who does, as far as this member knows.
        leader: Option<RaftId>,
    },
    /// An earlier change is not finished, or the leader has just been elected; try again.
    #[error("an earlier change of membership is not finished; try again")]
    InProgress,
    /// Too much is waiting to be committed, or leadership is being handed over; try again.
    #[error("the leader is busy; try again")]
    Busy,
    /// A new voter has to be a standby first.
    #[error("member {id} cannot vote yet: it is not a standby; add it as a standby first")]
    NotAStandby {
        /// The member.
        id: RaftId,
    },
    /// A new voter is behind.
    #[error("member {id} cannot vote yet: its log is at {matched}, the group's at {committed}")]
    Behind {
        /// The member.
        id: RaftId,
        /// The last entry it is known to have.
        matched: Index,
        /// The group's last committed entry.
        committed: Index,
    },
    /// A new voter has not been heard of for an election timeout.
    #[error("member {id} cannot vote yet: it has not been heard of lately")]
    Silent {
        /// The member.
        id: RaftId,
    },
    /// The membership asked for cannot be.
    #[error("the membership asked for cannot be: {0}")]
    Invalid(&'static str),
    /// The member stopped because of an earlier failure.
    #[error("the member stopped after an earlier failure")]
    Stopped,
}

/// Why a snapshot was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompactError {
    /// It is not newer than the one there is.
    #[error("a snapshot at {found} exists already, one at {asked} is not newer")]
    Old {
        /// The one there is.
        found: Index,
        /// The one asked for.
        asked: Index,
    },
    /// That much has not been applied.
    #[error("entry {asked} was not yet handed out, only {applied} was")]
    NotApplied {
        /// The position asked for.
        asked: Index,
        /// What was handed out.
        applied: Index,
    },
    /// The membership has changed after that position, so that it is no longer known as of there.
    #[error("the membership changed at {changed}, after {asked}; take a snapshot at a later entry")]
    BeforeMembershipChange {
        /// The position asked for.
        asked: Index,
        /// The last change.
        changed: Index,
    },
    /// The state is larger than the limit.
    #[error("the state has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The member stopped; the next drain says why.
    #[error("the member stopped")]
    Stopped,
}

fn hint(leader: &Option<RaftId>) -> String {
    leader.map_or_else(|| "; no leader is known".to_owned(), |id| format!("; member {id} does"))
}
