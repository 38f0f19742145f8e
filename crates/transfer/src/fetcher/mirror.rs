//! Requests to mirrors: one mirror at a time, lowest units first.

use super::{Effect, Fetcher, Goal, Lease, What};
use crate::UNIT_BYTES;
use crate::limits::Limits;
use crate::source::SourceId;
use crate::unit_set::UnitSet;

/// Shorter requests cost more in round trips than an even split gains.
const REQUEST_UNITS_MIN: u32 = 4;

impl Fetcher {
    pub(super) fn ask_mirror(
        &mut self,
        goal: &Goal,
        have: &UnitSet,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        if goal.lease == Lease::Nothing {
            return;
        }
        let mut missing = self.unasked(have);
        goal.lease.restrict(&mut missing);
        let Some(mirror) = self.sources.best_mirror(now_ms) else { return };
        let limits = std::sync::Arc::clone(&self.limits);
        // Split evenly at the end, so that no long request is left.
        let slots = u32::try_from(limits.requests_per_source_max.max(1)).unwrap_or(u32::MAX);
        let share = missing.held().div_ceil(slots).max(REQUEST_UNITS_MIN);
        let (rate, ranges, most) = self.sources.terms(&mirror, limits.requests_per_source_max);
        while !missing.is_empty() && self.has_room(&mirror, most) {
            let what = if ranges {
                let count = request_units(rate, &limits).min(share);
                let Some(run) = missing.run_from(0, count) else { break };
                missing.remove_run(run);
                What::Units(run)
            } else {
                missing = UnitSet::empty(missing.count());
                What::Whole
            };
            effects.extend(self.ask(&mirror, what, now_ms));
        }
    }

    fn has_room(&self, mirror: &SourceId, most: usize) -> bool {
        let to_mirrors = |source: &SourceId| matches!(source, SourceId::Mirror(_));
        let all = self.requests.values().filter(|request| to_mirrors(&request.source)).count();
        all < self.limits.requests_max && self.requests_to(mirror) < most
    }

    /// The units that are neither here nor requested from a mirror. What a feed sends on its own
    /// does not count as requested.
    fn unasked(&self, have: &UnitSet) -> UnitSet {
        let mut missing = have.complement();
        for request in self.requests.values() {
            match request.what {
                What::Units(run) => missing.remove_run(run),
                What::Whole => return UnitSet::empty(missing.count()),
                What::Hashes | What::Link => {}
            }
        }
        missing
    }
}

/// Units per request to a mirror, by its rate in bytes per second.
fn request_units(rate: u64, limits: &Limits) -> u32 {
    if rate == 0 {
        return limits.request_units_first.min(limits.request_units_max);
    }
    let bytes = rate.saturating_mul(limits.request_target_ms) / 1_000;
    let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX);
    units.clamp(REQUEST_UNITS_MIN, limits.request_units_max.max(REQUEST_UNITS_MIN))
}
