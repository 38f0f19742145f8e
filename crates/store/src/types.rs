//! The stored values: ids, entries, votes, snapshots, configurations.

use std::collections::BTreeSet;
use std::fmt;
use std::io;

use borsh::{BorshDeserialize, BorshSerialize};
use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            Serialize, Deserialize, BorshSerialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A member's number in its group: never 0, never reused within an incarnation. A server that
    /// lost its disk rejoins under a new number.
    RaftId
);
number!(
    /// A leader's term. Terms start at 1; 0 means *none*.
    #[derive(BorshDeserialize)]
    Term
);
number!(
    /// A position in the log. Positions start at 1; 0 means *before everything*.
    #[derive(BorshDeserialize)]
    Index
);

impl BorshDeserialize for RaftId {
    fn deserialize_reader<R: io::Read>(reader: &mut R) -> io::Result<Self> {
        match u64::deserialize_reader(reader)? {
            0 => Err(io::Error::new(io::ErrorKind::InvalidData, "member number is 0")),
            id => Ok(RaftId(id)),
        }
    }
}

impl Index {
    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Index {
        Index(self.0 + 1)
    }
}

/// How to interpret an entry's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub enum EntryKind {
    /// A command for the state machine; empty for the first entry of a term.
    Data,
    /// A membership change, in the consensus crate's encoding.
    Membership,
}

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Entry {
    /// Its position in the log.
    pub index: Index,
    /// The term of the leader that proposed it.
    pub term: Term,
    /// How to interpret `data`.
    pub kind: EntryKind,
    /// Opaque to this crate.
    pub data: Vec<u8>,
}

/// State that a member must never lose: its term, its vote in that term, and its commit position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct HardState {
    /// The highest term seen.
    pub term: Term,
    /// The candidate it voted for in that term.
    pub vote: Option<RaftId>,
    /// The highest position known to be committed.
    pub commit: Index,
}

/// What a member has heard of a peer's disk. A disk that was set back to an earlier state is behind
/// the mark that some peer has of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Mark {
    /// The start of the peer's agent in which it was heard.
    pub boot_epoch: u64,
    /// The process in which it was heard: a random number.
    pub life: u64,
    /// The peer's [`Image::written`](crate::Image::written) then.
    pub written: u64,
}

/// A group's membership.
///
/// During a change the configuration is *joint*: `outgoing` is not empty, and every decision needs
/// a majority of `voters` and a majority of `outgoing`.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, BorshSerialize, BorshDeserialize,
)]
pub struct Configuration {
    /// The voters; while joint, the new half.
    pub voters: BTreeSet<RaftId>,
    /// While joint, the old half; otherwise empty.
    #[serde(default)]
    pub outgoing: BTreeSet<RaftId>,
    /// Members that replicate the log without voting.
    #[serde(default)]
    pub standbys: BTreeSet<RaftId>,
    /// Old voters that become standbys when the joint phase ends.
    #[serde(default)]
    pub standbys_next: BTreeSet<RaftId>,
}

impl Configuration {
    /// A configuration without a change in progress.
    #[must_use]
    pub fn of(
        voters: impl IntoIterator<Item = RaftId>,
        standbys: impl IntoIterator<Item = RaftId>,
    ) -> Self {
        Configuration {
            voters: voters.into_iter().collect(),
            standbys: standbys.into_iter().collect(),
            ..Configuration::default()
        }
    }

    /// Whether a change is in progress.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `id` votes, in either half.
    #[must_use]
    pub fn is_voter(&self, id: RaftId) -> bool {
        self.voters.contains(&id) || self.outgoing.contains(&id)
    }

    /// Whether `id` is a member, and therefore receives the log.
    #[must_use]
    pub fn contains(&self, id: RaftId) -> bool {
        self.is_voter(id) || self.standbys.contains(&id)
    }

    /// All members, ordered.
    #[must_use]
    pub fn members(&self) -> BTreeSet<RaftId> {
        let mut all = self.voters.clone();
        all.extend(&self.outgoing);
        all.extend(&self.standbys);
        all
    }
}

fn write_ids(f: &mut fmt::Formatter<'_>, name: &str, ids: &BTreeSet<RaftId>) -> fmt::Result {
    write!(f, "{name}=(")?;
    for (i, id) in ids.iter().enumerate() {
        if i > 0 {
            f.write_str(" ")?;
        }
        write!(f, "{id}")?;
    }
    f.write_str(")")
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_ids(f, "voters", &self.voters)?;
        for (name, ids) in [
            (" outgoing", &self.outgoing),
            (" standbys", &self.standbys),
            (" standbys-next", &self.standbys_next),
        ] {
            if !ids.is_empty() {
                write_ids(f, name, ids)?;
            }
        }
        Ok(())
    }
}

/// The state machine's full state and the membership at one position.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Snapshot {
    /// The last position applied to `data`.
    pub index: Index,
    /// The term of the entry at that position.
    pub term: Term,
    /// The membership at that position.
    pub configuration: Configuration,
    /// The state, opaque to this crate.
    pub data: Vec<u8>,
}

/// The owner of a store; written at creation, verified at every open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, BorshSerialize, BorshDeserialize)]
pub struct Identity {
    pub group: String,
    pub incarnation: u64,
    pub raft_id: RaftId,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "member {} of group {}/{}", self.raft_id, self.group, self.incarnation)
    }
}
