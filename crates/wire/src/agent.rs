//! Messages of an agent's control port: orders, reports, commands, status.
//!
//! Orders, reports and commands are the core's own types: their encoding is pinned by golden files
//! there, because the same bytes stand in the log. Everything around them is defined here.

use std::collections::BTreeMap;

pub use cohort_core::doing::Doing;
use cohort_core::ids::{
    AppId, ClockMs, Generation, GroupId, Incarnation, MemberId, Platform, RequestId, ServerId,
    Version,
};
use cohort_core::orders::{MemberAddress, Orders};
use cohort_core::phase::PhaseName;
use cohort_core::reason::{DebtReason, Reason, Unfit};
use cohort_core::report::{Report, Step};
use cohort_core::state::{ActivationStage, HistoryEntry};
use cohort_core::waiting::WaitingOn;
use cohort_core::{Body, Rejection};
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
/// `POST` an [`OrdersRequest`].
pub const ORDERS: &str = "/v1/orders";
/// `POST` an [`OrdersRequest`]: answers as soon as the orders differ from those known.
pub const WAIT: &str = "/v1/wait";
/// `POST` a [`ReportRequest`].
pub const REPORT: &str = "/v1/report";
/// `POST` a [`JoinGroupRequest`].
pub const JOIN_GROUP: &str = "/v1/join-group";
/// `POST` the [`MemberId`] that a server was given: may it create that member?
pub const CLAIM_MEMBER: &str = "/v1/claim-member";
/// `POST` a [`CommandRequest`].
pub const COMMAND: &str = "/v1/command";
/// `POST` a [`cohort_core::Command`], forwarded by a member to the leader.
pub const FORWARD: &str = "/v1/forward";
/// `POST` a [`ContactsRequest`] to the leader. The answer is the leader's kill registers: where
/// every server is a member and asks itself for its orders, this is how they hear of each other.
pub const CONTACTS: &str = "/v1/contacts";
/// `GET` the group as this agent sees it.
pub const STATUS: &str = "/v1/status";
/// `GET`, `POST` the kill registers.
pub const KILL: &str = "/v1/kill";
/// `POST` the server that is to lead, or null for the voter that is best prepared.
pub const TRANSFER_LEADER: &str = "/v1/transfer-leader";

/// A message to an agent of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToGroup<T> {
    /// [`CONTROL_VERSION`].
    pub version: u32,
    /// The group that the agent must belong to.
    pub group: GroupId,
    /// The kill registers that the sender has latched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kill: Vec<SignedKill>,
    pub body: T,
}

impl<T> ToGroup<T> {
    /// A message without kill registers.
    #[must_use]
    pub fn new(group: &GroupId, body: T) -> Self {
        Self { version: CONTROL_VERSION, group: group.clone(), kill: Vec::new(), body }
    }
}

/// A server asks for its orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrdersRequest {
    pub doing: BTreeMap<AppId, Doing>,
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
    pub kill: Vec<SignedKill>,
    /// The server whose agent leads, if known.
    pub leader: Option<ServerId>,
}

/// A server reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportRequest {
    /// The incarnation of the group that ordered it.
    pub incarnation: Incarnation,
    /// What happened, oldest first.
    pub reports: Vec<Report>,
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandAnswer {
    pub index: u64,
    /// Why it was refused; none when it was carried out.
    pub rejection: Option<Rejection>,
}

/// A server wants to belong to the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinGroupRequest {
    /// Its peer port, `host:port`.
    pub address: String,
    /// Its failure domain; counts only when the server is new.
    pub rack: Option<String>,
}

/// Whether a server may create the member that it was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimMemberAnswer {
    /// It may; otherwise the number was used before, and another one comes.
    pub granted: bool,
}

/// A person's command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandRequest {
    /// To notice that it came twice.
    pub request: RequestId,
    pub body: Body,
}

/// Whom a member has heard of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContactsRequest {
    /// How long ago each server asked this member, in milliseconds,
    pub age_ms: BTreeMap<ServerId, u64>,
    /// and what it said it was doing.
    pub doing: BTreeMap<ServerId, BTreeMap<AppId, Doing>>,
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
    pub version: u32,
    pub group: GroupId,
    /// Raised when the group is recovered from the loss of its majority.
    pub incarnation: Incarnation,
    pub labels: BTreeMap<String, String>,
    /// None until the registry has told it.
    pub platform: Option<Platform>,
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
    pub registry_reachable: Option<bool>,
    pub voters: Vec<MemberAddress>,
    /// Members that only replicate.
    pub standbys: Vec<MemberAddress>,
    pub servers: BTreeMap<ServerId, ServerStatus>,
    /// Every app that has a policy.
    pub apps: BTreeMap<AppId, AppStatus>,
    /// Mirrors and releases refused lately, with the error.
    pub refusals: Vec<String>,
    /// Transfers in progress, then those that ended last; at most [`TRANSFERS_SHOWN_MAX`]. Only the
    /// leader tracks them: empty when it does not answer.
    pub transfers: Vec<TransferStatus>,
    /// Mirror throughput of the last transfer large enough to measure, in bytes per second.
    pub downlink_bytes_per_second: Option<u64>,
    /// `download_limit` of the answering server, in bytes per second; none: unlimited.
    pub download_limit_bytes_per_second: Option<u64>,
}

/// A server of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its peer port, `host:port`.
    pub address: String,
    pub rack: Option<String>,
    /// Its place in the order of joining.
    pub joined: u64,
    /// The member that it carries, if any.
    pub member: Option<MemberId>,
    /// How long ago it asked for its orders, as the leader knows, in milliseconds.
    pub contact_age_ms: Option<u64>,
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
    pub paused: bool,
    pub servers: BTreeMap<ServerId, ServerAppStatus>,
    pub waiting: Vec<WaitingStatus>,
    /// Earlier rollouts, oldest first.
    pub history: Vec<HistoryEntry>,
    pub failures: Vec<FailureStatus>,
}

/// A failure that counts against the rollout's budgets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureStatus {
    pub server: ServerId,
    pub step: Step,
    /// The error that the server reported.
    pub reason: String,
}

/// An app on a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerAppStatus {
    pub running: Option<Version>,
    /// Whether it takes traffic.
    pub in_service: bool,
    /// Why it takes no traffic; none if it does, or before it has run anything.
    pub unfit: Option<Unfit>,
    /// Whether it has all the bytes of the release that is rolled out.
    pub holds_target: bool,
    /// The change that it was told to make, and how far it has come.
    pub activation: Option<ActivationStage>,
    /// What its agent says it is doing now.
    pub doing: Option<Doing>,
    /// Why it is not on the last good release, where it should be.
    pub debt: Option<DebtReason>,
}

/// Something that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingStatus {
    pub on: WaitingOn,
    /// How long it has waited by the group clock, in milliseconds.
    pub for_ms: u64,
}
