//! The progress of a fetch, and the counters behind the metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use cohort_transfer::{FetchWait, Offence, SourceKind, SourceName, SourceReport};
use parking_lot::Mutex;
use serde::Serialize;

/// Pairs of source and offence that are counted: a server has few parents and fewer mirrors, and a
/// metric's series must not grow forever. More are not counted.
const OFFENDERS_MAX: usize = 256;

/// Bytes received since the agent started: `cohort_bytes_received_total{from="mirror|peer"}`.
/// Counts all body bytes, including refused ones.
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

    /// Units with wrong bytes.
    #[must_use]
    pub fn refused_units(&self) -> u64 {
        self.refused_units.load(Ordering::Relaxed)
    }

    /// How often each source committed each offence, since the agent started.
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

/// The progress of one fetch. All zero until the first plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    pub bytes_total: u64,
    /// Bytes of it that are on disk and verified.
    pub bytes_held: u64,
    /// Of those, bytes found verified on disk at start.
    pub bytes_resumed: u64,
    /// Bytes that this fetch received from mirrors, including refused ones.
    pub bytes_from_mirrors: u64,
    /// Bytes that this fetch received from peers, including refused ones.
    pub bytes_from_peers: u64,
    /// Why nothing more is requested while something is missing.
    pub waiting_on: Option<FetchWait>,
    pub sources: Vec<SourceReport>,
}
