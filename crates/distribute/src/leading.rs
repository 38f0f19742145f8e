//! The tracker in the leader's agent: with a lock, a clock, and logging.

use std::time::Instant;

use cohort_transfer::tracker::{
    Event, Participant, TrackerError, TransferAnswer, TransferRequest, TransferView,
};
use cohort_transfer::{Moment, Tracker};
use parking_lot::Mutex;
use tracing::{info, warn};

/// The tracker, shared by all connections of an agent.
#[derive(Debug)]
pub struct SharedTracker {
    begun: Instant,
    tracker: Mutex<Tracker>,
}

impl Default for SharedTracker {
    fn default() -> Self {
        Self { begun: Instant::now(), tracker: Mutex::default() }
    }
}

impl SharedTracker {
    /// See [`Tracker::set_zone_limit`].
    pub fn set_zone_limit(&self, limit: Option<u64>) {
        self.tracker.lock().set_zone_limit(limit);
    }

    /// Processes a server's report, and returns what the server should do.
    ///
    /// # Errors
    /// See [`Tracker::report`].
    pub fn report(
        &self,
        from: &Participant,
        request: &TransferRequest,
    ) -> Result<TransferAnswer, TrackerError> {
        let (answer, events) = {
            let mut tracker = self.tracker.lock();
            (tracker.report(from, request, self.now()), tracker.take_events())
        };
        for (artifact, event) in events {
            match event {
                Event::FanOutLowered { from } => {
                    info!(%artifact, from, "servers fall behind: lowering the fan-out");
                }
                Event::Slow { server, rate } => {
                    info!(%artifact, %server, rate, "server is slow: moving it to the tail");
                }
                Event::Starved { server, parent } => {
                    info!(%artifact, %server, %parent, "server is starved: changing its parent");
                }
                Event::Acquitted { server, suspect } => {
                    info!(%artifact, %server, %suspect, "server keeps up under another parent");
                }
                Event::LeaseRevoked { server } => {
                    info!(%artifact, %server, "lease is stalled: revoking it");
                }
                Event::Barred { server } => {
                    warn!(%artifact, %server, "server sends nothing or wrong bytes: barring it");
                }
            }
        }
        answer
    }

    /// Drops all transfers: this server is no longer the leader.
    pub fn clear(&self) {
        self.tracker.lock().clear();
    }

    /// All transfers, for people.
    #[must_use]
    pub fn view(&self) -> Vec<TransferView> {
        self.tracker.lock().view(self.now())
    }

    fn now(&self) -> Moment {
        self.begun.elapsed()
    }
}
