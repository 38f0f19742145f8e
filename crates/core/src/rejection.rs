//! Why a command was refused, as data.

use serde::{Deserialize, Serialize};

use crate::ids::{AppId, ClockMs, Generation, Incarnation, ServerId};
use crate::phase::PhaseName;

/// Why a command was refused. Refusal is an ordinary outcome, the same on every member; it changes
/// only the record of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "rejection", rename_all = "kebab-case")]
pub enum Rejection {
    /// The command is for another incarnation of the group.
    OtherIncarnation { expected: Incarnation },
    /// `from` is not the group clock's current value, or the step is too long.
    Clock { clock: ClockMs },
    /// The command was planned against another generation.
    OldPlan { generation: Generation },
    /// The group has no such app.
    NoApp { app: AppId },
    /// The group has no such server.
    NoServer { server: ServerId },
    /// The app's state does not allow it.
    NotNow { state: PhaseName, why: WhyNot },
    /// Too many servers would be out of service.
    Capacity { out: u32, max: u32 },
    /// The server is changing, or already carries a member.
    Busy { server: ServerId },
    /// Another machine runs as this server, and was heard a moment ago.
    RunsElsewhere { server: ServerId, host: String },
    /// A limit would be exceeded.
    Limit { what: Limited, max: u64 },
}

/// What about the app's state forbids the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhyNot {
    /// Only an empty group adopts what is installed.
    NotEmpty,
    NotOnAllServers,
    OtherPlatform,
    /// The policy has changed since the rollout was planned.
    PolicyChanged,
    ReleaseRejected,
    /// A server is mid-change.
    ServerChanging,
    RollingBack,
    AlreadyRunning,
    AlreadyRollingOut,
    /// No rollout is in progress, or its phase does not allow it.
    NoRollout,
    /// The registry has not acknowledged the group's record.
    NotRecorded,
    BytesMissing,
    NothingToVerify,
    /// The previous wave is not done.
    WaveInProgress,
    Paused,
    AwaitsApproval,
    /// Waves are numbered in sequence.
    NotNextWave,
    /// The wave is empty, or contains servers that have nothing to do.
    WrongServers,
    /// The release cannot be rolled back.
    ForwardOnly,
    NotPaused,
    NoApprovalNeeded,
    /// Nothing is held and no server is in debt.
    NothingToRetry,
    /// No server, or none of those that were named, runs the good release.
    NothingToRestart,
    /// A rollout is in progress: only an abort ends it.
    NotRunning,
    /// The rollout was stopped in place: only an abort takes it back.
    HeldInPlace,
    NoEarlierRelease,
    /// The server is not in the wave, or the wave is still downloading.
    NotItsTurn,
    NothingToGrant,
    /// A release goes to no more voters at once than the group can lose.
    TooManyVoters,
    /// The server has begun its change, or has none.
    NothingToWithdraw,
    /// An operator removed the app.
    BeingRemoved,
    AlreadyLost,
}

/// The resource whose limit a command would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limited {
    Servers,
    Apps,
    /// Servers times apps.
    ServerApps,
    ReportBytes,
    CommandBytes,
}
