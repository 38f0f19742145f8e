//! Why not: everything that waits says for what, as data.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::ids::{AppId, ClockMs, GroupId, ServerId, Version};
use crate::policy::Prestage;
use crate::reason::{DebtReason, PausedBy, Reason};
use crate::report::Step;

/// Something that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct Waiting {
    /// Which app.
    pub app: AppId,
    /// Since when, by the group clock.
    pub since: ClockMs,
    /// For what.
    pub on: WaitingOn,
}

/// The one thing that is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "waiting_on", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the fields are the things named in the sentence")]
pub enum WaitingOn {
    /// Nothing: the group runs what its channel points to.
    NewRelease,
    /// The kill switch is on.
    KillSwitch { reason: String },
    /// The registry does not answer; nothing new begins.
    RegistryAway,
    /// The registry does not have the group's record yet.
    RegistryRecord,
    /// The channel has no release that is known here.
    NoRelease { reason: String },
    /// A release was refused: signature, freshness, platform.
    ReleaseRefused { reason: String },
    /// No server has joined yet.
    NoServers,
    /// Servers that have not said yet what they run.
    FirstReports { servers: Vec<ServerId> },
    /// No majority of the group's voters answers: nothing is decided, nothing changes.
    NoLeader,
    /// Groups of earlier stages have no good verdict yet.
    StageBefore { version: Version, groups: Vec<GroupId> },
    /// No stage of the policy names this group.
    NoStage { version: Version },
    /// Another group of the platform found it bad.
    VerdictElsewhere { version: Version, group: GroupId, reason: String },
    /// Rejected here; a person or a newer release goes on.
    Person { version: Version, reason: Reason },
    /// Paused by a person or by a verdict from elsewhere.
    Paused { by: PausedBy, reason: String },
    /// `rollout approve` after this wave.
    Approval { wave: u32 },
    /// A newer release takes over as soon as nothing is in the middle of a step.
    NewerRelease { version: Version, servers: Vec<ServerId> },
    /// Bytes on their way to servers.
    Download { servers: BTreeSet<ServerId> },
    /// Servers that do not fetch the release yet, because the policy keeps it back until their wave
    /// is near.
    Prestage { version: Version, prestage: Prestage, servers: Vec<ServerId> },
    /// Steps going on on servers.
    Steps { servers: Vec<(ServerId, Step)> },
    /// No more servers may be out of service.
    Capacity { out: BTreeSet<ServerId>, max: u32 },
    /// Another app is being changed on the server.
    OtherApp { server: ServerId },
    /// The wave is watched for a while.
    BakeTime { left_ms: u64 },
    /// The server does not ask for its orders.
    ServerUnreachable { server: ServerId, for_ms: u64 },
    /// A server owes `last_good`, and why it has not got it yet.
    Debt { server: ServerId, reason: DebtReason },
}

impl WaitingOn {
    /// One sentence for people.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            WaitingOn::NewRelease => "runs what its channel points to".into(),
            WaitingOn::KillSwitch { reason } => format!("the kill switch is on: {reason}"),
            WaitingOn::RegistryAway => "the registry does not answer; nothing new begins".into(),
            WaitingOn::RegistryRecord => "the registry does not have the group's record yet".into(),
            WaitingOn::NoRelease { reason } => format!("no release is known: {reason}"),
            WaitingOn::ReleaseRefused { reason } => format!("a release was refused: {reason}"),
            WaitingOn::NoServers => "no server has joined".into(),
            WaitingOn::FirstReports { servers } => {
                format!("{} have not said yet what they run", list(servers))
            }
            WaitingOn::NoLeader => "no majority of the group's voters answers".into(),
            WaitingOn::StageBefore { version, groups } => {
                format!("{version} waits for the verdict of {}", list(groups))
            }
            WaitingOn::NoStage { version } => {
                format!("{version} does not begin: no [[stage]] names this group")
            }
            WaitingOn::VerdictElsewhere { version, group, reason } => {
                format!("{version} does not begin: {group} found it bad ({reason})")
            }
            WaitingOn::Person { version, reason } => format!("{version} is held: {reason}"),
            WaitingOn::Paused { by, reason } if reason.is_empty() => format!("paused by {by}"),
            WaitingOn::Paused { by, reason } => format!("paused by {by}: {reason}"),
            WaitingOn::Approval { wave } => format!("wave {wave} is done and asks for approval"),
            WaitingOn::NewerRelease { version, servers } => {
                format!("{version} takes over when {} have finished their step", list(servers))
            }
            WaitingOn::Download { servers } => format!("downloading to {}", list(servers)),
            WaitingOn::Prestage { version, prestage, servers } => {
                let when = match prestage {
                    Prestage::NextWave => "the wave before theirs",
                    Prestage::All | Prestage::Wave => "their wave",
                };
                let policy = prestage.as_str();
                format!(
                    "{} fetch {version} when {when} begins (prestage is {policy})",
                    list(servers)
                )
            }
            WaitingOn::Steps { servers } => {
                let steps: Vec<String> = servers
                    .iter()
                    .map(|(server, step)| format!("{server}: {}", step.name()))
                    .collect();
                list(&steps)
            }
            WaitingOn::Capacity { out, max } => {
                format!("{max} may be out of service, and {} are", list(out))
            }
            WaitingOn::OtherApp { server } => format!("another app is being changed on {server}"),
            WaitingOn::BakeTime { left_ms } => {
                format!("baking for another {} s", left_ms.div_ceil(1000))
            }
            WaitingOn::ServerUnreachable { server, for_ms } => {
                format!("{server} has not asked for its orders for {} s", for_ms / 1000)
            }
            WaitingOn::Debt { server, reason } => {
                format!("{server} owes the good release: {reason}")
            }
        }
    }

    /// What goes on by itself, or what a person can do.
    #[must_use]
    pub fn unblocks(&self, group: &GroupId, app: &AppId) -> String {
        match self {
            WaitingOn::NewRelease => "cohort publish, cohort channel set".into(),
            WaitingOn::KillSwitch { .. } => "cohort kill off".into(),
            WaitingOn::RegistryAway => "start the hub; it goes on by itself".into(),
            WaitingOn::RegistryRecord => "goes on by itself when the hub answers".into(),
            WaitingOn::NoRelease { .. } => format!("cohort channel set {app} CHANNEL VERSION"),
            WaitingOn::ReleaseRefused { .. } => {
                "publish with the right keys; check the mirrors".into()
            }
            WaitingOn::NoServers => "start cohort agent on a server".into(),
            WaitingOn::NoLeader => {
                format!("start the agents of the voters: cohort group show {group}")
            }
            WaitingOn::StageBefore { groups, .. } => match groups.first() {
                Some(first) => format!("cohort why {first}"),
                None => "goes on by itself".into(),
            },
            WaitingOn::NoStage { .. } => "add a [[stage]] to the policy; cohort app apply".into(),
            WaitingOn::VerdictElsewhere { .. } => {
                "publish a newer release and set the channel to it".into()
            }
            WaitingOn::Person { .. } => {
                format!("a newer release, or: cohort rollout retry {group} --app {app}")
            }
            WaitingOn::Paused { .. } => format!("cohort rollout resume {group} --app {app}"),
            WaitingOn::Approval { .. } => format!("cohort rollout approve {group} --app {app}"),
            WaitingOn::Capacity { .. } => {
                "goes on by itself when a server is back; or raise max_unavailable".into()
            }
            WaitingOn::ServerUnreachable { server, .. } => {
                format!(
                    "start the agent on {server}, or: cohort group remove-server {group} {server}"
                )
            }
            WaitingOn::Debt { server, .. } => {
                format!("start {server}; or: cohort rollout retry {group} --app {app}")
            }
            WaitingOn::Prestage { .. } => {
                "goes on by itself; or set update.prestage to \"all\"".into()
            }
            WaitingOn::NewerRelease { .. }
            | WaitingOn::FirstReports { .. }
            | WaitingOn::Download { .. }
            | WaitingOn::Steps { .. }
            | WaitingOn::OtherApp { .. }
            | WaitingOn::BakeTime { .. } => "goes on by itself".into(),
        }
    }
}

/// Names in a row; the first five, then how many more.
fn list<T: std::fmt::Display>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    match names.len() {
        0 => "none".into(),
        1..=5 => names.join(", "),
        more => format!("{} and {} more", names[..5].join(", "), more - 5),
    }
}
