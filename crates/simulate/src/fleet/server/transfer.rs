//! How ordered bytes reach a virtual server: the production fetcher over a virtual network, guided
//! by the leader's tracker.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cohort_core::ids::{Digest, ServerId};
use cohort_core::orders::{FetchOrder, Source};
use cohort_server::records::MemberPlace;
use cohort_transfer::tracker::{
    HAVE_RUNS_MAX, REPORTS_MAX, TransferAnswer, TransferReport, TransferRequest,
};
use cohort_transfer::{
    Effect, Failure, Fetcher, Guidance, Limits, Outcome, RequestId, Target, UNIT_BYTES, UnitSet,
    What, unit_count,
};

use super::{Agent, Server};
use crate::fleet::behaviour::Behaviours;
use crate::fleet::build;
use crate::fleet::net::What as Says;
use crate::fleet::place::Place;
use crate::fleet::world::TICK_MS;

/// The only mirror, as the fetcher names it.
const MIRROR: (usize, &str) = (0, "mirror");
/// How long the answer to a report is waited for, in milliseconds.
const ANSWER_MS_MAX: u64 = 2_000;

/// What the servers of a group hold, as others can see it: whole or in part; and where.
pub(crate) type Holdings = BTreeMap<ServerId, (Place, BTreeMap<Digest, UnitSet>)>;

/// What the hub knows of a group.
pub(crate) struct Hub<'a> {
    /// Its members, as its leader wrote them.
    pub(crate) members: &'a [MemberPlace],
    /// Where each server is, as it told itself.
    pub(crate) places: &'a RefCell<BTreeMap<ServerId, Place>>,
}

/// What a server needs to know of its world for one tick.
pub(crate) struct Around<'a> {
    pub(crate) now_ms: u64,
    pub(crate) behaviours: &'a Behaviours,
    /// What servers hold that can be reached.
    pub(crate) holdings: &'a Holdings,
    pub(crate) mirrors: bool,
    /// Artifacts that mirrors do not serve.
    pub(crate) lacking: &'a BTreeSet<Digest>,
    /// How long the whole artifact takes from one source, in milliseconds.
    pub(crate) fetch_ms: u64,
    /// None while it does not answer.
    pub(crate) hub: Option<Hub<'a>>,
}

impl Around<'_> {
    /// What a server holds that answers at this address.
    fn held_by(&self, source: &Source) -> Option<&BTreeMap<Digest, UnitSet>> {
        let (place, held) = self.holdings.get(&source.server)?;
        (*place == Place::of(&source.server, &source.address)).then_some(held)
    }
}

/// Everything about transfers that an agent has in memory.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    fetches: BTreeMap<Digest, Fetch>,
    /// When the leader last answered.
    heard_ms: u64,
    due_ms: u64,
    /// The report that is on its way, and until when its answer is waited for.
    open: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Fetch {
    fetcher: Fetcher,
    guidance: Option<Guidance>,
    /// The fetcher's clock starts here.
    begun_ms: u64,
    /// The unit hashes are here.
    hashes: bool,
    requests: BTreeMap<RequestId, Flight>,
    mirror_bytes: u64,
    peer_bytes: u64,
}

#[derive(Debug, Clone)]
struct Flight {
    target: Target,
    what: What,
    begun_ms: u64,
    taken: u32,
}

impl Fetch {
    fn new(order: FetchOrder, begun_ms: u64) -> Fetch {
        let mirrors = [(MIRROR.0, MIRROR.1.to_owned())];
        Fetch {
            fetcher: Fetcher::new(order, &mirrors, Arc::new(Limits::default())),
            guidance: None,
            begun_ms,
            hashes: false,
            requests: BTreeMap::new(),
            mirror_bytes: 0,
            peer_bytes: 0,
        }
    }

    fn report(&self, have: &UnitSet) -> TransferReport {
        let order = self.fetcher.order();
        let release = &order.release;
        let mut report = TransferReport {
            have: have.runs(HAVE_RUNS_MAX),
            mirror_bytes: self.mirror_bytes,
            peer_bytes: self.peer_bytes,
            holders: order.sources.clone(),
            ..TransferReport::new(release.artifact.clone(), release.length)
        };
        report.told(self.guidance.as_ref());
        report.sources(&self.fetcher.reports());
        report
    }

    /// Takes what has come of every request by now. True when something new is here.
    fn receive(&mut self, have: &mut UnitSet, around: &Around<'_>) -> bool {
        let now_ms = around.now_ms - self.begun_ms;
        let artifact = self.fetcher.order().release.artifact.clone();
        let mut news = false;
        for (id, flight) in self.requests.clone() {
            let server = match &flight.target {
                Target::Server(source) => Some(source),
                Target::Mirror(_) => None,
            };
            let full = UnitSet::full(have.count());
            let offered = match server {
                Some(source) => around.held_by(source).map(|all| all.get(&artifact)),
                None => around.mirrors.then(|| {
                    let served = !around.lacking.contains(&artifact);
                    served.then_some(&full)
                }),
            };
            let Some(offered) = offered else {
                self.end(id, now_ms, 0, Some((Failure::Unreachable, "gone".to_owned())));
                continue;
            };
            self.fetcher.heard_from(id, now_ms + 1);
            if flight.what == What::Hashes || (server.is_none() && offered.is_none()) {
                let absent = offered.is_none().then(|| (Failure::Absent, "absent".to_owned()));
                if absent.is_none() {
                    self.hashes = true;
                    self.fetcher.begin(now_ms);
                }
                self.end(id, now_ms, 0, absent);
                continue;
            }
            let mut wanted = match flight.what {
                What::Units(run) => UnitSet::from_runs(have.count(), &[run]),
                What::Hashes | What::Whole | What::Link => full.clone(),
            };
            wanted.subtract(have);
            let done = wanted.is_empty();
            if let Some(offered) = offered {
                wanted.intersect(offered);
            }
            let lasts_ms = around.now_ms - flight.begun_ms;
            let may = u64::from(have.count()) * lasts_ms / around.fetch_ms.max(TICK_MS);
            let may = u32::try_from(may).unwrap_or(u32::MAX).saturating_sub(flight.taken);
            let run = wanted.run_from(0, may).filter(|_| may > 0 && offered.is_some());
            if let Some(run) = run {
                have.insert_run(run);
                news = true;
                let bytes = u64::from(run.count) * UNIT_BYTES;
                let counted =
                    if server.is_some() { &mut self.peer_bytes } else { &mut self.mirror_bytes };
                *counted += bytes;
                self.requests.get_mut(&id).expect("in flight").taken += run.count;
            }
            if done || (have.is_full() && flight.what != What::Link) {
                self.end(id, now_ms, flight.taken, None);
            }
        }
        news
    }

    fn end(&mut self, id: RequestId, now_ms: u64, units: u32, failure: Option<(Failure, String)>) {
        let Some(flight) = self.requests.remove(&id) else { return };
        let elapsed_us = (now_ms + self.begun_ms - flight.begun_ms).max(1) * 1_000;
        let bytes = u64::from(units) * UNIT_BYTES;
        self.fetcher.ended(id, Outcome { bytes, elapsed_us, units, failure }, now_ms, 0);
    }

    fn decide(&mut self, have: &UnitSet, now_ms: u64) {
        let step = self.fetcher.step(now_ms - self.begun_ms, self.hashes.then_some(have), 0);
        for effect in step.effects {
            match effect {
                Effect::Ask { id, target, what } => {
                    let flight = Flight { target, what, begun_ms: now_ms, taken: 0 };
                    self.requests.insert(id, flight);
                }
                Effect::Cancel { id } => {
                    self.requests.remove(&id);
                }
            }
        }
    }
}

impl Server {
    /// Checks the signatures of what is ordered: by the manifest on the disk, of a server that has
    /// it, or of the mirror.
    pub(super) fn verify(&mut self, around: &Around<'_>) {
        if self.agent.fetched == self.agent.changes {
            return;
        }
        let leader = self.leader().filter(|leader| leader.server != self.id);
        let Agent { received, fetching, .. } = &mut self.agent;
        let Some(received) = received else { return };
        for (_, asked) in fetching.to_verify(around.now_ms, &received.orders, leader.as_ref()) {
            let release = &asked.release;
            let manifests = &mut self.disk.manifests;
            let has = |source: &Source| around.held_by(source).is_some();
            if around.mirrors || asked.sources.iter().any(has) {
                manifests.insert(release.manifest.clone());
            }
            let here = manifests.contains(&release.manifest);
            fetching.checked(around.now_ms, release, here && around.behaviours.knows(release));
        }
    }

    /// Verified orders are carried out in addition to everything else.
    pub(super) fn fetch(&mut self, around: &Around<'_>) {
        let Agent { received, fetching, transfers, changes, .. } = &mut self.agent;
        let Some(received) = received.as_ref().filter(|_| !self.full) else { return };
        let idle = received.orders.apps.iter().all(|orders| orders.fetch.is_empty())
            && transfers.fetches.is_empty()
            && self.disk.parts.is_empty();
        if idle {
            return;
        }
        let now_ms = around.now_ms;
        let orders: BTreeMap<&Digest, &FetchOrder> = fetching
            .verified(&received.orders)
            .map(|(_, order)| (&order.release.artifact, order))
            .collect();
        transfers.fetches.retain(|artifact, _| orders.contains_key(artifact));
        self.disk.parts.retain(|artifact, _| orders.contains_key(artifact));
        for (artifact, order) in orders {
            let fetch = transfers.fetches.entry(artifact.clone());
            let fetch = fetch.or_insert_with(|| Fetch::new(order.clone(), now_ms));
            if self.disk.held.contains(artifact) {
                continue;
            }
            if fetch.fetcher.order() != order {
                fetch.fetcher.follow(order.clone());
            }
            let none = UnitSet::empty(unit_count(order.release.length));
            let have = self.disk.parts.entry(artifact.clone()).or_insert(none);
            if fetch.receive(have, around) && have.is_full() {
                self.disk.held.insert(artifact.clone());
                self.collected.remove(artifact);
                self.disk.parts.remove(artifact);
                *changes += 1;
                transfers.due_ms = now_ms;
                continue;
            }
            fetch.decide(have, now_ms);
        }
        self.report_transfers(around);
    }

    /// Tells the leader how far its transfers are, as often as the leader wants to know.
    fn report_transfers(&mut self, around: &Around<'_>) {
        let now_ms = around.now_ms;
        let transfers = &mut self.agent.transfers;
        if transfers.open.is_some_and(|(_, until_ms)| now_ms < until_ms)
            || now_ms < transfers.due_ms
            || transfers.fetches.is_empty()
        {
            return;
        }
        let Some(leader) = self.leader() else { return };
        let leader = Place::of(&leader.server, &leader.address);
        let transfers = &self.agent.transfers;
        let reports = transfers.fetches.iter().take(REPORTS_MAX).map(|(artifact, fetch)| {
            let count = unit_count(fetch.fetcher.order().release.length);
            let whole = self.disk.held.contains(artifact).then(|| UnitSet::full(count));
            let part = self.disk.parts.get(artifact).cloned();
            fetch.report(&whole.or(part).unwrap_or_else(|| UnitSet::empty(count)))
        });
        let request = TransferRequest { transfers: reports.collect() };
        let id = self.agent.number();
        self.agent.transfers.open = Some((id, now_ms + ANSWER_MS_MAX));
        self.send(leader, id, Says::Transfer(request));
    }

    /// The leader's tracker has answered.
    pub(super) fn guided(&mut self, id: u64, answer: Option<TransferAnswer>, now_ms: u64) {
        let transfers = &mut self.agent.transfers;
        if transfers.open.is_none_or(|(open, _)| open != id) {
            return;
        }
        transfers.open = None;
        let Some(answer) = answer else {
            transfers.due_ms = now_ms + TICK_MS;
            return;
        };
        transfers.due_ms = now_ms + answer.again_ms;
        transfers.heard_ms = now_ms;
        for (artifact, guidance) in answer.guidance {
            if let Some(fetch) = transfers.fetches.get_mut(&artifact) {
                fetch.guidance = Some(guidance);
            }
        }
        for fetch in transfers.fetches.values_mut() {
            let at_ms = now_ms.saturating_sub(fetch.begun_ms);
            fetch.fetcher.hear(fetch.guidance.as_ref(), at_ms, at_ms);
        }
    }

    /// Whether something that is ordered here is not whole.
    pub(in crate::fleet) fn lacks_bytes(&self) -> bool {
        let orders = self.agent.received.iter().flat_map(|received| &received.orders.apps);
        let mut fetches = orders.flat_map(|app| &app.fetch);
        self.up && fetches.any(|fetch| !self.disk.held.contains(&fetch.release.artifact))
    }

    /// What others can get from it.
    pub(in crate::fleet) fn holdings(&self) -> BTreeMap<Digest, UnitSet> {
        let full = UnitSet::full(unit_count(build::LENGTH));
        let whole = self.disk.held.iter().map(|artifact| (artifact.clone(), full.clone()));
        let parts = self.disk.parts.iter().map(|(artifact, have)| (artifact.clone(), have.clone()));
        whole.chain(parts).collect()
    }
}
