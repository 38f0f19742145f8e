//! One server's fetch of one artifact: what to request from which source next.
//!
//! Rules, in order:
//! 1. Bytes come from servers by subscription ("send me what I lack, as you get it") and from
//!    mirrors by ranges. Only the units of a lease are requested from a mirror.
//! 2. The leader names the feeds and the lease. A silent feed is replaced by a spare.
//! 3. If the leader has been silent for a while, the heir leases everything to itself. A server
//!    that never received guidance follows its order: one holder at a time, and a mirror if no
//!    holder is usable and the order permits it. So does a server whose feeds sent nothing for a
//!    while, until the leader names others.
//! 4. Mirrors are asked one at a time, best first, lowest units first.
//! 5. No unit is requested before the unit hashes are here.
//!
//! Times are in milliseconds of the fetch's own clock, which starts at 0.

mod goal;
mod links;
mod mirror;
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cohort_core::ids::ServerId;
use cohort_core::orders::{FetchOrder, Source};
use serde::Serialize;

use crate::guidance::Guidance;
use crate::limits::Limits;
use crate::offence::{Failure, Offence};
use crate::source::{Outcome, SourceId, SourceName, SourceReport, Target};
use crate::unit_set::{UnitRun, UnitSet};
use goal::{Goal, Lease};
use sources::{At, Sources};

/// A request of one fetch. Ids are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Hashes,
    /// Some units, from a mirror.
    Units(UnitRun),
    /// All bytes, from a mirror that ignores ranges. What is already here is skipped.
    Whole,
    /// A subscription to a server: all units that are missing here, as the server gets them.
    Link,
}

/// Something to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send a request, and call [`Fetcher::ended`] when it has ended.
    Ask { id: RequestId, target: Target, what: What },
    /// Cancel a subscription. [`Fetcher::ended`] is not called for it.
    Cancel { id: RequestId },
}

/// Why nothing more is requested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FetchWait {
    /// No source that this server may ask has the bytes.
    Holder,
    /// No mirror is configured, and no server is known to hold the artifact.
    Mirror,
    /// Every source failed or asked us to back off.
    Sources {
        /// When the first one may be asked again.
        until_ms: u64,
    },
    Answers,
}

/// What to do now, and why not more.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Step {
    /// In the order to carry them out.
    pub effects: Vec<Effect>,
    /// Why nothing more is requested while something is missing.
    pub waiting_on: Option<FetchWait>,
    /// Step again at this time, even if nothing happens before.
    pub wake_at_ms: Option<u64>,
    /// Most to take from mirrors, in bytes per second.
    pub mirror_rate_max: Option<u64>,
    pub offences: Vec<(SourceName, Offence)>,
}

/// The state of one fetch.
#[derive(Debug)]
pub struct Fetcher {
    limits: Arc<Limits>,
    order: FetchOrder,
    said: Option<Guidance>,
    /// When a leader was last heard, about any artifact.
    heard_ms: u64,
    /// The feeds sent nothing for a while: the leader is not followed until it names others.
    let_down: bool,
    /// Start of the time in which the feeds could deliver.
    feeds_since_ms: u64,
    sources: Sources,
    requests: BTreeMap<RequestId, Request>,
    next_id: u64,
    held: u32,
    /// When a new unit last arrived.
    moved_ms: u64,
    /// The last time that no source could be blamed for sending nothing.
    excused_ms: u64,
    /// When subscriptions were last checked.
    checked_ms: u64,
    /// No subscription counts as silent before this time: this server itself was not listening.
    deaf_until_ms: u64,
}

/// A request in flight.
#[derive(Debug)]
struct Request {
    source: SourceId,
    what: What,
    begun_ms: u64,
    /// When some of it last arrived; not later than `begun_ms` if nothing has.
    heard_ms: u64,
}

impl Fetcher {
    /// A fetch that has sent no request yet. `mirrors`: index and name, best first.
    #[must_use]
    pub fn new(order: FetchOrder, mirrors: &[(usize, String)], limits: Arc<Limits>) -> Self {
        let mut fetcher = Self {
            limits,
            order,
            said: None,
            heard_ms: 0,
            let_down: false,
            feeds_since_ms: 0,
            sources: Sources::new(mirrors),
            requests: BTreeMap::new(),
            next_id: 0,
            held: 0,
            moved_ms: 0,
            excused_ms: 0,
            checked_ms: 0,
            deaf_until_ms: 0,
        };
        fetcher.list_sources();
        fetcher
    }

    /// The order in force.
    #[must_use]
    pub fn order(&self) -> &FetchOrder {
        &self.order
    }

    /// Switches to another order for the same artifact.
    pub fn follow(&mut self, order: FetchOrder) {
        self.order = order;
        self.list_sources();
    }

    /// Records a leader's latest guidance for this artifact, and when a leader was last heard.
    pub fn hear(&mut self, said: Option<&Guidance>, at_ms: u64, now_ms: u64) {
        self.heard_ms = at_ms;
        if self.said.as_ref() == said {
            return;
        }
        let feeds = |said: Option<&Guidance>| said.map(|said| said.feeds.clone());
        if feeds(said) != feeds(self.said.as_ref()) {
            self.let_down = false;
            self.feeds_since_ms = now_ms;
        }
        self.said = said.cloned();
        self.list_sources();
    }

    /// Records that part of a response arrived at that time.
    pub fn heard_from(&mut self, id: RequestId, at_ms: u64) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.heard_ms = at_ms;
        }
    }

    /// Records that the unit hashes are here: units can come from now on.
    pub fn begin(&mut self, now_ms: u64) {
        (self.moved_ms, self.feeds_since_ms) = (now_ms, now_ms);
    }

    /// Records the outcome of a request. `random` spreads the return of servers that were turned
    /// away together.
    pub fn ended(&mut self, id: RequestId, mut outcome: Outcome, now_ms: u64, random: u64) {
        let Some(request) = self.requests.remove(&id) else { return };
        if request.what == What::Link && outcome.failure.is_none() && outcome.units == 0 {
            outcome.failure = Some((Failure::Absent, "has none of the missing units".to_owned()));
        }
        let Request { source, begun_ms, .. } = request;
        let at = At { now_ms, random, limits: &self.limits };
        self.sources.ended(&source, begun_ms, outcome, at);
    }

    /// Decides what to do now. `have`: the units on disk, once the unit hashes are here.
    pub fn step(&mut self, now_ms: u64, have: Option<&UnitSet>, random: u64) -> Step {
        let held = have.map_or(0, UnitSet::held);
        if held > self.held {
            (self.moved_ms, self.feeds_since_ms) = (now_ms, now_ms);
        }
        self.held = held;
        let mut goal = self.goal(now_ms);
        let mut effects = Vec::new();
        if let Some(cancel) = self.cancel_barren(&goal, now_ms, random) {
            effects.push(cancel);
            goal = self.goal(now_ms);
        }
        match have {
            None => effects.extend(self.ask_hashes(&goal, now_ms)),
            Some(have) => {
                self.keep_links(&goal, now_ms, random, &mut effects);
                self.ask_mirror(&goal, have, now_ms, &mut effects);
            }
        }
        let whole = have.is_some_and(UnitSet::is_full);
        let waiting_on = if whole { None } else { self.wait(&goal, &effects, now_ms) };
        let blameless = goal.by_leader && goal.lease == Lease::Nothing;
        if blameless || waiting_on == Some(FetchWait::Holder) {
            self.excused_ms = now_ms;
        }
        let mirror_rate_max = self.said.as_ref().and_then(|said| said.mirror_rate_max);
        let (wake_at_ms, offences) = (self.wake_at(now_ms), self.sources.take_offences());
        Step { effects, waiting_on, wake_at_ms, mirror_rate_max, offences }
    }

    /// Whether sources have sent nothing for so long that the group should know.
    #[must_use]
    pub fn is_late(&self, now_ms: u64) -> bool {
        let since = self.moved_ms.max(self.excused_ms);
        now_ms.saturating_sub(since) >= self.limits.give_up_ms
    }

    /// The state of each server, and of each mirror that was asked.
    #[must_use]
    pub fn reports(&self) -> Vec<SourceReport> {
        self.sources.reports(|id| self.requests_to(id))
    }

    /// Each source that failed, with its last error.
    #[must_use]
    pub fn complaints(&self) -> BTreeSet<String> {
        self.sources.complaints()
    }

    fn ask(&mut self, source: &SourceId, what: What, now_ms: u64) -> Option<Effect> {
        let target = match source {
            SourceId::Mirror(index) => Target::Mirror(*index),
            SourceId::Server(_) => Target::Server(self.sources.address(source)?),
        };
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let source = source.clone();
        self.requests.insert(id, Request { source, what, begun_ms: now_ms, heard_ms: 0 });
        Some(Effect::Ask { id, target, what })
    }

    /// A head asks its mirror, the others ask servers above them.
    fn ask_hashes(&mut self, goal: &Goal, now_ms: u64) -> Option<Effect> {
        if self.requests.values().any(|request| request.what == What::Hashes) {
            return None;
        }
        let source = if goal.lease == Lease::Nothing {
            let above = goal.feeds.iter().chain(&goal.spares).cloned().map(SourceId::Server);
            let usable = above.filter(|id| self.sources.is_usable(id, now_ms));
            usable.min_by_key(|id| self.sources.failures(id))
        } else {
            self.sources.best_mirror(now_ms)
        };
        self.ask(&source?, What::Hashes, now_ms)
    }

    fn wait(&self, goal: &Goal, effects: &[Effect], now_ms: u64) -> Option<FetchWait> {
        if effects.iter().any(|effect| matches!(effect, Effect::Ask { .. })) {
            return None;
        }
        if !self.requests.is_empty() {
            return Some(FetchWait::Answers);
        }
        if goal.by_leader && goal.lease == Lease::Nothing {
            return Some(FetchWait::Holder);
        }
        let next = self.sources.next_return(goal.lease != Lease::Nothing, now_ms);
        Some(match (next, goal.lease == Lease::Nothing) {
            (Some(until_ms), _) => FetchWait::Sources { until_ms },
            (None, true) => FetchWait::Holder,
            (None, false) => FetchWait::Mirror,
        })
    }

    fn wake_at(&self, now_ms: u64) -> Option<u64> {
        let links = self.requests.values().any(|request| request.what == What::Link);
        let check = links.then_some(now_ms + links::CHECK_MS);
        self.sources.next_return(true, now_ms).into_iter().chain(check).min()
    }

    fn requests_to(&self, source: &SourceId) -> usize {
        self.requests.values().filter(|request| request.source == *source).count()
    }

    /// Updates the sources to those that the leader or the order names.
    fn list_sources(&mut self) {
        let mut servers: Vec<&Source> = Vec::new();
        if let Some(said) = &self.said {
            servers.extend(said.feeds.iter().chain(&said.spares).chain(&said.heir_at));
        }
        for source in &self.order.sources {
            if !servers.iter().any(|known| known.server == source.server) {
                servers.push(source);
            }
        }
        let busy: BTreeSet<SourceId> =
            self.requests.values().map(|request| request.source.clone()).collect();
        self.sources.list(&servers, |id| busy.contains(id));
    }
}

/// The servers of some sources.
fn servers(sources: &[Source]) -> Vec<ServerId> {
    sources.iter().map(|source| source.server.clone()).collect()
}

#[cfg(test)]
#[path = "fetcher/fetcher_test.rs"]
mod fetcher_test;
