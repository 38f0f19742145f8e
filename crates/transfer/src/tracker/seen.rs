//! The last that was heard of one server.

use std::collections::BTreeSet;
use std::time::Duration;

use cohort_core::ids::ServerId;

use super::Participant;
use super::message::TransferReport;
use super::plan::Member;
use crate::Moment;
use crate::unit_set::UnitSet;

/// Rates are measured over this long at least.
const RATE_OVER: Duration = Duration::from_millis(200);

/// Highest rate that is believed: 100 Gbit/s.
const RATE_MAX: u64 = 12_500_000_000;

#[derive(Debug)]
pub(super) struct Seen {
    pub(super) from: Participant,
    pub(super) have: UnitSet,
    /// Its last own report.
    pub(super) heard: Moment,
    /// The log last said that it holds everything.
    pub(super) named: Moment,
    pub(super) mirror_bytes: u64,
    pub(super) peer_bytes: u64,
    pub(super) mirror_rate: u64,
    pub(super) rate: u64,
    /// The best that its link carried beside what mirrors gave.
    pub(super) link_rate: u64,
    /// When rates were last measured, and what had come from mirrors and from servers by then;
    /// nothing before its first own report.
    measured: Option<(Moment, u64, u64)>,
    pub(super) complained: Option<Moment>,
    /// Its parent has had more for this long.
    pub(super) behind_since: Option<Moment>,
    pub(super) slow_since: Option<Moment>,
    /// The parent under which it was found slow, and since when it keeps up under another.
    pub(super) suspect: Option<(ServerId, Option<Moment>)>,
    /// When bytes of its lease last came,
    pub(super) lease_moved: Moment,
    /// and when a unit last did.
    pub(super) grown: Moment,
    pub(super) lease_refused: Option<Moment>,
}

impl Seen {
    pub(super) fn new(from: &Participant, have: &UnitSet, now: Moment) -> Self {
        Self {
            from: from.clone(),
            have: have.clone(),
            heard: now,
            named: now,
            mirror_bytes: 0,
            peer_bytes: 0,
            mirror_rate: 0,
            rate: 0,
            link_rate: 0,
            measured: None,
            complained: None,
            behind_since: None,
            slow_since: None,
            suspect: None,
            lease_moved: now,
            grown: now,
            lease_refused: None,
        }
    }

    /// Takes a report; says whether the server takes back something that it said before.
    pub(super) fn take(
        &mut self,
        from: &Participant,
        report: &TransferReport,
        have: UnitSet,
        now: Moment,
    ) -> bool {
        self.from = from.clone();
        self.heard = now;
        // A mirror that has too much to do has no more for another head.
        if report.mirror_bytes != self.mirror_bytes || report.mirror_busy {
            self.lease_moved = now;
        }
        if have.held() > self.have.held() {
            self.grown = now;
        }
        let mut lost = std::mem::replace(&mut self.have, have);
        lost.subtract(&self.have);
        if self.have.is_full() && report.mirror_bytes == 0 && report.peer_bytes == 0 {
            // The fetch has ended, and its counters with it.
            return false;
        }
        self.mirror_bytes = report.mirror_bytes;
        self.peer_bytes = report.peer_bytes;
        self.measure(now);
        !lost.is_empty()
    }

    fn measure(&mut self, now: Moment) {
        let here = (now, self.mirror_bytes, self.peer_bytes);
        // What came before a new leader heard of it says nothing about a rate.
        let (at, mirror, peer) = *self.measured.get_or_insert(here);
        let over = now.saturating_sub(at);
        if over < RATE_OVER {
            return;
        }
        let us = u64::try_from(over.as_micros()).unwrap_or(u64::MAX).max(1);
        // A fetch that began anew counts from zero again.
        let rate = |now: u64, before: u64| {
            let bytes = now.checked_sub(before).unwrap_or(now);
            (bytes.saturating_mul(1_000_000) / us).min(RATE_MAX)
        };
        let mirror_now = rate(self.mirror_bytes, mirror);
        let all_now = mirror_now + rate(self.peer_bytes, peer);
        let smooth = |before: u64, new| if before == 0 { new } else { (before * 3 + new) / 4 };
        self.mirror_rate = smooth(self.mirror_rate, mirror_now);
        self.rate = smooth(self.rate, all_now);
        self.link_rate = self.link_rate.max(self.rate.saturating_sub(self.mirror_rate));
        self.measured = Some(here);
    }

    pub(super) fn is_slow(&self) -> bool {
        self.slow_since.is_some()
    }

    pub(super) fn member(
        &self,
        refuses: BTreeSet<ServerId>,
        fell_behind: BTreeSet<ServerId>,
        barred: bool,
    ) -> Member {
        Member {
            rack: self.from.rack.clone(),
            have: self.have.clone(),
            slow: self.is_slow(),
            leads: self.from.leads,
            may_lease: self.lease_refused.is_none(),
            mirror_rate: self.mirror_rate,
            refuses,
            fell_behind,
            barred,
        }
    }
}
