//! One server's last report, and what follows from it.

use std::collections::BTreeSet;
use std::time::Duration;

use cohort_core::ids::ServerId;

use super::Participant;
use super::message::{Accusation, TransferReport};
use super::plan::Member;
use crate::Moment;
use crate::source::SourceName;
use crate::unit_set::UnitSet;

/// Shortest time over which a rate is measured.
const RATE_OVER: Duration = Duration::from_millis(200);

/// Highest credible rate, in bytes per second: 100 Gbit/s.
const RATE_MAX: u64 = 12_500_000_000;

#[derive(Debug)]
pub(super) struct Seen {
    pub(super) from: Participant,
    pub(super) have: UnitSet,
    /// When it last reported.
    pub(super) heard: Moment,
    /// When a report last named it as a holder, as the log says.
    pub(super) named: Moment,
    /// Bytes of the current fetch, which counts from zero.
    pub(super) mirror_bytes: u64,
    peer_bytes: u64,
    /// Bytes from mirrors and from servers of the fetches before it. For people.
    earlier: (u64, u64),
    /// When it first reported holding everything. For people.
    pub(super) whole: Option<Moment>,
    /// What it blames its sources for. For people.
    pub(super) accusations: Vec<Accusation>,
    pub(super) mirror_rate: u64,
    pub(super) rate: u64,
    /// The highest rate seen on its link, without bytes from mirrors.
    pub(super) link_rate: u64,
    /// When rates were last measured, and the bytes from mirrors and from servers by then; `None`
    /// before its first report.
    measured: Option<(Moment, u64, u64)>,
    pub(super) complained: Option<Moment>,
    /// Since when its parent has had more units.
    pub(super) behind_since: Option<Moment>,
    pub(super) slow_since: Option<Moment>,
    /// The parent under which it was slow, and since when it has kept up under another.
    pub(super) suspect: Option<(ServerId, Option<Moment>)>,
    /// When a byte of its lease last arrived.
    pub(super) lease_moved: Moment,
    /// When a unit last arrived.
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
            earlier: (0, 0),
            whole: None,
            accusations: Vec::new(),
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

    /// Processes a report. Returns whether the server holds less than it had reported.
    pub(super) fn take(
        &mut self,
        from: &Participant,
        report: &TransferReport,
        have: UnitSet,
        now: Moment,
    ) -> bool {
        self.from = from.clone();
        self.heard = now;
        // An overloaded mirror would not send more to another head.
        if report.mirror_bytes != self.mirror_bytes || report.mirror_busy {
            self.lease_moved = now;
        }
        if have.held() > self.have.held() {
            self.grown = now;
        }
        let mut lost = std::mem::replace(&mut self.have, have);
        lost.subtract(&self.have);
        self.whole = self.have.is_full().then(|| self.whole.unwrap_or(now));
        if self.have.is_full() && report.mirror_bytes == 0 && report.peer_bytes == 0 {
            // The fetch has ended, and its counters with it.
            return false;
        }
        if report.mirror_bytes < self.mirror_bytes || report.peer_bytes < self.peer_bytes {
            self.earlier = (self.all_mirror_bytes(), self.all_peer_bytes());
        }
        self.mirror_bytes = report.mirror_bytes;
        self.peer_bytes = report.peer_bytes;
        self.accusations.clone_from(&report.offences);
        for accusation in &mut self.accusations {
            if let SourceName::Mirror(url) = &accusation.source {
                accusation.source = SourceName::mirror(url);
            }
        }
        self.measure(now);
        !lost.is_empty()
    }

    fn measure(&mut self, now: Moment) {
        let here = (now, self.mirror_bytes, self.peer_bytes);
        // Bytes from before the first report to this leader say nothing about a rate.
        let (at, mirror, peer) = *self.measured.get_or_insert(here);
        let over = now.saturating_sub(at);
        if over < RATE_OVER {
            return;
        }
        let us = u64::try_from(over.as_micros()).unwrap_or(u64::MAX).max(1);
        // A restarted fetch counts from zero.
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

    /// Over all of its fetches.
    pub(super) fn all_mirror_bytes(&self) -> u64 {
        self.earlier.0.saturating_add(self.mirror_bytes)
    }

    /// Over all of its fetches.
    pub(super) fn all_peer_bytes(&self) -> u64 {
        self.earlier.1.saturating_add(self.peer_bytes)
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
