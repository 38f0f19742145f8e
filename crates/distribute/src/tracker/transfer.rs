//! One transfer as the leader knows it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use cohort_core::ids::ServerId;
use cohort_core::orders::Source;

use super::ledger::Ledger;
use super::message::{HAVE_RUNS_MAX, TransferReport};
use super::plan::{Layout, Member, Situation, lease_runs, plan};
use super::seen::Seen;
use super::trust::Trust;
use super::{MEMBERS_MAX, Participant};
use crate::guidance::Guidance;
use crate::unit_set::UnitSet;

pub(super) const UNIT_BYTES: u64 = cohort_artifact::UNIT_BYTES as u64;

/// Longest time between two reports, in milliseconds: a thousand servers make 250 requests a second
/// at the leader.
pub(super) const AGAIN_MS_MAX: u64 = 4_000;

/// Shortest time between two reports that the leader asks for, in milliseconds.
const AGAIN_MS_MIN: u64 = 200;

/// Reports that may be missed before a server counts as gone, in tenths of the time between two.
const MISSED_TENTHS: u64 = 60;

/// The same for a server that another one complained about.
const MISSED_COMPLAINED_TENTHS: u64 = 20;

/// How long a complaint counts.
const COMPLAINT: Duration = Duration::from_secs(3);

/// How long a server that holds everything is believed to be there without reporting: it has
/// nothing to report any more.
const WHOLE_BELIEVED: Duration = Duration::from_secs(600);

/// A new leader hears everybody before it plans a transfer that is under way: two rounds of those
/// who look for it every 250 ms.
const GATHER: Duration = Duration::from_millis(500);

/// A server is behind when its parent has this many units (4 MiB) more.
const BEHIND_UNITS: u32 = 64;

/// For this long behind: slow, or too many children at its parent.
const BEHIND_MAX: Duration = Duration::from_millis(1_000);

/// One that is behind and got no unit at all for this long gets another parent, whatever is the
/// matter.
const STARVED: Duration = Duration::from_secs(2);

/// A slow one that has been behind for this long tries another parent.
const TRY_OTHER: Duration = Duration::from_secs(5);

/// A server that keeps up with a second parent for this long was not slow: its first one was.
const ACQUITTED: Duration = Duration::from_secs(2);

/// How long slowness is remembered.
const SLOW_REMEMBERED: Duration = Duration::from_secs(60);

/// A head whose lease does not move for this long loses it,
const LEASE_STALLED: Duration = Duration::from_secs(3);

/// as does one that says that bytes come, but gets no unit whole: a mirror below 3 KiB/s is none,
const LEASE_UNIT_STALLED: Duration = Duration::from_secs(20);

/// and gets no other for this long.
const LEASE_REFUSED: Duration = Duration::from_secs(10);

/// A server that reports more often than this is answered from what it said before.
const REPORT_MIN: Duration = Duration::from_millis(10);

/// Runs of a lease: it is topped up by halves and fetched in order, so it has few.
const LEASE_RUNS_MAX: usize = 256;

/// Shortest time between two plans, in milliseconds, and per server that takes part: planning for a
/// thousand costs some ten milliseconds.
const PLAN_MS_MIN: u64 = 20;

#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) length: u64,
    pub(super) units: u32,
    pub(super) seen: BTreeMap<ServerId, Seen>,
    pub(super) layout: Layout,
    pub(super) begun: Instant,
    gather_until: Option<Instant>,
    planned: Option<Instant>,
    link_rate: u64,
    fan_out_failed: Option<usize>,
    heard: Instant,
    trust: Trust,
    /// Those that several others refuse.
    pub(super) barred: BTreeSet<ServerId>,
    heir: Option<ServerId>,
    /// What is added up for people.
    pub(super) ledger: Ledger,
}

impl Transfer {
    pub(super) fn new(report: &TransferReport, now: Instant) -> Self {
        let units = report.length.div_ceil(UNIT_BYTES);
        Self {
            length: report.length,
            units: u32::try_from(units).unwrap_or(u32::MAX),
            seen: BTreeMap::new(),
            layout: Layout::default(),
            begun: now,
            gather_until: report.told.is_some().then_some(now + GATHER),
            planned: None,
            link_rate: 0,
            fan_out_failed: None,
            heard: now,
            trust: Trust::default(),
            barred: BTreeSet::new(),
            heir: None,
            ledger: Ledger::default(),
        }
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn heard(&self) -> Instant {
        self.heard
    }

    pub(super) fn take(&mut self, from: &Participant, report: &TransferReport, now: Instant) {
        let server = &from.server;
        match self.seen.get(server) {
            None if self.seen.len() >= MEMBERS_MAX => return,
            // One that storms the leader costs it next to nothing.
            Some(seen)
                if self.planned.is_some()
                    && now.saturating_duration_since(seen.heard) < REPORT_MIN =>
            {
                return;
            }
            None | Some(_) => {}
        }
        self.heard = now;
        let have = UnitSet::from_runs(self.units, &report.have);
        let seen = self.seen.entry(server.clone()).or_insert_with(|| Seen::new(from, &have, now));
        let took_back = seen.take(from, report, have, now);
        self.ledger.take(server, report, seen.have.is_full(), now);
        // Where not all runs fit in a report, those at the end come and go.
        if took_back && report.have.len() < HAVE_RUNS_MAX {
            self.trust.took_back(server, now);
        }
        if report.mirror_failed && self.layout.heads.contains(server) {
            seen.lease_refused = Some(now);
        }
        let known: BTreeSet<&ServerId> =
            report.silent.iter().filter(|silent| self.seen.contains_key(*silent)).collect();
        self.trust.silent(server, &known, now);
        // Only those that it was sent to are its to miss.
        let (feeds, spares) = (self.layout.feeds(server), self.layout.spares(server));
        for silent in
            known.iter().filter(|silent| feeds.iter().chain(&spares).any(|s| s == **silent))
        {
            if let Some(seen) = self.seen.get_mut(*silent) {
                seen.complained = Some(now);
            }
        }
        for wrong in report.wrong.iter().filter(|wrong| self.seen.contains_key(*wrong)) {
            self.trust.wrong(server, wrong, now);
        }
        for holder in report.holders.iter().filter(|holder| holder.server != *server) {
            self.believe(holder, now);
        }
        self.take_over(server, report);
        self.judge(server, now);
    }

    /// The log says that a server holds it whole; it has nothing to report any more.
    fn believe(&mut self, holder: &Source, now: Instant) {
        if self.seen.len() >= MEMBERS_MAX {
            return;
        }
        let units = self.units;
        let seen = self.seen.entry(holder.server.clone()).or_insert_with(|| {
            let (server, address) = (holder.server.clone(), holder.address.clone());
            let from = Participant { server, address, rack: None, leads: false };
            Seen::new(&from, &UnitSet::full(units), now)
        });
        if seen.have.is_full() {
            seen.named = now;
        }
    }

    /// What a server was told by the last leader stands until there is reason to change it.
    fn take_over(&mut self, server: &ServerId, report: &TransferReport) {
        let Some(told) = &report.told else { return };
        if self.planned.is_some() {
            return;
        }
        if !told.lease.is_empty() {
            let lease = UnitSet::from_runs(self.units, &told.lease);
            self.layout.leases.insert(server.clone(), lease);
            if !self.layout.heads.contains(server) {
                self.layout.heads.push(server.clone());
            }
        }
        if let Some(parent) = told.feeds.first() {
            self.layout.parents.insert(server.clone(), parent.clone());
        }
    }

    /// Whether a server is behind its parent, and whose fault that is.
    fn judge(&mut self, server: &ServerId, now: Instant) {
        let mirrors: u64 = self.mirror_rate();
        let parent = self.layout.parents.get(server).cloned();
        let above = parent.as_ref().and_then(|parent| self.seen.get(parent));
        let parent_slow = above.is_some_and(Seen::is_slow);
        let above = above.map(|seen| seen.have.held());
        let link_rate = self.link_rate;
        let Some(seen) = self.seen.get_mut(server) else { return };
        let held = seen.have.held();
        if above.is_none_or(|above| above <= held.saturating_add(BEHIND_UNITS)) {
            seen.behind_since = None;
            self.acquit(server, parent.as_ref().filter(|_| !parent_slow), now);
            return;
        }
        if let Some((_, settled)) = &mut seen.suspect {
            *settled = None;
        }
        let over = now.saturating_duration_since(*seen.behind_since.get_or_insert(now));
        if over < BEHIND_MAX {
            return;
        }
        let starved = over >= STARVED && now.saturating_duration_since(seen.grown) >= STARVED;
        // Four fifths: one that catches up is faster than what comes.
        let slow = starved || seen.rate < (mirrors * 4 / 5).max(link_rate / 8);
        let late = |seen: &&Seen| {
            let since = seen.behind_since;
            since.is_some_and(|since| now.saturating_duration_since(since) >= BEHIND_MAX)
        };
        let siblings = || {
            let below = self.layout.parents.iter();
            let below = below.filter(|(_, above)| Some(*above) == parent.as_ref());
            below.filter_map(|(id, _)| self.seen.get(id))
        };
        // Children of one that is whole are behind it to the end, however fast they are.
        let crowded = slow
            && above != Some(self.units)
            && siblings().count() > 1
            && siblings().all(|seen| seen.behind_since.is_some());
        let many = crowded || self.seen.values().filter(late).count() * 3 > self.seen.len();
        if many && self.layout.fan_out > 1 {
            // Not they are slow: their parents send to too many.
            tracing::info!(fan_out = self.layout.fan_out, "servers fall behind: fewer children");
            self.fan_out_failed = Some(self.layout.fan_out);
            for seen in self.seen.values_mut() {
                seen.behind_since = None;
            }
        } else if slow && let Some(seen) = self.seen.get_mut(server) {
            if seen.slow_since.is_none() {
                tracing::info!(%server, rate = seen.rate, mirrors, "slow: to the tail");
            }
            seen.slow_since = Some(now);
            let Some(parent) = parent else { return };
            if starved {
                tracing::info!(%server, %parent, "gets nothing: another parent");
                seen.behind_since = None;
                self.trust.nothing(server, &parent, now);
            } else if over >= TRY_OTHER {
                seen.behind_since = None;
                self.trust.tried(server, &parent, now);
                seen.suspect = Some((parent, None));
            } else if seen.suspect.is_none() {
                seen.suspect = Some((parent, None));
            }
        }
    }

    /// A server that was slow and keeps up now, with another parent, was not slow.
    fn acquit(&mut self, server: &ServerId, parent: Option<&ServerId>, now: Instant) {
        let Some(seen) = self.seen.get_mut(server) else { return };
        let Some((suspect, settled)) = &mut seen.suspect else { return };
        if parent.is_none_or(|parent| parent == suspect) {
            *settled = None;
            return;
        }
        let since = *settled.get_or_insert(now);
        if now.saturating_duration_since(since) >= ACQUITTED {
            tracing::info!(%server, %suspect, "keeps up with another parent");
            self.trust.nothing(server, suspect, now);
            (seen.suspect, seen.slow_since) = (None, None);
        }
    }

    fn mirror_rate(&self) -> u64 {
        let heads = self.layout.heads.iter();
        heads.filter_map(|id| Some(self.seen.get(id)?.mirror_rate)).sum()
    }

    /// When to come back, and what to do; nothing new while a new leader still gathers.
    pub(super) fn answer(&mut self, server: &ServerId, now: Instant) -> (u64, Option<Guidance>) {
        if self.gather_until.is_some_and(|until| now < until) {
            return (AGAIN_MS_MIN, None);
        }
        self.gather_until = None;
        let pause = Duration::from_millis(PLAN_MS_MIN.max(self.seen.len() as u64));
        let due = |planned: Instant| now.saturating_duration_since(planned) >= pause;
        let known = self.layout.heads.contains(server) || self.layout.parents.contains_key(server);
        if self.planned.is_none_or(due) || !known {
            self.plan(now);
        }
        let head = self.layout.heads.contains(server);
        let again_ms = if head { AGAIN_MS_MIN } else { self.again_ms() };
        if !self.seen.contains_key(server) {
            return (again_ms, None);
        }
        let source = |id: &ServerId| {
            let address = self.seen.get(id)?.from.address.clone();
            Some(Source { server: id.clone(), address })
        };
        let heir = self.heir.as_ref();
        let guidance = Guidance {
            feeds: self.layout.feeds(server).iter().filter_map(source).collect(),
            spares: self.layout.spares(server).iter().filter_map(source).collect(),
            lease: lease_runs(self.layout.leases.get(server), LEASE_RUNS_MAX),
            heir: heir == Some(server),
            heir_at: heir.filter(|heir| *heir != server).and_then(source),
            // Set by the tracker, which knows all transfers.
            mirror_rate_max: None,
        };
        (again_ms, Some(guidance))
    }

    fn again_ms(&self) -> u64 {
        (self.seen.len() as u64 * 4).clamp(AGAIN_MS_MIN, AGAIN_MS_MAX)
    }

    fn plan(&mut self, now: Instant) {
        self.planned = Some(now);
        for (server, lease) in &self.layout.leases {
            let Some(seen) = self.seen.get_mut(server) else { continue };
            let stalled = now.saturating_duration_since(seen.lease_moved) > LEASE_STALLED
                || now.saturating_duration_since(seen.grown) > LEASE_UNIT_STALLED;
            if !lease.is_empty() && stalled && seen.lease_refused.is_none() {
                tracing::info!(%server, "its lease does not move: another head");
                seen.lease_refused = Some(now);
            }
        }
        for seen in self.seen.values_mut() {
            let over = |since: Option<Instant>, most| {
                since.is_some_and(|since| now.saturating_duration_since(since) > most)
            };
            if over(seen.lease_refused, LEASE_REFUSED) {
                seen.lease_refused = None;
                (seen.lease_moved, seen.grown) = (now, now);
            }
            if over(seen.slow_since, SLOW_REMEMBERED) {
                seen.slow_since = None;
            }
        }
        self.link_rate = self.link_rate();
        let members = self.members(now);
        let barred: BTreeSet<ServerId> =
            members.iter().filter(|(_, m)| m.barred).map(|(id, _)| id.clone()).collect();
        for server in barred.difference(&self.barred) {
            tracing::warn!(%server, "barred: others get nothing or wrong bytes from it");
        }
        self.barred = barred;
        let layout = plan(&Situation {
            units: self.units,
            members: &members,
            link_rate: self.link_rate,
            fan_out_failed: self.fan_out_failed,
            previous: &self.layout,
        });
        for (server, lease) in &layout.leases {
            // A lease moves from when it is given.
            let before = self.layout.leases.get(server).is_none_or(UnitSet::is_empty);
            if before
                && !lease.is_empty()
                && let Some(seen) = self.seen.get_mut(server)
            {
                (seen.lease_moved, seen.grown) = (now, now);
            }
        }
        if layout.heads != self.layout.heads || layout.parents != self.layout.parents {
            tracing::debug!(heads = ?layout.heads, parents = ?layout.parents, "plan changed");
        }
        self.heir = layout.heir(&members);
        self.layout = layout;
    }

    /// What a server's link carries: what several have shown, lest one that counts wrongly bends the
    /// plan for all.
    fn link_rate(&self) -> u64 {
        let mut rates: Vec<u64> = self.seen.values().map(|seen| seen.link_rate).collect();
        rates.sort_unstable_by(|a, b| b.cmp(a));
        let place = if rates.len() < 3 { 0 } else { 1 + rates.len() / 16 };
        rates.get(place).copied().unwrap_or(0)
    }

    /// The servers that can be reached.
    pub(super) fn members(&self, now: Instant) -> BTreeMap<ServerId, Member> {
        let there = || self.seen.iter().filter(|(id, seen)| self.is_there(id, seen, now));
        let lacking = there().filter(|(_, seen)| !seen.have.is_full()).map(|(id, _)| id).collect();
        let barred = self.trust.barred(&lacking, now);
        let members = there().map(|(id, seen)| {
            (
                id.clone(),
                seen.member(
                    self.trust.refuses(id, now),
                    self.trust.fell_behind(id, now),
                    barred.contains(id),
                ),
            )
        });
        members.collect()
    }

    pub(super) fn is_there(&self, id: &ServerId, seen: &Seen, now: Instant) -> bool {
        let silent = now.saturating_duration_since(seen.heard);
        let unnamed = now.saturating_duration_since(seen.named).min(silent);
        let complained =
            seen.complained.is_some_and(|at| now.saturating_duration_since(at) < COMPLAINT);
        if seen.have.is_full() && !complained {
            return unnamed < WHOLE_BELIEVED;
        }
        let head = self.layout.heads.contains(id);
        let every = if head { AGAIN_MS_MIN } else { self.again_ms() };
        let tenths = if complained { MISSED_COMPLAINED_TENTHS } else { MISSED_TENTHS };
        silent < Duration::from_millis(every * tenths / 10)
    }
}
