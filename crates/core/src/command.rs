//! The entries of the group's log.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{
    AppId, ClockMs, Generation, GroupId, Incarnation, MemberId, Platform, RequestId, Revision,
    ServerId, Version,
};
use crate::orders::Purpose;
use crate::policy::Policy;
use crate::release::Release;
use crate::report::Report;

/// The version of the command envelope.
pub const COMMAND_VERSION: u32 = 1;
/// The longest step of the group clock in one entry, in milliseconds. 5 s: a leader that slept
/// through a deadline cannot make it expire in one go for everybody.
pub const CLOCK_STEP_MS_MAX: u64 = 5_000;

/// One entry of the log. Named tags, never positions; an entry that a member does not know stops
/// the member before it is applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// The version of this envelope.
    pub version: u32,
    /// Which life of the group it is meant for; another life refuses it.
    pub incarnation: Incarnation,
    /// Who asked for it.
    pub actor: String,
    /// To notice that it came twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestId>,
    /// What it is.
    pub body: Body,
}

/// What a command is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Body {
    /// The first entry of a group.
    SetUp {
        /// The labels that its servers share.
        labels: BTreeMap<String, String>,
        /// Their platform.
        platform: Platform,
    },
    /// Time goes by.
    AdvanceClock {
        /// What the clock showed.
        from: ClockMs,
        /// What it shows now.
        to: ClockMs,
    },
    /// A server joins, or its address or rack changes.
    AddServer {
        /// Which.
        server: ServerId,
        /// Its peer port.
        address: String,
        /// Its failure domain.
        rack: Option<String>,
    },
    /// A server leaves for good.
    RemoveServer {
        /// Which.
        server: ServerId,
    },
    /// A server is to carry the group's log, under the next number.
    AllocateMember {
        /// Which server.
        server: ServerId,
    },
    /// A member's number is never used again: its disk is gone, or it is placed elsewhere.
    RetireMember {
        /// Which server.
        server: ServerId,
        /// Its number.
        member: MemberId,
    },
    /// A person: this server shall carry a member, or shall not.
    PlaceMember {
        /// Which server.
        server: ServerId,
        /// Whether it shall.
        carries: bool,
    },
    /// Every member has run the newer version for a while.
    RaiseFeatureLevel {
        /// From now on.
        level: u32,
    },
    /// The registry has a policy for an app.
    SetPolicy {
        /// The policy.
        policy: Policy,
        /// Its revision.
        revision: Revision,
    },
    /// An existing installation is what the group runs.
    Adopt {
        /// Of which app.
        app: AppId,
        /// What every server runs.
        release: Release,
    },
    /// A release is to go through the group (also in the middle of another).
    StartRollout {
        /// Of which app.
        app: AppId,
        /// What.
        release: Release,
        /// The policy's revision that the leader saw.
        revision: Revision,
        /// The leader's server.
        lead: ServerId,
    },
    /// Another leader goes on; its server fetches.
    TakeLead {
        /// Of which app.
        app: AppId,
        /// Planned against.
        generation: Generation,
        /// The leader's server.
        lead: ServerId,
    },
    /// The registry has the group's record up to this count.
    RecordWritten {
        /// Of which app.
        app: AppId,
        /// The count.
        record: u64,
    },
    /// The registry has a verdict.
    VerdictWritten {
        /// Of which app.
        app: AppId,
        /// About which version.
        version: Version,
        /// Good or bad.
        good: bool,
    },
    /// The leader's server has every byte.
    LeaderHolds {
        /// Of which app.
        app: AppId,
        /// Planned against.
        generation: Generation,
        /// Which server.
        server: ServerId,
    },
    /// The leader's server has verified signature and bytes.
    Verify {
        /// Of which app.
        app: AppId,
        /// Planned against.
        generation: Generation,
        /// Which server.
        server: ServerId,
    },
    /// The next wave.
    StartWave {
        /// Of which app.
        app: AppId,
        /// Planned against.
        generation: Generation,
        /// Which wave, from 1.
        number: u32,
        /// Its servers.
        servers: BTreeSet<ServerId>,
    },
    /// A server may change what it runs.
    Grant {
        /// Of which app.
        app: AppId,
        /// Planned against.
        generation: Generation,
        /// Which server.
        server: ServerId,
        /// Why.
        purpose: Purpose,
    },
    /// A rollout goes on without a server; it owes.
    LoseServer {
        /// Of which app.
        app: AppId,
        /// Planned against.
        generation: Generation,
        /// Which server.
        server: ServerId,
        /// In words.
        reason: String,
    },
    /// A lost server is back and takes part again.
    FindServer {
        /// Of which app.
        app: AppId,
        /// Planned against.
        generation: Generation,
        /// Which server.
        server: ServerId,
    },
    /// A deadline passed, or a failure that no single report tells.
    Fail {
        /// Of which app.
        app: AppId,
        /// Planned against.
        generation: Generation,
        /// In words.
        reason: String,
    },
    /// Another group found the release bad: finish the step, hold.
    PauseForVerdict {
        /// Of which app.
        app: AppId,
        /// Planned against.
        generation: Generation,
        /// Whose verdict.
        group: GroupId,
        /// In words.
        reason: String,
    },
    /// A server says what it did.
    Report {
        /// What it said.
        report: Report,
    },
    /// A person: begin nothing new.
    Pause {
        /// Of which app.
        app: AppId,
        /// In words.
        reason: String,
    },
    /// A person: go on.
    Resume {
        /// Of which app.
        app: AppId,
    },
    /// A person: go on after the wave that asks for approval.
    Approve {
        /// Of which app.
        app: AppId,
    },
    /// A person: go back now.
    Abort {
        /// Of which app.
        app: AppId,
        /// In words.
        reason: String,
    },
    /// A person: try the rejected release, and the debts that failed, again.
    Retry {
        /// Of which app.
        app: AppId,
    },
    /// A person: take the group to the release that was good before this one.
    Undo {
        /// Of which app.
        app: AppId,
        /// The leader's server.
        lead: ServerId,
    },
}

impl Body {
    /// The tag, as in the encoding: for logs and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Body::SetUp { .. } => "set-up",
            Body::AdvanceClock { .. } => "advance-clock",
            Body::AddServer { .. } => "add-server",
            Body::RemoveServer { .. } => "remove-server",
            Body::AllocateMember { .. } => "allocate-member",
            Body::RetireMember { .. } => "retire-member",
            Body::PlaceMember { .. } => "place-member",
            Body::RaiseFeatureLevel { .. } => "raise-feature-level",
            Body::SetPolicy { .. } => "set-policy",
            Body::Adopt { .. } => "adopt",
            Body::StartRollout { .. } => "start-rollout",
            Body::TakeLead { .. } => "take-lead",
            Body::RecordWritten { .. } => "record-written",
            Body::VerdictWritten { .. } => "verdict-written",
            Body::LeaderHolds { .. } => "leader-holds",
            Body::Verify { .. } => "verify",
            Body::StartWave { .. } => "start-wave",
            Body::Grant { .. } => "grant",
            Body::LoseServer { .. } => "lose-server",
            Body::FindServer { .. } => "find-server",
            Body::Fail { .. } => "fail",
            Body::PauseForVerdict { .. } => "pause-for-verdict",
            Body::Report { .. } => "report",
            Body::Pause { .. } => "pause",
            Body::Resume { .. } => "resume",
            Body::Approve { .. } => "approve",
            Body::Abort { .. } => "abort",
            Body::Retry { .. } => "retry",
            Body::Undo { .. } => "undo",
        }
    }
}

/// What came of a command, for logs, metrics and the histories of people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the fields repeat the command's")]
pub enum Event {
    /// The state of an app changed.
    PhaseChanged {
        app: AppId,
        from: crate::phase::PhaseName,
        to: crate::phase::PhaseName,
        by: String,
    },
    /// A server was told to change what it runs.
    Granted { app: AppId, server: ServerId, generation: Generation, purpose: Purpose },
    /// A server failed.
    ServerFailed { app: AppId, server: ServerId, reason: String },
    /// A rollout goes on without a server.
    ServerLost { app: AppId, server: ServerId, reason: String },
    /// A server finished a change.
    ServerDone { app: AppId, server: ServerId },
    /// A report that was seen before, or is about an older plan.
    ReportIgnored { server: ServerId, sequence: u64 },
    /// The same request once more.
    RequestRepeated { request: RequestId },
    /// A server joined, left, or changed its address.
    ServersChanged,
}

/// Why a command was refused. Refusing is an ordinary outcome, the same on every member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "rejection", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the fields are the values that were compared")]
pub enum Rejection {
    /// Meant for another life of the group.
    OtherIncarnation { expected: Incarnation },
    /// The clock showed something else, or the step is too long.
    Clock { clock: ClockMs },
    /// Planned against another plan.
    OldPlan { generation: Generation },
    /// No such app here.
    NoApp { app: AppId },
    /// No such server here.
    NoServer { server: ServerId },
    /// Not in this state.
    NotNow { state: crate::phase::PhaseName, why: String },
    /// Too many servers would be out of service.
    Capacity { out: u32, max: u32 },
    /// Another change is going on there.
    Busy { server: ServerId },
    /// Past a limit.
    Limit { what: String, max: u64 },
    /// The same request was refused before.
    Repeated { refused: String },
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Rejection::OtherIncarnation { expected } => {
                write!(f, "meant for another life of the group (this is incarnation {expected})")
            }
            Rejection::Clock { clock } => write!(f, "the group clock shows {clock} ms"),
            Rejection::OldPlan { generation } => {
                write!(f, "planned against an older plan (this is generation {generation})")
            }
            Rejection::NoApp { app } => write!(f, "this group has no app `{app}`"),
            Rejection::NoServer { server } => write!(f, "this group has no server `{server}`"),
            Rejection::NotNow { state, why } => {
                write!(f, "not while the group is `{state}`: {why}")
            }
            Rejection::Capacity { out, max } => {
                write!(f, "{out} servers are out of service and {max} may be")
            }
            Rejection::Busy { server } => write!(f, "`{server}` is being changed already"),
            Rejection::Limit { what, max } => write!(f, "more than {max} {what}"),
            Rejection::Repeated { refused } => f.write_str(refused),
        }
    }
}
