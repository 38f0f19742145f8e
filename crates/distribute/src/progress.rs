//! What a fetch shows of itself while it runs, and what is counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::limits::NAME_BYTES_MAX;
use crate::offence::{Offence, Offences};
use crate::plan::{FetchWait, SourceKind};

/// Sources and offences that are counted: a server has few parents and fewer mirrors, and a series
/// of a metric must not grow for ever. What is beyond goes uncounted.
const OFFENDERS_MAX: usize = 256;

/// Bytes received since the start of the agent: `cohort_bytes_received_total{from="mirror|peer"}`.
/// All bytes of bodies count, also those that were refused.
#[derive(Debug, Default)]
pub struct ByteCounters {
    mirror: AtomicU64,
    peer: AtomicU64,
    refused_units: AtomicU64,
    offences: Mutex<BTreeMap<(String, Offence), u64>>,
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

    /// Which source did what, and how often, since the start of the agent.
    #[must_use]
    pub fn offences(&self) -> Vec<(String, Offence, u64)> {
        let all = self.offences.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|((source, what), count)| (source.clone(), *what, *count)).collect()
    }

    /// Counts what sources did between two looks at the progress of one fetch.
    pub(crate) fn count_offences(&self, before: &Progress, now: &Progress) {
        for source in &now.sources {
            let known = before.sources.iter().find(|known| known.name == source.name);
            for (what, count) in &source.offences {
                let counted = known.and_then(|known| known.offences.get(what)).copied();
                // A source that was dropped and named again counts from zero.
                let more = count.checked_sub(counted.unwrap_or(0)).unwrap_or(*count);
                self.count_offence(&source.name, *what, u64::from(more));
            }
        }
    }

    fn count_offence(&self, source: &str, what: Offence, more: u64) {
        if more == 0 {
            return;
        }
        let mut all = self.offences.lock().unwrap_or_else(PoisonError::into_inner);
        let full = all.len() >= OFFENDERS_MAX;
        let key = (source.to_owned(), what);
        if let Some(count) = all.get_mut(&key) {
            *count += more;
        } else if !full {
            all.insert(key, more);
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
    /// What it did that it is named for, in this fetch.
    pub offences: Offences,
}

/// Cuts a text for people to a bounded length.
pub(crate) fn cut(text: &str) -> String {
    let mut end = text.len().min(NAME_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
