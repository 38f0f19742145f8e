//! Many groups behind one origin, whose leaders all change at the same time, mid-transfer.

use super::origin::Origin;
use super::setup::Setup;
use super::zone::{END_MS, STEP_MS, Zone};

/// The results.
#[derive(Debug, Clone)]
pub(crate) struct Storm {
    /// When every server of every group had everything, in milliseconds.
    pub(crate) all_ms: u64,
    /// Most copies that crossed a zone's downlink.
    pub(crate) wan: f64,
    /// Longest time until a new leader had guided all servers, in milliseconds.
    pub(crate) rebuilt_ms: u64,
    /// Requests that reached the origin in each second.
    pub(crate) asked: Vec<u64>,
    /// The number of them that were refused, over the whole time.
    pub(crate) refused: u64,
}

impl Storm {
    /// Most requests in one second from `from_s` until before `to_s`.
    pub(crate) fn most(&self, from_s: usize, to_s: usize) -> u64 {
        let seconds = self.asked.iter().take(to_s).skip(from_s);
        seconds.copied().max().unwrap_or(0)
    }
}

/// Runs several groups of the same kind until all are done.
pub(crate) fn storm(groups: usize, setup: &Setup, mut origin: Origin) -> Storm {
    let mut zones: Vec<Zone<'_>> = (0..groups).map(|_| Zone::new(setup)).collect();
    let mut ms = 0;
    while zones.iter().any(|zone| !zone.is_done()) {
        origin.refill(STEP_MS);
        // So that no group is always served first.
        let first = usize::try_from(ms / STEP_MS).unwrap_or(0) % groups;
        let (last, begin) = zones.split_at_mut(first);
        for zone in begin.iter_mut().chain(last) {
            zone.step(ms, &mut origin);
        }
        ms += STEP_MS;
        assert!(ms < END_MS, "not done after an hour");
    }
    let outcomes: Vec<_> = zones.iter().map(Zone::outcome).collect();
    Storm {
        all_ms: ms,
        wan: outcomes.iter().map(|outcome| outcome.wan).fold(0.0, f64::max),
        rebuilt_ms: outcomes.iter().map(|outcome| outcome.rebuilt_ms).max().unwrap_or(0),
        asked: origin.asked,
        refused: origin.refused,
    }
}
