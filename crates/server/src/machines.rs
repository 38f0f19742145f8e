//! What is wrong with single servers' machines: a clock that differs from the others', a full disk.
//!
//! Soft state, like `contacts`: each member has what servers told it and forwards that to the
//! leader, which answers with its judgement of their clocks. It decides nothing; people hear of it,
//! and each server of its own clock.

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

/// What is known of the servers' machines, each with when, on the member's monotonic clock.
#[derive(Debug, Clone, Default)]
pub struct Machines {
    /// What each server last said.
    said: BTreeMap<ServerId, (u64, Machine)>,
    /// On a member that does not lead: what the leader last said of their clocks.
    judged: BTreeMap<ServerId, (u64, i64)>,
}

/// What is wrong with a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// How far its clock is ahead of most others, in milliseconds; 0 if it agrees, `None` if too
    /// few clocks are known to tell.
    pub clock_ahead_ms: Option<i64>,
    pub disk: DiskSpace,
    /// Whether its kill file stops it.
    pub stopped: bool,
}

impl Machines {
    /// Records what a server said `age_ms` ago. Older news changes nothing.
    pub fn said(&mut self, now_ms: u64, server: &ServerId, age_ms: u64, machine: Machine) {
        let at_ms = now_ms.saturating_sub(age_ms);
        let known = self.said.get(server);
        let older = known.is_some_and(|(known_ms, _)| *known_ms > at_ms);
        if !older && (known.is_some() || self.said.len() < SERVERS_MAX) {
            self.said.insert(server.clone(), (at_ms, machine));
        }
    }

    /// Records the leader's judgement of clocks of servers that were heard here.
    pub fn judged(&mut self, now_ms: u64, ahead_ms: BTreeMap<ServerId, i64>) {
        let heard = ahead_ms.into_iter().filter(|(server, _)| self.said.contains_key(server));
        self.judged.extend(heard.map(|(server, ahead_ms)| (server, (now_ms, ahead_ms))));
    }

    /// How far a server's clock is ahead of most others, in milliseconds: by the clocks known here
    /// if this member leads, else as the leader last said; 0 if it agrees.
    #[must_use]
    pub fn clock_ahead_ms(&self, now_ms: u64, server: &ServerId, leads: bool) -> Option<i64> {
        if leads {
            return self.faults(now_ms).get(server)?.clock_ahead_ms;
        }
        let (at_ms, ahead_ms) = self.judged.get(server)?;
        (now_ms.saturating_sub(*at_ms) <= KNOWN_MS).then_some(*ahead_ms)
    }

    /// Forgets servers that have left the group.
    pub fn retain(&mut self, known: impl Fn(&ServerId) -> bool) {
        self.said.retain(|server, _| known(server));
        self.judged.retain(|server, _| known(server));
    }

    /// What a server last said.
    #[must_use]
    pub fn of(&self, server: &ServerId) -> Option<Machine> {
        self.said.get(server).map(|(_, machine)| *machine)
    }

    /// The faults of each machine that was heard from recently.
    #[must_use]
    pub fn faults(&self, now_ms: u64) -> BTreeMap<ServerId, Faults> {
        let recent =
            self.said.iter().filter(|(_, (at_ms, _))| now_ms.saturating_sub(*at_ms) <= KNOWN_MS);
        // What each clock showed when the member's own monotonic clock was 0.
        let start = |at_ms: &u64, machine: &Machine| {
            machine.unix_ms.cast_signed().saturating_sub(at_ms.cast_signed())
        };
        let clocks: BTreeMap<&ServerId, (i64, &Machine)> = recent
            .map(|(server, (at_ms, machine))| (server, (start(at_ms, machine), machine)))
            .collect();
        let mut sorted: Vec<i64> = clocks.values().map(|(start, _)| *start).collect();
        sorted.sort_unstable();
        let usual = sorted.get(sorted.len() / 2).filter(|_| sorted.len() >= CLOCKS_MIN);
        let faults = clocks.into_iter().map(|(server, (start, machine))| {
            let ahead_ms = usual.map(|usual| start.saturating_sub(*usual));
            let off = |ahead_ms: i64| ahead_ms.unsigned_abs() > CLOCK_OFF_MS_MAX;
            let clock_ahead_ms = ahead_ms.map(|ahead_ms| if off(ahead_ms) { ahead_ms } else { 0 });
            let Machine { disk, stopped, .. } = *machine;
            (server.clone(), Faults { clock_ahead_ms, disk, stopped })
        });
        faults.collect()
    }
}

#[cfg(test)]
#[path = "machines_test.rs"]
mod machines_test;
