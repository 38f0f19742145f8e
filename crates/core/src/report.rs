//! What a server reports it did. Reports become entries of the log.

use serde::{Deserialize, Serialize};

use crate::ids::{AppId, BootEpoch, Digest, Revision, ServerId};
use crate::orders::Fence;
use crate::release::Release;

/// A service may take this long to pass its checks after its start before its server says that it
/// does not serve, in milliseconds; until then, that is unknown. 60 s: most take less.
pub const STARTING_MS_MAX: u64 = 60_000;
/// Longest reason or output in a report, in bytes: hosts truncate, members refuse. 2 KiB: enough
/// for the last lines of a hook, small enough for a thousand servers in one log.
pub const REPORT_TEXT_BYTES_MAX: usize = 2048;

/// One outcome on one server, persisted there before it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    pub server: ServerId,
    /// Incremented by each start of its agent.
    pub boot_epoch: BootEpoch,
    /// Increases within a boot epoch; a repeated report is not applied again.
    pub sequence: u64,
    pub app: AppId,
    /// The fence under which the server acted; the default for outcomes that need none.
    pub fence: Fence,
    /// The attempt at the step, from 1; a crash can make a step run again.
    pub attempt: u32,
    pub outcome: Outcome,
}

/// What happened on a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// What the `current` link points to, if anything, and whether the service takes traffic: the
    /// first report of an agent, and a correction of what the group believes.
    Found { release: Option<Release>, in_service: bool },
    /// The server has the whole artifact, verified.
    Holds { artifact: Digest },
    /// The server does not have the artifact, although the group believes so: its disk lost it.
    Lacks { artifact: Digest },
    /// The release is switched in and has started.
    Applied,
    /// The pre-flight checks have passed for `min_healthy_time`.
    Checked,
    /// The server takes traffic again.
    InService,
    /// A step failed; the server stays as it is and waits for orders. `output` is the end of the
    /// hook's or the service's output.
    Failed { blame: Blame, step: Step, reason: String, output: String },
    /// The server has not begun a change that was withdrawn, and never will.
    GivenBack,
    /// A hook of the release that is being stopped failed; it is stopped all the same.
    HookIgnored { reason: String },
    /// The host restored the old release on its own: it could not reach the group in time.
    Undone { release: Option<Release>, reason: String },
    /// The running checks changed from passing to failing, or back.
    Health { in_service: bool, reason: String },
    /// The server tried checks that are newer than those that decide about its traffic; `failed`
    /// says what is wrong, `None` that it passes them.
    Tried { revision: Revision, failed: Option<String> },
}

impl Outcome {
    /// Whether its texts together exceed twice [`REPORT_TEXT_BYTES_MAX`].
    #[must_use]
    pub fn is_too_long(&self) -> bool {
        self.text_bytes() > 2 * REPORT_TEXT_BYTES_MAX
    }

    /// The length of its texts together, in bytes.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        match self {
            Outcome::Failed { reason, output, .. } => reason.len() + output.len(),
            Outcome::Health { reason, .. }
            | Outcome::HookIgnored { reason }
            | Outcome::Undone { reason, .. } => reason.len(),
            Outcome::Tried { failed, .. } => failed.as_ref().map_or(0, String::len),
            Outcome::Found { .. }
            | Outcome::Holds { .. }
            | Outcome::Lacks { .. }
            | Outcome::Applied
            | Outcome::Checked
            | Outcome::InService
            | Outcome::GivenBack => 0,
        }
    }
}

/// The budget that a failure counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blame {
    /// A check, a hook, a crash after the start: counts against `failures_allowed`.
    Release,
    /// A lost server, the network, a full disk: counts against `surroundings_allowed`.
    Surroundings,
}

/// The steps of one activation, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Download and verify the artifact.
    Fetch,
    /// Unpack it next to the running release.
    Prepare,
    Drain,
    /// Move the service's own leadership to another server.
    HandOver,
    Stop,
    /// Point the `current` link to the new release.
    Switch,
    Start,
    Check,
    WarmUp,
    /// Restore the old release: only the host does this, on its own.
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
    pub in_service: bool,
    /// What keeps it from being fit, for people; empty if nothing does.
    pub reason: String,
}
