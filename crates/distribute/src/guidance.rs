//! What the group's leader says about one server's part in a transfer: soft state, obeyed while it
//! lasts, and nothing is lost when it is.

use std::collections::BTreeMap;

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
}

/// The guidance of all fetches of a server. Without one (`FetchContext::guides` is `None`), a fetch
/// obeys its order alone.
#[derive(Debug)]
pub struct Guides {
    all: watch::Sender<Heard>,
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
        Self { all: watch::Sender::new(heard) }
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

    pub(crate) fn subscribe(&self) -> watch::Receiver<Heard> {
        self.all.subscribe()
    }
}
