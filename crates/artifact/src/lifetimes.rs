//! How long signatures are valid, and when they expire.

use jiff::Timestamp as Time;
use serde::{Deserialize, Serialize};

use cohort_core::refused::Role;

const DAY_S: u64 = 86_400;

/// How long a fleet works without the hub: a month, so that a holiday causes no outage.
const ALONE_S_MIN: u64 = 30 * DAY_S;

/// The hub renews the timestamp once it is older than this, in seconds.
pub(crate) const RENEW_AFTER_S: u64 = DAY_S;

/// How long signatures of each role are valid, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lifetimes {
    pub root_s: u64,
    /// Of the list of manifests and channels; renewed by every publish.
    pub targets_s: u64,
    /// Of the snapshot; renewed by every publish.
    pub snapshot_s: u64,
    /// Of the timestamp; renewed by the hub every day. The longest time that a mirror can hide
    /// news.
    pub timestamp_s: u64,
}

const DEFAULT_LIFETIMES: Lifetimes = Lifetimes {
    root_s: 3650 * DAY_S,
    targets_s: 365 * DAY_S,
    snapshot_s: 365 * DAY_S,
    timestamp_s: 35 * DAY_S,
};

const _: () = {
    // The hub may fail just before a renewal, or have missed some in a row.
    assert!(DEFAULT_LIFETIMES.timestamp_s >= ALONE_S_MIN + 4 * RENEW_AFTER_S);
    assert!(DEFAULT_LIFETIMES.snapshot_s >= DEFAULT_LIFETIMES.timestamp_s);
};

impl Default for Lifetimes {
    fn default() -> Self {
        DEFAULT_LIFETIMES
    }
}

/// When the signatures of each role expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Expiries {
    pub root: Time,
    /// Of the list of manifests and channels.
    pub targets: Time,
    pub snapshot: Time,
    pub timestamp: Time,
}

impl Expiries {
    /// The role whose signature expires first, and when.
    #[must_use]
    pub fn nearest(&self) -> (Role, Time) {
        let all = [
            (Role::Root, self.root),
            (Role::Targets, self.targets),
            (Role::Snapshot, self.snapshot),
            (Role::Timestamp, self.timestamp),
        ];
        all.into_iter().min_by_key(|(_, at)| *at).unwrap_or((Role::Root, self.root))
    }
}
