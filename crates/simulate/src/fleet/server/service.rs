//! A virtual service, and what checks see of it.

use cohort_core::policy::{Check, Probe};
use cohort_core::release::Release;
use cohort_core::report::Health;

/// A service, as a prober sees it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Service {
    /// What runs, or is broken.
    pub(crate) release: Option<Release>,
    pub(crate) up: bool,
    pub(crate) traffic: bool,
    /// Until when it does not answer yet, if the machine's start has started it.
    pub(super) cold_until_ms: Option<u64>,
    /// Its running checks fail: the agent says that it is not ready.
    pub(super) unfit: bool,
    /// When it dies, if its release makes it die.
    pub(super) dies_ms: Option<u64>,
}

impl Service {
    /// What checks see, by their paths: `/up` passes while it is up, `/never` never, a version
    /// while it runs that.
    pub(super) fn health(&self, checks: &[Check]) -> Health {
        let passes = |check: &Check| match &check.probe {
            Probe::Http(_) if self.cold_until_ms.is_some() => false,
            Probe::Http(http) => match http.path.trim_start_matches('/') {
                "up" => true,
                "never" => false,
                version => self.release.as_ref().is_some_and(|it| it.version.as_str() == version),
            },
            Probe::Tcp(_) | Probe::Grpc(_) | Probe::Exec { .. } => false,
        };
        let reason = if !self.up {
            "the service is not there"
        } else if !checks.iter().all(passes) {
            "wrong answer"
        } else {
            ""
        };
        Health { in_service: reason.is_empty(), reason: reason.into() }
    }

    /// Whether it does not serve what it has.
    pub(crate) fn is_away(&self) -> bool {
        self.release.is_some() && !self.serves()
    }

    pub(crate) fn serves(&self) -> bool {
        let answers = self.up && self.cold_until_ms.is_none();
        answers && self.traffic && !self.unfit && self.release.is_some()
    }
}
