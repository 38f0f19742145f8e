//! The source of all zones: limited bytes per second and concurrent responses, 503 beyond that.

use cohort_transfer::UNIT_BYTES;

/// `Retry-After` of a refusal, in milliseconds: the shortest expressible time.
pub(crate) const RETRY_AFTER_MS: u64 = 1_000;

/// An origin, or a mirror that many zones share.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// In bytes per second.
    rate: u64,
    /// Most concurrent responses.
    places: usize,
    taken: usize,
    budget: u64,
    random: u64,
    /// Requests in each second, and the number refused.
    pub(crate) asked: Vec<u64>,
    pub(crate) refused: u64,
}

impl Origin {
    pub(crate) fn new(rate: u64, places: usize) -> Self {
        Self { rate, places, taken: 0, budget: 0, random: 1, asked: Vec::new(), refused: 0 }
    }

    /// An origin without limits.
    pub(crate) fn boundless() -> Self {
        Self::new(u64::MAX / 1_000, usize::MAX)
    }

    pub(crate) fn refill(&mut self, step_ms: u64) {
        let more = self.rate / 1_000 * step_ms;
        self.budget = (self.budget + more).min(more + 2 * UNIT_BYTES);
    }

    /// Whether a request is accepted. If refused, it should stay away for [`RETRY_AFTER_MS`].
    pub(crate) fn ask(&mut self, ms: u64) -> bool {
        let second = usize::try_from(ms / 1_000).unwrap_or(0);
        if self.asked.len() <= second {
            self.asked.resize(second + 1, 0);
        }
        self.asked[second] += 1;
        if self.taken >= self.places {
            self.refused += 1;
            return false;
        }
        self.taken += 1;
        true
    }

    /// The choices of all servers, from one seed.
    pub(crate) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.random >> 33
    }

    pub(crate) fn answered(&mut self) {
        self.taken -= 1;
    }

    pub(crate) fn take_unit(&mut self) -> bool {
        let enough = self.budget >= UNIT_BYTES;
        if enough {
            self.budget -= UNIT_BYTES;
        }
        enough
    }
}
