//! Random faults and requests.

use std::collections::BTreeSet;

use cohort_consensus::{Configuration, RaftId};
use cohort_store::WriteFault;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// One fault, or one client request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    Propose,
    Read,
    Crash,
    FailWrite(WriteFault),
    Pause { ms: u64 },
    Part,
    Isolate,
    Heal,
    Redraw,
    Transfer,
    Change,
    Compact,
    Unreachable,
    Reconnect,
    LoseDisk,
    TakeImage,
    RestoreImage,
}

impl Trouble {
    /// Whether something breaks: neither a request, nor the end of a fault.
    pub(crate) fn is_fault(self) -> bool {
        use Trouble::{Change, Compact, Heal, Propose, Read, Reconnect, Transfer};
        !matches!(self, Propose | Read | Transfer | Change | Compact | Heal | Reconnect)
    }
}

/// The weight of each kind of trouble; drawn per seed, so that seeds differ in character.
pub(crate) struct Chaos {
    weights: Vec<(u32, Trouble)>,
    total: u32,
}

impl Chaos {
    pub(crate) fn draw(rng: &mut impl Rng) -> Self {
        let mut weight = |choices: &[u32]| choices[rng.random_range(0..choices.len())];
        let weights = vec![
            (weight(&[20, 40, 80]), Trouble::Propose),
            (weight(&[10, 20]), Trouble::Read),
            (weight(&[0, 1, 3]), Trouble::Crash),
            (weight(&[0, 1, 3]), Trouble::FailWrite(WriteFault::FailLost)),
            (weight(&[0, 1, 3]), Trouble::FailWrite(WriteFault::FailKept)),
            (weight(&[0, 1, 3]), Trouble::Pause { ms: 2500 }),
            (weight(&[0, 1, 4]), Trouble::Part),
            (weight(&[0, 2, 4]), Trouble::Isolate),
            (weight(&[2, 4]), Trouble::Heal),
            (weight(&[0, 1]), Trouble::Redraw),
            (weight(&[0, 2, 6]), Trouble::Transfer),
            (weight(&[0, 4, 10]), Trouble::Change),
            (weight(&[0, 2, 8]), Trouble::Compact),
            (weight(&[0, 1, 4]), Trouble::Unreachable),
            (weight(&[0, 1]), Trouble::Reconnect),
            (weight(&[0, 0, 0, 1]), Trouble::LoseDisk),
            (weight(&[0, 1]), Trouble::TakeImage),
            (weight(&[0, 1, 4]), Trouble::RestoreImage),
        ];
        let total = weights.iter().map(|(weight, _)| weight).sum();
        Chaos { weights, total }
    }

    pub(crate) fn pick(&self, rng: &mut impl Rng) -> Trouble {
        let mut at = rng.random_range(0..self.total);
        for (weight, trouble) in &self.weights {
            if at < *weight {
                return *trouble;
            }
            at -= weight;
        }
        Trouble::Propose
    }
}

pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Draws a target membership: some members as voters, some of the others as standbys.
pub(crate) fn target(
    now: &Configuration,
    alive: &[RaftId],
    rng: &mut impl Rng,
) -> (BTreeSet<RaftId>, BTreeSet<RaftId>) {
    let members = now.members();
    let mut voters: BTreeSet<RaftId> = alive
        .iter()
        .copied()
        .filter(|id| members.contains(id) && rng.random_range(0..4) != 0)
        .collect();
    // Occasionally, a member that the leader must refuse.
    if rng.random_range(0..8) == 0 {
        voters.insert(alive[rng.random_range(0..alive.len())]);
    }
    let standbys = alive
        .iter()
        .copied()
        .filter(|id| !voters.contains(id) && rng.random_range(0..3) != 0)
        .collect();
    (voters, standbys)
}
