//! Election timeouts from a seed.

use raft::{RawNode, StateRole, Storage};

/// Replaces the library's only randomness, its election timeout, with our own.
///
/// From outside, a new draw that equals the previous one is invisible. Our draw is therefore a
/// function of the seed and a counter that advances whenever the term, role or leader changes or an
/// election starts, none of which depends on the library's draw.
#[derive(Debug)]
pub(crate) struct Timeouts {
    seed: u64,
    min: u64,
    max: u64,
    draws: u64,
    seen: (u64, u8, u64),
    /// Overrides the draw, in ticks, until the term, role or leader changes or an election
    /// begins.
    early: Option<u64>,
}

impl Timeouts {
    pub(crate) fn new(seed: u64, min: u32, max: u32) -> Self {
        Timeouts { seed, min: min.into(), max: max.into(), draws: 0, seen: (0, 0, 0), early: None }
    }

    /// An election started at this tick.
    pub(crate) fn election_began(&mut self) {
        self.draws += 1;
        self.early = None;
    }

    /// The leader has probably gone: after the shortest timeout and `ticks` more, no later.
    pub(crate) fn soon(&mut self, ticks: u64) {
        self.early = Some((self.min + ticks).min(self.max - 1));
    }

    /// Sets the timeout in the library; call it after every call into the library.
    pub(crate) fn set<S: Storage>(&mut self, raw: &mut RawNode<S>) {
        let role = match raw.raft.state {
            StateRole::Follower => 0,
            StateRole::PreCandidate => 1,
            StateRole::Candidate => 2,
            StateRole::Leader => 3,
        };
        let now = (raw.raft.term, role, raw.raft.leader_id);
        if now != self.seen {
            self.seen = now;
            self.draws += 1;
            self.early = None;
        }
        let drawn = self.min + mix(self.seed ^ mix(self.draws)) % (self.max - self.min);
        let drawn = self.early.unwrap_or(drawn);
        if let Ok(ticks) = usize::try_from(drawn)
            && ticks != raw.raft.randomized_election_timeout()
        {
            raw.raft.set_randomized_election_timeout(ticks);
        }
    }
}

/// The output step of SplitMix64: neighbouring inputs give unrelated outputs.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
