//! What the owner of a member has to do after a drain.

use cohort_store::{Configuration, Index, RaftId, Term};

use crate::message::Envelope;
use crate::reads::ReadId;
use crate::status::Role;

/// A committed entry to apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its position. Positions only grow, with gaps (empty entries, membership changes).
    pub index: Index,
    pub term: Term,
    pub data: Vec<u8>,
}

/// A state that replaces the owner's whole state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledSnapshot {
    /// The last position applied to it.
    pub index: Index,
    pub term: Term,
    pub data: Vec<u8>,
}

/// What the owner has to do, in the order of the fields. Everything it depends on is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Replace the whole state with this one, then apply `committed`.
    pub installed_snapshot: Option<InstalledSnapshot>,
    /// Apply these, in order.
    pub committed: Vec<Committed>,
    /// Once the two above are done, everything up to here is applied.
    pub applied: Index,
    /// The newest membership, if it changed.
    pub configuration: Option<Configuration>,
    /// These reads may run now; each with its promised position.
    pub reads_ready: Vec<(ReadId, Index)>,
    /// The new role, term and leader, if any of them changed.
    pub role_changed: Option<(Role, Term, Option<RaftId>)>,
    /// Send these, in order.
    pub messages: Vec<Box<Envelope>>,
    /// Call [`Node::compact`](crate::Node::compact) soon: the log has grown long, or a member needs
    /// a snapshot.
    pub snapshot_wanted: bool,
}
