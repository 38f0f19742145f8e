//! Who should be the leader instead of one whose server cannot do a leader's work.
//!
//! A leader's server is a server like others: the hub may not answer it, its mirrors may be down,
//! its clock may be wrong, its disk full. After [`LACKING_MS`], it transfers leadership to a voter
//! that says that it reaches everything that the leader reaches, and more. If no voter does, it
//! stays: leadership never moves between servers that lack the same.

use std::collections::BTreeMap;

use cohort_core::ability::Ability;
use cohort_core::ids::ServerId;

/// How long a leader may lack something before it looks for an heir, in milliseconds: longer than a
/// restart of the hub or of a mirror, and than a new leader needs to reach both.
pub const LACKING_MS: u64 = 30_000;
/// How long before that it asks the voters what they reach, in milliseconds: longer than they take
/// to try.
const ASK_AHEAD_MS: u64 = 15_000;
/// How long a voter's word counts, in milliseconds: a few rounds of asking.
const KNOWN_MS: u64 = 30_000;
/// Pause between two transfers, in milliseconds: the last one may still succeed.
const TRY_EVERY_MS: u64 = 10_000;

/// What the leader and the voters reach.
#[derive(Debug, Clone, Default)]
pub struct Heirs {
    own: Ability,
    /// Since when the leader has lacked something.
    lacking_since_ms: Option<u64>,
    /// What voters said they reach, and when.
    voters: BTreeMap<ServerId, (u64, Ability)>,
    tried_ms: Option<u64>,
}

impl Heirs {
    /// Records what the leader reaches now.
    pub fn reaches(&mut self, now_ms: u64, own: Ability) {
        self.own = own;
        let since_ms = self.lacking_since_ms.unwrap_or(now_ms);
        // A full disk does not pass, and what the leader cannot write, nobody decides.
        let since_ms = if own.disk { since_ms } else { now_ms.saturating_sub(LACKING_MS) };
        self.lacking_since_ms = (!own.is_full()).then_some(since_ms);
    }

    /// Records what a voter says it reaches.
    pub fn heard(&mut self, now_ms: u64, voter: ServerId, ability: Ability) {
        self.voters.insert(voter, (now_ms, ability));
    }

    /// Whether the voters should find out what they reach.
    #[must_use]
    pub fn asks(&self, now_ms: u64) -> bool {
        self.lacks_for(now_ms, LACKING_MS - ASK_AHEAD_MS)
    }

    /// The voter to transfer leadership to now, if any.
    pub fn heir(&mut self, now_ms: u64, is_voter: impl Fn(&ServerId) -> bool) -> Option<ServerId> {
        let tried = self.tried_ms.is_some_and(|at_ms| now_ms.saturating_sub(at_ms) < TRY_EVERY_MS);
        if tried || !self.lacks_for(now_ms, LACKING_MS) {
            return None;
        }
        let recent = |at_ms: u64| now_ms.saturating_sub(at_ms) < KNOWN_MS;
        self.voters.retain(|voter, (at_ms, _)| is_voter(voter) && recent(*at_ms));
        let better = |(_, (_, ability)): &(&ServerId, &(u64, Ability))| ability.exceeds(self.own);
        let able = self.voters.iter().filter(better);
        // The first of those that reach most.
        let heir = able.min_by_key(|(_, (_, ability))| !ability.is_full())?.0.clone();
        self.tried_ms = Some(now_ms);
        Some(heir)
    }

    fn lacks_for(&self, now_ms: u64, ms: u64) -> bool {
        self.lacking_since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= ms)
    }
}

#[cfg(test)]
#[path = "heirs_test.rs"]
mod heirs_test;
