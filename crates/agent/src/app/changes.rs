//! What makes an app look again, and what interrupts its steps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cohort_core::ids::{AppId, Digest};
use cohort_core::orders::Fence;
use cohort_distribute::FetchStatus;
use cohort_host::boot_time_ms;
use cohort_server::app::Running;
use cohort_server::asking::Received;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::reporter::Reporter;
use crate::shared::Shared;

/// What makes an app look again: each change once, after it was [seen](Self::seen).
pub(crate) struct Changes {
    app: AppId,
    orders: watch::Receiver<Option<Arc<Received>>>,
    fetched: watch::Receiver<BTreeMap<Digest, FetchStatus>>,
    killed: watch::Receiver<Option<String>>,
    confirmed: watch::Receiver<BTreeMap<AppId, Fence>>,
    stop: CancellationToken,
    /// The boot-time clock in milliseconds; a test's advances with its runtime's.
    pub clock: fn() -> u64,
}

/// What an app knows of the rest of its agent.
pub(super) struct Seen {
    pub received: Option<Arc<Received>>,
    pub killed: bool,
    /// The last fence whose passed checks the group has acknowledged.
    pub confirmed: Option<Fence>,
}

impl Changes {
    pub(crate) fn new(app: AppId, shared: &Shared, reporter: &Reporter) -> Changes {
        Changes {
            app,
            orders: shared.orders.subscribe(),
            fetched: shared.downloads.statuses(),
            killed: shared.kill.subscribe_here(),
            confirmed: reporter.confirmed(),
            stop: shared.tasks.stop.clone(),
            clock: boot_time_ms,
        }
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Everything as it is now.
    pub(super) fn seen(&mut self) -> Seen {
        // Only a change of it matters: what is on the disk is looked up there.
        self.fetched.mark_unchanged();
        Seen {
            received: self.orders.borrow_and_update().clone(),
            killed: self.killed.borrow_and_update().is_some(),
            confirmed: self.confirmed.borrow_and_update().get(&self.app).copied(),
        }
    }

    /// Waits until something is no longer as it was seen, or the agent stops.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            _ = self.orders.changed() => {}
            _ = self.fetched.changed() => {}
            _ = self.killed.changed() => {}
            _ = self.confirmed.changed() => {}
        }
    }

    /// Waits until [`Running`] says so, or the agent stops.
    pub(super) async fn interrupt(&self, running: Running) {
        let mut orders = self.orders.clone();
        loop {
            let at_ms = running.interrupted_at_ms(&self.app, orders.borrow_and_update().as_deref());
            let expired = async {
                match at_ms.map(|at_ms| at_ms.saturating_sub((self.clock)())) {
                    Some(left_ms) => tokio::time::sleep(Duration::from_millis(left_ms)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = expired => return,
                changed = orders.changed() => if changed.is_err() { return },
            }
        }
    }
}

#[cfg(test)]
#[path = "changes_test.rs"]
mod changes_test;
