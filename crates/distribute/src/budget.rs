//! A limit in bytes per second for one direction, over all transfers of a server.
//!
//! A piece may go once everything before it is paid for, and the next one waits for this one. So
//! bytes flow piece by piece at the pace of the limit, not in the bursts of a token bucket that
//! filled up while idle.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Longest sleep of a waiter, in milliseconds: a changed limit takes effect within this time.
const LOOK_AGAIN_MS: u64 = 50;

/// Shortest sleep, in milliseconds: the resolution of a timer.
const SLEEP_MS_MIN: u64 = 1;

/// What may go immediately after a pause, as a fraction of a second: 31 ms, the delay of a timer on
/// a busy machine. Less would make a limit slower than configured.
const BURST_PART: u64 = 32;

/// A limit in bytes per second that may change at any time; initially none.
#[derive(Debug, Default)]
pub struct Budget {
    /// Bytes per second; 0 is unlimited.
    rate: AtomicU64,
    /// Total bytes so far.
    taken: AtomicU64,
    filled: Mutex<Option<Filled>>,
    /// The budget that contains this one.
    within: Option<Arc<Budget>>,
}

#[derive(Debug, Clone, Copy)]
struct Filled {
    at: Instant,
    /// Bytes that may go now; negative after a piece that exceeded the balance.
    bytes: i64,
}

impl Budget {
    /// A part of another budget. Both limits apply.
    #[must_use]
    pub fn within(whole: Arc<Budget>) -> Self {
        Self { within: Some(whole), ..Self::default() }
    }

    /// Sets the limit in bytes per second; `None` is unlimited. Takes effect immediately. Changing
    /// it often gains nothing: a debt takes as long to pay off.
    pub fn set(&self, limit: Option<u64>) {
        let after = limit.unwrap_or(0);
        let mut filled = self.filled.lock();
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

    /// Total bytes so far, with and without a limit.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Takes bytes out of the budget as soon as it is not overdrawn. Calls `waits` before every
    /// sleep.
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

    /// Takes bytes out of the budget immediately; the next taker waits for them.
    pub(crate) fn owe(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.try_take(bytes, Instant::now()).is_err() {
            let mut filled = self.filled.lock();
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            *filled =
                filled.map(|filled| Filled { bytes: filled.bytes.saturating_sub(bytes), ..filled });
        }
        if let Some(whole) = &self.within {
            whole.owe(bytes);
        }
    }

    /// Takes bytes out of this budget only, or returns how long to wait.
    pub(crate) fn try_take(&self, bytes: usize, now: Instant) -> Result<(), Duration> {
        let mut filled = self.filled.lock();
        let Some(rate) = self.limit() else { return Ok(()) };
        let most = i64::try_from(rate / BURST_PART).unwrap_or(i64::MAX).max(1);
        let before = filled.unwrap_or(Filled { at: now, bytes: most });
        let us = u64::try_from(now.saturating_duration_since(before.at).as_micros());
        let more = us.unwrap_or(u64::MAX).saturating_mul(rate) / 1_000_000;
        let left = before.bytes.saturating_add(i64::try_from(more).unwrap_or(i64::MAX)).min(most);
        if left <= 0 {
            // `at` is unchanged, so that frequent calls do not lose time worth less than a byte.
            let owed = left.unsigned_abs().saturating_add(1);
            let us = u128::from(owed) * 1_000_000 / u128::from(rate);
            return Err(Duration::from_micros(u64::try_from(us).unwrap_or(u64::MAX)));
        }
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        *filled = Some(Filled { at: now, bytes: left.saturating_sub(bytes) });
        Ok(())
    }
}
