//! Reasons recorded in the replicated state, as facts.
//!
//! `apply` writes no prose: members of different versions may word a reason differently, and must
//! still agree on every byte of the state. Text in these types comes from operators and hosts.

use serde::{Deserialize, Serialize};

use crate::ids::{GroupId, ServerId, Version};
use crate::policy::Duration;
use crate::report::{REPORT_TEXT_BYTES_MAX, Step};

/// Why a rollout did not complete, or why a release is rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reason {
    /// More servers failed than the budget allows; the first of them.
    ServerFailed { server: ServerId, step: Step, text: String },
    /// More servers became unreachable than `surroundings_allowed`: these, at most
    /// [`Reason::SERVERS_NAMED_MAX`].
    ServersLost { servers: Vec<ServerId> },
    /// More servers than `surroundings_allowed` had not downloaded the release when nothing had
    /// progressed for `progress_deadline`: these; or were unreachable: `lost`; of each at most
    /// [`Reason::SERVERS_NAMED_MAX`].
    NotDownloaded { within: Duration, servers: Vec<ServerId>, lost: Vec<ServerId> },
    /// Every server was lost or failed, so nothing proves that the release works.
    NoServerLeft,
    /// These servers of a wave (counted from 1) were unfinished, and none made progress for
    /// `progress_deadline`.
    NoProgress { wave: u32, within: Duration, servers: Vec<ServerId> },
    /// An operator aborted it; the text may be empty.
    Aborted { by: String, text: String },
    /// An operator took the group back to an earlier release.
    Undone { by: String },
    /// Replaced by a release of this version before it was done.
    Superseded { version: Version },
}

impl Reason {
    /// Servers that a shortened reason names.
    pub const SERVERS_NAMED_MAX: usize = 16;

    /// The same for other groups and the registry: with bounded text and few servers.
    #[must_use]
    pub fn shortened(mut self) -> Reason {
        match &mut self {
            Reason::ServerFailed { text, .. } | Reason::Undone { by: text } => shorten(text),
            Reason::Aborted { by, text } => [by, text].into_iter().for_each(shorten),
            Reason::NoProgress { servers, .. }
            | Reason::NotDownloaded { servers, .. }
            | Reason::ServersLost { servers } => {
                servers.truncate(Reason::SERVERS_NAMED_MAX);
            }
            Reason::NoServerLeft | Reason::Superseded { .. } => {}
        }
        self
    }
}

fn shorten(text: &mut String) {
    text.truncate(text.floor_char_boundary(REPORT_TEXT_BYTES_MAX));
}

/// Why a server has to return to the group's last good release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "kebab-case", deny_unknown_fields)]
pub enum DebtReason {
    /// It joined a group that already runs a release.
    Joined,
    /// When its agent started, it ran something else, or nothing.
    Found { running: Option<Version> },
    /// The rollout completed without it.
    LeftBehind,
    /// The rollback completed without it.
    NotRolledBack,
    /// It was silent for this long, and declared lost.
    Silent { for_ms: u64 },
    /// An operator removed the app, and the server still runs it.
    Removed,
    /// A step failed on it.
    Failed { text: String },
}

/// Why a server takes no traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Unfit {
    /// It is being changed.
    Changing,
    /// A step of a change failed.
    Failed { step: Step },
    /// Its running checks fail.
    Unhealthy { text: String },
}

/// Who paused a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "paused_by", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PausedBy {
    /// An operator; the text may be empty.
    Person { name: String, text: String },
    /// Another group found the release bad.
    Verdict { group: GroupId, reason: Reason },
}
