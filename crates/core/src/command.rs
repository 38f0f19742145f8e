//! The entries of the group's log.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{
    AppId, ClockMs, Generation, GroupId, Incarnation, MemberId, Platform, RequestId, Revision,
    ServerId, Version,
};
use crate::orders::Purpose;
use crate::phase::PhaseName;
use crate::policy::{Policy, Proof};
use crate::reason::Reason;
use crate::release::Release;
use crate::report::Report;
use crate::state::Process;

pub use crate::rejection::{Limited, Rejection, WhyNot};

/// The version of the command envelope. Raise it when [`Command`] or [`Body`] changes.
pub const COMMAND_VERSION: u32 = 1;
/// Largest step of the group clock in one entry, in milliseconds: one day. An idle group writes
/// nothing, and its clock catches up with the next entry.
pub const CLOCK_STEP_MS_MAX: u64 = 24 * 3_600_000;

/// One entry of the log, encoded by name, never by position. A member that does not know an entry
/// stops before applying it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    pub version: u32,
    /// The incarnation it is meant for; any other rejects it.
    pub incarnation: Incarnation,
    /// Who sent it, for logs and history.
    pub actor: String,
    /// Makes a repeated command harmless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    pub body: Body,
}

/// What a command does: to the group, to an app, and by order of an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Body {
    /// The first entry of a group, with what its servers share; ignored later.
    SetUp { labels: BTreeMap<String, String>, platform: Platform },
    /// Advances the group clock, by at most [`CLOCK_STEP_MS_MAX`]. A late one is refused or short,
    /// never early: the time is the leader's whole reckoning, not a step.
    AdvanceClock { to: ClockMs },
    /// A server joins, with its peer port (`host:port`) and its rack, if known. One that is in the
    /// group already moves.
    AddServer { server: ServerId, address: String, rack: Option<String>, process: Process },
    /// The peer port or the agent of a server changes. It does not join with that: one that was
    /// removed meanwhile stays out.
    MoveServer { server: ServerId, address: String, process: Process },
    /// A server leaves permanently.
    RemoveServer { server: ServerId },
    /// A server gets the next member number, so that it can carry the group's log.
    AllocateMember { server: ServerId },
    /// A server stops carrying its member; the number is never used again.
    RetireMember { server: ServerId, member: MemberId },
    /// Operator: this server carries a member, or does not.
    PlaceMember { server: ServerId, carries: bool },
    /// Every member supports more than the current feature level; a lower level has no effect.
    RaiseFeatureLevel { level: u32 },
    /// The registry has a new policy, or one for a new app; an older revision has no effect.
    SetPolicy { policy: Policy, revision: Revision, proof: Proof },
    /// An operator removed the app, at this revision of the registry: no server is to run it.
    RemoveApp { app: AppId, revision: Revision, proof: Proof },
    /// The release that every server was found running becomes `last_good`.
    Adopt { app: AppId, release: Release },
    /// Starts a rollout, even mid-rollout; planned with this revision of the policy.
    StartRollout { app: AppId, release: Release, revision: Revision, lead: ServerId },
    /// The registry acknowledged the group's record, at this value of `App::record`.
    RecordWritten { app: AppId, record: u64 },
    /// The registry acknowledged a verdict.
    VerdictWritten { app: AppId, version: Version, good: bool },
    /// What the leader planned; rejected if the app's generation has changed since.
    Plan { app: AppId, generation: Generation, step: Planned },
    /// A server's report of what it did.
    Report { report: Report },
    /// Operator: start no rollout and no new servers, for this long or until it is resumed; let
    /// those in progress finish. The reason may be empty.
    Pause {
        app: AppId,
        reason: String,
        /// In milliseconds of the group clock.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        for_ms: Option<u64>,
    },
    /// Operator: end a pause.
    Resume { app: AppId },
    /// Operator: continue after the wave that is waiting for approval.
    Approve { app: AppId },
    /// Operator: roll back now. The reason may be empty.
    Abort { app: AppId, reason: String },
    /// Operator: try the held release and the failed debts again.
    Retry { app: AppId },
    /// Operator: roll out the good release before this one.
    Undo { app: AppId, lead: ServerId },
    /// Operator: these servers start the release that they run again; all if there are none.
    Restart { app: AppId, servers: BTreeSet<ServerId> },
}

/// One step of a rollout, planned by the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Planned {
    /// A new leader continues the rollout; its server fetches.
    TakeLead { lead: ServerId },
    /// The leader's server has all the bytes.
    LeaderHolds { server: ServerId },
    /// The leader's server has verified the signature and the bytes.
    Verify { server: ServerId },
    /// Starts the next wave, numbered from 1, with servers that all still need the release.
    StartWave { number: u32, servers: BTreeSet<ServerId> },
    /// Takes a broken server into the wave that waits for it: the release may repair it.
    WidenWave { server: ServerId },
    /// Allows one server to change what it runs, for this purpose. `voters` are the servers of the
    /// group's voters if a release is to go to one of them: it may take its host down.
    Grant { server: ServerId, purpose: Purpose, voters: BTreeSet<ServerId> },
    /// Takes back a grant that has no room any more, or leads where the plan no longer goes: others
    /// may need the server, or the room.
    Withdraw { server: ServerId },
    /// Declares a silent server lost: the rollout continues without it, and it is in debt.
    LoseServer { server: ServerId, silent_ms: u64 },
    /// A server of the wave has not downloaded the release, as others have: the rollout continues
    /// without it until it has.
    LeaveOut { server: ServerId },
    /// A lost server is back.
    FindServer { server: ServerId },
    /// Fails the rollout for a reason that the leader observed.
    Fail { reason: Reason },
    /// Another group found the release bad: pauses the rollout.
    PauseForVerdict { group: GroupId, reason: Reason },
    /// The time of a pause is over.
    EndPause {},
    /// Servers that pass the checks of this revision of the policy use them from now on.
    TakeChecks { revision: Revision, servers: BTreeSet<ServerId> },
}

impl Body {
    /// The app that a person steers with this command; `None`: it is the group's own.
    pub(crate) fn steers(&self) -> Option<&AppId> {
        match self {
            Body::Pause { app, .. }
            | Body::Resume { app }
            | Body::Approve { app }
            | Body::Abort { app, .. }
            | Body::Retry { app }
            | Body::Undo { app, .. }
            | Body::Restart { app, .. } => Some(app),
            _ => None,
        }
    }

    /// The command's tag as encoded, for logs and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Body::SetUp { .. } => "set-up",
            Body::AdvanceClock { .. } => "advance-clock",
            Body::AddServer { .. } => "add-server",
            Body::MoveServer { .. } => "move-server",
            Body::RemoveServer { .. } => "remove-server",
            Body::AllocateMember { .. } => "allocate-member",
            Body::RetireMember { .. } => "retire-member",
            Body::PlaceMember { .. } => "place-member",
            Body::RaiseFeatureLevel { .. } => "raise-feature-level",
            Body::SetPolicy { .. } => "set-policy",
            Body::RemoveApp { .. } => "remove-app",
            Body::Adopt { .. } => "adopt",
            Body::StartRollout { .. } => "start-rollout",
            Body::RecordWritten { .. } => "record-written",
            Body::VerdictWritten { .. } => "verdict-written",
            Body::Plan { step, .. } => match step {
                Planned::TakeLead { .. } => "take-lead",
                Planned::LeaderHolds { .. } => "leader-holds",
                Planned::Verify { .. } => "verify",
                Planned::StartWave { .. } => "start-wave",
                Planned::WidenWave { .. } => "widen-wave",
                Planned::Grant { .. } => "grant",
                Planned::Withdraw { .. } => "withdraw",
                Planned::LoseServer { .. } => "lose-server",
                Planned::LeaveOut { .. } => "leave-out",
                Planned::FindServer { .. } => "find-server",
                Planned::Fail { .. } => "fail",
                Planned::PauseForVerdict { .. } => "pause-for-verdict",
                Planned::EndPause {} => "end-pause",
                Planned::TakeChecks { .. } => "take-checks",
            },
            Body::Report { .. } => "report",
            Body::Pause { .. } => "pause",
            Body::Resume { .. } => "resume",
            Body::Approve { .. } => "approve",
            Body::Abort { .. } => "abort",
            Body::Retry { .. } => "retry",
            Body::Undo { .. } => "undo",
            Body::Restart { .. } => "restart",
        }
    }
}

/// What a command changed, for logs and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// An app entered another phase.
    PhaseChanged { app: AppId, from: PhaseName, to: PhaseName, by: String },
    /// A server may change what it runs.
    Granted { app: AppId, server: ServerId, generation: Generation, purpose: Purpose },
    /// A change that the server has not begun is no longer granted.
    Withdrawn { app: AppId, server: ServerId },
    /// A server reported that a step failed.
    ServerFailed { app: AppId, server: ServerId, reason: String },
    /// A hook of the release that a server stops failed; it is stopped all the same.
    HookIgnored { app: AppId, server: ServerId, reason: String },
    /// A server was declared lost.
    ServerLost { app: AppId, server: ServerId, silent_ms: u64 },
    /// A server has not downloaded the release in time: the rollout continues without it.
    ServerLeftOut { app: AppId, server: ServerId },
    /// A server finished its change and is serving.
    ServerDone { app: AppId, server: ServerId },
    /// No server runs a removed app, and the registry has forgotten it: the group has, too.
    AppRemoved { app: AppId },
    /// A report was a repeat, or is about an older plan.
    ReportIgnored { server: ServerId, sequence: u64 },
    /// A request that was already applied arrived again.
    RequestRepeated { request: RequestId },
    /// A server joined the group,
    ServerJoined { server: ServerId },
    /// started again, or elsewhere,
    ServerMoved { server: ServerId },
    /// or was removed.
    ServerRemoved { server: ServerId },
    /// A person steered an app: the name of the command, as in [`Body::name`].
    Steered { app: AppId, command: String, by: String },
}
