//! What a fetch remembers of everyone it can ask.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use cohort_core::orders::Source;
use rand::TryRngCore as _;
use rand::rngs::OsRng;

use crate::limits::Limits;
use crate::mirrors::MirrorList;
use crate::offence::{Offence, Offences};
use crate::plan::{SourceId, SourceKind, SourceView};
use crate::progress::{SourceReport, cut};
use crate::request::{Measured, RequestError};

/// A measurement over fewer bytes (256 KiB) and less time than this says nothing about a rate.
const RATE_BYTES_MIN: u64 = 256 << 10;
const RATE_US_MIN: u64 = 2_000_000;

/// Servers that are remembered for what they did although nobody names them any more.
const OFFENDERS_MAX: usize = 64;

/// Every source of one fetch: the mirrors, and the servers that an order named at some time.
pub(crate) struct Sources {
    known: BTreeMap<SourceId, Known>,
}

struct Known {
    name: String,
    /// Where a server is; nothing for mirrors.
    source: Option<Source>,
    /// Whether the order in force names it.
    listed: bool,
    view: SourceView,
    refused_units: u32,
    offences: Offences,
    last_error: Option<String>,
    backoff: Option<ExponentialBackoff>,
    failed_at: Option<Instant>,
}

impl Sources {
    /// The mirrors by their ranking; servers come with the orders.
    pub(crate) fn new(mirrors: &MirrorList) -> Self {
        let ranked = (0..).zip(mirrors.ranked());
        let known = ranked.map(|(rank, index)| {
            (SourceId::Mirror(index), Known::new(cut(&mirrors.name(index)), None, rank))
        });
        Self { known: known.collect() }
    }

    /// Takes the servers that may be asked now. What is known of them stays.
    pub(crate) fn follow(&mut self, servers: &[Source]) {
        for (id, known) in &mut self.known {
            known.listed = id.kind() == SourceKind::Mirror;
        }
        for (rank, source) in (0..).zip(servers) {
            let id = SourceId::Peer(source.server.clone());
            let name = cut(source.server.as_str());
            let known = self.known.entry(id).or_insert_with(|| Known::new(name, None, rank));
            if known.source.as_ref() != Some(source) {
                // A new address deserves a new try, wrong bytes elsewhere do not.
                if known.refused_units == 0 {
                    known.view.out_until_ms = None;
                }
                known.source = Some(source.clone());
            }
            known.listed = true;
            known.view.rank = rank;
        }
        // Those that were dropped are kept while an answer of theirs may still come. What they did
        // wrong is not forgotten; that they did not answer is.
        let mut offenders = 0;
        self.known.retain(|_, known| {
            let offender = !known.listed && !known.offences.is_empty();
            offenders += usize::from(offender);
            if !known.listed {
                known.view.failures = 0;
            }
            known.listed || known.view.requests > 0 || offender && offenders <= OFFENDERS_MAX
        });
    }

    /// What the planner may choose from.
    pub(crate) fn views(&self) -> BTreeMap<SourceId, SourceView> {
        let listed = self.known.iter().filter(|(_, known)| known.listed);
        listed.map(|(id, known)| (id.clone(), known.view.clone())).collect()
    }

    /// Where a server is.
    pub(crate) fn address(&self, id: &SourceId) -> Option<Source> {
        self.known.get(id)?.source.clone()
    }

    pub(crate) fn began(&mut self, id: &SourceId) {
        if let Some(known) = self.known.get_mut(id) {
            known.view.requests += 1;
        }
    }

    /// Takes the outcome of a request that began at `began`.
    pub(crate) fn ended(
        &mut self,
        id: &SourceId,
        began: Instant,
        measured: &Measured,
        failure: Option<&RequestError>,
        now_ms: u64,
        limits: &Limits,
    ) {
        let Some(known) = self.known.get_mut(id) else { return };
        known.view.requests = known.view.requests.saturating_sub(1);
        known.measure(measured);
        if measured.units > 0 || failure.is_none() {
            known.delivered(began);
        }
        let Some(error) = failure else { return };
        known.last_error = Some(cut(&error.to_string()));
        if let Some(offence) = Offence::of(error) {
            *known.offences.entry(offence).or_default() += 1;
        }
        let pause_ms = match error {
            RequestError::RangesIgnored => {
                known.view.ranges = false;
                return;
            }
            RequestError::Busy { retry_after_ms } => {
                // It takes what is under way, and no more.
                known.view.requests_max = known.view.requests.max(1);
                let ms = (*retry_after_ms).min(limits.retry_after_ms_max);
                // Spread, so that those who were sent away together do not return together.
                ms + OsRng.try_next_u64().unwrap_or(0) % (ms / 2 + 1)
            }
            RequestError::Absent if id.kind() == SourceKind::Peer => limits.absent_ms,
            RequestError::Wrong(_) => {
                known.refused_units = known.refused_units.saturating_add(1);
                let doubled = limits.wrong_bytes_ms << known.refused_units.min(6).saturating_sub(1);
                known.fail();
                doubled.max(limits.wrong_bytes_ms)
            }
            // Being slow is in the measured rate; our own disk is nobody else's failure.
            RequestError::Slow { .. } | RequestError::Disk(_) => return,
            RequestError::Absent
            | RequestError::Connection(_)
            | RequestError::Stalled { .. }
            | RequestError::Status(_)
            | RequestError::Length(_) => {
                known.fail();
                let backoff = known.backoff.get_or_insert_with(|| backoff(limits));
                let pause = backoff.next().unwrap_or(Duration::from_millis(limits.backoff_ms_max));
                u64::try_from(pause.as_millis()).unwrap_or(limits.backoff_ms_max)
            }
        };
        let until = now_ms.saturating_add(pause_ms);
        known.view.out_until_ms = Some(known.view.out_until_ms.unwrap_or(0).max(until));
    }

    /// How every one of them does that was asked, or is to be named for what it did.
    pub(crate) fn reports(&self) -> Vec<SourceReport> {
        let asked = self
            .known
            .iter()
            .filter(|(id, known)| id.kind() == SourceKind::Peer || known.was_asked());
        asked.map(|(id, known)| known.report(id.kind())).collect()
    }

    /// Every source that failed, with its last error: for the final error of a fetch.
    pub(crate) fn complaints(&self) -> BTreeSet<String> {
        let known = self.known.values();
        known
            .filter_map(|known| Some(format!("{} {}", known.name, known.last_error.as_ref()?)))
            .collect()
    }
}

impl Known {
    fn new(name: String, source: Option<Source>, rank: u32) -> Self {
        let view = SourceView {
            rank,
            requests: 0,
            requests_max: usize::MAX,
            failures: 0,
            out_until_ms: None,
            rate: 0,
            ranges: true,
        };
        Self {
            name,
            source,
            listed: true,
            view,
            refused_units: 0,
            offences: Offences::new(),
            last_error: None,
            backoff: None,
            failed_at: None,
        }
    }

    /// A request that began at `began` brought something: past failures are forgiven, but not one
    /// since then.
    fn delivered(&mut self, began: Instant) {
        if self.failed_at.is_none_or(|failed| failed < began) {
            self.view.failures = 0;
            self.backoff = None;
        }
    }

    fn fail(&mut self) {
        self.view.failures = self.view.failures.saturating_add(1);
        self.failed_at = Some(Instant::now());
    }

    fn measure(&mut self, measured: &Measured) {
        let us = u64::try_from(measured.elapsed.as_micros()).unwrap_or(u64::MAX);
        let enough = measured.bytes >= RATE_BYTES_MIN || us >= RATE_US_MIN;
        if !enough || us == 0 {
            return;
        }
        let rate = measured.bytes.saturating_mul(1_000_000) / us;
        let before = self.view.rate;
        self.view.rate = if before == 0 { rate } else { before / 2 + rate / 2 }.max(1);
    }

    fn was_asked(&self) -> bool {
        self.view.requests > 0 || self.view.rate > 0 || self.last_error.is_some()
    }

    fn report(&self, kind: SourceKind) -> SourceReport {
        SourceReport {
            name: self.name.clone(),
            kind,
            requests: self.view.requests,
            rate: self.view.rate,
            failures: self.view.failures,
            refused_units: self.refused_units,
            last_error: self.last_error.clone(),
            offences: self.offences.clone(),
        }
    }
}

fn backoff(limits: &Limits) -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(limits.backoff_ms_min))
        .with_max_delay(Duration::from_millis(limits.backoff_ms_max))
        .without_max_times()
        .with_jitter()
        .build()
}
