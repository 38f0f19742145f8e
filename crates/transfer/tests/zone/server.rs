//! A server of a simulated zone: the production fetcher behind a link of limited rate.

use std::collections::BTreeMap;
use std::sync::Arc;

use cohort_core::ids::{Digest, ServerId};
use cohort_core::orders::FetchOrder;
use cohort_core::release::{Release, Rollback};
use cohort_transfer::tracker::{HAVE_RUNS_MAX, TransferReport};
use cohort_transfer::{
    Effect, Failure, Fetcher, Guidance, Limits, Outcome, RequestId, Target, UNIT_BYTES, UnitRun,
    UnitSet, What,
};

use super::origin::{Origin, RETRY_AFTER_MS};
use super::setup::{Lie, Setup};

/// Longest time between two decisions of a server, in milliseconds.
const DECIDE_MS: u64 = 50;

/// Shortest pause between two reports, in milliseconds.
pub(crate) const REPORT_MS_MIN: u64 = 50;

pub(crate) struct Server {
    pub(crate) id: ServerId,
    pub(crate) rack: Option<String>,
    fetcher: Fetcher,
    guidance: Option<Guidance>,
    pub(crate) have: UnitSet,
    /// What it had when the step started: a unit takes a step to be verified and forwarded.
    pub(crate) ready: UnitSet,
    /// The parents it is subscribed to.
    pub(crate) links: BTreeMap<RequestId, usize>,
    /// Open requests to the origin.
    pub(crate) requests: BTreeMap<RequestId, InFlight>,
    decide_ms: u64,
    mirror_busy: bool,
    /// When the leader last responded.
    pub(crate) heard_ms: u64,
    pub(crate) due_ms: u64,
    pub(crate) reported_ms: Option<u64>,
    mirror_bytes: u64,
    peer_bytes: u64,
    link: u64,
    /// Bytes that may come in, and go out, right now.
    inward: u64,
    outward: u64,
    pub(crate) dead: bool,
    pub(crate) lie: Option<Lie>,
    sent_ms: u64,
    reports: u64,
    pub(crate) whole_ms: Option<u64>,
    pub(crate) told_whole: bool,
}

/// A request to the origin.
pub(crate) struct InFlight {
    pub(crate) left: UnitSet,
    units: u32,
    begun_ms: u64,
}

impl Server {
    pub(crate) fn new(setup: &Setup, place: usize) -> Self {
        let none = UnitSet::empty(setup.units);
        let order = FetchOrder { release: release(setup), from_mirror: false, sources: Vec::new() };
        let mirrors = [(0, "origin".to_owned())];
        Self {
            id: format!("s{place:04}").parse().expect("a label"),
            rack: setup.rack.map(|size| format!("rack-{}", place / size)),
            fetcher: Fetcher::new(order, &mirrors, Arc::new(Limits::default())),
            guidance: None,
            have: none.clone(),
            ready: none,
            links: BTreeMap::new(),
            requests: BTreeMap::new(),
            decide_ms: 0,
            mirror_busy: false,
            heard_ms: 0,
            // Orders reach the servers within a tenth of a second.
            due_ms: (place as u64 * 7) % 100,
            reported_ms: None,
            mirror_bytes: 0,
            peer_bytes: 0,
            link: setup.links.get(&place).copied().unwrap_or(setup.link),
            inward: 0,
            outward: 0,
            dead: false,
            lie: setup.lies.get(&place).copied(),
            sent_ms: 0,
            reports: 0,
            whole_ms: None,
            told_whole: false,
        }
    }

    /// Whether the transfer lasts until this server has everything.
    pub(crate) fn counts(&self) -> bool {
        !self.dead && self.lie.is_none()
    }

    /// Unused capacity of a link is lost.
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

    /// Takes the next unit of a request from the origin, if the server's link has room.
    pub(crate) fn take_of(&mut self, id: RequestId, ms: u64, origin: &mut Origin) -> bool {
        let room = self.can_take();
        let Some(request) = self.requests.get_mut(&id).filter(|_| room) else { return false };
        let Some(run) = request.left.run_from(0, 1).filter(|_| origin.take_unit()) else {
            return false;
        };
        request.left.remove_run(run);
        if request.left.is_empty() {
            let outcome = Outcome {
                bytes: u64::from(request.units) * UNIT_BYTES,
                elapsed_us: (ms + 1 - request.begun_ms) * 1_000,
                units: request.units,
                failure: None,
            };
            self.requests.remove(&id);
            origin.answered();
            self.ended(id, outcome, ms, origin);
        }
        self.take(run.first, true);
        true
    }

    fn ended(&mut self, id: RequestId, outcome: Outcome, ms: u64, origin: &mut Origin) {
        self.fetcher.ended(id, outcome, ms, origin.random());
        self.decide_ms = ms;
    }

    /// A link to a dead parent breaks; one to a live parent shows that it lives.
    pub(crate) fn listen(&mut self, dead: &[bool], ms: u64, origin: &mut Origin) {
        let links: Vec<(RequestId, usize)> = self.links.iter().map(|(id, at)| (*id, *at)).collect();
        for (id, parent) in links {
            if dead[parent] {
                self.links.remove(&id);
                let failure = Some((Failure::Unreachable, "is dead".to_owned()));
                self.ended(id, Outcome { failure, ..Outcome::default() }, ms, origin);
                self.due_ms = self.due_ms.min(ms + REPORT_MS_MIN);
            } else {
                self.fetcher.heard_from(id, ms + 1);
            }
        }
    }

    pub(crate) fn hear(&mut self, guidance: Guidance, ms: u64) {
        self.fetcher.hear(Some(&guidance), ms, ms);
        self.guidance = Some(guidance);
        self.heard_ms = ms;
        self.decide_ms = ms;
    }

    /// Carries out what the fetcher decides.
    pub(crate) fn decide(
        &mut self,
        ms: u64,
        places: &BTreeMap<ServerId, usize>,
        origin: &mut Origin,
    ) {
        if ms < self.decide_ms || self.have.is_full() {
            return;
        }
        let step = self.fetcher.step(ms, Some(&self.have), origin.random());
        self.mirror_busy =
            matches!(step.waiting_on, Some(cohort_transfer::FetchWait::Sources { .. }));
        self.decide_ms = step.wake_at_ms.unwrap_or(u64::MAX).min(ms + DECIDE_MS);
        for effect in step.effects {
            match effect {
                Effect::Cancel { id } => {
                    self.links.remove(&id);
                }
                Effect::Ask { id, target: Target::Server(parent), .. } => {
                    self.links.insert(id, places[&parent.server]);
                }
                Effect::Ask { id, what: What::Units(run), .. } if origin.ask(ms) => {
                    let left = UnitSet::from_runs(self.have.count(), &[run]);
                    self.requests.insert(id, InFlight { left, units: run.count, begun_ms: ms });
                }
                Effect::Ask { id, .. } => {
                    let busy = Failure::Busy { retry_after_ms: RETRY_AFTER_MS };
                    let failure = Some((busy, "is busy".to_owned()));
                    self.ended(id, Outcome { failure, ..Outcome::default() }, ms, origin);
                }
            }
        }
    }

    pub(crate) fn report(&mut self, names: &[ServerId]) -> TransferReport {
        self.reports += 1;
        let release = &self.fetcher.order().release;
        let count = self.have.count();
        let all = vec![UnitRun { first: 0, count }];
        let mut report = TransferReport {
            have: self.have.runs(HAVE_RUNS_MAX),
            mirror_bytes: self.mirror_bytes,
            peer_bytes: self.peer_bytes,
            mirror_busy: self.mirror_busy,
            ..TransferReport::new(release.artifact.clone(), release.length)
        };
        report.told(self.guidance.as_ref());
        report.sources(&self.fetcher.reports());
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

fn release(setup: &Setup) -> Release {
    let digest: Digest = "ab".repeat(32).parse().expect("a digest");
    Release {
        version: "1.0.0".parse().expect("a version"),
        platform: "linux/amd64".parse().expect("a platform"),
        artifact: digest.clone(),
        manifest: digest,
        length: u64::from(setup.units) * UNIT_BYTES,
        unpacked_bytes: 64 << 30,
        entries: 250_000,
        rollback: Rollback::Revert,
    }
}
