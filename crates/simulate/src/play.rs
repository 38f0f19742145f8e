//! One seed of either simulation; a violation is a value here.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::fleet::chaos::{Chaos, Mutation, Trace};
use crate::raft::{self, Setup};

/// Events of one seed of the consensus simulation before everything heals: long enough for some
/// elections, snapshots and membership changes.
pub const CONSENSUS_STEPS: u64 = 3000;

/// The simulations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Groups of servers with their members, hub, mirror and operators.
    Fleet,
    /// The consensus of one group, with memberships that people draw at random.
    Consensus,
    /// The same, of members with different election timeouts and heartbeats.
    Timings,
}

/// What runs amounted to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Steps of the fleet's clock, and events of the consensus.
    pub steps: u64,
    /// Faults that were drawn.
    pub faults: u64,
}

impl Count {
    /// Adds another run.
    pub fn add(&mut self, other: Count) {
        self.steps += other.steps;
        self.faults += other.faults;
    }
}

/// Plays a seed with every protection on.
///
/// # Errors
/// The first violation.
pub fn play(kind: Kind, seed: u64, trace: &Trace) -> Result<Count, String> {
    match kind {
        Kind::Fleet => fleet(seed, None, trace),
        Kind::Consensus | Kind::Timings => {
            let (timings, trace) = (kind == Kind::Timings, *trace != Trace::Off);
            consensus(Setup { timings, trace, ..Setup::new(seed, CONSENSUS_STEPS) })
        }
    }
}

pub(crate) fn consensus(setup: Setup) -> Result<Count, String> {
    let outcome = raft::run(setup).map_err(|violation| violation.to_string())?;
    Ok(Count { steps: outcome.steps, faults: outcome.faults })
}

pub(crate) fn fleet(seed: u64, off: Option<Mutation>, trace: &Trace) -> Result<Count, String> {
    let play = || Chaos::with(seed, off, trace.clone()).play();
    let run = catch_unwind(AssertUnwindSafe(play)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        text.unwrap_or_else(|| "a panic without a message".to_owned())
    })?;
    Ok(Count { steps: run.steps, faults: run.faults })
}
