//! The cache's metrics. `docs/metrics.md` explains them.

use cohort_base::metrics::{Counter, Gauge, Histograms, LATENCY, Registrar};
use prometheus_client::encoding::EncodeLabelSet;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Kind {
    /// `artifact` or `file`.
    pub(crate) kind: &'static str,
}

/// Handles of all metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    registrar: Registrar,
    pub(crate) request_seconds: Histograms<Kind>,
    pub(crate) origin_bytes: Counter,
    pub(crate) served_bytes: Counter,
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) joined: Counter,
    pub(crate) passed_on: Counter,
    pub(crate) evictions: Counter,
    pub(crate) origin_requests: Counter,
    pub(crate) origin_failures: Counter,
    pub(crate) wrong: Counter,
    pub(crate) damaged: Counter,
    pub(crate) overloaded: Counter,
    pub(crate) revalidations: Counter,
    pub(crate) last_copies: Counter,
    artifacts: Gauge,
    bytes: Gauge,
    bytes_max: Gauge,
    requests: Gauge,
}

/// What is measured when scraped.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Gauges {
    pub(crate) artifacts: u64,
    pub(crate) bytes: u64,
    pub(crate) bytes_max: u64,
    pub(crate) requests: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut r = Registrar::new("cohort_mirror");
        Self {
            request_seconds: r.histograms(
                "request_seconds",
                "Time until the answer's first byte is there",
                LATENCY,
            ),
            origin_bytes: r.counter("origin_bytes", "Bytes of bodies received from origins"),
            served_bytes: r.counter("served_bytes", "Bytes of bodies sent to readers"),
            hits: r.counter("hits", "Units of artifacts served from disk"),
            misses: r.counter("misses", "Units of artifacts fetched from origins"),
            joined: r.counter("joined", "Units that were being fetched for another reader"),
            passed_on: r.counter("passed_on", "Units passed on without being cached"),
            evictions: r.counter("evictions", "Artifacts evicted to make room"),
            origin_requests: r.counter("origin_requests", "Requests sent to origins"),
            origin_failures: r.counter("origin_failures", "Requests to origins that failed"),
            wrong: r.counter("wrong_bytes", "Answers of origins with wrong bytes"),
            damaged: r.counter("damaged", "Units corrupt on the cache's own disk"),
            overloaded: r.counter("overloaded", "Requests refused with 503: too many at once"),
            revalidations: r.counter("revalidations", "Small files revalidated at an origin"),
            last_copies: r.counter("last_copies", "Small files served while no origin answered"),
            artifacts: r.gauge("artifacts", "Artifacts cached, complete or in part"),
            bytes: r.gauge("cache_bytes", "Disk space in use"),
            bytes_max: r.gauge("cache_bytes_max", "Disk space allowed"),
            requests: r.gauge("requests", "Requests for files in progress"),
            registrar: r,
        }
    }
}

pub(crate) fn add(counter: &Counter, count: u64) {
    counter.inc_by(count);
}

impl Metrics {
    /// Everything, for `/metrics`.
    pub(crate) fn render(&self, gauges: Gauges) -> String {
        let Gauges { artifacts, bytes, bytes_max, requests } = gauges;
        for (gauge, value) in [
            (&self.artifacts, artifacts),
            (&self.bytes, bytes),
            (&self.bytes_max, bytes_max),
            (&self.requests, requests),
        ] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.registrar.text()
    }
}

#[cfg(test)]
mod metrics_test {
    use super::Metrics;

    #[test]
    fn every_metric_is_documented() {
        let documented = include_str!("../../../docs/metrics.md");
        assert_eq!(Metrics::default().registrar.undocumented(documented), [""; 0]);
    }
}
