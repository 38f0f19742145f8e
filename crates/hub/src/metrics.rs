//! Counters of the hub, and how they are shown to Prometheus.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use cohort_identity::Role;

use crate::app::{App, now};

/// What is counted. Labels are bounded: routes, roles and outcomes, never names.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) reads: AtomicU64,
    pub(crate) changes: AtomicU64,
    pub(crate) watches_refused: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) joined: AtomicU64,
    pub(crate) uploads: AtomicU64,
    /// When the first signature of the repository ends, in seconds of Unix time; 0: not known.
    pub(crate) repository_expires_at: AtomicI64,
    /// 1 when the last renewal of the timestamp failed.
    pub(crate) timestamp_failing: AtomicU64,
    /// 1 when the bucket has not got what is published.
    pub(crate) bucket_failing: AtomicU64,
}

impl Metrics {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// All of it, in Prometheus' text format.
pub(crate) fn render(app: &App) -> String {
    let metrics = &app.metrics;
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let waiting = app.config.watches_max - app.watches.available_permits();
    let certificate_left =
        app.identity.current().validity().not_after.as_secs().saturating_sub(now().as_secs());
    let mut text = String::new();
    let mut line = |name: &str, kind: &str, help: &str, value: i128| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    };
    let number = i128::from;
    line(
        "cohort_hub_registry_revision",
        "gauge",
        "The registry's revision.",
        number(app.registry.revision()),
    );
    line(
        "cohort_hub_registry_restored",
        "gauge",
        "1 while the registry may come from a backup and bootstraps nothing.",
        i128::from(app.registry.restored()),
    );
    line(
        "cohort_hub_reads_total",
        "counter",
        "Reads of the registry.",
        number(load(&metrics.reads)),
    );
    line(
        "cohort_hub_changes_total",
        "counter",
        "Transactions of the registry.",
        number(load(&metrics.changes)),
    );
    line("cohort_hub_watches", "gauge", "Watches that wait.", waiting as i128);
    line(
        "cohort_hub_watches_refused_total",
        "counter",
        "Watches refused because there were too many.",
        number(load(&metrics.watches_refused)),
    );
    line(
        "cohort_hub_refused_total",
        "counter",
        "Requests refused by role.",
        number(load(&metrics.refused)),
    );
    line(
        "cohort_hub_joined_total",
        "counter",
        "Join tokens redeemed.",
        number(load(&metrics.joined)),
    );
    line("cohort_hub_uploads_total", "counter", "Files uploaded.", number(load(&metrics.uploads)));
    line(
        "cohort_hub_certificate_left_seconds",
        "gauge",
        "Seconds until the hub's own certificate ends.",
        number(certificate_left),
    );
    line(
        "cohort_hub_repository_expires_timestamp_seconds",
        "gauge",
        "When the first signature of the repository ends; 0: not known.",
        i128::from(metrics.repository_expires_at.load(Ordering::Relaxed)),
    );
    line(
        "cohort_hub_timestamp_renewal_failing",
        "gauge",
        "1 when the last renewal of the repository's timestamp failed.",
        number(load(&metrics.timestamp_failing)),
    );
    line(
        "cohort_hub_bucket_failing",
        "gauge",
        "1 when the bucket of the repository could not be written.",
        number(load(&metrics.bucket_failing)),
    );
    let tokens = app.tokens.list();
    for role in Role::ALL {
        let unused = tokens
            .iter()
            .filter(|token| token.grant.role == role)
            .filter(|token| matches!(token.state, cohort_identity::TokenState::Unused))
            .count();
        if role == Role::ALL[0] {
            let name = "cohort_hub_tokens_unused";
            let _ = writeln!(text, "# HELP {name} Join tokens not used yet.\n# TYPE {name} gauge");
        }
        let _ = writeln!(text, "cohort_hub_tokens_unused{{role=\"{role}\"}} {unused}");
    }
    text
}
