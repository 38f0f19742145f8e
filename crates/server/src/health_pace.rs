//! How much news of health a member takes from each server: an agent that repeats itself must not
//! fill the group's log.

use std::collections::BTreeMap;

use cohort_core::ids::ServerId;
use cohort_core::report::{Outcome, Report};
use cohort_core::state::{APPS_MAX, SERVERS_MAX};

/// Reports of health that a server may send at once: three changes of all its apps.
const BURST: u64 = 3 * APPS_MAX as u64;
/// How often one more is accepted after that, in milliseconds.
const ONE_EVERY_MS: u64 = 10_000;

/// What each server may still report. In memory only.
#[derive(Debug, Default)]
pub struct HealthPace(BTreeMap<ServerId, u64>);

impl HealthPace {
    /// Whether a report is accepted; others than those of health always are. The server of one that
    /// is not reports its health again while the group believes something else.
    pub fn accepts(&mut self, report: &Report, now_ms: u64) -> bool {
        match report.outcome {
            Outcome::Health { .. } | Outcome::Tried { .. } => {}
            Outcome::Found { .. }
            | Outcome::Holds { .. }
            | Outcome::Lacks { .. }
            | Outcome::Applied
            | Outcome::Checked
            | Outcome::InService
            | Outcome::GivenBack
            | Outcome::HookIgnored { .. }
            | Outcome::Failed { .. }
            | Outcome::Undone { .. } => return true,
        }
        if self.0.len() >= SERVERS_MAX {
            self.0.retain(|_, used_until_ms| *used_until_ms > now_ms);
        }
        // Each report uses up the time in which one is accepted; a burst borrows from the future.
        let used_until_ms = self.0.entry(report.server.clone()).or_default();
        let next_ms = (*used_until_ms).max(now_ms) + ONE_EVERY_MS;
        let accepted = next_ms <= now_ms + BURST * ONE_EVERY_MS;
        if accepted {
            *used_until_ms = next_ms;
        }
        accepted
    }
}

#[cfg(test)]
#[path = "health_pace_test.rs"]
mod health_pace_test;
