//! The reports of one request, one after the other into the log.

use cohort_core::command::Body;
use cohort_core::ids::BootEpoch;
use cohort_core::report::Report;
use cohort_server::answers;

use super::{Carried, Client, Request};
use crate::fleet::chaos::Mutation;
use crate::fleet::net::What;

#[derive(Debug)]
pub(super) struct Batch {
    pub(super) request: Request,
    pub(super) left: Vec<Report>,
    /// Whether each of those before was accepted.
    pub(super) taken: Vec<bool>,
    pub(super) arrived_ms: u64,
}

/// What makes a report look newer than all before it, in `boot_epoch`; below, the start is as the
/// server counts it.
const NEWER_SHIFT: u32 = 32;

/// The start of an agent, as it counts.
pub(in crate::fleet) fn start_of(boot_epoch: BootEpoch) -> BootEpoch {
    BootEpoch(boot_epoch.0 & ((1 << NEWER_SHIFT) - 1))
}

impl Carried {
    /// The reports, each newer than all before it if that is the protection to be missed.
    pub(super) fn renumbered(&self, now_ms: u64, mut reports: Vec<Report>) -> Vec<Report> {
        if self.mutation == Some(Mutation::ReportDeduplication) {
            for (newer, report) in (now_ms * 1_000..).zip(&mut reports) {
                report.boot_epoch.0 |= newer << NEWER_SHIFT;
            }
        }
        reports
    }

    pub(super) fn next_report(&mut self, mut batch: Batch) {
        let goes_on = answers::takes_next_report(batch.taken.len(), batch.arrived_ms, self.now_ms);
        if batch.left.is_empty() || !goes_on {
            return self.reply(batch.request, What::Taken(Some(batch.taken)));
        }
        // One after the other: a later one that overtook would make the earlier one count as old.
        let report = batch.left.remove(0);
        if !self.health_pace.accepts(&report, self.now_ms) {
            batch.taken.push(false);
            return self.next_report(batch);
        }
        let actor = format!("agent {}", report.server);
        self.commit(actor, None, Body::Report { report }, Client::Reports(batch));
    }
}
