//! Everything that `-o json` prints; `docs/operating.md` describes it, golden files pin it.

use std::collections::BTreeSet;
use std::path::Path;

use cohort_artifact::{ChannelPointer, Manifest, RoleInRoot};
use cohort_core::ids::{AppId, Channel, Digest, GroupId, Incarnation, Platform, Revision};
use cohort_core::ids::{ServerId, Version};
use cohort_core::state::HistoryEntry;
use cohort_host::Lack;
use cohort_identity::{Peer, PeerName};
use cohort_registry::records::ServerRecord;
use cohort_view::difference::Change;
use cohort_view::groups::GroupSummary;
use cohort_view::plan::RolloutPlan;
use cohort_view::report::FleetReport;
use cohort_view::server::ServerReport;
use cohort_view::why::Wait;
use cohort_wire::agent::{GroupStatus, Happened, TransferLeaderAnswer};
use cohort_wire::audit::AuditEntry;
use cohort_wire::hub::{AuthorityStatus, TokenAnswer, TokenListed};
use cohort_wire::kill::DamagedKill;
use serde::Serialize;

use crate::commands::check::CheckRow;
use crate::failure::Failure;
use crate::layers::Setting;
use crate::policy_known::KnownPolicy;

/// The result of the command with this name.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Answer<'a> {
    Init { dir: &'a Path, operator: &'a PeerName, fingerprint: String, hub: &'a [String] },
    TokenCreate(&'a TokenAnswer),
    TokenList(&'a [TokenListed]),
    TokenRevoke { id: &'a str, revoked: bool },
    Publish(PublishAnswer<'a>),
    PublishDryRun { unpacked_bytes: u64, entries: u32, warnings: &'a [String] },
    RepositoryPush { bucket: &'a str, files: u64, bytes: u64, there: u64, timestamp: u64 },
    // Version of the newest root; each role has `role`, `threshold` and `keys`.
    RepositoryKeys { root: u64, roles: &'a [RoleInRoot] },
    ChannelSet(&'a ChannelPointer),
    ChannelList(&'a [ChannelPointer]),
    ChannelRemove { app: &'a AppId, channel: &'a Channel },
    ReleaseList(&'a [ReleaseAnswer]),
    // One for each platform.
    ReleaseShow(&'a [ReleaseAnswer]),
    // Without bytes if the hub frees them later, or with `--dry-run`.
    ReleaseRemove { removed: Vec<ReleaseId<'a>>, bytes: Option<u64> },
    AppApply { app: &'a AppId, revision: Revision, changed: bool },
    // With the groups that still have it.
    AppRemove { app: &'a AppId, revision: Revision, changed: bool, groups: &'a [GroupId] },
    AppDiff { app: &'a AppId, changes: &'a [Change] },
    AppShow(&'a [KnownPolicy]),
    // One for each check and server.
    CheckRun(&'a [CheckRow]),
    Status(&'a FleetReport),
    StatusServer(ServerReport<'a>),
    Why(&'a [Wait]),
    RolloutPlan(&'a RolloutPlan),
    // Pause, resume, approve, abort, retry and undo, and a restart of services.
    RolloutSteer { group: &'a GroupId, app: &'a AppId, index: u64 },
    RolloutHistory { group: &'a GroupId, app: &'a AppId, history: &'a [HistoryEntry] },
    // One for each line.
    Log { server: &'a ServerId, app: &'a AppId, line: &'a str },
    // One for each event.
    Event { group: &'a GroupId, happened: &'a Happened },
    GroupList(Vec<GroupSummary<'a>>),
    ServerList(&'a [&'a ServerRecord]),
    GroupShow(&'a GroupStatus),
    GroupTransferLeader(&'a TransferLeaderAnswer),
    // Without an index if the group had already removed the server.
    GroupRemove { group: &'a GroupId, server: &'a ServerId, index: Option<u64>, forgotten: bool },
    GroupGone { group: &'a GroupId },
    GroupVoter { group: &'a GroupId, server: &'a ServerId, voter: bool, index: u64 },
    GroupRecover { group: &'a GroupId, incarnation: Incarnation },
    // Without lacks if no agent answers.
    AgentShow { settings: &'a [Setting], lacks: Option<&'a [Lack]> },
    KillSwitch(Switch<'a>),
    Revoke(Revoked),
    RevokedList(&'a [Revoked]),
    // Show, rotate and finish.
    Authority(&'a AuthorityStatus),
    AuditShow(&'a [AuditEntry]),
    // The number of the last line, and its SHA-256.
    AuditVerify { lines: usize, last: u64, hash: &'a str },
    KillStatus { on: bool, switches: &'a [Switch<'a>], damaged: Vec<Damaged<'a>> },
    // Expiry, as Unix time in seconds.
    ContextShow { dir: &'a Path, you: &'a Peer, until: u64, hub: &'a [String] },
    ContextJoin { dir: &'a Path, you: &'a Peer },
    // On standard error, except with `status --watch`.
    Failure(&'a Failure),
}

impl Answer<'_> {
    /// The names of what is listed, as other commands take them; `None` if it is no list.
    pub(crate) fn names(&self) -> Option<Vec<String>> {
        let mut names: Vec<String> = match self {
            Answer::Status(report) => report.groups.iter().map(|it| it.group.to_string()).collect(),
            Answer::GroupList(groups) => groups.iter().map(|it| it.group.to_string()).collect(),
            Answer::ServerList(servers) => servers.iter().map(|it| it.server.to_string()).collect(),
            Answer::AppShow(apps) => apps.iter().map(|it| it.app.to_string()).collect(),
            Answer::ChannelList(channels) => {
                channels.iter().map(|it| format!("{} {}", it.app, it.channel)).collect()
            }
            Answer::ReleaseList(releases) => releases
                .iter()
                .map(|it| format!("{} {}", it.manifest.app, it.manifest.version))
                .collect(),
            Answer::TokenList(tokens) => tokens.iter().map(|it| it.id.clone()).collect(),
            _ => return None,
        };
        // A release may have several platforms.
        names.dedup();
        Some(names)
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct PublishAnswer<'a> {
    pub(crate) app: &'a AppId,
    pub(crate) version: &'a Version,
    pub(crate) platform: &'a Platform,
    pub(crate) length: u64,
    pub(crate) artifact: &'a Digest,
    pub(crate) manifest: &'a Digest,
    pub(crate) channel: Option<&'a Channel>,
    pub(crate) already_there: bool,
    /// What is probably wrong with it.
    pub(crate) warnings: &'a [String],
    pub(crate) deltas: Vec<DeltaAnswer<'a>>,
}

/// A release, and who uses it.
#[derive(Debug, Serialize)]
pub(crate) struct ReleaseAnswer {
    pub(crate) manifest: Manifest,
    pub(crate) channels: Vec<String>,
    /// Those that run it, or are about to; `None` if the hub does not say.
    pub(crate) groups: Option<BTreeSet<GroupId>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ReleaseId<'a> {
    pub(crate) app: &'a AppId,
    pub(crate) version: &'a Version,
    pub(crate) platform: &'a Platform,
}

/// A delta that was tried, or the reason why there is none.
#[derive(Debug, Serialize)]
pub(crate) struct DeltaAnswer<'a> {
    pub(crate) from: &'a Version,
    pub(crate) length: Option<u64>,
    pub(crate) delta: Option<&'a Digest>,
    pub(crate) method: Option<&'a str>,
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Switch<'a> {
    pub(crate) scope: String,
    pub(crate) on: bool,
    pub(crate) epoch: u64,
    pub(crate) reason: &'a str,
    pub(crate) by: &'a str,
    /// Unix time in seconds, by its author's clock.
    pub(crate) at: u64,
    /// The places that were asked, and those that do not have it yet; none after a change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) spread: Option<Spread<'a>>,
}

/// A peer whose certificates are revoked.
#[derive(Debug, Serialize)]
pub(crate) struct Revoked {
    pub(crate) peer: String,
    /// Unix time in seconds: those issued by then.
    pub(crate) at: u64,
    /// Who revoked it, and why; empty if no place told.
    pub(crate) by: String,
    pub(crate) reason: String,
}

/// How far a register has spread among the places that answered.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Spread<'a> {
    pub(crate) asked: usize,
    pub(crate) missing: Vec<&'a str>,
}

/// A damaged register; it counts as on.
#[derive(Debug, Serialize)]
pub(crate) struct Damaged<'a> {
    scope: String,
    epoch: u64,
    reason: &'a str,
}

impl Damaged<'_> {
    pub(crate) fn of(damaged: &DamagedKill) -> Damaged<'_> {
        let DamagedKill { scope, epoch, reason } = damaged;
        Damaged { scope: scope.to_string(), epoch: *epoch, reason }
    }
}

#[cfg(test)]
#[path = "answer_test.rs"]
mod answer_test;
