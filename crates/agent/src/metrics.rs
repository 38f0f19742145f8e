//! Counters and gauges, in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

/// Series kept at the most: labels are names of steps, checks and outcomes, and of sources
/// of bytes, whose number has a limit of its own; never free text.
const SERIES_MAX: usize = 2_000;

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<BTreeMap<(&'static str, String), f64>>);

/// Every metric: name, kind, help.
const KNOWN: &[(&str, &str, &str)] = &[
    ("cohort_build_info", "gauge", "The version of the agent."),
    ("cohort_rollout_info", "gauge", "1 for the state that the group is in, per app."),
    ("cohort_rollouts_total", "counter", "Rollouts that ended, by outcome."),
    ("cohort_rollout_duration_seconds_sum", "counter", "How long rollouts took."),
    ("cohort_rollout_duration_seconds_count", "counter", "Rollouts that ended."),
    ("cohort_server_step_seconds_sum", "counter", "How long steps took on this server."),
    ("cohort_server_step_seconds_count", "counter", "Steps that ended on this server."),
    ("cohort_check_total", "counter", "Outcomes of checks."),
    ("cohort_raft_term", "gauge", "The term."),
    ("cohort_raft_is_leader", "gauge", "1 on the leader."),
    ("cohort_raft_commit_index", "gauge", "The last committed position."),
    ("cohort_raft_dropped_total", "counter", "Messages dropped, by reason."),
    ("cohort_bytes_received_total", "counter", "Bytes of artifacts received, by kind of source."),
    ("cohort_deltas_total", "counter", "Deltas that were fetched, by what came of them."),
    ("cohort_units_refused_total", "counter", "Units whose bytes were wrong."),
    (
        "cohort_source_offences_total",
        "counter",
        "What mirrors and servers did wrong when this server took artifacts from them.",
    ),
    ("cohort_kill_switch", "gauge", "1 while the kill switch is on."),
    ("cohort_ready", "gauge", "1 while this server takes traffic."),
];

impl Metrics {
    /// Sets a gauge.
    pub(crate) fn set(&self, name: &'static str, labels: &[(&str, &str)], value: f64) {
        self.change(name, labels, |old| *old = value);
    }

    /// Adds to a counter.
    pub(crate) fn add(&self, name: &'static str, labels: &[(&str, &str)], value: f64) {
        self.change(name, labels, |old| *old += value);
    }

    /// Forgets the series of a gauge whose labels begin so.
    pub(crate) fn clear(&self, name: &'static str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(known, _), _| *known != name);
    }

    fn change(&self, name: &'static str, labels: &[(&str, &str)], change: impl FnOnce(&mut f64)) {
        let mut text = String::new();
        for (key, value) in labels {
            let value: String = value
                .chars()
                .flat_map(|c| match c {
                    '"' => vec!['\\', '"'],
                    '\\' => vec!['\\', '\\'],
                    '\n' => vec!['\\', 'n'],
                    other => vec![other],
                })
                .collect();
            let comma = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{comma}{key}=\"{value}\"");
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = all.len() >= SERIES_MAX;
        let key = (name, text);
        if let Some(old) = all.get_mut(&key) {
            change(old);
        } else if !full {
            change(all.entry(key).or_insert(0.0));
        }
    }

    /// Everything, for `/metrics`.
    pub(crate) fn text(&self) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (name, kind, help) in KNOWN {
            let series: Vec<_> = all.iter().filter(|((known, _), _)| known == name).collect();
            if series.is_empty() {
                continue;
            }
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for ((_, labels), value) in series {
                if labels.is_empty() {
                    let _ = writeln!(text, "{name} {value}");
                } else {
                    let _ = writeln!(text, "{name}{{{labels}}} {value}");
                }
            }
        }
        text
    }
}
