//! Messages of an agent's control port: orders, reports, commands, status.
//!
//! Orders, reports and commands are the core's own types: golden files there pin their encoding,
//! because the log contains the same bytes. Everything around them is defined here.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ability::Ability;
pub use cohort_core::doing::Doing;
use cohort_core::errand::{Errand, HubFault};
use cohort_core::ids::{
    AppId, ClockMs, Generation, GroupId, Incarnation, MemberId, Platform, REQUEST_ID_BYTES_MAX,
    RequestId, Revision, ServerId, Version,
};
use cohort_core::machine::{DiskSpace, Machine};
use cohort_core::orders::{MemberAddress, Orders};
use cohort_core::phase::PhaseName;
use cohort_core::policy::Policy;
use cohort_core::reason::{DebtReason, Reason, Unfit};
use cohort_core::refused::Refused;
use cohort_core::report::Step;
use cohort_core::state::{ActivationStage, HistoryEntry};
use cohort_core::waiting::{Placing, WaitingOn};
use cohort_core::{Body, Rejection};
use serde::{Deserialize, Serialize};

use crate::entry;
use crate::http::ApiError;
use crate::hub::LABEL_BYTES_MAX;
use crate::kill::SignedKill;

mod check;
mod events;
mod log;
mod submission;
mod transfer;

pub use check::{CHECK, CHECK_MS_MAX, CheckAnswer, CheckRequest, CheckSeen};
pub use cohort_transfer::{Offence, SourceName};
pub use events::{EVENTS, EVENTS_MAX, EVENTS_WAIT_MS_MAX, EventsAnswer, EventsRequest, Happened};
pub use log::{
    LOG, LOG_LINES_MAX, LOG_STARTED, LOG_WAIT_MS_MAX, LogAnswer, LogFrom, LogPlace, LogRequest,
};
pub use submission::{Forwarded, SUBMISSION_AGE_S_MAX, SignedSubmission, Submission};
pub use transfer::{
    CHAIN_SERVERS_SHOWN_MAX, CHAINS_SHOWN_MAX, ChainStatus, NAMES_SHOWN_MAX, OffenderStatus,
    TRANSFERS_SHOWN_MAX, TransferStatus,
};

/// The version of these messages. A request with another version is rejected by name.
pub const CONTROL_VERSION: u32 = 1;
/// `POST` an [`OrdersRequest`].
pub const ORDERS: &str = "/v1/orders";
/// `POST` an [`OrdersRequest`]: responds as soon as the orders differ from the known ones.
pub const WAIT: &str = "/v1/wait";
/// `POST` a list of [`SignedSubmission`]s: reports of one server, oldest first.
pub const REPORT: &str = "/v1/report";
/// `POST` a [`SignedSubmission`]: a [`Submission::Join`].
pub const JOIN_GROUP: &str = "/v1/join-group";
/// `POST` the [`MemberId`] that a server was assigned: may it create that member?
pub const CLAIM_MEMBER: &str = "/v1/claim-member";
/// `POST` a [`SignedSubmission`]: a [`Submission::Command`].
pub const COMMAND: &str = "/v1/command";
/// `POST` a [`Forwarded`] submission, from a member to the leader.
pub const FORWARD: &str = "/v1/forward";
/// `POST` a [`ContactsRequest`] to the leader. The response is a [`ContactsAnswer`].
pub const CONTACTS: &str = "/v1/contacts";
/// `GET` the group as this agent sees it.
pub const STATUS: &str = "/v1/status";
/// `GET` the policies in force in the group, a list of [`PolicyInForce`].
pub const POLICIES: &str = "/v1/policies";
/// `GET`: the kill registers; `POST`: a register signed by an operator. The response is a
/// [`KillAnswer`](crate::kill::KillAnswer).
pub const KILL: &str = "/v1/kill";
/// `POST` a [`RevocationsExchange`](crate::revocation::RevocationsExchange), at agents and hub. The
/// response is a [`RevocationsAnswer`](crate::revocation::RevocationsAnswer).
pub const REVOCATIONS: &str = "/v1/revocations";
/// `POST` the server that should become leader, or null for the best prepared voter.
pub const TRANSFER_LEADER: &str = "/v1/transfer-leader";
/// `GET`, on the plain port: what the machine lacks to confine releases, for `cohort agent show`.
pub const LACKING: &str = "/lacking";

/// Longest pause that ends by itself, in milliseconds: a year. One that is longer has a mistyped
/// end.
const PAUSE_MS_MAX: u64 = 366 * 24 * 3_600_000;

fn within(what: &str, bytes: usize, max: usize) -> Result<(), ApiError> {
    if bytes > max {
        return Err(ApiError::bad_request(format!("{what} of {bytes} bytes; at most {max}")));
    }
    Ok(())
}

/// A message to an agent of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToGroup<T> {
    /// The sender's [`CONTROL_VERSION`].
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

/// A server's request for its orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrdersRequest {
    /// The agent's life: a random number, chosen at its start.
    pub life: u64,
    pub doing: BTreeMap<AppId, Doing>,
    /// The hash of the orders that it has, for [`WAIT`]: 0 if it has none.
    pub known: u64,
    pub machine: Machine,
}

/// The response to an [`OrdersRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrdersAnswer {
    /// The orders; `None` if the server does not belong to the group, or another agent speaks for
    /// it.
    pub orders: Option<Orders>,
    /// The host of that agent.
    pub elsewhere: Option<String>,
    /// How long they are valid, from the request on, by the server's own boot-time clock.
    pub orders_valid_ms: u64,
    pub kill: Vec<SignedKill>,
    /// The leader's server, if known.
    pub leader: Option<ServerId>,
    /// The servers whose members vote.
    pub voters: BTreeSet<ServerId>,
    /// How far the server's clock is ahead of most others', in milliseconds; 0 if it agrees with
    /// them, `None` if the member cannot tell, and in the answer to a held request.
    pub clock_ahead_ms: Option<i64>,
    /// Identifies the revocations that the member knows.
    #[serde(default)]
    pub revocations: u64,
}

/// The outcome of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandAnswer {
    pub index: u64,
    /// Why it was refused; `None` if it was carried out.
    pub rejection: Option<Rejection>,
}

/// Longest rack of a server, in bytes: its zone, a slash and its own name.
const RACK_BYTES_MAX: usize = 2 * LABEL_BYTES_MAX + 1;

/// A server's request to join the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinGroupRequest {
    /// The agent's life, as in [`OrdersRequest`].
    pub life: u64,
    /// Its peer port, `host:port`.
    pub address: String,
    /// Its failure domain, widest part first; used only if the server is new.
    pub rack: Option<String>,
}

impl JoinGroupRequest {
    /// Checks its texts: the log keeps them.
    ///
    /// # Errors
    /// With the answer for the sender.
    pub fn check(&self) -> Result<(), ApiError> {
        entry::address(&self.address)?;
        self.rack.iter().try_for_each(|rack| entry::word("rack", rack, RACK_BYTES_MAX))
    }
}

/// Whether a server may create the member that it was assigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimMemberAnswer {
    /// If false, the number was used before, and the server will get another one.
    pub granted: bool,
}

/// An operator's command, with its request id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandRequest {
    pub request: RequestId,
    pub body: Body,
}

impl CommandRequest {
    /// Checks its texts: the log keeps them, and others read them.
    ///
    /// # Errors
    /// With the answer for the sender.
    pub fn check(&self) -> Result<(), ApiError> {
        within("a request id", self.request.0.len(), REQUEST_ID_BYTES_MAX)?;
        entry::sentence("the request id", &self.request.0)?;
        match &self.body {
            Body::Pause { reason, for_ms, .. } => {
                if for_ms.is_some_and(|for_ms| for_ms > PAUSE_MS_MAX) {
                    let error = "a pause ends within a year, or when it is resumed";
                    return Err(ApiError::bad_request(error));
                }
                entry::sentence("the reason", reason)
            }
            Body::Abort { reason, .. } => entry::sentence("the reason", reason),
            _ => Ok(()),
        }
    }
}

/// The servers that a member has heard from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContactsRequest {
    /// How long ago each server asked this member for orders, in milliseconds.
    pub age_ms: BTreeMap<ServerId, u64>,
    /// What each server said it was doing.
    pub doing: BTreeMap<ServerId, BTreeMap<AppId, Doing>>,
    /// What each server said of its machine, at the time of `age_ms`.
    pub machines: BTreeMap<ServerId, Machine>,
    /// What the member's server reaches; `None` unless the leader asked.
    pub ability: Option<Ability>,
}

/// The response to a [`ContactsRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContactsAnswer {
    /// The leader's kill registers: in a group where every server is a member and asks itself for
    /// orders, they spread this way.
    pub kill: Vec<SignedKill>,
    /// Whether the leader lacks something and asks what the member's server reaches.
    pub asks_ability: bool,
    /// How far the clocks of the request's servers are ahead of most others', in milliseconds; 0 if
    /// they agree. None while the leader cannot tell.
    pub clocks_ahead_ms: BTreeMap<ServerId, i64>,
    /// Identifies the revocations that the leader knows.
    #[serde(default)]
    pub revocations: u64,
}

/// The outcome of a leadership transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferLeaderAnswer {
    /// The previous leader's server.
    pub from: ServerId,
    /// The new leader's server.
    pub to: ServerId,
}

/// A group as seen by one of its agents: only facts. `cohort-view` words them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    pub version: u32,
    pub group: GroupId,
    /// Incremented when the group is recovered from the loss of its majority.
    pub incarnation: Incarnation,
    pub labels: BTreeMap<String, String>,
    /// `None` until the registry has provided it.
    pub platform: Option<Platform>,
    pub answered_by: ServerId,
    /// The leader's server, if known.
    pub leader: Option<ServerId>,
    pub term: u64,
    /// The log's last committed index.
    pub commit: u64,
    /// The index that this agent has applied.
    pub applied: u64,
    /// Whether a leader with a quorum responded. If not, it is what a minority last knew.
    pub linearizable: bool,
    /// The group refuses the agent that answered: another machine runs as its server, on this host.
    pub elsewhere: Option<String>,
    pub clock: ClockMs,
    /// The reason for the kill switch, while it is on.
    pub killed: Option<String>,
    pub registry_reachable: Option<bool>,
    /// What the leader cannot do at the hub; empty if no leader responds.
    pub errands: Vec<ErrandStatus>,
    pub voters: Vec<MemberAddress>,
    /// Members that only replicate.
    pub standbys: Vec<MemberAddress>,
    /// Servers whose members the leader has not heard lately, whatever their agents tell others:
    /// their votes are lost. Empty if no leader responds.
    pub mute: BTreeSet<ServerId>,
    /// What the next change of the voters is waiting for; `None` if they are as desired, or the
    /// leader does not respond.
    pub placing: Option<PlacingStatus>,
    pub servers: BTreeMap<ServerId, ServerStatus>,
    /// The servers that count against `max_unavailable`: out of service, or maybe.
    pub out: BTreeSet<ServerId>,
    /// Every app that has a policy.
    pub apps: BTreeMap<AppId, AppStatus>,
    /// Mirrors and releases refused recently.
    pub refusals: Vec<Refused>,
    /// Transfers in progress, then those that ended last; at most [`TRANSFERS_SHOWN_MAX`]. Only the
    /// leader tracks them: empty if it does not respond.
    pub transfers: Vec<TransferStatus>,
    /// Mirror throughput of the last transfer large enough to measure, in bytes per second.
    pub downlink_bytes_per_second: Option<u64>,
    /// `download_limit` of the responding server, in bytes per second; `None`: unlimited.
    pub download_limit_bytes_per_second: Option<u64>,
}

/// An app's policy as the group has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyInForce {
    pub app: AppId,
    /// The registry's revision of it.
    pub revision: Revision,
    pub policy: Policy,
}

/// An errand of the leader that fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrandStatus {
    #[serde(flatten)]
    pub errand: Errand,
    pub why: HubFault,
    /// How long it has failed, in milliseconds.
    pub for_ms: u64,
}

/// A change of the voters that is waiting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacingStatus {
    #[serde(flatten)]
    pub on: Placing,
    /// How long it has been waiting, in milliseconds.
    pub for_ms: u64,
}

/// A server of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its peer port, `host:port`.
    pub address: String,
    pub rack: Option<String>,
    /// Its position in joining order.
    pub joined: u64,
    /// The member that it carries, if any.
    pub member: Option<MemberId>,
    /// How long ago it asked for its orders, as far as the leader knows, in milliseconds.
    pub contact_age_ms: Option<u64>,
    /// How long it has certainly not asked any member, in milliseconds; `None` if no leader
    /// responds.
    pub silent_ms: Option<u64>,
    /// How far its clock is ahead of most other servers', in milliseconds; 0 if it agrees with
    /// them, or is unknown.
    pub clock_ahead_ms: i64,
    /// The space left for its agent, as far as known.
    pub disk: DiskSpace,
    /// Whether its kill file stops it.
    pub stopped: bool,
    /// Another machine calls as this server, and is refused.
    pub copy: Option<CopyStatus>,
    /// Whether it has not asked any member for longer than the shortest `unreachable_after`, or no
    /// leader with a quorum responds: what is known of it may no longer hold.
    pub unknown: bool,
}

/// A machine that calls as a server that another machine runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// The host that it calls from.
    pub host: String,
    /// How long it has been calling, in milliseconds.
    pub for_ms: u64,
    /// How long ago it called last, in milliseconds.
    pub age_ms: u64,
}

impl GroupStatus {
    /// The servers that are unknown.
    pub fn unknown_servers(&self) -> impl Iterator<Item = (&ServerId, &ServerStatus)> {
        self.servers.iter().filter(|(_, server)| server.unknown)
    }
}

/// An app in the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppStatus {
    /// The phase, as drawn in `docs/state-machine.md`.
    pub state: PhaseName,
    /// When the app entered this phase, by the group clock.
    pub since: ClockMs,
    /// What the whole group runs, or ran before the rollout.
    pub last_good: Option<Version>,
    /// What is being rolled out or rolled back, or was rejected.
    pub target: Option<Version>,
    /// Why it is held or rolling back; otherwise `None`.
    pub reason: Option<Reason>,
    /// The current wave, counted from 1; 0 outside of waves.
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
    /// Whether it takes traffic, by its last report and the step that it has said it is taking.
    pub in_service: bool,
    /// Whether its server is unknown, or was lost in a change of this app and has not said since
    /// what it runs: the other fields are stale.
    pub unknown: bool,
    /// Why it takes no traffic; `None` if it does, or if it has not run anything yet.
    pub unfit: Option<Unfit>,
    /// Whether it has all bytes of the release being rolled out.
    pub holds_target: bool,
    /// The change that it was granted, and how far that has come.
    pub activation: Option<ActivationStage>,
    /// What its agent says it is doing now.
    pub doing: Option<Doing>,
    /// Why it is not on the last good release although it should be.
    pub debt: Option<DebtReason>,
    /// The hook that failed, and how, although which the release was stopped in its latest change.
    pub ignored_hook: Option<String>,
}

/// Something that is waiting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingStatus {
    pub on: WaitingOn,
    /// How long it has been waiting by the group clock, in milliseconds.
    pub for_ms: u64,
}
