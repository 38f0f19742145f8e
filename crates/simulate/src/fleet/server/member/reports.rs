//! The reports of one request, one after the other into the log.

use cohort_core::command::Body;
use cohort_core::report::Report;
use cohort_server::answers;

use super::{Carried, Client, Request};
use crate::fleet::net::What;

#[derive(Debug)]
pub(super) struct Batch {
    pub(super) request: Request,
    pub(super) left: Vec<Report>,
    /// Whether each of those before was accepted.
    pub(super) taken: Vec<bool>,
    pub(super) arrived_ms: u64,
}

impl Carried {
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
