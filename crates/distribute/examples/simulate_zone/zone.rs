//! A zone in virtual time: the real tracker, and servers that are no more than link rates and sets
//! of units.
//!
//! Time goes in steps. In each, the downlink gives leased units to the heads, and every parent sends
//! what its children lack, lowest first, within its own rate and theirs. Reports, complaints and
//! spare parents follow the same rules and times as the real servers'.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cohort_core::ids::{Digest, GroupId, ServerId};
use cohort_distribute::{
    Guidance, HAVE_RUNS_MAX, Participant, Told, Tracker, TransferReport, TransferRequest, UnitRun,
    UnitSet,
};

const UNIT_BYTES: u64 = cohort_artifact::UNIT_BYTES as u64;

/// One step, in milliseconds: below the time of a unit on the links that are simulated.
const STEP_MS: u64 = 5;

/// When a silent parent is left, in milliseconds.
const SILENCE_MS: u64 = 300;

/// What is simulated.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) servers: usize,
    pub(crate) units: u32,
    /// The zone's downlink, in bytes per second.
    pub(crate) downlink: u64,
    /// Every server's link, each way, in bytes per second.
    pub(crate) link: u64,
    /// Servers with another link.
    pub(crate) links: BTreeMap<usize, u64>,
    /// Servers per rack; none: racks are not known.
    pub(crate) rack: Option<usize>,
    /// Servers that die, and when, in milliseconds.
    pub(crate) die: BTreeMap<usize, u64>,
    /// The first head dies, at this time in milliseconds.
    pub(crate) head_dies: Option<u64>,
    /// The leader is another one from this time on, in milliseconds; for a second there is none.
    pub(crate) new_leader: Option<u64>,
}

impl Setup {
    pub(crate) fn new(servers: usize, mib: u32, downlink_mbit: u64, link_mbit: u64) -> Self {
        Self {
            servers,
            units: mib * 16,
            downlink: downlink_mbit * 125_000,
            link: link_mbit * 125_000,
            links: BTreeMap::new(),
            rack: None,
            die: BTreeMap::new(),
            head_dies: None,
            new_leader: None,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// When all had everything, in milliseconds,
    pub(crate) all_ms: u64,
    /// and all but those with a link of their own.
    pub(crate) others_ms: u64,
    /// That time ÷ what size and rates allow.
    pub(crate) ratio: f64,
    /// Bytes through the downlink ÷ size.
    pub(crate) wan: f64,
    /// Longest way from the first source.
    pub(crate) depth: usize,
    /// Reports to the leader per second.
    pub(crate) reports_per_s: u64,
    /// Bytes over links between racks ÷ size.
    pub(crate) crossed: f64,
}

struct Server {
    id: ServerId,
    rack: Option<String>,
    link: u64,
    have: UnitSet,
    guidance: Option<Guidance>,
    due_ms: u64,
    mirror_bytes: u64,
    peer_bytes: u64,
    /// Bytes that may come in, and go out.
    inward: u64,
    outward: u64,
    dead: bool,
    /// Since when each parent has been dead.
    silent: BTreeMap<ServerId, u64>,
    whole_ms: Option<u64>,
}

/// Runs until all that live have everything.
pub(crate) fn run(setup: &Setup) -> Outcome {
    let mut zone = Zone::new(setup);
    let mut ms = 0;
    while zone.servers.iter().any(|server| !server.dead && server.whole_ms.is_none()) {
        zone.step(ms);
        ms += STEP_MS;
        assert!(ms < 3_600_000, "not done after an hour: {setup:?}");
    }
    zone.outcome()
}

struct Zone<'a> {
    setup: &'a Setup,
    servers: Vec<Server>,
    places: BTreeMap<ServerId, usize>,
    tracker: Tracker,
    begun: Instant,
    downlink: u64,
    wan_bytes: u64,
    crossed_bytes: u64,
    reports: u64,
    depth: usize,
}

impl<'a> Zone<'a> {
    fn new(setup: &'a Setup) -> Self {
        let servers: Vec<Server> = (0..setup.servers)
            .map(|n| Server {
                id: format!("s{n:04}").parse().expect("a label"),
                rack: setup.rack.map(|size| format!("rack-{}", n / size)),
                link: setup.links.get(&n).copied().unwrap_or(setup.link),
                have: UnitSet::empty(setup.units),
                guidance: None,
                // Orders reach the servers within a tenth of a second.
                due_ms: (n as u64 * 7) % 100,
                mirror_bytes: 0,
                peer_bytes: 0,
                inward: 0,
                outward: 0,
                dead: false,
                silent: BTreeMap::new(),
                whole_ms: None,
            })
            .collect();
        let places = servers.iter().enumerate().map(|(n, server)| (server.id.clone(), n)).collect();
        Self {
            setup,
            servers,
            places,
            tracker: Tracker::default(),
            begun: Instant::now(),
            downlink: 0,
            wan_bytes: 0,
            crossed_bytes: 0,
            reports: 0,
            depth: 0,
        }
    }

    fn step(&mut self, ms: u64) {
        for (place, at) in &self.setup.die {
            self.servers[*place].dead |= ms >= *at;
        }
        if self.setup.head_dies == Some(ms) {
            let head = self.tracker.view(self.now(ms)).pop().and_then(|mut view| view.heads.pop());
            if let Some(place) = head.and_then(|head| self.places.get(&head)) {
                self.servers[*place].dead = true;
            }
        }
        if self.setup.new_leader == Some(ms) {
            self.tracker.clear();
        }
        let leaderless = self.setup.new_leader.is_some_and(|at| (at..at + 1_000).contains(&ms));
        for place in 0..self.servers.len() {
            let server = &mut self.servers[place];
            let more = server.link * STEP_MS / 1_000;
            // What a link could have carried while there was nothing to carry is lost.
            server.inward = (server.inward + more).min(more + 2 * UNIT_BYTES);
            server.outward = (server.outward + more).min(more + 2 * UNIT_BYTES);
            if !server.dead && server.whole_ms.is_none_or(|at| at == ms) && server.due_ms <= ms {
                server.due_ms = ms + 250;
                if !leaderless {
                    self.report(place, ms);
                }
            }
        }
        self.fetch();
        self.send(ms);
        for server in &mut self.servers {
            if server.whole_ms.is_none() && server.have.is_full() {
                server.whole_ms = Some(ms + STEP_MS);
                server.due_ms = ms + STEP_MS;
            }
        }
    }

    fn now(&self, ms: u64) -> Instant {
        self.begun + Duration::from_millis(ms)
    }

    fn report(&mut self, place: usize, ms: u64) {
        let artifact: Digest = "ab".repeat(32).parse().expect("a digest");
        let group: GroupId = "zone".parse().expect("a name");
        let server = &self.servers[place];
        let told = server.guidance.as_ref().map(|guidance| Told {
            feeds: guidance.feeds.iter().map(|source| source.server.clone()).collect(),
            lease: guidance.lease.clone(),
        });
        let report = TransferReport {
            artifact,
            length: u64::from(self.setup.units) * UNIT_BYTES,
            have: server.have.runs(HAVE_RUNS_MAX),
            mirror_bytes: server.mirror_bytes,
            peer_bytes: server.peer_bytes,
            mirror_failed: false,
            told,
            holders: Vec::new(),
            silent: server.silent.keys().cloned().collect(),
            wrong: Vec::new(),
        };
        let from = Participant {
            server: server.id.clone(),
            address: "-".to_owned(),
            rack: server.rack.clone(),
            leads: place == 0,
        };
        let request = TransferRequest { version: 1, group, transfers: vec![report] };
        let now = self.now(ms);
        let answer = self.tracker.report(&from, &request, now).expect("a report within limits");
        self.reports += 1;
        let server = &mut self.servers[place];
        server.due_ms = ms + answer.again_ms;
        for (_, guidance) in answer.guidance {
            server.guidance = Some(guidance);
            server.silent.clear();
        }
        if ms % 500 < STEP_MS
            && place == 0
            && let Some(view) = self.tracker.view(now).pop()
        {
            let depths = view.servers.iter().filter(|server| server.there).map(|s| s.depth);
            self.depth = self.depth.max(depths.max().unwrap_or(0));
        }
    }

    /// The downlink is shared by the heads.
    fn fetch(&mut self) {
        let more = self.setup.downlink * STEP_MS / 1_000;
        self.downlink = (self.downlink + more).min(more + 2 * UNIT_BYTES);
        let mut moved = true;
        while moved {
            moved = false;
            for server in self.servers.iter_mut().filter(|server| !server.dead) {
                let Some(guidance) = &server.guidance else { continue };
                let lease = &guidance.lease;
                if lease.is_empty() || self.downlink < UNIT_BYTES || server.inward < UNIT_BYTES {
                    continue;
                }
                let mut lease = UnitSet::from_runs(self.setup.units, lease);
                lease.subtract(&server.have);
                let Some(UnitRun { first, .. }) = lease.run_from(0, 1) else { continue };
                server.have.insert(first);
                server.mirror_bytes += UNIT_BYTES;
                server.inward -= UNIT_BYTES;
                self.downlink -= UNIT_BYTES;
                self.wan_bytes += UNIT_BYTES;
                moved = true;
            }
        }
    }

    /// Every parent sends to its children in turn.
    fn send(&mut self, ms: u64) {
        let mut links: Vec<(usize, usize)> = Vec::new();
        for child in 0..self.servers.len() {
            if self.servers[child].dead || self.servers[child].have.is_full() {
                continue;
            }
            let Some(guidance) = self.servers[child].guidance.clone() else { continue };
            for feed in &guidance.feeds {
                let sources = std::iter::once(feed).chain(&guidance.spares);
                let mut places = sources.filter_map(|source| self.places.get(&source.server));
                let Some(first) = places.next().copied() else { continue };
                if !self.servers[first].dead {
                    links.push((first, child));
                    continue;
                }
                let id = self.servers[first].id.clone();
                let since = *self.servers[child].silent.entry(id).or_insert_with(|| {
                    // A link that breaks is told at once.
                    ms
                });
                self.servers[child].due_ms = self.servers[child].due_ms.min(ms + 50);
                if ms >= since + SILENCE_MS
                    && let Some(spare) = places.find(|place| !self.servers[**place].dead)
                {
                    links.push((*spare, child));
                }
            }
        }
        let mut moved = true;
        while moved {
            moved = false;
            for &(parent, child) in &links {
                let (above, below) = (&self.servers[parent], &self.servers[child]);
                if above.outward < UNIT_BYTES || below.inward < UNIT_BYTES {
                    continue;
                }
                let mut lacks = above.have.clone();
                lacks.subtract(&below.have);
                let Some(UnitRun { first, .. }) = lacks.run_from(0, 1) else { continue };
                if above.rack != below.rack {
                    self.crossed_bytes += UNIT_BYTES;
                }
                self.servers[parent].outward -= UNIT_BYTES;
                let below = &mut self.servers[child];
                below.inward -= UNIT_BYTES;
                below.peer_bytes += UNIT_BYTES;
                below.have.insert(first);
                moved = true;
            }
        }
    }

    fn outcome(&self) -> Outcome {
        let size = u64::from(self.setup.units) * UNIT_BYTES;
        let last = |own: bool| {
            let servers = self.servers.iter().enumerate();
            let counted = servers.filter(|(n, _)| own || !self.setup.links.contains_key(n));
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
        }
    }
}
