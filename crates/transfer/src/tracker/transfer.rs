//! One transfer as the leader knows it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cohort_core::ids::ServerId;
use cohort_core::orders::Source;

use super::message::{HAVE_RUNS_MAX, TransferReport};
use super::plan::{Layout, Member, Situation, plan};
use super::seen::Seen;
use super::trust::Trust;
use super::{Event, MEMBERS_MAX, Participant};
use crate::guidance::Guidance;
use crate::unit_set::UnitSet;
use crate::{Moment, unit_count};

/// Longest time between two reports, in milliseconds: a thousand servers send the leader 250
/// requests a second.
pub(super) const AGAIN_MS_MAX: u64 = 4_000;

/// Shortest time between two reports that the leader asks for, in milliseconds.
const AGAIN_MS_MIN: u64 = 200;

/// Time without reports before a server counts as gone, in tenths of the reporting interval.
const MISSED_TENTHS: u64 = 60;

/// The same for a server that another one complained about, in tenths.
const MISSED_COMPLAINED_TENTHS: u64 = 20;

/// How long a complaint counts.
const COMPLAINT: Duration = Duration::from_secs(3);

/// How long a server that holds everything counts as reachable without reporting: it has nothing
/// left to report.
const WHOLE_BELIEVED: Duration = Duration::from_secs(600);

/// A new leader waits for everyone's report before it plans a transfer in progress: two rounds of
/// servers that search for it every 250 ms.
const GATHER: Duration = Duration::from_millis(500);

/// How long slowness is remembered.
const SLOW_REMEMBERED: Duration = Duration::from_secs(60);

/// A head whose lease yields no byte for this long loses it.
const LEASE_STALLED: Duration = Duration::from_secs(3);

/// So does one that gets bytes but no whole unit for this long: a mirror below 3 KiB/s is useless.
const LEASE_UNIT_STALLED: Duration = Duration::from_secs(20);

/// A head that lost its lease gets no other for this long.
const LEASE_REFUSED: Duration = Duration::from_secs(10);

/// A server that reports more often than this gets a response based on its last report.
const REPORT_MIN: Duration = Duration::from_millis(10);

/// Most runs of a lease. It is topped up by halves and fetched in order, so it has few.
const LEASE_RUNS_MAX: usize = 256;

/// Shortest time between two plans, in milliseconds; in large groups, a millisecond per server,
/// since planning for a thousand takes about ten milliseconds.
const PLAN_MS_MIN: u64 = 20;

/// Fewer bytes, or less time, say nothing about a downlink: bytes in flight and late reports would
/// dominate.
const DOWNLINK_BYTES_MIN: u64 = 1 << 20;
const DOWNLINK_OVER: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) length: u64,
    pub(super) units: u32,
    pub(super) seen: BTreeMap<ServerId, Seen>,
    pub(super) layout: Layout,
    pub(super) begun: Moment,
    gather_until: Option<Moment>,
    planned: Option<Moment>,
    pub(super) link_rate: u64,
    pub(super) fan_out_failed: Option<usize>,
    pub(super) heard: Moment,
    pub(super) trust: Trust,
    /// Servers that feed no other, because several others refuse them.
    pub(super) barred: BTreeSet<ServerId>,
    heir: Option<ServerId>,
    /// When bytes from mirrors were first and last reported.
    mirrored: Option<(Moment, Moment)>,
    pub(super) events: Vec<Event>,
}

impl Transfer {
    pub(super) fn new(report: &TransferReport, now: Moment) -> Self {
        Self {
            length: report.length,
            units: unit_count(report.length),
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
            mirrored: None,
            events: Vec::new(),
        }
    }

    pub(super) fn take(&mut self, from: &Participant, report: &TransferReport, now: Moment) {
        let server = &from.server;
        match self.seen.get(server) {
            None if self.seen.len() >= MEMBERS_MAX => return,
            // A server that floods the leader costs it next to nothing.
            Some(seen) if self.planned.is_some() && now.saturating_sub(seen.heard) < REPORT_MIN => {
                return;
            }
            None | Some(_) => {}
        }
        self.heard = now;
        let have = UnitSet::from_runs(self.units, &report.have);
        let seen = self.seen.entry(server.clone()).or_insert_with(|| Seen::new(from, &have, now));
        let before = (seen.heard, seen.mirror_bytes);
        let took_back = seen.take(from, report, have, now);
        if seen.mirror_bytes > before.1 {
            self.mirrored = Some((self.mirrored.map_or(before.0, |(since, _)| since), now));
        }
        // If a report cannot hold all runs, those at the end come and go.
        if took_back && report.have.len() < HAVE_RUNS_MAX {
            self.trust.took_back(server, now);
        }
        if report.mirror_failed && self.layout.heads.contains(server) {
            seen.lease_refused = Some(now);
        }
        self.hear_complaints(server, report, now);
        for holder in report.holders.iter().filter(|holder| holder.server != *server) {
            self.believe(holder, now);
        }
        self.take_over(server, report);
        self.judge(server, now);
    }

    fn hear_complaints(&mut self, server: &ServerId, report: &TransferReport, now: Moment) {
        let known: BTreeSet<&ServerId> =
            report.silent.iter().filter(|silent| self.seen.contains_key(*silent)).collect();
        self.trust.silent(server, &known, now);
        // It can only miss servers that it was supposed to subscribe to.
        let (feeds, spares) = (self.layout.feeds(server), self.layout.spares(server));
        for silent in known {
            let told = feeds.contains(silent) || spares.contains(silent);
            if told && let Some(seen) = self.seen.get_mut(silent) {
                seen.complained = Some(now);
            }
        }
        for wrong in report.wrong.iter().filter(|wrong| self.seen.contains_key(*wrong)) {
            self.trust.wrong(server, wrong, now);
        }
    }

    /// The log says that a server holds it whole; such a server has nothing left to report.
    fn believe(&mut self, holder: &Source, now: Moment) {
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

    /// Adopts a server's guidance from the last leader, until there is reason to change it.
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

    pub(super) fn mirror_rate(&self) -> u64 {
        let heads = self.layout.heads.iter();
        heads.filter_map(|id| Some(self.seen.get(id)?.mirror_rate)).sum()
    }

    /// The rate of mirrors from the first byte to the last, in bytes per second: the downlink's, or
    /// what limits permitted of it.
    pub(super) fn downlink_rate(&self) -> Option<u64> {
        let (since, until) = self.mirrored?;
        let over = until.saturating_sub(since);
        let bytes = self.sum(Seen::all_mirror_bytes);
        if bytes < DOWNLINK_BYTES_MIN || over < DOWNLINK_OVER {
            return None;
        }
        let us = u64::try_from(over.as_micros()).unwrap_or(u64::MAX).max(1);
        Some(bytes.saturating_mul(1_000_000) / us)
    }

    pub(super) fn sum(&self, of: fn(&Seen) -> u64) -> u64 {
        self.seen.values().map(of).fold(0, u64::saturating_add)
    }

    /// When to report again, and guidance; none while a new leader still collects reports.
    pub(super) fn answer(&mut self, server: &ServerId, now: Moment) -> (u64, Option<Guidance>) {
        if self.gather_until.is_some_and(|until| now < until) {
            return (AGAIN_MS_MIN, None);
        }
        self.gather_until = None;
        let pause = Duration::from_millis(PLAN_MS_MIN.max(self.seen.len() as u64));
        let due = |planned: Moment| now.saturating_sub(planned) >= pause;
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
        let lease = self.layout.leases.get(server);
        let guidance = Guidance {
            feeds: self.layout.feeds(server).iter().filter_map(source).collect(),
            spares: self.layout.spares(server).iter().filter_map(source).collect(),
            lease: lease.map_or_else(Vec::new, |lease| lease.runs(LEASE_RUNS_MAX)),
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

    fn plan(&mut self, now: Moment) {
        self.planned = Some(now);
        self.revoke_stalled_leases(now);
        self.forget(now);
        self.link_rate = self.link_rate();
        let members = self.members(now);
        let barred: BTreeSet<ServerId> =
            members.iter().filter(|(_, m)| m.barred).map(|(id, _)| id.clone()).collect();
        let newly = barred.difference(&self.barred).cloned();
        self.events.extend(newly.map(|server| Event::Barred { server }));
        self.barred = barred;
        let layout = plan(&Situation {
            units: self.units,
            members: &members,
            link_rate: self.link_rate,
            fan_out_failed: self.fan_out_failed,
            previous: &self.layout,
        });
        for (server, _) in layout.leases.iter().filter(|(_, lease)| !lease.is_empty()) {
            // The clock of a lease starts when it is granted.
            let granted = self.layout.leases.get(server).is_none_or(UnitSet::is_empty);
            if granted && let Some(seen) = self.seen.get_mut(server) {
                (seen.lease_moved, seen.grown) = (now, now);
            }
        }
        self.heir = layout.heir(&members);
        self.layout = layout;
    }

    fn revoke_stalled_leases(&mut self, now: Moment) {
        for (server, _) in self.layout.leases.iter().filter(|(_, lease)| !lease.is_empty()) {
            let Some(seen) = self.seen.get_mut(server) else { continue };
            let stalled = now.saturating_sub(seen.lease_moved) > LEASE_STALLED
                || now.saturating_sub(seen.grown) > LEASE_UNIT_STALLED;
            if stalled && seen.lease_refused.is_none() {
                self.events.push(Event::LeaseRevoked { server: server.clone() });
                seen.lease_refused = Some(now);
            }
        }
    }

    fn forget(&mut self, now: Moment) {
        let over = |since: Option<Moment>, most| {
            since.is_some_and(|since| now.saturating_sub(since) > most)
        };
        for seen in self.seen.values_mut() {
            if over(seen.lease_refused, LEASE_REFUSED) {
                seen.lease_refused = None;
                (seen.lease_moved, seen.grown) = (now, now);
            }
            if over(seen.slow_since, SLOW_REMEMBERED) {
                seen.slow_since = None;
            }
        }
    }

    /// The rate of a server's link: one that several have reached, so that a single wrong count
    /// does not distort everyone's plan.
    fn link_rate(&self) -> u64 {
        let mut rates: Vec<u64> = self.seen.values().map(|seen| seen.link_rate).collect();
        rates.sort_unstable_by(|a, b| b.cmp(a));
        let place = if rates.len() < 3 { 0 } else { 1 + rates.len() / 16 };
        rates.get(place).copied().unwrap_or(0)
    }

    /// The reachable servers, as input of a plan.
    pub(super) fn members(&self, now: Moment) -> BTreeMap<ServerId, Member> {
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

    pub(super) fn is_there(&self, id: &ServerId, seen: &Seen, now: Moment) -> bool {
        let silent = now.saturating_sub(seen.heard);
        let unnamed = now.saturating_sub(seen.named).min(silent);
        let complained = seen.complained.is_some_and(|at| now.saturating_sub(at) < COMPLAINT);
        if seen.have.is_full() && !complained {
            return unnamed < WHOLE_BELIEVED;
        }
        let head = self.layout.heads.contains(id);
        let every = if head { AGAIN_MS_MIN } else { self.again_ms() };
        let tenths = if complained { MISSED_COMPLAINED_TENTHS } else { MISSED_TENTHS };
        silent < Duration::from_millis(every * tenths / 10)
    }
}
