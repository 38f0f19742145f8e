//! What is wrong with single servers' machines: a clock that differs from the others', a full disk.
//!
//! Soft state, like `contacts`: each member has what servers told it and forwards that to the
//! leader. It decides nothing; people hear of it.

use std::collections::BTreeMap;

use cohort_core::ids::ServerId;
use cohort_core::machine::{DiskSpace, Machine};
use cohort_core::state::SERVERS_MAX;

/// A clock that differs by more than this is reported, in milliseconds. 1 min: far more than two
/// requests for orders can be apart, far less than matters to a signature or a certificate.
const CLOCK_OFF_MS_MAX: u64 = 60_000;
/// Only what a server said within this time counts, in milliseconds.
const KNOWN_MS: u64 = 60_000;
/// Fewer clocks than this do not say which one is wrong.
const CLOCKS_MIN: usize = 3;

/// What each server last said of its machine, and when, on the member's monotonic clock.
#[derive(Debug, Clone, Default)]
pub struct Machines(BTreeMap<ServerId, (u64, Machine)>);

/// What is wrong with a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// How far its clock is ahead of most others, in milliseconds; 0 if it agrees.
    pub clock_ahead_ms: i64,
    pub disk: DiskSpace,
}

impl Machines {
    /// Records what a server said `age_ms` ago. Older news changes nothing.
    pub fn said(&mut self, now_ms: u64, server: &ServerId, age_ms: u64, machine: Machine) {
        let at_ms = now_ms.saturating_sub(age_ms);
        let known = self.0.get(server);
        let older = known.is_some_and(|(known_ms, _)| *known_ms > at_ms);
        if !older && (known.is_some() || self.0.len() < SERVERS_MAX) {
            self.0.insert(server.clone(), (at_ms, machine));
        }
    }

    /// Forgets servers that have left the group.
    pub fn retain(&mut self, known: impl Fn(&ServerId) -> bool) {
        self.0.retain(|server, _| known(server));
    }

    /// What a server last said.
    #[must_use]
    pub fn of(&self, server: &ServerId) -> Option<Machine> {
        self.0.get(server).map(|(_, machine)| *machine)
    }

    /// The faults of each machine that was heard from recently.
    #[must_use]
    pub fn faults(&self, now_ms: u64) -> BTreeMap<ServerId, Faults> {
        let recent =
            self.0.iter().filter(|(_, (at_ms, _))| now_ms.saturating_sub(*at_ms) <= KNOWN_MS);
        // What each clock showed when the member's own monotonic clock was 0.
        let start = |at_ms: &u64, machine: &Machine| {
            machine.unix_ms.cast_signed().saturating_sub(at_ms.cast_signed())
        };
        let clocks: BTreeMap<&ServerId, (i64, DiskSpace)> = recent
            .map(|(server, (at_ms, machine))| (server, (start(at_ms, machine), machine.disk)))
            .collect();
        let mut sorted: Vec<i64> = clocks.values().map(|(start, _)| *start).collect();
        sorted.sort_unstable();
        let usual = sorted.get(sorted.len() / 2).filter(|_| sorted.len() >= CLOCKS_MIN);
        let faults = clocks.into_iter().map(|(server, (start, disk))| {
            let ahead_ms = usual.map_or(0, |usual| start.saturating_sub(*usual));
            let off = ahead_ms.unsigned_abs() > CLOCK_OFF_MS_MAX;
            (server.clone(), Faults { clock_ahead_ms: if off { ahead_ms } else { 0 }, disk })
        });
        faults.collect()
    }
}

#[cfg(test)]
#[path = "machines_test.rs"]
mod machines_test;
