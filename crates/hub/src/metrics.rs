//! The hub's metrics. `docs/metrics.md` explains them.

use cohort_base::metrics::{Counter, Family, Gauge, Histograms, LATENCY, Refusal};
use cohort_wire::http::Refusals;
use prometheus_client::encoding::EncodeLabelSet;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Route {
    /// The route pattern, such as `/v1/servers/{server}`.
    pub(crate) route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfRole {
    pub(crate) role: &'static str,
}

cohort_base::metrics! {
    /// Handles of all metrics.
    struct Metrics("cohort_hub") {
        request_seconds: Histograms<Route> = histograms(
            "request_seconds", "Duration of API requests; a watch waits on purpose", LATENCY,
        ),
        reads: Counter = counter("reads", "Reads of the registry"),
        changes: Counter = counter("changes", "Transactions of the registry"),
        watches_refused: Counter = counter("watches_refused", "Watches refused: too many"),
        refused: Counter = counter("refused", "Requests refused by role"),
        connections_refused: Family<Refusal, Counter> = counters(
            "connections_refused", "Connections and requests refused, and idle ones that gave way",
        ),
        joined: Counter = counter("joined", "Join tokens redeemed"),
        kill_registers_latched: Counter = counter(
            "kill_registers_latched", "Kill registers that replaced an older one",
        ),
        kill_switches_on: Gauge = gauge("kill_switches_on", "Scopes whose kill switch is on"),
        uploads: Counter = counter("uploads", "Files uploaded"),
        /// Unix time in seconds; 0 until known.
        repository_expires_at: Gauge = gauge(
            "repository_expires_timestamp_seconds",
            "When the first signature of the repository expires; 0: unknown",
        ),
        timestamp_failing: Gauge = gauge(
            "timestamp_renewal_failing",
            "1 if the last renewal of the repository's timestamp failed",
        ),
        bucket_failing: Gauge = gauge(
            "bucket_failing", "1 if the last write to the repository's bucket failed",
        ),
        revision: Gauge = gauge("registry_revision", "The registry's revision"),
        restored: Gauge = gauge(
            "registry_restored",
            "1 while the registry may come from a backup and bootstraps nothing",
        ),
        watches: Gauge = gauge("watches", "Watches in progress"),
        certificate_left: Gauge = gauge(
            "certificate_left_seconds", "Time until the hub's own certificate expires",
        ),
        tokens_unused: Family<OfRole, Gauge> = gauges("tokens_unused", "Join tokens not used yet"),
    }
}

impl Metrics {
    /// Counts what a port refuses.
    pub(crate) fn refusals(&self, port: &'static str) -> Refusals {
        let refused = &self.connections_refused;
        Refusals::by_reason(|reason| refused.get_or_create(&Refusal { port, reason }).clone())
    }
}
