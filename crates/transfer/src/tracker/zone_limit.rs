//! The zone's limit: for all heads of a group together, over all apps, on bytes from mirrors.
//!
//! [`divide`] gives each what it needs up to an equal share, and divides the rest among the others.
//! So the shares never exceed the limit, and none of it is left unused while a head needs more.

use cohort_core::ids::ServerId;

use super::transfer::Transfer;
use crate::Moment;

/// What a head may need beyond its current rate, as a fraction of it: a quarter, so that one that
/// could go faster grows back to an equal share within a few rounds of a fifth of a second.
const GROWTH_PART: u64 = 4;

/// Divides a limit by need, distributing all of it.
pub(super) fn divide(limit: u64, needs: &[u64]) -> Vec<u64> {
    let mut parts = vec![0; needs.len()];
    let mut left = limit;
    let mut open: Vec<usize> = (0..needs.len()).collect();
    open.sort_by_key(|index| needs[*index]);
    for (done, index) in open.iter().enumerate() {
        let equal = left / (needs.len() - done) as u64;
        parts[*index] = needs[*index].min(equal);
        left -= parts[*index];
    }
    if let Some(more) = left.checked_div(needs.len() as u64) {
        for part in &mut parts {
            *part += more;
        }
    }
    parts
}

/// The need of a taker with this rate; unlimited if the rate is unknown.
fn need(rate: u64) -> u64 {
    if rate == 0 { u64::MAX } else { rate.saturating_add(rate / GROWTH_PART) }
}

impl Transfer {
    /// Servers that take from mirrors, and their rates in bytes per second.
    pub(super) fn takers(&self, now: Moment) -> Vec<(ServerId, u64)> {
        let leased = self.layout.leases.iter().filter(|(_, lease)| !lease.is_empty());
        leased
            .filter_map(|(id, _)| Some((id, self.seen.get(id)?)))
            .filter(|(id, seen)| self.is_there(id, seen, now))
            .map(|(id, seen)| (id.clone(), seen.mirror_rate))
            .collect()
    }
}

/// The share of one server in one transfer (`own`, an index into `transfers`), in bytes per second
/// and at least 1. A server that takes nothing gets what it could take alone: it may be the heir.
pub(super) fn part_of(
    limit: u64,
    transfers: &[Vec<(ServerId, u64)>],
    own: usize,
    server: &ServerId,
) -> u64 {
    // Divided among transfers first, so that an app with many heads gets no more than one with few.
    let active: Vec<usize> =
        (0..transfers.len()).filter(|i| *i == own || !transfers[*i].is_empty()).collect();
    let needs = |takers: &[(ServerId, u64)]| -> Vec<u64> {
        takers.iter().map(|(_, rate)| need(*rate)).collect()
    };
    let sums: Vec<u64> = active
        .iter()
        .map(|i| match transfers[*i].as_slice() {
            [] => u64::MAX,
            takers => needs(takers).into_iter().fold(0, u64::saturating_add),
        })
        .collect();
    let shares = divide(limit, &sums);
    let share = active.iter().position(|i| *i == own).map_or(0, |place| shares[place]);
    let takers = &transfers[own];
    let place = takers.iter().position(|(taker, _)| taker == server);
    let part = place.map_or(share, |place| divide(share, &needs(takers))[place]);
    part.max(1)
}
