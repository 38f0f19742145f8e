//! The sums of a transfer, for people. No plan depends on them.

use std::collections::BTreeMap;
use std::time::Duration;

use cohort_core::ids::ServerId;

use super::MEMBERS_MAX;
use super::message::{Accusation, TransferReport};
use crate::Moment;
use crate::source::SourceName;

/// Fewer bytes, or less time, say nothing about a downlink: bytes in flight and late reports would
/// dominate.
const DOWNLINK_BYTES_MIN: u64 = 1 << 20;
const DOWNLINK_OVER: Duration = Duration::from_millis(500);

/// The sums of one transfer.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: BTreeMap<ServerId, Entry>,
    /// When bytes from mirrors were first and last reported.
    mirrored: Option<(Moment, Moment)>,
}

/// The sums of one server.
#[derive(Debug)]
pub(super) struct Entry {
    /// Bytes from mirrors and servers of earlier fetches, and of the current one, which counts from
    /// zero.
    before: (u64, u64),
    now: (u64, u64),
    heard: Moment,
    /// When it first reported to hold everything.
    pub(super) whole: Option<Moment>,
    /// What it blames its sources for.
    pub(super) accusations: Vec<Accusation>,
}

impl Entry {
    pub(super) fn mirror_bytes(&self) -> u64 {
        self.before.0.saturating_add(self.now.0)
    }

    pub(super) fn peer_bytes(&self) -> u64 {
        self.before.1.saturating_add(self.now.1)
    }
}

impl Ledger {
    /// Takes a report; `whole` when the server holds everything.
    pub(super) fn take(
        &mut self,
        server: &ServerId,
        report: &TransferReport,
        whole: bool,
        now: Moment,
    ) {
        if self.entries.len() >= MEMBERS_MAX && !self.entries.contains_key(server) {
            return;
        }
        let entry = self.entries.entry(server.clone()).or_insert_with(|| Entry {
            before: (0, 0),
            now: (0, 0),
            heard: now,
            whole: None,
            accusations: Vec::new(),
        });
        let since = std::mem::replace(&mut entry.heard, now);
        entry.whole = whole.then(|| entry.whole.unwrap_or(now));
        let said = (report.mirror_bytes, report.peer_bytes);
        if whole && said == (0, 0) {
            // The fetch is over, and its counters with it.
            return;
        }
        if said.0 > entry.now.0 {
            let since = self.mirrored.map_or(since, |(since, _)| since);
            self.mirrored = Some((since, now));
        }
        if said.0 < entry.now.0 || said.1 < entry.now.1 {
            entry.before = (entry.mirror_bytes(), entry.peer_bytes());
        }
        entry.now = said;
        entry.accusations.clone_from(&report.offences);
        for accusation in &mut entry.accusations {
            if let SourceName::Mirror(url) = &accusation.source {
                accusation.source = SourceName::mirror(url);
            }
        }
    }

    pub(super) fn of(&self, server: &ServerId) -> Option<&Entry> {
        self.entries.get(server)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&ServerId, &Entry)> {
        self.entries.iter()
    }

    /// The rate of mirrors from the first byte to the last, in bytes per second: the downlink, or
    /// what limits permitted of it.
    pub(super) fn downlink_rate(&self) -> Option<u64> {
        let (since, until) = self.mirrored?;
        let over = until.saturating_sub(since);
        let entries = self.entries.values();
        let bytes = entries.fold(0, |sum: u64, entry| sum.saturating_add(entry.mirror_bytes()));
        if bytes < DOWNLINK_BYTES_MIN || over < DOWNLINK_OVER {
            return None;
        }
        let us = u64::try_from(over.as_micros()).unwrap_or(u64::MAX).max(1);
        Some(bytes.saturating_mul(1_000_000) / us)
    }
}
