//! A zone in virtual time: the production tracker and fetchers, links of given rates.
//!
//! Time passes in steps. In each, the downlink delivers requested units to the heads, and every
//! parent sends what its subscribers lack, lowest first, within its own rate and theirs.

use std::collections::BTreeMap;
use std::time::Duration;

use cohort_core::ids::ServerId;
use cohort_transfer::tracker::{Participant, TransferRequest};
use cohort_transfer::{Moment, RequestId, Tracker, UNIT_BYTES, UnitRun};

use super::origin::Origin;
use super::server::{REPORT_MS_MIN, Server};
use super::setup::{Outcome, Setup};

/// One step, in milliseconds: about the time for a unit from server to server, with verification.
pub(crate) const STEP_MS: u64 = 5;

/// Limit of a simulation, in milliseconds.
pub(crate) const END_MS: u64 = 3_600_000;

/// Runs until all live servers have everything.
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
    downlink: u64,
    wan_bytes: u64,
    crossed_bytes: u64,
    reports: u64,
    depth: usize,
    /// When the new leader got its first report, and when it had guided all servers, in
    /// milliseconds.
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
            let head = self.tracker.view(at(ms)).pop().and_then(|mut view| view.heads.pop());
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
        let dead: Vec<bool> = self.servers.iter().map(|server| server.dead).collect();
        for server in self.servers.iter_mut().filter(|server| !server.dead) {
            server.listen(&dead, ms, origin);
            server.decide(ms, &self.places, origin);
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
        for _ in std::mem::take(&mut server.requests) {
            origin.answered();
        }
    }

    fn report(&mut self, place: usize, ms: u64) {
        let now = at(ms);
        let server = &mut self.servers[place];
        let report = server.report(&self.names);
        let from = Participant {
            server: server.id.clone(),
            address: "-".to_owned(),
            rack: server.rack.clone(),
            leads: place == 0,
        };
        let request = TransferRequest { transfers: vec![report] };
        let answer = self.tracker.report(&from, &request, now).expect("a report within limits");
        self.reports += 1;
        server.due_ms = ms + answer.again_ms;
        // A lying server keeps lying.
        server.told_whole = server.whole_ms.is_some() && server.lie.is_none();
        for (_, guidance) in answer.guidance {
            server.hear(guidance, ms);
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

    /// The heads share the downlink, and the origin's rate.
    fn fetch(&mut self, ms: u64, origin: &mut Origin) {
        let more = self.setup.downlink * STEP_MS / 1_000;
        self.downlink = (self.downlink + more).min(more + 2 * UNIT_BYTES);
        let asking: Vec<(usize, RequestId)> = self
            .servers
            .iter()
            .enumerate()
            .flat_map(|(place, server)| server.requests.keys().map(move |id| (place, *id)))
            .collect();
        let mut moved = true;
        while moved {
            moved = false;
            for (place, id) in &asking {
                let room = self.downlink >= UNIT_BYTES;
                if !room || !self.servers[*place].take_of(*id, ms, origin) {
                    continue;
                }
                self.downlink -= UNIT_BYTES;
                self.wan_bytes += UNIT_BYTES;
                moved = true;
            }
        }
    }

    /// Every parent sends to its subscribers in turn.
    fn send(&mut self, ms: u64) {
        let servers = self.servers.iter().enumerate();
        let lacking = servers.filter(|(_, server)| !server.dead && !server.have.is_full());
        let links: Vec<(usize, usize)> = lacking
            .flat_map(|(child, server)| server.links.values().map(move |parent| (*parent, child)))
            .collect();
        let mut moved = true;
        while moved {
            moved = false;
            for &(parent, child) in &links {
                let (above, below) = (&self.servers[parent], &self.servers[child]);
                if above.dead || !above.can_send(ms) || !below.can_take() {
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

fn at(ms: u64) -> Moment {
    Duration::from_millis(ms)
}
