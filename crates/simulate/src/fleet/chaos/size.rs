//! Fleets of a given size, to measure what a step costs.

use cohort_core::policy::{Duration, Prestage, Size, Update, WaveSizes};

use super::{Chaos, Trace};
use crate::fleet::world::Fleet;

impl Chaos {
    /// One group of five servers; everything else is drawn from the seed.
    pub fn of_five(seed: u64) -> Chaos {
        let mut chaos = Chaos::empty(Fleet::new(seed), Trace::Off);
        chaos.add_group("zone-a", 5);
        chaos.first_releases();
        chaos
    }

    /// One group of so many servers, in which every release rolls out in ten waves: under faults,
    /// and, once all have ended, the last one through the whole group.
    pub fn of_ten_waves(seed: u64, servers: usize) -> Chaos {
        let mut chaos = Chaos::empty(Fleet::new(seed), Trace::Off);
        chaos.ten_waves = true;
        chaos.apps.truncate(1);
        chaos.add_group("zone-a", servers);
        chaos.first_releases();
        chaos
    }
}

/// A tenth of the group at a time, and a tenth of it may fail.
pub(super) fn ten_waves(update: &mut Update) {
    let tenth = Size::Percent(10);
    update.max_parallel = WaveSizes(vec![tenth]);
    (update.max_unavailable, update.failures_allowed) = (tenth, tenth);
    update.surroundings_allowed = tenth;
    update.approve_after_wave = 0;
    update.bake_time = Duration::default();
    update.prestage = Prestage::All;
}
