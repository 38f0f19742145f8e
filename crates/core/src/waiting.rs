//! What things are waiting for, as data. `cohort-view` words it and says what unblocks it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::{AppId, ClockMs, GroupId, Revision, ServerId, Version};
use crate::machine::DiskSpace;
use crate::policy::Prestage;
use crate::reason::{DebtReason, PausedBy, Reason};
use crate::refused::Refused;
use crate::report::Step;

/// Something that is waiting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct Waiting {
    pub app: AppId,
    /// When the wait started, by the group clock.
    pub since: ClockMs,
    pub on: WaitingOn,
}

/// The one thing that an app or server is waiting for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "waiting_on", rename_all = "kebab-case")]
pub enum WaitingOn {
    /// Up to date: the group runs the release its channel points to.
    NewRelease,
    /// The kill switch is on.
    KillSwitch { reason: String },
    /// The registry is unreachable: no rollout starts.
    RegistryAway,
    /// The registry has not acknowledged the group's record yet.
    RegistryRecord,
    /// The hub has lost the app's policy, or has an older one than the group, which keeps its own.
    PolicyLost {
        /// The revision that the hub has; `None`: it has no policy.
        hub: Option<Revision>,
        /// The revision in force in the group.
        group: Revision,
    },
    /// The channel does not point to a usable release.
    NoRelease(Refused),
    /// A release was refused because of its signature, age or platform.
    ReleaseRefused(Refused),
    /// The leader could not ask any mirror for newer metadata, or trusts none: a release that was
    /// published since is unknown here.
    NotRefreshed(Refused),
    /// No server has joined yet.
    NoServers,
    /// Servers that have not yet reported what they run.
    FirstReports { servers: Vec<ServerId> },
    /// The leader's server has left the group, and no member of the group can take over yet.
    LeaderLeft { leader: ServerId },
    /// The leader's server cannot write to its disk, and why: nothing can be recorded, so nothing
    /// changes.
    NoSpace { leader: ServerId, disk: DiskSpace },
    /// Groups of earlier stages have not yet found the release good.
    StageBefore { version: Version, groups: Vec<GroupId> },
    /// No stage of the policy matches this group.
    NoStage { version: Version },
    /// Another group on the same platform found the release bad.
    VerdictElsewhere { version: Version, group: GroupId, reason: Reason },
    /// Rejected here: waiting for an operator or a newer release.
    Person { version: Version, reason: Reason },
    /// Paused by an operator, or by another group's verdict.
    Paused {
        by: PausedBy,
        /// For how long; `None`: until it is resumed.
        left_ms: Option<u64>,
        /// The release that would go on, or start.
        holds: Option<Version>,
    },
    /// `rollout approve` after this wave.
    Approval { wave: u32 },
    /// A newer release takes over once these servers have finished their step.
    NewerRelease { version: Version, servers: Vec<ServerId> },
    /// A newer release starts after the rollback, or takes over after this long without progress.
    RollbackFirst { version: Version, left_ms: u64 },
    /// A rollback makes no progress, and no newer release is offered.
    RollbackStuck { servers: Vec<ServerId> },
    /// Servers that are downloading.
    Download { servers: BTreeSet<ServerId> },
    /// Servers that have not downloaded this release in time: the group continues without them.
    NotDownloaded { version: Version, servers: Vec<ServerId> },
    /// Servers that download later: the policy holds the release back until their wave is near.
    Prestage { version: Version, prestage: Prestage, servers: Vec<ServerId> },
    /// Servers that are taking a step.
    Steps { servers: Vec<(ServerId, Step)> },
    /// The policy allows no more servers out of service.
    Capacity { out: BTreeSet<ServerId>, max: u32 },
    /// These voters are changing, and no more may at once, or the group might lose its majority to
    /// the release.
    QuorumMargin { voters: BTreeSet<ServerId>, max: u32 },
    /// Another app is changing on the server.
    OtherApp { server: ServerId },
    /// The wave is being watched for `bake_time`.
    BakeTime { left_ms: u64 },
    /// The server has not asked for its orders.
    ServerUnreachable { server: ServerId, for_ms: u64 },
    /// The policy's checks changed, and these servers, which keep their old ones, do not pass them;
    /// what the first of them says.
    ChecksFail { servers: Vec<ServerId>, text: String },
    /// Servers that passed changed checks, and failed them each time they had taken them.
    ChecksFlap { servers: Vec<ServerId> },
    /// Servers that try changed checks, or take them after others.
    ChecksTried { servers: BTreeSet<ServerId> },
    /// A server still runs a removed app, and why.
    NotStopped { server: ServerId, reason: DebtReason },
    /// A server has to start `last_good` again, and why; in how long that is tried again, unless an
    /// operator has to say so.
    Debt { server: ServerId, reason: DebtReason, again_ms: Option<u64> },
}

/// What the next change of the voters is waiting for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "waiting_on", rename_all = "kebab-case")]
pub enum Placing {
    /// A change has started; a majority of the old and of the new voters has to confirm it.
    Joint,
    /// Servers that will vote, and whose log has not caught up.
    CatchingUp { servers: BTreeSet<ServerId> },
    /// The leader has heard from only `heard` of the next voters: no change starts.
    Majority { heard: usize, voters: usize },
    /// These voters are silent, and no server can replace them: all others vote, are in a change,
    /// or are unreachable themselves.
    Replacement { silent: BTreeSet<ServerId> },
}
