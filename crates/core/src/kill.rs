//! The rules of kill registers: which one of a scope is in force, which is refused, and which one
//! stops a group.
//!
//! Registers merge: the higher epoch wins; at equal epochs, *on* wins. So any server can forward
//! them, in any order and any number of times. Agents, the hub and the command line all hold their
//! registers in [`Registers`].
//!
//! A server holds the registers that cover it, the fleet's and its group's, and forwards both with
//! every message to its group. So no number of other scopes keeps a register from a server that it
//! covers.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::GroupId;

/// Kill registers kept on one machine. A hub keeps one per group; a server keeps two.
pub const KILL_SCOPES_MAX: usize = 10_000;

/// How far a change may raise a register's epoch beyond the last one or the Unix time in seconds,
/// whichever is higher: eleven days of clock error. Without a limit, one slip or one stolen key
/// could use up the highest epoch, and the switch could never be turned off again.
pub const KILL_EPOCH_STEP_MAX: u64 = 1_000_000;

/// What a kill switch stops.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KillScope {
    Fleet,
    Group(GroupId),
}

impl fmt::Display for KillScope {
    /// As on the command line: `fleet`, or the group's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KillScope::Fleet => f.pad("fleet"),
            KillScope::Group(group) => group.fmt(f),
        }
    }
}

/// What decides between two registers of one scope. The order of the fields is the order of
/// precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Incremented by every change.
    pub epoch: u64,
    /// Whether new work is stopped.
    pub on: bool,
}

impl Position {
    /// A register whose content is damaged stops new work until a higher epoch arrives.
    #[must_use]
    pub fn damaged(epoch: u64) -> Position {
        Position { epoch, on: true }
    }

    /// The position of an operator's next change. Its epoch is at least the wall clock, in seconds
    /// of Unix time, so that it wins over every earlier change, even one that the operator has not
    /// seen: behind a partition, say.
    ///
    /// `damaged` has the epochs of damaged registers. Nobody signed for those, so one that would
    /// leave no place to accept the next is ignored.
    #[must_use]
    pub fn next(seen: Option<Position>, damaged: &[u64], on: bool, now_s: u64) -> Position {
        let seen = seen.map_or(0, |seen| seen.epoch);
        // Half of the step: the places' clocks may be that far behind.
        let credible = seen.max(now_s).saturating_add(KILL_EPOCH_STEP_MAX / 2);
        let damaged = damaged.iter().copied().filter(|epoch| *epoch < credible);
        let epoch = damaged.fold(seen, u64::max).saturating_add(1);
        Position { epoch: epoch.max(now_s), on }
    }
}

/// The registers in force: of each scope, the one with the highest position. `R` is whatever the
/// holder keeps of a register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers<R> {
    /// The group whose registers these are; `None`: of every scope.
    group: Option<GroupId>,
    in_force: BTreeMap<KillScope, (Position, R)>,
}

impl<R> Default for Registers<R> {
    fn default() -> Self {
        Registers::new(None)
    }
}

impl<R> Registers<R> {
    /// Only those that cover a server of `group`; with `None`, those of every scope.
    #[must_use]
    pub fn new(group: Option<GroupId>) -> Registers<R> {
        Registers { group, in_force: BTreeMap::new() }
    }

    /// Puts a register in force, unless its scope has a newer one or is another group. Returns
    /// whether it did.
    pub fn merge(&mut self, scope: KillScope, position: Position, register: R) -> bool {
        let changes = self.takes(&scope).is_ok()
            && self.position(&scope).is_none_or(|current| position > current);
        if changes {
            self.in_force.insert(scope, (position, register));
        }
        changes
    }

    /// Takes a scope's register out of force.
    pub fn forget(&mut self, scope: &KillScope) {
        self.in_force.remove(scope);
    }

    /// Whether a register is to be stored: false for one that changes nothing. `now_s` is the Unix
    /// time.
    ///
    /// # Errors
    /// If its epoch would leave too few for later changes, there are too many scopes, or it covers
    /// only another group.
    pub fn accept(
        &self,
        scope: &KillScope,
        position: Position,
        now_s: u64,
    ) -> Result<bool, Refused> {
        self.takes(scope)?;
        let current = self.position(scope);
        if current.is_some_and(|current| position <= current) {
            return Ok(false);
        }
        // Operators without a view of the fleet use the Unix time as epoch, so allow that too.
        let base = current.map_or(0, |current| current.epoch).max(now_s);
        let highest = base.saturating_add(KILL_EPOCH_STEP_MAX);
        if position.epoch > highest {
            return Err(Refused::Epoch { epoch: position.epoch, highest });
        }
        if current.is_none() && self.in_force.len() >= KILL_SCOPES_MAX {
            return Err(Refused::TooMany);
        }
        Ok(true)
    }

    /// The scope's position, if it has a register.
    #[must_use]
    pub fn position(&self, scope: &KillScope) -> Option<Position> {
        self.in_force.get(scope).map(|(position, _)| *position)
    }

    /// A register that is on: the fleet's before any group's. An *off* of the group does not lift
    /// the fleet's *on*.
    #[must_use]
    pub fn stopping(&self) -> Option<&R> {
        self.in_force.values().find(|(position, _)| position.on).map(|(_, register)| register)
    }

    /// Every register, by scope: the fleet's first.
    pub fn iter(&self) -> impl Iterator<Item = (&KillScope, &R)> {
        self.in_force.iter().map(|(scope, (_, register))| (scope, register))
    }

    fn takes(&self, scope: &KillScope) -> Result<(), Refused> {
        match (scope, &self.group) {
            (KillScope::Group(group), Some(own)) if group != own => {
                Err(Refused::OtherGroup { group: group.clone(), own: own.clone() })
            }
            (KillScope::Group(_) | KillScope::Fleet, _) => Ok(()),
        }
    }
}

/// Why a register is not stored, though an operator signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It covers only another group than this server's.
    OtherGroup { group: GroupId, own: GroupId },
    /// Its epoch is higher than the highest accepted.
    Epoch { epoch: u64, highest: u64 },
    /// There are [`KILL_SCOPES_MAX`] scopes already.
    TooMany,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::OtherGroup { group, own } => {
                write!(f, "kill register is for group {group}, this server belongs to {own}")
            }
            Refused::Epoch { epoch, highest } => write!(
                f,
                "kill register's epoch {epoch} is too far ahead, the highest accepted is {highest}"
            ),
            Refused::TooMany => {
                write!(f, "cannot store more than {KILL_SCOPES_MAX} kill registers")
            }
        }
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
#[path = "kill_test.rs"]
mod kill_test;
