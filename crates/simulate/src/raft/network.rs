//! The network: everything that can happen to a packet.

use std::collections::BTreeSet;

use cohort_consensus::{Envelope, RaftId};
use rand::Rng;

/// How bad the network is, in per mille and milliseconds.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) lose_per_mille: u32,
    pub(crate) double_per_mille: u32,
    pub(crate) late_per_mille: u32,
    pub(crate) delay_ms_max: u64,
    /// Directed pairs whose link is cut.
    pub(crate) cut: BTreeSet<(RaftId, RaftId)>,
}

/// The maximum delay of a late packet: longer than two election timeouts.
const LATE_MS_MAX: u64 = 3000;

impl Network {
    pub(crate) fn draw(rng: &mut impl Rng) -> Self {
        Network {
            lose_per_mille: [0, 10, 50, 200][rng.random_range(0..4)],
            double_per_mille: [0, 20, 100][rng.random_range(0..3)],
            late_per_mille: [0, 10, 50][rng.random_range(0..3)],
            delay_ms_max: [2, 20, 80][rng.random_range(0..3)],
            cut: BTreeSet::new(),
        }
    }

    pub(crate) fn healed() -> Self {
        Network {
            lose_per_mille: 0,
            double_per_mille: 0,
            late_per_mille: 0,
            delay_ms_max: 2,
            cut: BTreeSet::new(),
        }
    }

    /// The delays after which the copies of a packet arrive.
    pub(crate) fn arrivals(&self, envelope: &Envelope, rng: &mut impl Rng) -> Vec<u64> {
        let mut arrivals = Vec::new();
        let roll = |rng: &mut dyn rand::RngCore, per_mille: u32| {
            per_mille > 0 && rng.random_range(0..1000) < per_mille
        };
        if self.cut.contains(&(envelope.from, envelope.to)) || roll(rng, self.lose_per_mille) {
            return arrivals;
        }
        let copies = if roll(rng, self.double_per_mille) { 2 } else { 1 };
        for _ in 0..copies {
            let max = if roll(rng, self.late_per_mille) { LATE_MS_MAX } else { self.delay_ms_max };
            arrivals.push(rng.random_range(1..=max));
        }
        arrivals
    }

    /// Partitions the members in two, or cuts one direction of one pair.
    pub(crate) fn part(&mut self, members: &[RaftId], rng: &mut impl Rng) {
        if members.len() < 2 {
            return;
        }
        if rng.random_range(0..4) == 0 {
            let from = members[rng.random_range(0..members.len())];
            let to = members[rng.random_range(0..members.len())];
            self.cut.insert((from, to));
            return;
        }
        let side: BTreeSet<RaftId> =
            members.iter().copied().filter(|_| rng.random_bool(0.5)).collect();
        self.cut = members
            .iter()
            .flat_map(|from| members.iter().map(move |to| (*from, *to)))
            .filter(|(from, to)| side.contains(from) != side.contains(to))
            .collect();
    }
}
