//! The cache's metrics. `docs/metrics.md` explains them.

use cohort_base::metrics::{Counter, Family, Gauge, Histograms, LATENCY, Refusal};
use cohort_wire::http::Refusals;
use prometheus_client::encoding::EncodeLabelSet;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Kind {
    /// Label value: `artifact` or `file`.
    pub(crate) kind: &'static str,
}

cohort_base::metrics! {
    /// Handles of all metrics.
    struct Metrics("cohort_mirror") {
        request_seconds: Histograms<Kind> = histograms(
            "request_seconds", "Time until the answer's first byte is there", LATENCY,
        ),
        origin_bytes: Counter = counter("origin_bytes", "Bytes of bodies received from origins"),
        served_bytes: Counter = counter("served_bytes", "Bytes of bodies sent to readers"),
        hits: Counter = counter("hits", "Units of artifacts served from disk"),
        misses: Counter = counter("misses", "Units of artifacts fetched from origins"),
        joined: Counter = counter("joined", "Units that were being fetched for another reader"),
        passed_on: Counter = counter("passed_on", "Units passed on without being cached"),
        evictions: Counter = counter("evictions", "Artifacts evicted to make room"),
        origin_requests: Counter = counter("origin_requests", "Requests sent to origins"),
        origin_failures: Counter = counter("origin_failures", "Requests to origins that failed"),
        wrong: Counter = counter("wrong_bytes", "Answers of origins with wrong bytes"),
        damaged: Counter = counter("damaged", "Units corrupt on the cache's own disk"),
        overloaded: Counter = counter("overloaded", "Requests refused with 503: too many at once"),
        connections_refused: Family<Refusal, Counter> = counters(
            "connections_refused", "Connections and requests refused, and idle ones that gave way",
        ),
        revalidations: Counter = counter("revalidations", "Small files revalidated at an origin"),
        last_copies: Counter = counter(
            "last_copies", "Small files served while no origin answered",
        ),
        artifacts: Gauge = gauge("artifacts", "Artifacts cached, complete or in part"),
        bytes: Gauge = gauge("cache_bytes", "Disk space in use"),
        bytes_max: Gauge = gauge("cache_bytes_max", "Disk space allowed"),
        requests: Gauge = gauge("requests", "Requests for files in progress"),
    }
}

impl Metrics {
    /// Counts what a port refuses.
    pub(crate) fn refusals(&self, port: &'static str) -> Refusals {
        let refused = &self.connections_refused;
        Refusals::by_reason(|reason| refused.get_or_create(&Refusal { port, reason }).clone())
    }
}
