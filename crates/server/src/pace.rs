//! How often something that keeps changing is reported.

/// Pause after a report of health, in milliseconds, doubled with each up to the maximum: a service
/// that flaps costs an entry of the log each time.
const HEALTH_PAUSE_MS_MIN: u64 = 1_000;
const HEALTH_PAUSE_MS_MAX: u64 = 30_000;
/// After this long without a report of health, the shortest pause applies again, in milliseconds.
const HEALTH_QUIET_MS: u64 = 120_000;
/// Reports are due again after a pause that grows while they keep coming.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pace {
    last_ms: Option<u64>,
    pause_ms: u64,
}

impl Pace {
    /// Whether a report is due; if so, it counts as made.
    pub(crate) fn is_due(&mut self, now_ms: u64) -> bool {
        let since_ms = self.last_ms.map(|last_ms| now_ms.saturating_sub(last_ms));
        if since_ms.is_some_and(|ms| ms < self.pause_ms) {
            return false;
        }
        let quiet = since_ms.is_none_or(|ms| ms >= HEALTH_QUIET_MS);
        let doubled = (self.pause_ms * 2).min(HEALTH_PAUSE_MS_MAX);
        self.pause_ms = if quiet { HEALTH_PAUSE_MS_MIN } else { doubled };
        self.last_ms = Some(now_ms);
        true
    }
}
