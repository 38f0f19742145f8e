//! What a server says it did. Reports become entries of the log.

use serde::{Deserialize, Serialize};

use crate::ids::{AppId, BootEpoch, Digest, ServerId};
use crate::orders::Fence;
use crate::release::Release;

/// The longest reason or output that a report carries, in bytes; hosts cut, members refuse.
/// 2 KiB: enough for the last lines of a hook, small enough for a thousand servers in one log.
pub const REPORT_TEXT_BYTES_MAX: usize = 2048;

/// One outcome on one server, durable there before it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Who speaks.
    pub server: ServerId,
    /// Since which start of its agent.
    pub boot_epoch: BootEpoch,
    /// Counts up within a boot epoch; a sequence that was seen is not applied again.
    pub sequence: u64,
    /// About which app.
    pub app: AppId,
    /// Under which fence it acted; the lowest fence for what needs none.
    pub fence: Fence,
    /// How often the step was begun (a crash can make one run again). From 1.
    pub attempt: u32,
    /// What happened.
    pub outcome: Outcome,
}

/// What a server is doing, for people; nothing is decided by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Doing {
    /// The step.
    pub step: Step,
    /// More, such as the bytes fetched so far, or the check that does not pass yet.
    pub detail: String,
}

/// What happened on a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// The server runs this, found at the agent's start (nothing: none).
    Found {
        /// What `current` points to.
        release: Option<Release>,
        /// Whether the service answers its checks.
        in_service: bool,
    },
    /// It has an artifact whole and verified.
    Holds {
        /// Which artifact.
        artifact: Digest,
    },
    /// The release is switched in and its service was started.
    Applied,
    /// The pre-flight checks have passed for the whole `min_healthy_time`.
    Checked,
    /// It takes traffic again.
    InService,
    /// A step failed; the server stays as it is and waits for orders.
    Failed {
        /// Whose fault it is.
        blame: Blame,
        /// The step.
        step: Step,
        /// In words, for people.
        reason: String,
        /// The last output of the hook or the service.
        output: String,
    },
    /// The host put the old release back by itself: the group was not reached in time.
    Undone {
        /// What runs now.
        release: Option<Release>,
        /// In words, for people.
        reason: String,
    },
    /// The running checks changed their mind.
    Health {
        /// Whether it is fit for traffic now.
        in_service: bool,
        /// In words, for people.
        reason: String,
    },
}

/// Which budget a failure counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blame {
    /// Check, hook, crash after start: `failures_allowed`.
    Release,
    /// Server lost, network, disk full: `surroundings_allowed`.
    Surroundings,
}

/// The steps of one activation, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Bytes come in and are verified.
    Fetch,
    /// The artifact is unpacked beside the running one.
    Prepare,
    /// Traffic goes elsewhere.
    Drain,
    /// The service's own leadership goes elsewhere.
    HandOver,
    /// The running release is stopped.
    Stop,
    /// `current` points to the release.
    Switch,
    /// The release is started.
    Start,
    /// Pre-flight checks.
    Check,
    /// Traffic comes back slowly.
    WarmUp,
    /// The old release is put back, by the host alone.
    Undo,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Step; 10] = [
        Step::Fetch,
        Step::Prepare,
        Step::Drain,
        Step::HandOver,
        Step::Stop,
        Step::Switch,
        Step::Start,
        Step::Check,
        Step::WarmUp,
        Step::Undo,
    ];

    /// The name used in logs, metrics and commands.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Step::Fetch => "fetch",
            Step::Prepare => "prepare",
            Step::Drain => "drain",
            Step::HandOver => "hand-over",
            Step::Stop => "stop",
            Step::Switch => "switch",
            Step::Start => "start",
            Step::Check => "check",
            Step::WarmUp => "warm-up",
            Step::Undo => "undo",
        }
    }
}

/// Whether the running release is fit for traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether it is.
    pub in_service: bool,
    /// What speaks against it, for people; empty when nothing does.
    pub reason: String,
}
