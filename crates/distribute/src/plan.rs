//! Which units to ask of which source next: pure, over plain data.
//!
//! Rules, in order:
//! 1. Holders in the group come before mirrors, always: the zone's downlink carries a byte once.
//! 2. Mirrors are asked only with leave (`mirrors_allowed`), one at a time, and only while no
//!    holder can be asked: the best that is not out; the next one only when that one is out.
//! 3. A holder with less than an eighth of the best holder's rate is left alone: at the end all would
//!    wait for it.
//! 4. Earliest missing units first, spread over the holders with the fewest requests under way.
//! 5. One request at most for the unit hashes; no unit before them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use cohort_core::ids::ServerId;
use serde::Serialize;

use crate::limits::Limits;
use crate::unit_set::{UnitRun, UnitSet};

const UNIT_BYTES: u64 = cohort_artifact::UNIT_BYTES as u64;

/// Who can be asked for units.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceId {
    /// A server of the group.
    Peer(ServerId),
    /// A mirror, by its place in the configured list, from 0.
    Mirror(usize),
}

impl SourceId {
    /// Which kind it is.
    #[must_use]
    pub fn kind(&self) -> SourceKind {
        match self {
            SourceId::Peer(_) => SourceKind::Peer,
            SourceId::Mirror(_) => SourceKind::Mirror,
        }
    }
}

/// Where bytes come from, as in `cohort_bytes_received_total{from="mirror|peer"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// Through the zone's downlink.
    Mirror,
    /// Inside the group.
    Peer,
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SourceKind::Mirror => "mirror",
            SourceKind::Peer => "peer",
        })
    }
}

/// What the planner knows of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceView {
    /// Lower is preferred, among sources that are otherwise alike: the order's own ranking for
    /// holders, the measured ranking for mirrors.
    pub rank: u32,
    /// Requests under way.
    pub requests: usize,
    /// Requests that it takes at once: fewer than [`Limits::requests_per_source_max`] once it said
    /// that it is busy.
    pub requests_max: usize,
    /// Failures since the last unit that was right.
    pub failures: u32,
    /// Not to be asked before then, in milliseconds of the fetch's own clock.
    pub out_until_ms: Option<u64>,
    /// Measured, in bytes per second; 0: not known yet.
    pub rate: u64,
    /// Whether it answers ranges; one that does not is asked for everything, in one request.
    pub ranges: bool,
}

impl SourceView {
    fn is_out(&self, now_ms: u64) -> bool {
        self.out_until_ms.is_some_and(|until| now_ms < until)
    }
}

/// Everything that a plan depends on.
#[derive(Debug, Clone)]
pub struct Situation<'a> {
    /// Milliseconds since the fetch began.
    pub now_ms: u64,
    /// Whether the unit hashes are there, or asked for.
    pub hashes: Hashes,
    /// Units that are neither on disk nor asked for.
    pub missing: &'a UnitSet,
    /// Whether the order allows mirrors.
    pub mirrors_allowed: bool,
    /// Everyone who can be asked.
    pub sources: &'a BTreeMap<SourceId, SourceView>,
    /// The limits.
    pub limits: &'a Limits,
}

/// Where the unit hashes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hashes {
    /// Nobody was asked for them.
    Missing,
    /// Somebody was.
    Asked,
    /// On disk, and verified.
    Held,
}

/// One thing to do now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Ask for the unit hashes.
    AskHashes {
        /// Whom.
        source: SourceId,
    },
    /// Ask for some units.
    AskUnits {
        /// Whom.
        source: SourceId,
        /// Which.
        run: UnitRun,
    },
    /// Ask for everything, from a source that answers no ranges; what is held is skipped.
    AskWhole {
        /// Whom.
        source: SourceId,
    },
}

/// Why nothing (more) is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FetchWait {
    /// No server of the group holds it yet, and this server may not ask a mirror.
    Holder,
    /// No mirror is configured, and no server of the group holds it.
    Mirror,
    /// Every source failed or asked to be left alone for a while.
    Sources {
        /// When the first can be asked again, in milliseconds since the fetch began.
        until_ms: u64,
    },
    /// What was asked for is on its way.
    Answers,
}

/// What to do now, and why not more.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Plan {
    /// To be started now, all of them.
    pub actions: Vec<Action>,
    /// Look again at this time at the latest, even when nothing happens.
    pub wake_at_ms: Option<u64>,
    /// Why nothing more is done, while something is missing.
    pub waiting_on: Option<FetchWait>,
}

/// Plans the next requests.
pub fn plan(situation: &Situation<'_>) -> Plan {
    let mut planner = Planner::new(situation);
    match situation.hashes {
        Hashes::Missing => planner.ask_hashes(),
        Hashes::Asked => {}
        Hashes::Held => planner.ask_units(),
    }
    planner.finish()
}

struct Planner<'a> {
    situation: &'a Situation<'a>,
    sources: BTreeMap<&'a SourceId, SourceView>,
    missing: UnitSet,
    actions: Vec<Action>,
}

impl<'a> Planner<'a> {
    fn new(situation: &'a Situation<'a>) -> Self {
        let sources = situation.sources.iter().map(|(id, view)| (id, view.clone())).collect();
        Self { situation, sources, missing: situation.missing.clone(), actions: Vec::new() }
    }

    fn ask_hashes(&mut self) {
        let eligible = self.eligible();
        if let Some(source) = eligible.into_iter().min_by_key(|id| self.preference(id)) {
            self.actions.push(Action::AskHashes { source: source.clone() });
        }
    }

    fn ask_units(&mut self) {
        let limits = self.situation.limits;
        let eligible = self.eligible();
        let mut running: usize = self.sources.values().map(|view| view.requests).sum();
        // Shared evenly at the end, so that nobody is left with the last long piece.
        let slots = (eligible.len() * limits.requests_per_source_max).clamp(1, limits.requests_max);
        let share = self.missing.held().div_ceil(u32::try_from(slots).unwrap_or(u32::MAX));
        while running < limits.requests_max && !self.missing.is_empty() {
            let free = eligible.iter().filter(|id| self.has_room(id));
            let Some(source) = free.min_by_key(|id| self.preference(id)).copied() else { break };
            let view = self.sources.get_mut(source).expect("an eligible source is a known one");
            view.requests += 1;
            running += 1;
            if view.ranges {
                let count = wanted_units(view.rate, limits).min(share.max(REQUEST_UNITS_MIN));
                let Some(run) = self.missing.run_from(0, count) else { break };
                self.missing.remove_run(run);
                self.actions.push(Action::AskUnits { source: source.clone(), run });
            } else {
                self.actions.push(Action::AskWhole { source: source.clone() });
                self.missing = UnitSet::empty(self.missing.count());
            }
        }
    }

    /// Who may be asked now: the holders that are not out; when there are none, one mirror.
    fn eligible(&self) -> Vec<&'a SourceId> {
        let now = self.situation.now_ms;
        let usable = |kind| {
            let sources = self.sources.iter();
            let ready = sources.filter(move |(id, view)| id.kind() == kind && !view.is_out(now));
            ready.map(|(id, _)| *id)
        };
        let peers: Vec<_> = usable(SourceKind::Peer).collect();
        if !peers.is_empty() || !self.situation.mirrors_allowed {
            let rate = |id: &SourceId| self.sources[id].rate;
            let best = peers.iter().map(|id| rate(id)).max().unwrap_or(0);
            let good = |id: &&SourceId| rate(id) == 0 || rate(id) >= best / SLOW_FACTOR;
            return peers.into_iter().filter(good).collect();
        }
        let best = |id: &&SourceId| (self.sources[*id].failures, self.sources[*id].rank);
        usable(SourceKind::Mirror).min_by_key(best).into_iter().collect()
    }

    fn has_room(&self, id: &SourceId) -> bool {
        let view = &self.sources[id];
        let most = if view.ranges { view.requests_max } else { 1 };
        view.requests < most.min(self.situation.limits.requests_per_source_max)
    }

    /// Lowest first: idle, without failures, fast, and preferred by the order.
    fn preference(&self, id: &SourceId) -> (usize, u32, Reverse<u64>, u32) {
        let view = &self.sources[id];
        (view.requests, view.failures, Reverse(rate_class(view.rate)), view.rank)
    }

    fn finish(self) -> Plan {
        let situation = self.situation;
        let now = situation.now_ms;
        let allowed = |id: &SourceId| id.kind() == SourceKind::Peer || situation.mirrors_allowed;
        let usable = || situation.sources.iter().filter(|(id, _)| allowed(id));
        let wake_at_ms =
            usable().filter_map(|(_, view)| view.out_until_ms).filter(|until| *until > now).min();
        let done = situation.hashes == Hashes::Held && self.missing.is_empty();
        let running = self.sources.values().any(|view| view.requests > 0)
            || situation.hashes == Hashes::Asked;
        let waiting_on = if done || !self.actions.is_empty() {
            None
        } else if running {
            Some(FetchWait::Answers)
        } else if let Some(until_ms) = wake_at_ms {
            Some(FetchWait::Sources { until_ms })
        } else if situation.mirrors_allowed {
            Some(FetchWait::Mirror)
        } else {
            Some(FetchWait::Holder)
        };
        Plan { actions: self.actions, wake_at_ms, waiting_on }
    }
}

/// Smaller requests cost more in round trips than sharing them out can win.
const REQUEST_UNITS_MIN: u32 = 4;

/// See rule 3.
const SLOW_FACTOR: u64 = 8;

/// Units that a source is asked for at once, by its rate.
fn wanted_units(rate: u64, limits: &Limits) -> u32 {
    if rate == 0 {
        return limits.request_units_first.min(limits.request_units_max);
    }
    let bytes = rate.saturating_mul(limits.request_target_ms) / 1_000;
    let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX);
    units.clamp(REQUEST_UNITS_MIN, limits.request_units_max.max(REQUEST_UNITS_MIN))
}

/// Rates within a factor of two are alike: the spread must not follow the noise of a measurement.
/// An unknown rate counts as a good one, so that every source is tried.
fn rate_class(rate: u64) -> u64 {
    if rate == 0 { u64::MAX } else { u64::from(rate.ilog2()) }
}
