//! One rollout, and what remains of it after it has ended.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::{ClockMs, GroupId, Platform, Revision, ServerId, Version};
use crate::policy::Policy;
use crate::reason::{PausedBy, Reason};
use crate::release::Release;
use crate::report::{Blame, Step};
use crate::shared::Shared;

/// One rollout of one release through the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    pub release: Release,
    /// The policy when it started.
    pub policy: Shared<Policy>,
    /// The registry's revision of that policy.
    pub revision: Revision,
    /// The checks that its servers must pass before they take traffic: the policy's when it
    /// started, or newer ones that a server has passed since.
    pub checks: Revision,
    pub by: String,
    pub started: ClockMs,
    /// The leader's server: the only one that may use a mirror without asking.
    pub lead: ServerId,
    /// Waves started so far; the number of the current one.
    pub waves: u32,
    /// An operator started it while the app was paused, which does not hold it.
    pub despite_pause: bool,
    /// An operator approved the waves after `approve_after_wave`.
    pub approved: bool,
    /// Failures counted against `failures_allowed`.
    pub release_failures: u32,
    /// Failures counted against `surroundings_allowed`.
    pub surroundings_failures: u32,
    /// The first [`FAILURES_KEPT_MAX`] failures.
    pub failures: Vec<Failure>,
    /// When the rollout last made progress.
    pub progress: ClockMs,
    /// Servers that failed in it.
    pub failed: BTreeSet<ServerId>,
    /// Servers that the rollout continues without.
    pub lost: BTreeSet<ServerId>,
    /// Those of them that could not download the release, and rejoin once they have it.
    pub unfetched: BTreeSet<ServerId>,
    /// Groups whose bad verdict an operator overruled with `resume`.
    pub overruled: BTreeSet<GroupId>,
}

impl Rollout {
    /// Whether nothing has progressed for `progress_deadline`.
    pub(crate) fn is_stuck(&self, clock: ClockMs) -> bool {
        clock.since(self.progress) > self.policy.update.progress_deadline.ms
    }

    /// Whether the next wave needs an operator's approval.
    pub(crate) fn awaits_approval(&self) -> bool {
        let after = self.policy.update.approve_after_wave;
        after > 0 && self.waves >= after && !self.approved
    }
}

/// A pause of an app: who ordered it, since when, and until when, if not until it is resumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    pub by: PausedBy,
    pub since: ClockMs,
    pub until: Option<ClockMs>,
}

/// A failure on one server, kept with the rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    pub server: ServerId,
    /// The budget it counts against.
    pub blame: Blame,
    pub step: Step,
    /// What the server reported.
    pub reason: String,
    /// The last output of the hook or the service.
    pub output: String,
    /// When the report was applied.
    pub at: ClockMs,
}

/// A release that this group does not retry without an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejected {
    pub release: Release,
    pub reason: Reason,
    pub at: ClockMs,
}

/// A rollout that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryEntry {
    pub version: Version,
    pub ending: Ending,
    /// Why it ended; `None` if it completed or was adopted.
    pub reason: Option<Reason>,
    pub by: String,
    pub started: ClockMs,
    pub ended: ClockMs,
    pub waves: u32,
}

/// How a rollout ended, as recorded in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// Every reachable server runs the release.
    Completed,
    /// The group returned to `last_good`.
    RolledBack,
    /// The group stopped where it was.
    HeldInPlace,
    Superseded,
    /// Not a rollout: an existing installation was adopted.
    Adopted,
}

/// What this group learned about a release on its platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    pub version: Version,
    pub platform: Platform,
    /// Why the release is bad; `None` if it is good.
    pub bad: Option<Reason>,
}
