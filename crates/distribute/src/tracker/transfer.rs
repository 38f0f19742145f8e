//! One transfer as the leader knows it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use cohort_core::ids::ServerId;
use cohort_core::orders::Source;

use super::message::TransferReport;
use super::plan::{Layout, Member, Situation, lease_runs, plan};
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

/// A new leader hears everybody before it plans a transfer that is under way.
const GATHER: Duration = Duration::from_secs(1);

/// A server is behind when its parent has this many units (4 MiB) more.
const BEHIND_UNITS: u32 = 64;

/// For this long behind: slow, or too many children at its parent.
const BEHIND_MAX: Duration = Duration::from_millis(1_000);

/// How long slowness is remembered.
const SLOW_REMEMBERED: Duration = Duration::from_secs(60);

/// A head whose lease does not move for this long loses it,
const LEASE_STALLED: Duration = Duration::from_secs(3);

/// and gets no other for this long.
const LEASE_REFUSED: Duration = Duration::from_secs(10);

/// Rates are measured over this long at least.
const RATE_OVER: Duration = Duration::from_millis(200);

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
}

/// The last that was heard of a server.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) from: Participant,
    pub(super) have: UnitSet,
    pub(super) heard: Instant,
    pub(super) mirror_bytes: u64,
    pub(super) peer_bytes: u64,
    pub(super) mirror_rate: u64,
    pub(super) rate: u64,
    measured: (Instant, u64, u64),
    complained: Option<Instant>,
    behind_since: Option<Instant>,
    slow_since: Option<Instant>,
    lease_moved: Instant,
    lease_refused: Option<Instant>,
    refuses: BTreeSet<ServerId>,
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
        }
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn heard(&self) -> Instant {
        self.heard
    }

    pub(super) fn take(&mut self, from: &Participant, report: &TransferReport, now: Instant) {
        self.heard = now;
        let server = &from.server;
        let have = UnitSet::from_runs(self.units, &report.have);
        let full = self.seen.len() >= MEMBERS_MAX && !self.seen.contains_key(server);
        if full {
            return;
        }
        let seen = self.seen.entry(server.clone()).or_insert_with(|| Seen::new(from, &have, now));
        seen.take(from, report, have, now);
        self.link_rate = self.link_rate.max(seen.rate.saturating_sub(seen.mirror_rate));
        if report.mirror_failed && self.layout.heads.contains(server) {
            seen.lease_refused = Some(now);
        }
        for silent in &report.silent {
            if let Some(seen) = self.seen.get_mut(silent) {
                seen.complained = Some(now);
            }
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
            seen.heard = now;
            seen.from.address.clone_from(&holder.address);
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
        let parent = self.layout.parents.get(server);
        let above = parent.and_then(|parent| self.seen.get(parent)).map(|seen| seen.have.held());
        let Some(seen) = self.seen.get_mut(server) else { return };
        let behind = above.is_some_and(|above| above > seen.have.held() + BEHIND_UNITS);
        if !behind {
            seen.behind_since = None;
            return;
        }
        let since = *seen.behind_since.get_or_insert(now);
        if now.saturating_duration_since(since) < BEHIND_MAX {
            return;
        }
        // Four fifths: one that catches up is faster than what comes.
        let slow = seen.rate < (mirrors * 4 / 5).max(self.link_rate / 8);
        let late = |seen: &&Seen| {
            let since = seen.behind_since;
            since.is_some_and(|since| now.saturating_duration_since(since) >= BEHIND_MAX)
        };
        let many = self.seen.values().filter(late).count() * 3 > self.seen.len();
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
        let heir = self.layout.heir(&self.members(now));
        let guidance = Guidance {
            feeds: self.layout.feeds(server).iter().filter_map(source).collect(),
            spares: self.layout.spares(server).iter().filter_map(source).collect(),
            lease: lease_runs(self.layout.leases.get(server), LEASE_RUNS_MAX),
            heir: heir.as_ref() == Some(server),
            heir_at: heir.as_ref().filter(|heir| *heir != server).and_then(source),
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
            let stalled = now.saturating_duration_since(seen.lease_moved) > LEASE_STALLED;
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
                seen.lease_moved = now;
            }
            if over(seen.slow_since, SLOW_REMEMBERED) {
                seen.slow_since = None;
            }
        }
        let members = self.members(now);
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
                seen.lease_moved = now;
            }
        }
        if layout.heads != self.layout.heads || layout.parents != self.layout.parents {
            tracing::debug!(heads = ?layout.heads, parents = ?layout.parents, "plan changed");
        }
        self.layout = layout;
    }

    /// The servers that can be reached.
    pub(super) fn members(&self, now: Instant) -> BTreeMap<ServerId, Member> {
        let there = self.seen.iter().filter(|(id, seen)| self.is_there(id, seen, now));
        there.map(|(id, seen)| (id.clone(), seen.member())).collect()
    }

    pub(super) fn is_there(&self, id: &ServerId, seen: &Seen, now: Instant) -> bool {
        let silent = now.saturating_duration_since(seen.heard);
        let complained =
            seen.complained.is_some_and(|at| now.saturating_duration_since(at) < COMPLAINT);
        if seen.have.is_full() && !complained {
            return silent < WHOLE_BELIEVED;
        }
        let head = self.layout.heads.contains(id);
        let every = if head { AGAIN_MS_MIN } else { self.again_ms() };
        let tenths = if complained { MISSED_COMPLAINED_TENTHS } else { MISSED_TENTHS };
        silent < Duration::from_millis(every * tenths / 10)
    }
}

impl Seen {
    fn new(from: &Participant, have: &UnitSet, now: Instant) -> Self {
        Self {
            from: from.clone(),
            have: have.clone(),
            heard: now,
            mirror_bytes: 0,
            peer_bytes: 0,
            mirror_rate: 0,
            rate: 0,
            measured: (now, 0, 0),
            complained: None,
            behind_since: None,
            slow_since: None,
            lease_moved: now,
            lease_refused: None,
            refuses: BTreeSet::new(),
        }
    }

    fn take(&mut self, from: &Participant, report: &TransferReport, have: UnitSet, now: Instant) {
        self.from = from.clone();
        self.heard = now;
        if report.mirror_bytes != self.mirror_bytes {
            self.lease_moved = now;
        }
        self.have = have;
        if self.have.is_full() && report.mirror_bytes + report.peer_bytes == 0 {
            // The fetch has ended, and its counters with it.
            return;
        }
        self.mirror_bytes = report.mirror_bytes;
        self.peer_bytes = report.peer_bytes;
        self.refuses = report.wrong.iter().cloned().collect();
        let (at, mirror, peer) = self.measured;
        let over = now.saturating_duration_since(at);
        if over < RATE_OVER {
            return;
        }
        let us = u64::try_from(over.as_micros()).unwrap_or(u64::MAX).max(1);
        // A fetch that began anew counts from zero again.
        let rate = |now: u64, before: u64| {
            now.checked_sub(before).unwrap_or(now).saturating_mul(1_000_000) / us
        };
        let mirror_now = rate(report.mirror_bytes, mirror);
        let all_now = mirror_now + rate(report.peer_bytes, peer);
        let smooth = |before: u64, new| if before == 0 { new } else { (before * 3 + new) / 4 };
        self.mirror_rate = smooth(self.mirror_rate, mirror_now);
        self.rate = smooth(self.rate, all_now);
        self.measured = (now, report.mirror_bytes, report.peer_bytes);
    }

    pub(super) fn is_slow(&self) -> bool {
        self.slow_since.is_some()
    }

    fn member(&self) -> Member {
        Member {
            rack: self.from.rack.clone(),
            have: self.have.clone(),
            slow: self.is_slow(),
            leads: self.from.leads,
            may_lease: self.lease_refused.is_none(),
            mirror_rate: self.mirror_rate,
            refuses: self.refuses.clone(),
        }
    }
}
