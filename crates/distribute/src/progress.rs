//! How far a fetch is, and the counters behind the metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use cohort_transfer::{FetchWait, Offence, SourceKind, SourceName, SourceReport};
use parking_lot::Mutex;
use serde::Serialize;

/// Pairs of source and offence that are counted: a server has few parents and fewer mirrors, and
/// the series of a metric must not grow for ever. More are not counted.
const OFFENDERS_MAX: usize = 256;

/// Bytes received since the start of the agent: `cohort_bytes_received_total{from="mirror|peer"}`.
/// All bytes of bodies count, refused ones included.
#[derive(Debug, Default)]
pub struct ByteCounters {
    mirror: AtomicU64,
    peer: AtomicU64,
    refused_units: AtomicU64,
    offences: Mutex<BTreeMap<(SourceName, Offence), u64>>,
}

impl ByteCounters {
    /// Bytes received from one kind of source.
    #[must_use]
    pub fn received(&self, from: SourceKind) -> u64 {
        self.counter(from).load(Ordering::Relaxed)
    }

    /// Units whose bytes were wrong.
    #[must_use]
    pub fn refused_units(&self) -> u64 {
        self.refused_units.load(Ordering::Relaxed)
    }

    /// How often each source did what, since the start of the agent.
    #[must_use]
    pub fn offences(&self) -> Vec<(SourceName, Offence, u64)> {
        let all = self.offences.lock();
        all.iter().map(|((source, what), count)| (source.clone(), *what, *count)).collect()
    }

    pub(crate) fn count_offence(&self, source: SourceName, what: Offence) {
        let mut all = self.offences.lock();
        if all.len() < OFFENDERS_MAX || all.contains_key(&(source.clone(), what)) {
            *all.entry((source, what)).or_default() += 1;
        }
    }

    pub(crate) fn count(&self, from: SourceKind, bytes: u64) {
        self.counter(from).fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_refused(&self) {
        self.refused_units.fetch_add(1, Ordering::Relaxed);
    }

    fn counter(&self, from: SourceKind) -> &AtomicU64 {
        match from {
            SourceKind::Mirror => &self.mirror,
            SourceKind::Peer => &self.peer,
        }
    }
}

/// How far one fetch is. All zero until the first plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    pub bytes_total: u64,
    /// Bytes of it that are on disk and verified.
    pub bytes_held: u64,
    /// Of those, found verified on disk at the start.
    pub bytes_resumed: u64,
    /// Bytes received from mirrors by this fetch, refused ones included.
    pub bytes_from_mirrors: u64,
    /// Bytes received from peers by this fetch, refused ones included.
    pub bytes_from_peers: u64,
    /// Why nothing more is asked for, while something is missing.
    pub waiting_on: Option<FetchWait>,
    pub sources: Vec<SourceReport>,
}
