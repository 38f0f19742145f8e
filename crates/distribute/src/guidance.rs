//! What the group's leader says about one server's part in a transfer: soft state, obeyed while it
//! lasts, and nothing is lost when it is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cohort_core::ids::Digest;
use cohort_core::orders::Source;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::unit_set::UnitRun;

/// One server's part in the transfer of one artifact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guidance {
    /// Servers to be subscribed to, all of them at once.
    pub feeds: Vec<Source>,
    /// Whom to go to when one of those says nothing: the parent's parent first.
    pub spares: Vec<Source>,
    /// Units to take from a mirror. No lease, no contact with a mirror.
    pub lease: Vec<UnitRun>,
    /// Whether this server goes on by itself when there is no leader for long.
    pub heir: bool,
    /// The one that does, if that is another.
    pub heir_at: Option<Source>,
    /// How fast it may take bytes from mirrors, in bytes per second: its part of the zone's limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror_rate_max: Option<u64>,
}

/// The guidance of all fetches of a server. Without one (`FetchContext::guides` is `None`), a fetch
/// obeys its order alone.
#[derive(Debug)]
pub struct Guides {
    all: watch::Sender<Heard>,
    /// What mirrors last gave the group, in bytes per second; 0: not known.
    downlink_rate: AtomicU64,
}

/// What was heard of the leader.
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
    /// The leader answered: takes what it said of each artifact; the others keep what they have.
    pub fn take(&self, guidance: impl IntoIterator<Item = (Digest, Guidance)>) {
        self.all.send_modify(|heard| {
            heard.at = Instant::now();
            heard.guidance.extend(guidance);
        });
    }

    /// Forgets the artifacts that are no longer fetched.
    pub fn retain(&self, wanted: impl Fn(&Digest) -> bool) {
        self.all.send_if_modified(|heard| {
            let before = heard.guidance.len();
            heard.guidance.retain(|digest, _| wanted(digest));
            heard.guidance.len() != before
        });
    }

    /// What is in force for an artifact.
    #[must_use]
    pub fn of(&self, digest: &Digest) -> Option<Guidance> {
        self.all.borrow().guidance.get(digest).cloned()
    }

    /// A leader has said what mirrors gave; what was known before stays when it cannot tell.
    pub fn measured(&self, downlink_rate: Option<u64>) {
        if let Some(rate) = downlink_rate {
            self.downlink_rate.store(rate, Ordering::Relaxed);
        }
    }

    /// What mirrors gave in the last transfer of the group, in bytes per second, as its leaders said
    /// since this agent began.
    #[must_use]
    pub fn downlink_rate(&self) -> Option<u64> {
        Some(self.downlink_rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// For how long the leader has said nothing.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        self.all.borrow().at.elapsed()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Heard> {
        self.all.subscribe()
    }
}
