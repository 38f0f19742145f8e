//! How many bytes per second may go one way, over all transfers of a server.
//!
//! A piece goes as soon as nothing is owed for those before it, and the next one waits until it is
//! paid for. So bytes go piece by piece at the pace of the limit, never in the bursts of a bucket
//! that fills while others want the wire.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest sleep of one that waits, in milliseconds: a changed limit is felt this soon.
const LOOK_AGAIN_MS: u64 = 50;

/// Shortest sleep, in milliseconds: what a timer can do.
const SLEEP_MS_MIN: u64 = 1;

/// What may go at once after a pause, as a part of a second: 31 ms of the limit, which is what a
/// timer may be late on a busy machine. Less would make a limit slower than it says.
const BURST_PART: u64 = 32;

/// A limit in bytes per second that may change at any time; none at first.
#[derive(Debug, Default)]
pub struct Budget {
    /// Bytes per second; 0: no limit.
    rate: AtomicU64,
    /// Bytes that went.
    taken: AtomicU64,
    filled: Mutex<Option<Filled>>,
    /// What goes counts there as well.
    within: Option<Arc<Budget>>,
}

#[derive(Debug, Clone, Copy)]
struct Filled {
    at: Instant,
    /// Bytes that may go now; below zero after a piece that was larger than what was left.
    bytes: i64,
}

impl Budget {
    /// A part of another budget: both limits hold.
    #[must_use]
    pub fn within(whole: Arc<Budget>) -> Self {
        Self { within: Some(whole), ..Self::default() }
    }

    /// Sets the limit, in bytes per second; `None`: no limit. Felt at once by all that wait. Who
    /// changes it often wins nothing: what is owed is owed for as long as before.
    pub fn set(&self, limit: Option<u64>) {
        let after = limit.unwrap_or(0);
        let mut filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.rate.swap(after, Ordering::Relaxed);
        if before == after {
            return;
        }
        *filled = filled.filter(|filled| before > 0 && after > 0 && filled.bytes < 0).map(|owed| {
            let bytes = i128::from(owed.bytes) * i128::from(after) / i128::from(before);
            Filled { at: owed.at, bytes: i64::try_from(bytes).unwrap_or(i64::MIN) }
        });
    }

    /// The limit in force, in bytes per second.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// Bytes that went so far, with and without a limit.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Takes so many bytes out of the budget, as soon as nothing is owed in it. `waits` is called
    /// whenever that is not yet so.
    pub async fn take(&self, bytes: usize, waits: impl Fn()) {
        let mut next = Some(self);
        while let Some(budget) = next {
            budget.taken.fetch_add(bytes as u64, Ordering::Relaxed);
            while let Err(wait) = budget.try_take(bytes, Instant::now()) {
                waits();
                let shortest = Duration::from_millis(SLEEP_MS_MIN);
                let longest = Duration::from_millis(LOOK_AGAIN_MS);
                tokio::time::sleep(wait.clamp(shortest, longest)).await;
            }
            next = budget.within.as_deref();
        }
    }

    /// Takes so many bytes out of the budget at once: whoever comes next waits for it.
    pub(crate) fn owe(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.try_take(bytes, Instant::now()).is_err() {
            let mut filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            *filled =
                filled.map(|filled| Filled { bytes: filled.bytes.saturating_sub(bytes), ..filled });
        }
        if let Some(whole) = &self.within {
            whole.owe(bytes);
        }
    }

    /// Takes so many bytes out of this budget alone; else says how long that will not be possible.
    pub(crate) fn try_take(&self, bytes: usize, now: Instant) -> Result<(), Duration> {
        let mut filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(rate) = self.limit() else { return Ok(()) };
        let most = i64::try_from(rate / BURST_PART).unwrap_or(i64::MAX).max(1);
        let before = filled.unwrap_or(Filled { at: now, bytes: most });
        let us = u64::try_from(now.saturating_duration_since(before.at).as_micros());
        let more = us.unwrap_or(u64::MAX).saturating_mul(rate) / 1_000_000;
        let left = before.bytes.saturating_add(i64::try_from(more).unwrap_or(i64::MAX)).min(most);
        if left <= 0 {
            // `at` stays: time for less than a byte must not get lost by looking often.
            let owed = left.unsigned_abs().saturating_add(1);
            let us = u128::from(owed) * 1_000_000 / u128::from(rate);
            return Err(Duration::from_micros(u64::try_from(us).unwrap_or(u64::MAX)));
        }
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        *filled = Some(Filled { at: now, bytes: left.saturating_sub(bytes) });
        Ok(())
    }
}
