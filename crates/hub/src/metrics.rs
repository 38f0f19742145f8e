//! The hub's metrics. `docs/metrics.md` explains them.

use cohort_base::metrics::{Counter, Family, Gauge, Histograms, LATENCY, Registrar};
use cohort_identity::{Role, TokenState};
use prometheus_client::encoding::EncodeLabelSet;

use crate::app::{App, now};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Route {
    /// As the router knows it, such as `/v1/servers/{server}`.
    pub(crate) route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfRole {
    role: &'static str,
}

/// Handles of all metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    registrar: Registrar,
    pub(crate) request_seconds: Histograms<Route>,
    pub(crate) reads: Counter,
    pub(crate) changes: Counter,
    pub(crate) watches_refused: Counter,
    pub(crate) refused: Counter,
    pub(crate) joined: Counter,
    pub(crate) uploads: Counter,
    /// Unix seconds; 0 until known.
    pub(crate) repository_expires_at: Gauge,
    pub(crate) timestamp_failing: Gauge,
    pub(crate) bucket_failing: Gauge,
    revision: Gauge,
    restored: Gauge,
    watches: Gauge,
    certificate_left: Gauge,
    tokens_unused: Family<OfRole, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut r = Registrar::new("cohort_hub");
        Self {
            request_seconds: r.histograms(
                "request_seconds",
                "Duration of API requests; a watch waits on purpose",
                LATENCY,
            ),
            reads: r.counter("reads", "Reads of the registry"),
            changes: r.counter("changes", "Transactions of the registry"),
            watches_refused: r.counter("watches_refused", "Watches refused: too many"),
            refused: r.counter("refused", "Requests refused by role"),
            joined: r.counter("joined", "Join tokens redeemed"),
            uploads: r.counter("uploads", "Files uploaded"),
            repository_expires_at: r.gauge(
                "repository_expires_timestamp_seconds",
                "When the first signature of the repository expires; 0: unknown",
            ),
            timestamp_failing: r.gauge(
                "timestamp_renewal_failing",
                "1 if the last renewal of the repository's timestamp failed",
            ),
            bucket_failing: r
                .gauge("bucket_failing", "1 if the last write to the repository's bucket failed"),
            revision: r.gauge("registry_revision", "The registry's revision"),
            restored: r.gauge(
                "registry_restored",
                "1 while the registry may come from a backup and bootstraps nothing",
            ),
            watches: r.gauge("watches", "Watches in progress"),
            certificate_left: r
                .gauge("certificate_left_seconds", "Time until the hub's own certificate expires"),
            tokens_unused: r.gauges("tokens_unused", "Join tokens not used yet"),
            registrar: r,
        }
    }
}

/// Everything, for `/metrics`.
pub(crate) fn render(app: &App) -> String {
    let metrics = &app.metrics;
    let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    set(&metrics.revision, app.registry.revision());
    set(&metrics.restored, app.registry.restored().into());
    let watches = app.config.watches_max - app.watches.available_permits();
    set(&metrics.watches, watches as u64);
    let expires = app.identity.current().validity().not_after.as_secs();
    set(&metrics.certificate_left, expires.saturating_sub(now().as_secs()));
    let tokens = app.tokens.list();
    for role in Role::ALL {
        let unused = tokens
            .iter()
            .filter(|token| token.grant.role == role && matches!(token.state, TokenState::Unused));
        let gauge = metrics.tokens_unused.get_or_create(&OfRole { role: role.as_str() });
        set(&gauge, unused.count() as u64);
    }
    metrics.registrar.text()
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
