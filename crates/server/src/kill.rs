//! The rules of kill registers: which one of a scope is in force, which is refused, and which one
//! stops a group.
//!
//! Registers merge: the higher epoch wins; at equal epochs, *on* wins. So any server can forward
//! them, in any order and any number of times.

/// Kill registers kept on one machine. A hub keeps one per group.
pub const KILL_SCOPES_MAX: usize = 10_000;

/// How far a change may raise a register's epoch beyond the last one or the Unix time in seconds,
/// whichever is higher: eleven days of clock error. Without a limit, one slip or one stolen key
/// could use up the highest epoch, and the switch could never be turned off again.
pub const KILL_EPOCH_STEP_MAX: u64 = 1_000_000;

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

    /// Whether a register with this position replaces the current one of its scope.
    #[must_use]
    pub fn supersedes(self, current: Option<Position>) -> bool {
        current.is_none_or(|current| self > current)
    }

    /// The position of an operator's next change. *On* uses at least the wall clock, in seconds of
    /// Unix time, so that it wins over every earlier *off*, even one that the operator has not
    /// seen. *Off* overrules only what its author has seen.
    #[must_use]
    pub fn next(seen: Option<Position>, on: bool, now_s: u64) -> Position {
        let epoch = seen.map_or(0, |seen| seen.epoch).saturating_add(1);
        Position { epoch: if on { epoch.max(now_s) } else { epoch }, on }
    }
}

/// Why a register is not stored, though an operator signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("kill register's epoch {epoch} is too far ahead, the highest accepted is {highest}")]
    Epoch { epoch: u64, highest: u64 },
    #[error("cannot store more than {KILL_SCOPES_MAX} kill registers")]
    TooMany,
}

/// Whether a register is to be stored: false for one that changes nothing. `current` is the
/// position of its scope here, `scopes` how many scopes have one; `now_s` is the Unix time.
///
/// # Errors
/// If its epoch would leave too few for later changes, or there are too many scopes.
pub fn stores(
    incoming: Position,
    current: Option<Position>,
    scopes: usize,
    now_s: u64,
) -> Result<bool, Refused> {
    if !incoming.supersedes(current) {
        return Ok(false);
    }
    // Operators without a view of the fleet use the Unix time as epoch, so allow that too.
    let base = current.map_or(0, |current| current.epoch).max(now_s);
    let highest = base.saturating_add(KILL_EPOCH_STEP_MAX);
    if incoming.epoch > highest {
        return Err(Refused::Epoch { epoch: incoming.epoch, highest });
    }
    if current.is_none() && scopes >= KILL_SCOPES_MAX {
        return Err(Refused::TooMany);
    }
    Ok(true)
}

/// The register that stops a group: the fleet's or the group's own, if on. An *off* of the group
/// does not lift the fleet's *on*.
#[must_use]
pub fn stopping<R>(
    fleet: Option<R>,
    own: Option<R>,
    position: impl Fn(&R) -> Position,
) -> Option<R> {
    [fleet, own].into_iter().flatten().find(|register| position(register).on)
}

#[cfg(test)]
#[path = "kill_test.rs"]
mod kill_test;
