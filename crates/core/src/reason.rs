//! Reasons that stand in the replicated state, as facts.
//!
//! `apply` writes no prose: members of different versions may word a reason differently, and must
//! still agree on every byte of the state. Text in these types comes from operators and hosts.

use serde::{Deserialize, Serialize};

use crate::ids::{GroupId, ServerId, Version};
use crate::policy::Duration;
use crate::report::Step;

/// Why a rollout ended without completing, or why a release is rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reason {
    /// More servers failed than the budget allows; this is the first of them.
    ServerFailed {
        /// The server.
        server: ServerId,
        /// The step that failed.
        step: Step,
        /// What the server reported.
        text: String,
    },
    /// More servers became unreachable than `surroundings_allowed`.
    ServersLost,
    /// Every server was lost or failed, so nothing proves that the release works.
    NoServerLeft,
    /// A wave made no progress within `progress_deadline`.
    NoProgress {
        /// The wave, from 1.
        wave: u32,
        /// The deadline.
        within: Duration,
        /// The servers that had not finished.
        servers: Vec<ServerId>,
    },
    /// An operator aborted it.
    Aborted {
        /// Who.
        by: String,
        /// The reason given; may be empty.
        text: String,
    },
    /// An operator took the group back to an earlier release.
    Undone {
        /// Who.
        by: String,
    },
    /// Another release replaced it before it was done.
    Superseded {
        /// The release that replaced it.
        version: Version,
    },
}

/// Why a server owes the group's last good release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DebtReason {
    /// It joined a group that already runs a release.
    Joined,
    /// At its agent's start it ran something else.
    Found {
        /// What it ran; none: nothing.
        running: Option<Version>,
    },
    /// The rollout completed without it.
    LeftBehind,
    /// The roll-back completed without it.
    NotRolledBack,
    /// It was unreachable.
    Silent {
        /// For how long when it was declared lost, in milliseconds.
        for_ms: u64,
    },
    /// It failed.
    Failed {
        /// What it reported.
        text: String,
    },
}

/// Why a server takes no traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Unfit {
    /// It is being changed.
    Changing,
    /// Its change failed.
    Failed {
        /// At this step.
        step: Step,
    },
    /// Its checks fail.
    Unhealthy {
        /// What it reported.
        text: String,
    },
}

/// Who paused a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "paused_by", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PausedBy {
    /// An operator.
    Person {
        /// Who.
        name: String,
    },
    /// Another group found the release bad.
    Verdict {
        /// Which group.
        group: GroupId,
    },
}
