//! A service that the start of its agent, or of its machine, has started.

use cohort_core::report::STARTING_MS_MAX;

use super::{App, Sight};

/// What the host's boot found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Booted {
    /// Whether the service came up, and may take traffic.
    pub in_service: bool,
    /// Whether the service is only just starting: it may take a while to answer, or never do.
    pub started: bool,
}

impl App {
    /// Whether the service was started with the machine, and has yet to pass its checks. Without
    /// orders, nobody knows them.
    pub(super) fn is_starting(&self, sight: &Sight<'_>) -> bool {
        self.cold && sight.orders.is_some_and(|orders| !orders.checks.is_empty())
    }

    /// Whether it is starting, and has time left for that.
    pub(super) fn is_warming(&self, sight: &Sight<'_>) -> bool {
        let for_ms = sight.now.ms.saturating_sub(self.started_ms);
        self.is_starting(sight) && for_ms < STARTING_MS_MAX
    }
}
