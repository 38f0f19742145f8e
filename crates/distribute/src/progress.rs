//! What a fetch shows of itself while it runs, and what is counted.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::limits::NAME_BYTES_MAX;
use crate::plan::{FetchWait, SourceKind};

/// Bytes received since the start of the agent: `cohort_bytes_received_total{from="mirror|peer"}`.
/// All bytes of bodies count, also those that were refused.
#[derive(Debug, Default)]
pub struct ByteCounters {
    mirror: AtomicU64,
    peer: AtomicU64,
    refused_units: AtomicU64,
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
    /// Length of the artifact in bytes.
    pub bytes_total: u64,
    /// Bytes of it that are on disk and verified.
    pub bytes_held: u64,
    /// Of those, found verified on disk at the start.
    pub bytes_resumed: u64,
    /// Bytes received from mirrors by this fetch, refused ones included.
    pub bytes_from_mirrors: u64,
    /// Bytes received from peers by this fetch, refused ones included.
    pub bytes_from_peers: u64,
    /// Why nothing more is asked for now, while something is missing.
    pub waiting_on: Option<FetchWait>,
    /// Who was asked, and how it went.
    pub sources: Vec<SourceReport>,
}

/// How one source does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceReport {
    /// The server's id, or the mirror's URL.
    pub name: String,
    /// Which kind.
    pub kind: SourceKind,
    /// Requests under way.
    pub requests: usize,
    /// Measured rate, in bytes per second; 0: not known yet.
    pub rate: u64,
    /// Failures since the last unit that was right.
    pub failures: u32,
    /// Units with wrong bytes that it sent to this fetch.
    pub refused_units: u32,
    /// Its last failure.
    pub last_error: Option<String>,
}

/// Cuts a text for people to a bounded length.
pub(crate) fn cut(text: &str) -> String {
    let mut end = text.len().min(NAME_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
