//! A zone in virtual time: the real tracker, and servers that are no more than link rates and sets
//! of units.
//!
//! Time goes in steps. In each, the downlink gives leased units to the heads, and every parent sends
//! what its children lack, lowest first, within its own rate and theirs. Reports, complaints,
//! requests and spare parents follow the same rules and times as the real servers'.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cohort_core::ids::{GroupId, ServerId};
use cohort_distribute::{Participant, Tracker, TransferRequest, UnitRun, UnitSet};

use super::origin::Origin;
use super::server::{Server, UNIT_BYTES};
use super::setup::{Outcome, Setup};

/// One step, in milliseconds: about what a unit takes from server to server, with the check.
pub(crate) const STEP_MS: u64 = 5;

/// When a silent parent is left, in milliseconds.
const SILENCE_MS: u64 = 300;

/// Shortest pause between two reports, in milliseconds.
const REPORT_MS_MIN: u64 = 50;

/// Requests of one server to the origin at once, and units of one.
const REQUESTS_MAX: usize = 2;
const REQUEST_UNITS_MAX: u32 = 64;

/// Nothing takes longer, in milliseconds.
pub(crate) const END_MS: u64 = 3_600_000;

/// Runs until all that live have everything.
pub(crate) fn run(setup: &Setup) -> Outcome {
    let (mut zone, mut origin) = (Zone::new(setup), Origin::boundless());
    let mut ms = 0;
    while !zone.is_done() {
        origin.refill(STEP_MS);
        zone.step(ms, &mut origin);
        ms += STEP_MS;
        assert!(ms < END_MS, "not done after an hour: {setup:?}");
    }
    zone.outcome()
}

pub(crate) struct Zone<'a> {
    setup: &'a Setup,
    servers: Vec<Server>,
    names: Vec<ServerId>,
    places: BTreeMap<ServerId, usize>,
    tracker: Tracker,
    begun: Instant,
    downlink: u64,
    wan_bytes: u64,
    crossed_bytes: u64,
    reports: u64,
    depth: usize,
    /// The new leader was first reported to, and had told everybody, in milliseconds.
    rebuilt: Option<(u64, Option<u64>)>,
}

impl<'a> Zone<'a> {
    pub(crate) fn new(setup: &'a Setup) -> Self {
        let servers: Vec<Server> = (0..setup.servers).map(|n| Server::new(setup, n)).collect();
        let names: Vec<ServerId> = servers.iter().map(|server| server.id.clone()).collect();
        let places = names.iter().enumerate().map(|(n, id)| (id.clone(), n)).collect();
        Self {
            setup,
            servers,
            names,
            places,
            tracker: Tracker::default(),
            begun: Instant::now(),
            downlink: 0,
            wan_bytes: 0,
            crossed_bytes: 0,
            reports: 0,
            depth: 0,
            rebuilt: None,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.servers.iter().all(|server| !server.counts() || server.whole_ms.is_some())
    }

    pub(crate) fn step(&mut self, ms: u64, origin: &mut Origin) {
        for (place, at) in &self.setup.die {
            if ms >= *at {
                self.kill(*place, origin);
            }
        }
        if self.setup.head_dies == Some(ms) {
            let head = self.tracker.view(self.now(ms)).pop().and_then(|mut view| view.heads.pop());
            if let Some(place) = head.and_then(|head| self.places.get(&head).copied()) {
                self.kill(place, origin);
            }
        }
        let leaderless = self.setup.no_leader.is_some_and(|(from, over)| {
            if ms == from {
                self.tracker.clear();
            }
            (from..from + over).contains(&ms)
        });
        for place in 0..self.servers.len() {
            let server = &mut self.servers[place];
            server.refill(STEP_MS);
            let soon = server.reported_ms.map_or(0, |at| at + REPORT_MS_MIN);
            if server.dead || server.told_whole || server.due_ms.max(soon) > ms {
                continue;
            }
            server.due_ms = ms + 250;
            server.reported_ms = Some(ms);
            if !leaderless {
                self.report(place, ms);
            }
        }
        self.fetch(ms, origin);
        self.send(ms);
        for server in &mut self.servers {
            if server.whole_ms.is_none() && server.have.is_full() {
                server.whole_ms = Some(ms + STEP_MS);
                server.due_ms = ms + STEP_MS;
            }
        }
    }

    fn kill(&mut self, place: usize, origin: &mut Origin) {
        let server = &mut self.servers[place];
        server.dead = true;
        for _ in server.requests.drain(..) {
            origin.answered();
        }
    }

    fn now(&self, ms: u64) -> Instant {
        self.begun + Duration::from_millis(ms)
    }

    fn report(&mut self, place: usize, ms: u64) {
        let group: GroupId = "zone".parse().expect("a name");
        let now = self.now(ms);
        let server = &mut self.servers[place];
        let report = server.report(&self.names, ms);
        let from = Participant {
            server: server.id.clone(),
            address: "-".to_owned(),
            rack: server.rack.clone(),
            leads: place == 0,
        };
        let request = TransferRequest { version: 1, group, transfers: vec![report] };
        let answer = self.tracker.report(&from, &request, now).expect("a report within limits");
        self.reports += 1;
        server.due_ms = ms + answer.again_ms;
        // A server that lies goes on to do so.
        server.told_whole = server.whole_ms.is_some() && server.lie.is_none();
        for (_, guidance) in answer.guidance {
            server.hear(guidance, ms, &self.places);
        }
        self.watch_new_leader(ms);
        if ms % 500 < STEP_MS
            && place == 0
            && let Some(view) = self.tracker.view(now).pop()
        {
            let depths = view.servers.iter().filter(|server| server.there).map(|s| s.depth);
            self.depth = self.depth.max(depths.max().unwrap_or(0));
        }
    }

    fn watch_new_leader(&mut self, ms: u64) {
        let Some(begun) = self.setup.no_leader.map(|(from, over)| from + over) else { return };
        if ms < begun {
            return;
        }
        let (first, last) = self.rebuilt.get_or_insert((ms, None));
        let mut waiting = self
            .servers
            .iter()
            .filter(|server| server.counts() && !server.told_whole && server.heard_ms < *first);
        if last.is_none() && waiting.next().is_none() {
            *last = Some(ms);
        }
    }

    /// The downlink, and what the origin gives, are shared by the heads.
    fn fetch(&mut self, ms: u64, origin: &mut Origin) {
        let more = self.setup.downlink * STEP_MS / 1_000;
        self.downlink = (self.downlink + more).min(more + 2 * UNIT_BYTES);
        let mut asking: Vec<usize> = Vec::new();
        for (place, server) in self.servers.iter_mut().enumerate() {
            if server.dead || server.guidance.is_none() {
                continue;
            }
            let wanted = server.may_ask(ms);
            ask(server, wanted, ms, origin);
            if !server.requests.is_empty() {
                asking.push(place);
            }
        }
        let mut moved = true;
        while moved {
            moved = false;
            for place in &asking {
                let server = &mut self.servers[*place];
                for at in (0..server.requests.len()).rev() {
                    if self.downlink < UNIT_BYTES || !server.can_take() || !origin.take_unit() {
                        break;
                    }
                    let request = &mut server.requests[at];
                    let unit = request.run_from(0, 1).map(|run| run.first);
                    let Some(unit) = unit else { continue };
                    request.remove(unit);
                    if request.is_empty() {
                        server.requests.remove(at);
                        origin.answered();
                    }
                    server.take(unit, true);
                    self.downlink -= UNIT_BYTES;
                    self.wan_bytes += UNIT_BYTES;
                    moved = true;
                }
            }
        }
    }

    /// Every parent sends to its children in turn.
    fn send(&mut self, ms: u64) {
        let links = self.links(ms);
        let mut moved = true;
        while moved {
            moved = false;
            for &(parent, child) in &links {
                let (above, below) = (&self.servers[parent], &self.servers[child]);
                if !above.can_send(ms) || !below.can_take() {
                    continue;
                }
                let mut lacks = above.ready.clone();
                lacks.subtract(&below.have);
                let Some(UnitRun { first, .. }) = lacks.run_from(0, 1) else { continue };
                if above.rack != below.rack {
                    self.crossed_bytes += UNIT_BYTES;
                }
                self.servers[parent].sent(ms);
                self.servers[child].take(first, false);
                moved = true;
            }
        }
    }

    /// Who sends to whom in this step.
    fn links(&mut self, ms: u64) -> Vec<(usize, usize)> {
        let dead: Vec<bool> = self.servers.iter().map(|server| server.dead).collect();
        let mut links: Vec<(usize, usize)> = Vec::new();
        for (place, child) in self.servers.iter_mut().enumerate() {
            if child.dead || child.have.is_full() {
                continue;
            }
            let feeds =
                child.feeds.iter().chain(&child.heir_feeds(ms)).copied().collect::<Vec<_>>();
            for feed in feeds {
                if !dead[feed] {
                    links.push((feed, place));
                    continue;
                }
                // A link that breaks is told at once.
                let since = *child.silent.entry(feed).or_insert(ms);
                child.due_ms = child.due_ms.min(ms + REPORT_MS_MIN);
                let spare = child.spares.iter().find(|spare| !dead[**spare]);
                if ms >= since + SILENCE_MS
                    && let Some(spare) = spare
                {
                    links.push((*spare, place));
                }
            }
        }
        links
    }

    pub(crate) fn outcome(&self) -> Outcome {
        let size = u64::from(self.setup.units) * UNIT_BYTES;
        let last = |own: bool| {
            let servers = self.servers.iter().enumerate();
            let counted = servers.filter(|(n, server)| {
                server.counts() && (own || !self.setup.links.contains_key(n))
            });
            counted.filter_map(|(_, server)| server.whole_ms).max().unwrap_or(0)
        };
        let limit_ms = size * 1_000 / self.setup.downlink.min(self.setup.link);
        let (all_ms, others_ms) = (last(true), last(false));
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let part = |a: u64, b: u64| a as f64 / b as f64;
        Outcome {
            all_ms,
            others_ms,
            ratio: part(others_ms, limit_ms),
            wan: part(self.wan_bytes, size),
            depth: self.depth,
            reports_per_s: self.reports * 1_000 / all_ms.max(1),
            crossed: part(self.crossed_bytes, size),
            rebuilt_ms: self
                .rebuilt
                .map_or(0, |(first, last)| last.map_or(u64::MAX, |last| last - first)),
        }
    }
}

/// Asks the origin for what is wanted, lowest first, as long as it does not say no.
fn ask(server: &mut Server, mut wanted: UnitSet, ms: u64, origin: &mut Origin) {
    while server.requests.len() < REQUESTS_MAX && ms >= server.out_until_ms {
        let Some(run) = wanted.run_from(0, REQUEST_UNITS_MAX) else { return };
        wanted.remove_run(run);
        match origin.ask(ms) {
            Ok(()) => server.requests.push(UnitSet::from_runs(wanted.count(), &[run])),
            Err(away_ms) => server.out_until_ms = ms + away_ms,
        }
    }
}
