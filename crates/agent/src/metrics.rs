//! The agent's metrics. `docs/metrics.md` explains them.

use std::time::{Duration, Instant};

use cohort_base::metrics::{
    Counter, Family, Gauge, Histogram, Histograms, LATENCY, ROLLOUT, Refusal, STEP,
};
use cohort_store::{Batch, Image, LogStore, RedbStore, StoreError};
use cohort_wire::http::Refusals;
use prometheus_client::encoding::EncodeLabelSet;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Version {
    pub version: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Rollout {
    pub app: String,
    pub state: String,
    /// The release being rolled out; empty without a rollout.
    pub release: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Ended {
    pub app: String,
    pub outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfDisk {
    /// `enough`, `low`, `exhausted` or `read-only`.
    pub space: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfApp {
    pub app: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Lacking {
    /// `cgroups`, `memory`, `cpu`, `pids` or `root`.
    pub what: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfStep {
    pub step: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Checked {
    /// `pre-flight` or `running`.
    pub check: &'static str,
    /// `passed` or `failed`.
    pub result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Dropped {
    pub reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReceivedFrom {
    /// `mirror` or `peer`.
    pub from: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Offence {
    /// A mirror or server; the download counters keep a bounded number of them.
    pub source: String,
    pub what: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfDelta {
    /// `applied`, `failed` or `given-up`.
    pub result: &'static str,
}

cohort_base::metrics! {
    /// Handles of all metrics.
    struct Metrics("cohort") {
        build: Family<Version, Gauge> = gauges("build_info", "1; the agent's version is a label"),
        ready: Gauge = gauge("ready", "1 while this server takes traffic"),
        kill_switch: Gauge = gauge("kill_switch", "1 while the kill switch is on"),
        kill_registers_latched: Counter = counter(
            "kill_registers_latched", "Kill registers that replaced an older one",
        ),
        submissions_refused: Counter = counter(
            "submissions_refused", "Reports, commands and joins that their author had not signed",
        ),
        rollout: Family<Rollout, Gauge> = gauges(
            "rollout_info", "1 for the state of each app in the group",
        ),
        rollouts: Family<Ended, Counter> = counters("rollouts", "Rollouts that ended"),
        rollout_seconds: Histograms<Ended> = histograms(
            "rollout_duration_seconds", "Duration of rollouts that ended", ROLLOUT,
        ),
        step_seconds: Histograms<OfStep> = histograms(
            "server_step_seconds", "Duration of steps on this server", STEP,
        ),
        checks: Family<Checked, Counter> = counters("check", "Outcomes of health checks"),
        connections_refused: Family<Refusal, Counter> = counters(
            "connections_refused", "Connections and requests refused, and idle ones that gave way",
        ),
        raft_term: Gauge = gauge("raft_term", "The member's Raft term"),
        raft_is_leader: Gauge = gauge("raft_is_leader", "1 while the member leads its group"),
        servers_unknown: Gauge = gauge(
            "servers_unknown",
            "Servers of which the group does not know whether they serve; 0 on followers",
        ),
        disk: Family<OfDisk, Gauge> = gauges(
            "data_dir_info", "1; what can be written to the agent's data directory is a label",
        ),
        metadata_age_seconds: Gauge = gauge(
            "metadata_age_seconds",
            "For how long the mirrors have shown the leader nothing newer; 0 on followers",
        ),
        lacking: Family<Lacking, Gauge> = gauges(
            "lacking_info", "1; what this machine lacks to confine releases is a label",
        ),
        service_exits: Family<OfApp, Counter> = counters(
            "service_exits", "Ends of the app's service by itself since its release started",
        ),
        service_memory_bytes: Family<OfApp, Gauge> = gauges(
            "service_memory_bytes", "Memory of the app's service, with files in memory",
        ),
        service_cpu: Family<OfApp, Counter> = counters(
            "service_cpu_microseconds", "Processor time of the app's service since it started",
        ),
        service_processes: Family<OfApp, Gauge> = gauges(
            "service_processes", "Processes and threads of the app's service",
        ),
        raft_commit_index: Gauge = gauge("raft_commit_index", "The last committed position"),
        raft_dropped: Family<Dropped, Counter> = counters("raft_dropped", "Raft messages dropped"),
        log_write_seconds: Histogram = histogram(
            "log_write_seconds",
            "Time to make a batch of the log durable, including the sync",
            LATENCY,
        ),
        member_step_seconds: Histogram = histogram(
            "member_step_seconds",
            "Time for a member to take inputs, make them durable, apply and plan",
            LATENCY,
        ),
        bytes_received: Family<ReceivedFrom, Counter> = counters(
            "bytes_received", "Bytes of artifacts received",
        ),
        units_refused: Counter = counter("units_refused", "Units with wrong bytes"),
        source_offences: Family<Offence, Counter> = counters(
            "source_offences", "Misbehaviour of mirrors and peers",
        ),
        deltas: Family<OfDelta, Counter> = counters(
            "deltas", "Deltas fetched, by what became of them",
        ),
    }
}

impl Metrics {
    /// Counts what a port refuses.
    pub(crate) fn refusals(&self, port: &'static str) -> Refusals {
        let refused = &self.connections_refused;
        Refusals::by_reason(|reason| refused.get_or_create(&Refusal { port, reason }).clone())
    }

    pub(crate) fn count_check(&self, check: &'static str, passed: bool) {
        let result = if passed { "passed" } else { "failed" };
        self.checks.get_or_create(&Checked { check, result }).inc();
    }

    pub(crate) fn step_took(&self, step: &'static str, took: Duration) {
        self.step_seconds.get_or_create(&OfStep { step }).observe(took.as_secs_f64());
    }
}

/// A member's store with its writes measured.
#[derive(Debug)]
pub(crate) struct TimedStore {
    pub store: RedbStore,
    pub seconds: Histogram,
}

impl LogStore for TimedStore {
    fn image(&self) -> &Image {
        self.store.image()
    }

    fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return self.store.write(batch);
        }
        let begun = Instant::now();
        let written = self.store.write(batch);
        self.seconds.observe(begun.elapsed().as_secs_f64());
        written
    }
}
