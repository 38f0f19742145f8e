//! The invariants, checked after every event.

use std::collections::BTreeMap;

use cohort_consensus::{Index, RaftId, Role, Status, Term};
use cohort_store::{Entry, EntryKind};

use crate::digest::digest;

/// A violation that the tests look for: a leader that has left the membership.
pub const NOT_A_VOTER: &str = "is the leader but not a voter";
/// A read that did not see what was acknowledged before it began.
pub const STALE_READ: &str = "answered a read";
/// The healed group stays divided, or without a leader.
pub const NOT_CONVERGED: &str = "the healed group did not converge";

/// Every decision that any member has ever seen.
#[derive(Debug, Default)]
pub struct Checker {
    leaders: BTreeMap<Term, RaftId>,
    decided: BTreeMap<Index, Decided>,
    /// The highest position applied by any member.
    applied_max: Index,
    /// Commands acknowledged to a client as committed: from position to hash.
    pub(crate) acknowledged: BTreeMap<Index, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Decided {
    term: Term,
    kind: EntryKind,
    data: u64,
    /// The hash over all commands up to here.
    chain: u64,
}

impl Checker {
    /// At most one leader per term, and it is a voter.
    pub(crate) fn role(&mut self, status: &Status) -> Result<(), String> {
        if status.role != Role::Leader {
            return Ok(());
        }
        let first = *self.leaders.entry(status.term).or_insert(status.id);
        if first != status.id {
            return Err(format!("term {} has two leaders, {first} and {}", status.term, status.id));
        }
        if !status.configuration.is_voter(status.id) {
            return Err(format!("{} {NOT_A_VOTER} of {}", status.id, status.configuration));
        }
        Ok(())
    }

    /// A member applied an entry; `chain` is its own hash over all commands, this one included.
    pub(crate) fn applied(&mut self, id: RaftId, entry: &Entry, chain: u64) -> Result<(), String> {
        let data = digest(0, &entry.data);
        let this = Decided { term: entry.term, kind: entry.kind, data, chain };
        let first = *self.decided.entry(entry.index).or_insert(this);
        if first != this {
            return Err(format!(
                "{id} applied {this:?} at {}, but {first:?} was decided there",
                entry.index
            ));
        }
        self.applied_max = self.applied_max.max(entry.index);
        Ok(())
    }

    /// A member restored a snapshot.
    pub(crate) fn restored(&mut self, id: RaftId, index: Index, chain: u64) -> Result<(), String> {
        match self.decided.get(&index) {
            Some(decided) if decided.chain != chain => {
                Err(format!("{id} restored a state at {index} that differs from the decided one"))
            }
            _ => Ok(()),
        }
    }

    /// The lowest position that may answer a read started now.
    pub(crate) fn read_floor(&self) -> Index {
        self.applied_max
    }

    /// A member that has applied `applied` answered a read.
    pub(crate) fn read(&self, id: RaftId, floor: Index, applied: Index) -> Result<(), String> {
        if applied < floor {
            return Err(format!("{id} {STALE_READ} at {applied}, below its floor {floor}"));
        }
        Ok(())
    }

    /// Checks that every acknowledged command is decided at its position.
    pub(crate) fn acknowledged_kept(&self) -> Result<(), String> {
        for (index, data) in &self.acknowledged {
            if self.decided.get(index).map(|decided| decided.data) != Some(*data) {
                return Err(format!("the command acknowledged at {index} is lost"));
            }
        }
        Ok(())
    }
}
