//! When a server reports its transfers to the leader.

use std::time::Duration;

use cohort_core::ids::{Digest, ServerId};

use crate::tracker::{TransferAnswer, TransferReport};
use crate::unit_set::{UnitRun, UnitSet};
use crate::{Moment, unit_count};

/// How often a server checks whether it has something urgent to report.
const CHECK: Duration = Duration::from_millis(25);

/// Shortest pause between two reports, however urgent.
const REPORT_MIN: Duration = Duration::from_millis(50);

/// Pause after the leader could not be reached.
const AGAIN: Duration = Duration::from_millis(250);

/// When to report: when the leader asked for it, or earlier if something urgent happened.
#[derive(Debug, Default)]
pub struct Pace {
    /// When the leader wants the next report from this server.
    due: Moment,
    reported: Moment,
    told: Urgent,
    /// Units that the last response leased.
    lease_given: u64,
}

/// What to do about the next report.
#[derive(Debug, PartialEq, Eq)]
pub enum NextReport {
    /// Send it, then call [`Pace::answered`] or [`Pace::unanswered`].
    Now,
    Wait {
        pause: Duration,
        /// Only a change of orders can make it urgent.
        idle: bool,
    },
}

/// Data whose change makes a report urgent.
#[derive(Debug, Default, PartialEq, Eq)]
struct Urgent {
    ordered: Vec<Digest>,
    silent: Vec<ServerId>,
    whole: usize,
    ended: Vec<Digest>,
}

impl Pace {
    /// Decides about `reports`. `ended`: finished fetches not yet reported to a leader.
    pub fn next(
        &mut self,
        now: Moment,
        reports: &[TransferReport],
        ended: Vec<Digest>,
    ) -> NextReport {
        let urgent = Urgent::of(reports, ended);
        if reports.is_empty() {
            self.told = urgent;
            return NextReport::Wait { pause: Duration::MAX, idle: true };
        }
        let soon = now >= self.reported + REPORT_MIN;
        let pressing = urgent != self.told || lease_left(reports) * 2 < self.lease_given;
        if now >= self.due || soon && pressing {
            self.reported = now;
            self.told = urgent;
            return NextReport::Now;
        }
        let idle = urgent.whole == reports.len() && !pressing;
        NextReport::Wait { pause: if idle { self.due - now } else { CHECK }, idle }
    }

    /// Processes the leader's response. Returns the finished fetches that it now knows of.
    pub fn answered(&mut self, now: Moment, answer: &TransferAnswer) -> Vec<Digest> {
        self.lease_given = answer.guidance.iter().map(|(_, said)| units(&said.lease)).sum();
        self.due = now + Duration::from_millis(answer.again_ms).max(REPORT_MIN);
        std::mem::take(&mut self.told.ended)
    }

    /// Records that the leader could not be reached.
    pub fn unanswered(&mut self, now: Moment) {
        self.due = now + AGAIN;
    }
}

impl Urgent {
    fn of(reports: &[TransferReport], ended: Vec<Digest>) -> Self {
        let silent = reports.iter().flat_map(|report| report.silent.iter().chain(&report.wrong));
        let whole =
            |report: &&TransferReport| units(&report.have) == u64::from(unit_count(report.length));
        Self {
            ordered: reports.iter().map(|report| report.artifact.clone()).collect(),
            silent: silent.cloned().collect(),
            whole: reports.iter().filter(whole).count(),
            ended,
        }
    }
}

fn units(runs: &[UnitRun]) -> u64 {
    runs.iter().map(|run| u64::from(run.count)).sum()
}

/// Leased units that are not on disk yet.
fn lease_left(reports: &[TransferReport]) -> u64 {
    let left = reports.iter().map(|report| {
        let Some(told) = &report.told else { return 0 };
        let count = unit_count(report.length);
        let mut lease = UnitSet::from_runs(count, &told.lease);
        lease.subtract(&UnitSet::from_runs(count, &report.have));
        u64::from(lease.held())
    });
    left.sum()
}

#[cfg(test)]
#[path = "pace_test.rs"]
mod pace_test;
