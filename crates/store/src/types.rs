//! The plain values that are stored: ids, entries, votes, snapshots, configurations.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
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
    /// A member's number in its group: never 0, and never given out twice in one incarnation.
    ///
    /// A server whose disk was lost comes back under a new number.
    RaftId
);
number!(
    /// A leader's term of office. Terms start at 1; 0 means *none*.
    Term
);
number!(
    /// A position in the log. Positions start at 1; 0 means *before everything*.
    Index
);

impl Index {
    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Index {
        Index(self.0 + 1)
    }
}

/// What an entry's bytes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A command for the state machine; empty for the entry that opens a leader's term.
    Data,
    /// A change of the group's membership, in the consensus crate's own encoding.
    Membership,
}

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub index: Index,
    /// The term in which a leader wrote it.
    pub term: Term,
    /// What its bytes are for.
    pub kind: EntryKind,
    /// Its bytes, opaque to this crate.
    pub data: Vec<u8>,
}

/// What a member must never forget: its term, its vote in that term, and how far it knows the log
/// to be committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The newest term the member has seen.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<RaftId>,
    /// The newest position it knows to be committed.
    pub commit: Index,
}

/// Who takes part in a group.
///
/// While a change is under way the configuration is *joint*: `outgoing` is not empty, and every
/// decision needs a majority of `voters` and a majority of `outgoing`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// The members that vote (while joint: the new half).
    pub voters: BTreeSet<RaftId>,
    /// While joint: the old half. Otherwise empty.
    #[serde(default)]
    pub outgoing: BTreeSet<RaftId>,
    /// Members that keep the log and do not vote.
    #[serde(default)]
    pub standbys: BTreeSet<RaftId>,
    /// Voters of the old half that become standbys when the joint phase ends.
    #[serde(default)]
    pub standbys_next: BTreeSet<RaftId>,
}

impl Configuration {
    /// A configuration that is not joint.
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

    /// Whether a change is under way.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `id` votes, in either half.
    #[must_use]
    pub fn is_voter(&self, id: RaftId) -> bool {
        self.voters.contains(&id) || self.outgoing.contains(&id)
    }

    /// Whether `id` takes part at all, and therefore receives the log.
    #[must_use]
    pub fn contains(&self, id: RaftId) -> bool {
        self.is_voter(id) || self.standbys.contains(&id)
    }

    /// Everyone who takes part, in order.
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

/// The state machine's whole state at one position, with the membership at that position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The last position whose effect is in `data`.
    pub index: Index,
    /// The term of the entry at that position.
    pub term: Term,
    /// The membership as of that position.
    pub configuration: Configuration,
    /// The state, opaque to this crate.
    pub data: Vec<u8>,
}

/// Whose store this is; written when the store is made, compared whenever it is opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The group's name.
    pub group: String,
    /// The group's incarnation.
    pub incarnation: u64,
    /// The member's number.
    pub raft_id: RaftId,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "member {} of group {}/{}", self.raft_id, self.group, self.incarnation)
    }
}
