//! What a leader does at the hub for its group, and why it fails.

use serde::{Deserialize, Serialize};

use crate::ids::{AppId, Revision};
use crate::kill::KillScope;

/// An errand of the leader.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "errand", rename_all = "kebab-case")]
pub enum Errand {
    /// Reading policies, groups and verdicts: without them no rollout starts.
    ReadRegistry,
    /// Reading one policy, which the hub has, and this version cannot use.
    ReadPolicy { app: AppId },
    /// Writing what other groups, operators and the next leader read there.
    WriteRecords,
    /// Carrying a kill register that an operator gave to an agent.
    CarryKill,
    /// Reading the kill register of a scope, which the hub has, and which proves nothing.
    ReadKill { scope: KillScope },
}

/// Why the hub did not do what a server asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "kebab-case")]
pub enum HubFault {
    /// It did not respond, or was too busy.
    Unreachable { text: String },
    /// It refused. The text is the hub's, with its hints.
    Refused { text: String },
    /// One of its records is damaged, or of a later version.
    Damaged { text: String },
    /// No operator has signed what it has: it was changed on the hub, or its signer's certificate
    /// has expired.
    Unproven { text: String },
    /// It has the policy of an app that the group has removed since, at this revision.
    Removed { at: Revision },
}

impl HubFault {
    /// Whether the hub is only away: everything else waits for an operator.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, HubFault::Unreachable { .. })
    }
}

/// The longest text of a fault, in bytes: an error with its hints.
pub const FAULT_TEXT_BYTES_MAX: usize = 1024;
