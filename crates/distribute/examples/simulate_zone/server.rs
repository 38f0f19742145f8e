//! A server of a simulated zone: no more than a link, a set of units, and what it was told.

use std::collections::BTreeMap;

use cohort_core::ids::{Digest, ServerId};
use cohort_distribute::{Guidance, HAVE_RUNS_MAX, Told, TransferReport, UnitRun, UnitSet};

use super::setup::{Lie, Setup};

pub(crate) const UNIT_BYTES: u64 = cohort_artifact::UNIT_BYTES as u64;

/// Without a leader for this long, one server goes on by itself, in milliseconds.
const NO_LEADER_MS: u64 = 30_000;

pub(crate) struct Server {
    pub(crate) id: ServerId,
    pub(crate) rack: Option<String>,
    pub(crate) link: u64,
    pub(crate) have: UnitSet,
    /// What it had when the step began: a unit takes a step to be checked and sent on.
    pub(crate) ready: UnitSet,
    pub(crate) guidance: Option<Guidance>,
    /// Places of those that the guidance names.
    pub(crate) feeds: Vec<usize>,
    pub(crate) spares: Vec<usize>,
    heir_at: Option<usize>,
    lease: UnitSet,
    /// The leader last answered.
    pub(crate) heard_ms: u64,
    pub(crate) due_ms: u64,
    pub(crate) reported_ms: Option<u64>,
    pub(crate) mirror_bytes: u64,
    peer_bytes: u64,
    /// Bytes that may come in, and go out.
    inward: u64,
    outward: u64,
    pub(crate) dead: bool,
    pub(crate) lie: Option<Lie>,
    sent_ms: u64,
    reports: u64,
    /// Since when each parent has been dead.
    pub(crate) silent: BTreeMap<usize, u64>,
    pub(crate) whole_ms: Option<u64>,
    pub(crate) told_whole: bool,
    /// What is asked of the origin, and not here yet.
    pub(crate) requests: Vec<UnitSet>,
    /// The origin is to be left alone until then.
    pub(crate) out_until_ms: u64,
}

impl Server {
    pub(crate) fn new(setup: &Setup, place: usize) -> Self {
        let lie = setup.lies.get(&place).copied();
        Self {
            id: format!("s{place:04}").parse().expect("a label"),
            rack: setup.rack.map(|size| format!("rack-{}", place / size)),
            link: setup.links.get(&place).copied().unwrap_or(setup.link),
            have: UnitSet::empty(setup.units),
            ready: UnitSet::empty(setup.units),
            guidance: None,
            feeds: Vec::new(),
            spares: Vec::new(),
            heir_at: None,
            lease: UnitSet::empty(setup.units),
            heard_ms: 0,
            // Orders reach the servers within a tenth of a second.
            due_ms: (place as u64 * 7) % 100,
            reported_ms: None,
            mirror_bytes: 0,
            peer_bytes: 0,
            inward: 0,
            outward: 0,
            dead: false,
            lie,
            sent_ms: 0,
            reports: 0,
            silent: BTreeMap::new(),
            whole_ms: None,
            told_whole: false,
            requests: Vec::new(),
            out_until_ms: 0,
        }
    }

    /// Whether the transfer is not over before this one has everything.
    pub(crate) fn counts(&self) -> bool {
        !self.dead && self.lie.is_none()
    }

    /// What a link could have carried while there was nothing to carry is lost.
    pub(crate) fn refill(&mut self, step_ms: u64) {
        if self.ready.held() != self.have.held() {
            self.ready.clone_from(&self.have);
        }
        let more = self.link * step_ms / 1_000;
        self.inward = (self.inward + more).min(more + 2 * UNIT_BYTES);
        self.outward = (self.outward + more).min(more + 2 * UNIT_BYTES);
    }

    pub(crate) fn can_take(&self) -> bool {
        self.inward >= UNIT_BYTES
    }

    pub(crate) fn can_send(&self, ms: u64) -> bool {
        let willing = match self.lie {
            Some(Lie::Holds | Lie::Hoards | Lie::Wavers) => false,
            Some(Lie::Trickles) => ms >= self.sent_ms + 1_000,
            Some(Lie::Counts | Lie::Complains) | None => true,
        };
        willing && self.outward >= UNIT_BYTES
    }

    pub(crate) fn sent(&mut self, ms: u64) {
        self.outward -= UNIT_BYTES;
        self.sent_ms = ms;
    }

    pub(crate) fn take(&mut self, unit: u32, from_mirror: bool) {
        self.inward -= UNIT_BYTES;
        let bytes = if from_mirror { &mut self.mirror_bytes } else { &mut self.peer_bytes };
        *bytes += UNIT_BYTES;
        self.have.insert(unit);
    }

    pub(crate) fn hear(&mut self, guidance: Guidance, ms: u64, places: &BTreeMap<ServerId, usize>) {
        let place = |server: &ServerId| places.get(server).copied();
        self.feeds = guidance.feeds.iter().filter_map(|s| place(&s.server)).collect();
        self.spares = guidance.spares.iter().filter_map(|s| place(&s.server)).collect();
        self.heir_at = guidance.heir_at.as_ref().and_then(|source| place(&source.server));
        self.lease = UnitSet::from_runs(self.have.count(), &guidance.lease);
        self.guidance = Some(guidance);
        self.heard_ms = ms;
        self.silent.clear();
    }

    /// What it may ask the origin for: its lease, or everything when it goes on alone.
    pub(crate) fn may_ask(&self, ms: u64) -> UnitSet {
        let heir = self.guidance.as_ref().is_some_and(|guidance| guidance.heir);
        let mut wanted = if heir && ms >= self.heard_ms + NO_LEADER_MS {
            UnitSet::full(self.have.count())
        } else {
            self.lease.clone()
        };
        wanted.subtract(&self.have);
        for request in &self.requests {
            wanted.subtract(request);
        }
        wanted
    }

    /// The first head is fed by the heir when there is no leader.
    pub(crate) fn heir_feeds(&self, ms: u64) -> Option<usize> {
        let alone = self.feeds.is_empty() && ms >= self.heard_ms + NO_LEADER_MS;
        self.heir_at.filter(|_| alone && self.guidance.is_some())
    }

    pub(crate) fn report(&mut self, names: &[ServerId], ms: u64) -> TransferReport {
        self.reports += 1;
        let artifact: Digest = "ab".repeat(32).parse().expect("a digest");
        let count = self.have.count();
        let all = vec![UnitRun { first: 0, count }];
        let told = self.guidance.as_ref().map(|guidance| Told {
            feeds: guidance.feeds.iter().map(|source| source.server.clone()).collect(),
            lease: guidance.lease.clone(),
        });
        let mut report = TransferReport {
            artifact,
            length: u64::from(count) * UNIT_BYTES,
            have: self.have.runs(HAVE_RUNS_MAX),
            mirror_bytes: self.mirror_bytes,
            peer_bytes: self.peer_bytes,
            mirror_failed: false,
            mirror_busy: ms < self.out_until_ms,
            told,
            holders: Vec::new(),
            silent: self.silent.keys().map(|place| names[*place].clone()).collect(),
            wrong: Vec::new(),
            offences: Vec::new(),
        };
        match self.lie {
            Some(Lie::Holds) => report.have = all,
            Some(Lie::Wavers) if self.reports.is_multiple_of(2) => report.have = all,
            Some(Lie::Counts) => {
                report.mirror_bytes *= 1_000;
                report.peer_bytes *= 1_000;
            }
            Some(Lie::Complains) => {
                let others = names.iter().filter(|name| **name != self.id).take(HAVE_RUNS_MAX);
                report.silent = others.cloned().collect();
                report.wrong.clone_from(&report.silent);
            }
            Some(Lie::Hoards | Lie::Trickles | Lie::Wavers) | None => {}
        }
        report
    }
}
