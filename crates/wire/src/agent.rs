//! Messages of an agent's control port: orders, reports, commands, status.
//!
//! Orders, reports and commands are the core's own types: their encoding is pinned by golden files
//! there, because the same bytes stand in the log. Everything around them is defined here.

use std::collections::BTreeMap;

pub use cohort_core::doing::Doing;
use cohort_core::ids::{
    AppId, BootEpoch, ClockMs, Generation, GroupId, Incarnation, MemberId, Platform, RequestId,
    ServerId, Version,
};
use cohort_core::orders::{MemberAddress, Orders};
use cohort_core::phase::PhaseName;
use cohort_core::reason::{DebtReason, Reason, Unfit};
use cohort_core::report::{Report, Step};
use cohort_core::state::HistoryEntry;
use cohort_core::waiting::WaitingOn;
use cohort_core::{Body, Command, Rejection};
use serde::{Deserialize, Serialize};

use crate::kill::SignedKill;

mod transfer;

pub use cohort_transfer::{Offence, SourceName};
pub use transfer::{
    CHAIN_SERVERS_SHOWN_MAX, CHAINS_SHOWN_MAX, ChainStatus, NAMES_SHOWN_MAX, OffenderStatus,
    TRANSFERS_SHOWN_MAX, TransferStatus,
};

/// The version of these messages. A request of another version is refused by name.
pub const CONTROL_VERSION: u32 = 1;
/// `POST` a server's question for its orders.
pub const ORDERS: &str = "/v1/orders";
/// `POST`: answers as soon as the orders differ from those known.
pub const WAIT: &str = "/v1/wait";
/// `POST` what a server did.
pub const REPORT: &str = "/v1/report";
/// `POST` a server that wants to belong to the group.
pub const JOIN_GROUP: &str = "/v1/join-group";
/// `POST`: may this server create the member that it was given?
pub const CLAIM_MEMBER: &str = "/v1/claim-member";
/// `POST` a person's command.
pub const COMMAND: &str = "/v1/command";
/// `POST`: a member passes a command on to the leader.
pub const FORWARD: &str = "/v1/forward";
/// `POST`: a member tells the leader whom it has heard of.
pub const CONTACTS: &str = "/v1/contacts";
/// `GET` the group as this agent sees it.
pub const STATUS: &str = "/v1/status";
/// `GET`, `POST` the kill registers.
pub const KILL: &str = "/v1/kill";
/// `POST`: hand leadership over.
pub const TRANSFER_LEADER: &str = "/v1/transfer-leader";

/// A server asks for its orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrdersRequest {
    /// [`CONTROL_VERSION`].
    pub version: u32,
    /// The group that it believes to belong to.
    pub group: GroupId,
    /// Since which start of its agent.
    pub boot_epoch: BootEpoch,
    /// The step that it is at, per app.
    pub doing: BTreeMap<AppId, Doing>,
    /// The kill registers that it has latched.
    pub kill: Vec<SignedKill>,
    /// The hash of the orders that it has, for [`WAIT`]: 0 when it has none.
    pub known: u64,
}

/// A server's orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrdersAnswer {
    /// The orders; none when the server does not belong to the group.
    pub orders: Option<Orders>,
    /// How long they are valid, by the server's own boot-time clock, from when it asked.
    pub orders_valid_ms: u64,
    pub hash: u64,
    /// The kill registers that the member has latched.
    pub kill: Vec<SignedKill>,
    /// The server whose agent leads, if known.
    pub leader: Option<ServerId>,
}

/// A server reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportRequest {
    /// [`CONTROL_VERSION`].
    pub version: u32,
    /// The group that it believes to belong to.
    pub group: GroupId,
    /// The incarnation of the group that ordered it.
    pub incarnation: Incarnation,
    /// What happened, oldest first.
    pub reports: Vec<Report>,
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandAnswer {
    /// Where it stands in the log.
    pub index: u64,
    /// Why it was refused; none when it was carried out.
    pub rejection: Option<Rejection>,
}

/// A server wants to belong to the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinGroupRequest {
    /// [`CONTROL_VERSION`].
    pub version: u32,
    pub group: GroupId,
    /// Its peer port, `host:port`.
    pub address: String,
    /// Its failure domain; counts only when the server is new.
    pub rack: Option<String>,
}

/// May this server create the member?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimMemberRequest {
    /// [`CONTROL_VERSION`].
    pub version: u32,
    pub group: GroupId,
    /// The member that it was given.
    pub member: MemberId,
}

/// Whether it may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimMemberAnswer {
    /// It may; otherwise the number was used before, and another one comes.
    pub granted: bool,
}

/// A person's command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandRequest {
    /// [`CONTROL_VERSION`].
    pub version: u32,
    pub group: GroupId,
    /// To notice that it came twice.
    pub request: RequestId,
    pub body: Body,
}

/// A command on its way from a member to the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardRequest {
    /// [`CONTROL_VERSION`].
    pub version: u32,
    pub group: GroupId,
    /// The command, whole.
    pub command: Command,
}

/// Whom a member has heard of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContactsRequest {
    /// [`CONTROL_VERSION`].
    pub version: u32,
    pub group: GroupId,
    /// How long ago each server asked this member, in milliseconds,
    pub age_ms: BTreeMap<ServerId, u64>,
    /// and what it said it was doing.
    pub doing: BTreeMap<ServerId, BTreeMap<AppId, Doing>>,
    /// The kill registers that it has latched. The answer is those of the leader: where every
    /// server is a member and asks itself for its orders, this is how they hear of each other.
    #[serde(default)]
    pub kill: Vec<SignedKill>,
}

/// Asks to hand leadership over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferLeaderRequest {
    /// [`CONTROL_VERSION`].
    pub version: u32,
    pub group: GroupId,
    /// To whom; whoever is best prepared when none is named.
    pub to: Option<ServerId>,
}

/// Who leads now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferLeaderAnswer {
    /// The server that led,
    pub from: ServerId,
    /// and the one that leads.
    pub to: ServerId,
}

/// A group as one of its agents sees it: facts only. `cohort-view` words them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// [`CONTROL_VERSION`].
    pub version: u32,
    /// The group that answers.
    pub group: GroupId,
    /// Raised when the group is recovered from the loss of its majority.
    pub incarnation: Incarnation,
    /// The grouping labels that its servers share.
    pub labels: BTreeMap<String, String>,
    /// None until the registry has told it.
    pub platform: Option<Platform>,
    /// The server whose agent answers.
    pub answered_by: ServerId,
    /// The server that leads, if known.
    pub leader: Option<ServerId>,
    pub term: u64,
    /// The last committed position of the log.
    pub commit: u64,
    /// The position up to which this agent has applied.
    pub applied: u64,
    /// Whether it was read through the leader. If not, it is what a minority last knew.
    pub linearizable: bool,
    pub clock: ClockMs,
    /// The reason given for the kill switch, while it is on.
    pub killed: Option<String>,
    /// Whether the leader reaches the registry.
    pub registry_reachable: Option<bool>,
    pub voters: Vec<MemberAddress>,
    /// Members that only replicate.
    pub standbys: Vec<MemberAddress>,
    /// Every server of the group.
    pub servers: BTreeMap<ServerId, ServerStatus>,
    /// Every app that has a policy.
    pub apps: BTreeMap<AppId, AppStatus>,
    /// Mirrors and releases refused lately, with the error.
    pub refusals: Vec<String>,
    /// Transfers in progress, then those that ended last; at most [`TRANSFERS_SHOWN_MAX`]. Only the
    /// leader tracks them: empty when it does not answer.
    #[serde(default)]
    pub transfers: Vec<TransferStatus>,
    /// Mirror throughput of the last transfer large enough to measure, in bytes per second.
    #[serde(default)]
    pub downlink_bytes_per_second: Option<u64>,
    /// `download_limit` of the answering server, in bytes per second; none: unlimited.
    #[serde(default)]
    pub download_limit_bytes_per_second: Option<u64>,
}

/// A server of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its peer port, `host:port`.
    pub address: String,
    /// Its failure domain.
    pub rack: Option<String>,
    /// Its place in the order of joining.
    pub joined: u64,
    /// The member that it carries, if any.
    pub member: Option<MemberId>,
    /// How long ago it asked for its orders, as the leader knows, in milliseconds.
    pub contact_age_ms: Option<u64>,
    /// For how long it has certainly asked no member, in milliseconds; none if no leader answers.
    pub silent_ms: Option<u64>,
}

impl GroupStatus {
    /// The servers that are silent for one of their apps: nobody knows whether they serve.
    pub fn silent_servers(&self) -> impl Iterator<Item = &ServerId> {
        self.servers.keys().filter(|server| {
            let mut here = self.apps.values().filter_map(|app| app.servers.get(*server));
            here.any(|here| here.silent)
        })
    }
}

/// An app in the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStatus {
    /// As drawn in `docs/state-machine.md`.
    pub state: PhaseName,
    /// When it entered this state, by the group clock.
    pub since: ClockMs,
    /// What the whole group runs, or ran before the rollout.
    pub last_good: Option<Version>,
    /// What is rolled out, rolled back, or was rejected.
    pub target: Option<Version>,
    /// Why it is held or rolls back; none otherwise.
    pub reason: Option<Reason>,
    /// The current wave, from 1; 0 outside of waves.
    pub wave: u32,
    pub wave_servers: Vec<ServerId>,
    pub generation: Generation,
    /// Whether the rollout is paused.
    pub paused: bool,
    /// What is known of each server.
    pub servers: BTreeMap<ServerId, ServerAppStatus>,
    /// What it waits for.
    pub waiting: Vec<WaitingStatus>,
    /// Earlier rollouts, oldest first.
    pub history: Vec<HistoryEntry>,
    /// The last failures of this rollout.
    pub failures: Vec<FailureStatus>,
}

/// A failure that counts against the rollout's budgets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureStatus {
    /// The server that failed.
    pub server: ServerId,
    /// The step at which it failed.
    pub step: Step,
    /// The error that the server reported.
    pub reason: String,
}

/// An app on a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerAppStatus {
    /// The release that runs.
    pub running: Option<Version>,
    /// Whether it takes traffic, by its last report.
    pub in_service: bool,
    /// Whether it has asked no member for longer than `unreachable_after`: nobody knows whether it
    /// still serves, and all that is said here of it is old.
    pub silent: bool,
    /// Why it takes no traffic; none if it does, or before it has run anything.
    pub unfit: Option<Unfit>,
    /// Whether it has all the bytes of the release that is rolled out.
    pub holds_target: bool,
    /// The change that it was told to make, and how far it has come.
    pub activation: Option<ActivationStatus>,
    /// What its agent says it is doing now.
    pub doing: Option<Doing>,
    /// Why it is not on the last good release, where it should be.
    pub debt: Option<DebtReason>,
}

/// How far a server has come with the change that it was told to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "kebab-case")]
pub enum ActivationStatus {
    /// It may begin,
    Granted,
    /// has started the release,
    Applied,
    /// has passed its pre-flight checks,
    Checked,
    /// or failed,
    Failed {
        /// at this step,
        step: Step,
        /// with this error,
        reason: String,
    },
    /// or went back to the release before without being told.
    Undone {
        /// The error that made it go back.
        reason: String,
    },
}

/// Something that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingStatus {
    /// What it waits for.
    pub on: WaitingOn,
    /// How long it has waited by the group clock, in milliseconds.
    pub for_ms: u64,
}
