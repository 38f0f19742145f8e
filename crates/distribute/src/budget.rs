//! How many bytes per second may go one way, over all transfers of a server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often one that waits looks again, in milliseconds: a changed limit is felt this soon.
const LOOK_AGAIN_MS: u64 = 50;

/// What may be sent at once after a pause, as a part of a second: an eighth, so that a limit holds
/// over any second to within an eighth of it.
const BURST_PART: u64 = 8;

/// A limit in bytes per second that may change at any time; none at first.
#[derive(Debug, Default)]
pub struct Budget {
    /// Bytes per second; 0: no limit.
    rate: AtomicU64,
    filled: Mutex<Option<Filled>>,
}

#[derive(Debug, Clone, Copy)]
struct Filled {
    at: Instant,
    /// Bytes that may go now; below zero after a piece that was larger than what was left.
    bytes: i64,
}

impl Budget {
    /// Sets the limit, in bytes per second; `None`: no limit. Felt at once by all that wait.
    pub fn set(&self, limit: Option<u64>) {
        let before = self.rate.swap(limit.unwrap_or(0), Ordering::Relaxed);
        if before != limit.unwrap_or(0) {
            *self.filled.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// The limit in force, in bytes per second.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// Takes so many bytes out of the budget, as soon as anything is left in it. `waits` is called
    /// whenever that is not yet so.
    pub async fn take(&self, bytes: usize, waits: impl Fn()) {
        while !self.try_take(bytes, Instant::now()) {
            waits();
            tokio::time::sleep(Duration::from_millis(LOOK_AGAIN_MS)).await;
        }
    }

    pub(crate) fn try_take(&self, bytes: usize, now: Instant) -> bool {
        let Some(rate) = self.limit() else { return true };
        let most = i64::try_from(rate / BURST_PART).unwrap_or(i64::MAX).max(1);
        let mut filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        let before = filled.unwrap_or(Filled { at: now, bytes: most });
        let us = u64::try_from(now.saturating_duration_since(before.at).as_micros());
        let more = us.unwrap_or(u64::MAX).saturating_mul(rate) / 1_000_000;
        let mut left = before.bytes.saturating_add(i64::try_from(more).unwrap_or(i64::MAX));
        left = left.min(most);
        let taken = left > 0;
        if taken {
            left = left.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        } else if more == 0 {
            // Too little time for a byte: it must not get lost by looking often.
            return false;
        }
        *filled = Some(Filled { at: now, bytes: left });
        taken
    }
}
