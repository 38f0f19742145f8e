//! What a fetch remembers about its sources: rate, when to ask again, what to blame them for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cohort_base::retry::Schedule;
use cohort_core::orders::Source;

use crate::limits::Limits;
use crate::offence::{Failure, Offence, Offences};
use crate::source::{Outcome, SourceId, SourceName, SourceReport};

/// A measurement over less than this (256 KiB) and less time (2 s) says nothing about a rate.
const RATE_BYTES_MIN: u64 = 256 << 10;
const RATE_US_MIN: u64 = 2_000_000;

/// Servers no longer named that are remembered for what they did.
const OFFENDERS_MAX: usize = 64;

/// When a request ended, a random number for it, and the limits in force.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) now_ms: u64,
    pub(super) random: u64,
    pub(super) limits: &'a Limits,
}

/// The mirrors, and all servers that the leader or an order ever named.
#[derive(Debug)]
pub(super) struct Sources {
    known: BTreeMap<SourceId, Record>,
    /// Not yet taken by [`Sources::take_offences`].
    offences: Vec<(SourceName, Offence)>,
}

#[derive(Debug)]
struct Record {
    name: SourceName,
    /// A server's address; none for mirrors.
    address: Option<Source>,
    /// Whether it is named now.
    listed: bool,
    /// Rank among the mirrors; lowest preferred.
    rank: usize,
    /// Concurrent requests that it accepts; lowered when it is busy.
    requests_max: usize,
    /// Failures since its last good unit.
    failures: u32,
    failed_ms: Option<u64>,
    /// Not to be asked before this time.
    out_until_ms: Option<u64>,
    /// Bytes per second; 0 while unknown.
    rate: u64,
    ranges: bool,
    refused_units: u32,
    offences: Offences,
    last_error: Option<String>,
}

impl Sources {
    pub(super) fn new(mirrors: &[(usize, String)]) -> Self {
        let known = mirrors.iter().enumerate().map(|(rank, (index, name))| {
            (SourceId::Mirror(*index), Record::new(SourceName::mirror(name), rank))
        });
        Self { known: known.collect(), offences: Vec::new() }
    }

    /// Updates the servers that may be asked. What is known about them stays.
    pub(super) fn list(&mut self, servers: &[&Source], in_use: impl Fn(&SourceId) -> bool) {
        for (id, record) in &mut self.known {
            record.listed = matches!(id, SourceId::Mirror(_));
        }
        for source in servers {
            let id = SourceId::Server(source.server.clone());
            let new = || Record::new(SourceName::Server(source.server.clone()), 0);
            let record = self.known.entry(id).or_insert_with(new);
            if record.address.as_ref() != Some(*source) {
                // A new address deserves another try; wrong bytes from the old one are not
                // forgiven.
                if record.refused_units == 0 {
                    record.out_until_ms = None;
                }
                record.address = Some((*source).clone());
            }
            record.listed = true;
        }
        // One no longer named is kept while a request to it is in flight, and if it did wrong. That
        // it did not respond is forgotten.
        let mut offenders = 0;
        self.known.retain(|id, record| {
            let offender = !record.listed && !record.offences.is_empty();
            offenders += usize::from(offender);
            if !record.listed {
                record.failures = 0;
            }
            record.listed || in_use(id) || offender && offenders <= OFFENDERS_MAX
        });
    }

    pub(super) fn address(&self, id: &SourceId) -> Option<Source> {
        self.known.get(id)?.address.clone()
    }

    pub(super) fn is_usable(&self, id: &SourceId, now_ms: u64) -> bool {
        self.known.get(id).is_some_and(|record| record.is_usable(now_ms))
    }

    pub(super) fn failures(&self, id: &SourceId) -> u32 {
        self.known.get(id).map_or(0, |record| record.failures)
    }

    /// The usable mirror with the fewest failures.
    pub(super) fn best_mirror(&self, now_ms: u64) -> Option<SourceId> {
        let usable = self
            .known
            .iter()
            .filter(|(id, record)| matches!(id, SourceId::Mirror(_)) && record.is_usable(now_ms));
        let best = usable.min_by_key(|(_, record)| (record.failures, record.rank));
        best.map(|(id, _)| id.clone())
    }

    /// Rate, whether it supports ranges, and how many concurrent requests it accepts.
    pub(super) fn terms(&self, id: &SourceId, most: usize) -> (u64, bool, usize) {
        let Some(record) = self.known.get(id) else { return (0, true, 0) };
        let most = if record.ranges { record.requests_max.min(most) } else { 1 };
        (record.rate, record.ranges, most)
    }

    /// When the first of the paused sources may be asked again.
    pub(super) fn next_return(&self, mirrors: bool, now_ms: u64) -> Option<u64> {
        let asked = self
            .known
            .iter()
            .filter(|(id, record)| record.listed && (mirrors || matches!(id, SourceId::Server(_))));
        asked.filter_map(|(_, record)| record.out_until_ms).filter(|until| *until > now_ms).min()
    }

    /// Records the outcome of a request that started at `begun_ms`.
    pub(super) fn ended(&mut self, id: &SourceId, begun_ms: u64, outcome: Outcome, at: At<'_>) {
        let Some(record) = self.known.get_mut(id) else { return };
        record.measure(&outcome);
        // A failure since the request started stands: bytes in flight then say nothing about it.
        let forgiven = record.failed_ms.is_none_or(|failed| failed < begun_ms);
        if forgiven && (outcome.units > 0 || outcome.failure.is_none()) {
            record.failures = 0;
        }
        let Some((failure, text)) = outcome.failure else { return };
        record.last_error = Some(text);
        if let Some(offence) = failure.offence() {
            *record.offences.entry(offence).or_default() += 1;
            self.offences.push((record.name.clone(), offence));
        }
        let mirror = matches!(id, SourceId::Mirror(_));
        if let Some(pause_ms) = record.pause_ms(failure, mirror, at) {
            let until_ms = at.now_ms.saturating_add(pause_ms);
            record.out_until_ms = record.out_until_ms.max(Some(until_ms));
        }
    }

    pub(super) fn take_offences(&mut self) -> Vec<(SourceName, Offence)> {
        std::mem::take(&mut self.offences)
    }

    pub(super) fn reports(&self, requests: impl Fn(&SourceId) -> usize) -> Vec<SourceReport> {
        let reports = self.known.iter().map(|(id, record)| (id, record.report(requests(id))));
        let asked = reports.filter(|(id, report)| {
            let used = report.requests > 0 || report.rate > 0 || report.last_error.is_some();
            used || matches!(id, SourceId::Server(_))
        });
        asked.map(|(_, report)| report).collect()
    }

    pub(super) fn complaints(&self) -> BTreeSet<String> {
        let failed = self
            .known
            .values()
            .filter_map(|record| Some(format!("{} {}", record.name, record.last_error.as_ref()?)));
        failed.collect()
    }
}

impl Record {
    fn new(name: SourceName, rank: usize) -> Self {
        Self {
            name,
            address: None,
            listed: true,
            rank,
            requests_max: usize::MAX,
            failures: 0,
            failed_ms: None,
            out_until_ms: None,
            rate: 0,
            ranges: true,
            refused_units: 0,
            offences: Offences::new(),
            last_error: None,
        }
    }

    fn is_usable(&self, now_ms: u64) -> bool {
        self.listed && self.out_until_ms.is_none_or(|until| until <= now_ms)
    }

    /// How long to pause a source after a failure, if at all.
    fn pause_ms(&mut self, failure: Failure, mirror: bool, at: At<'_>) -> Option<u64> {
        let limits = at.limits;
        match failure {
            Failure::NoRanges => {
                self.ranges = false;
                None
            }
            // Slowness shows in the measured rate.
            Failure::Slow => None,
            Failure::Busy { retry_after_ms } => {
                self.requests_max = 1;
                let ms = retry_after_ms.min(limits.retry_after_ms_max);
                // Spread, so that servers turned away together do not return together.
                Some(ms + at.random % (ms / 2 + 1))
            }
            Failure::Absent if !mirror => Some(limits.absent_ms),
            Failure::Misbehaved(Offence::WrongBytes) => {
                self.fail(at.now_ms);
                self.refused_units = self.refused_units.saturating_add(1);
                Some(limits.wrong_bytes_ms << (self.refused_units.min(6) - 1))
            }
            Failure::Absent | Failure::Unreachable | Failure::Misbehaved(_) => {
                self.fail(at.now_ms);
                let first = Duration::from_millis(limits.backoff_ms_min);
                let longest = Duration::from_millis(limits.backoff_ms_max);
                let pause = Schedule::new(first, longest).pause(self.failures, at.random);
                u64::try_from(pause.as_millis()).ok()
            }
        }
    }

    fn fail(&mut self, now_ms: u64) {
        self.failures = self.failures.saturating_add(1);
        self.failed_ms = Some(now_ms);
    }

    fn measure(&mut self, outcome: &Outcome) {
        let us = outcome.elapsed_us;
        if us == 0 || (outcome.bytes < RATE_BYTES_MIN && us < RATE_US_MIN) {
            return;
        }
        let rate = outcome.bytes.saturating_mul(1_000_000) / us;
        self.rate = if self.rate == 0 { rate } else { self.rate / 2 + rate / 2 }.max(1);
    }

    fn report(&self, requests: usize) -> SourceReport {
        SourceReport {
            source: self.name.clone(),
            requests,
            rate: self.rate,
            failures: self.failures,
            refused_units: self.refused_units,
            last_error: self.last_error.clone(),
            offences: self.offences.clone(),
        }
    }
}
