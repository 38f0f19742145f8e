//! Counters of a cache, and how they are shown to Prometheus.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) origin_bytes: AtomicU64,
    pub(crate) served_bytes: AtomicU64,
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) joined: AtomicU64,
    pub(crate) passed_on: AtomicU64,
    pub(crate) evictions: AtomicU64,
    pub(crate) origin_requests: AtomicU64,
    pub(crate) origin_failures: AtomicU64,
    pub(crate) wrong: AtomicU64,
    pub(crate) damaged: AtomicU64,
    pub(crate) overloaded: AtomicU64,
    pub(crate) revalidations: AtomicU64,
    pub(crate) last_copies: AtomicU64,
}

/// What is measured when somebody asks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Gauges {
    pub(crate) artifacts: u64,
    pub(crate) bytes: u64,
    pub(crate) bytes_max: u64,
    pub(crate) requests: u64,
}

pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl Metrics {
    /// All of it, in Prometheus' text format.
    pub(crate) fn render(&self, gauges: Gauges) -> String {
        let counters = [
            ("origin_bytes", "Bytes of bodies received from origins.", &self.origin_bytes),
            ("served_bytes", "Bytes of bodies given to readers.", &self.served_bytes),
            ("hits", "Units of artifacts given from the disk.", &self.hits),
            ("misses", "Units of artifacts fetched from origins.", &self.misses),
            ("joined", "Units that were on their way for another reader already.", &self.joined),
            ("passed_on", "Units passed on without being kept.", &self.passed_on),
            ("evictions", "Artifacts removed to make room.", &self.evictions),
            ("origin_requests", "Requests sent to origins.", &self.origin_requests),
            ("origin_failures", "Requests to origins that failed.", &self.origin_failures),
            ("wrong_bytes", "Times that an origin sent wrong bytes.", &self.wrong),
            ("damaged", "Units that were damaged on the own disk.", &self.damaged),
            ("overloaded", "Requests answered with 503: too many at once.", &self.overloaded),
            ("revalidations", "Small files that were asked for again.", &self.revalidations),
            ("last_copies", "Small files served while no origin answered.", &self.last_copies),
        ];
        let mut text = String::new();
        for (name, help, value) in counters {
            let (name, value) =
                (format!("cohort_mirror_{name}_total"), value.load(Ordering::Relaxed));
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
        }
        let Gauges { artifacts, bytes, bytes_max, requests } = gauges;
        for (name, help, value) in [
            ("artifacts", "Artifacts on the disk, whole or in part.", artifacts),
            ("cache_bytes", "Bytes of the disk that are taken.", bytes),
            ("cache_bytes_max", "Bytes of the disk that may be taken.", bytes_max),
            ("requests", "Requests for files in progress.", requests),
        ] {
            let name = format!("cohort_mirror_{name}");
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        text
    }
}
