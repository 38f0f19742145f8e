//! How long to wait before trying again.
//!
//! [`Schedule::pause`] is a pure function, for code whose clock and randomness are inputs;
//! [`Schedule::pauses`] counts failures for a loop:
//!
//! ```
//! # fn call() -> Result<(), ()> { Ok(()) }
//! # async fn sleep(_: std::time::Duration) {}
//! # async fn example() {
//! let mut pauses = cohort_base::retry::NEAR.pauses();
//! while call().is_err() {
//!     sleep(pauses.next_pause()).await;
//! }
//! # }
//! ```

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// For another server of the same group, or a local process: back within a second if at all, and
/// others are waiting for our message to it.
pub const NEAR: Schedule = Schedule::new(Duration::from_millis(50), Duration::from_secs(1));

/// For what a whole fleet uses, such as the hub and its registry: a minute's outage must not end in
/// a stampede.
pub const SHARED: Schedule = Schedule::new(Duration::from_millis(250), Duration::from_secs(10));

/// For a program that exits on its own: quick after a hiccup, cheap if it never stays up.
pub const PROGRAM: Schedule = Schedule::new(Duration::from_millis(100), Duration::from_secs(30));

/// Pauses that double with every consecutive failure. Each is random between half its length and
/// its full length, so that clients that failed together do not return together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    first: Duration,
    longest: Duration,
}

impl Schedule {
    /// A pause of at most `first` after one failure, and never more than `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// The pause after `failures` consecutive failures (at least one), chosen by a random number.
    #[must_use]
    pub fn pause(&self, failures: u32, random: u64) -> Duration {
        // As often as it can grow, instead of four billion times.
        let before = failures.saturating_sub(1).min(u32::BITS) as usize;
        let mut pauses = self.builder().with_jitter_seed(random).build();
        pauses.nth(before).unwrap_or(self.longest)
    }

    /// Counts failures from zero, with its own randomness.
    #[must_use]
    pub fn pauses(self) -> Pauses {
        Pauses { backoff: self.builder().build(), schedule: self }
    }

    fn builder(&self) -> ExponentialBuilder {
        // The library adds up to as much again.
        ExponentialBuilder::new()
            .with_min_delay(self.first.min(self.longest) / 2)
            .with_max_delay(self.longest / 2)
            .without_max_times()
            .with_jitter()
    }
}

/// The pauses of one loop.
#[derive(Debug)]
pub struct Pauses {
    schedule: Schedule,
    backoff: ExponentialBackoff,
}

impl Pauses {
    /// The pause after another failure.
    pub fn next_pause(&mut self) -> Duration {
        self.backoff.next().unwrap_or(self.schedule.longest)
    }

    /// Records a success: the next pause is the first one again.
    pub fn reset(&mut self) {
        *self = self.schedule.pauses();
    }
}

#[cfg(test)]
#[path = "retry_test.rs"]
mod retry_test;
