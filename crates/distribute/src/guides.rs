//! What this server last heard from its group's leader, for all its fetches.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cohort_core::ids::Digest;
use cohort_transfer::Guidance;
use tokio::sync::watch;
use tokio::time::Instant;

/// The guidance of all fetches of a server.
#[derive(Debug)]
pub struct Guides {
    all: watch::Sender<Heard>,
    /// The mirrors' last rate for the group, in bytes per second; 0 while unknown.
    downlink_rate: AtomicU64,
}

/// When a leader last responded, and the guidance in force.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) at: Instant,
    pub(crate) guidance: BTreeMap<Digest, Guidance>,
}

impl Default for Guides {
    fn default() -> Self {
        let heard = Heard { at: Instant::now(), guidance: BTreeMap::new() };
        Self { all: watch::Sender::new(heard), downlink_rate: AtomicU64::new(0) }
    }
}

impl Guides {
    /// Stores a leader's guidance. Artifacts that it does not mention keep theirs.
    pub fn take(&self, guidance: impl IntoIterator<Item = (Digest, Guidance)>) {
        self.all.send_modify(|heard| {
            heard.at = Instant::now();
            heard.guidance.extend(guidance);
        });
    }

    /// Forgets artifacts that are no longer fetched.
    pub fn retain(&self, wanted: impl Fn(&Digest) -> bool) {
        self.all.send_if_modified(|heard| {
            let before = heard.guidance.len();
            heard.guidance.retain(|digest, _| wanted(digest));
            heard.guidance.len() != before
        });
    }

    /// The guidance in force for an artifact.
    #[must_use]
    pub fn of(&self, digest: &Digest) -> Option<Guidance> {
        self.all.borrow().guidance.get(digest).cloned()
    }

    /// Stores the mirrors' rate as the leader reports it; `None` leaves the last value in force.
    pub fn measured(&self, downlink_rate: Option<u64>) {
        if let Some(rate) = downlink_rate {
            self.downlink_rate.store(rate, Ordering::Relaxed);
        }
    }

    /// The mirrors' rate in the group's last transfer, in bytes per second, as far as a leader has
    /// reported it since this agent started.
    #[must_use]
    pub fn downlink_rate(&self) -> Option<u64> {
        Some(self.downlink_rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// Time since a leader last responded.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        self.all.borrow().at.elapsed()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Heard> {
        self.all.subscribe()
    }
}
