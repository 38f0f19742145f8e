//! What a server is to do now: the only thing that a server ever obeys.
//!
//! Orders are a pure function of the committed state (`State::orders`), answered by a member after a
//! linearizable read. They are the fresh yes: a disruptive step begins only while they are valid.

use serde::{Deserialize, Serialize};

use crate::ids::{AppId, Digest, Generation, GroupId, Incarnation, MemberId, ServerId};
use crate::policy::Check;
use crate::release::Release;

/// What makes an order from an older plan harmless. Ordered: a higher fence wins.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    /// Which life of the group.
    pub incarnation: Incarnation,
    /// Which plan of the app.
    pub generation: Generation,
}

/// Everything that one server is to do now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// The group that speaks.
    pub group: GroupId,
    /// Which life of the group.
    pub incarnation: Incarnation,
    /// Whom it is for.
    pub server: ServerId,
    /// Per app; an app that is missing here is none of this server's business.
    pub apps: Vec<AppOrders>,
    /// Whether this server is to carry the group's log, and under which id.
    pub member: Option<MemberOrder>,
    /// Where the group's members are, to ask next time.
    pub members: Vec<MemberAddress>,
}

/// A member and where to reach it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MemberAddress {
    /// The server that carries the member.
    pub server: ServerId,
    /// Its peer port, `host:port`.
    pub address: String,
    /// Its number in Raft.
    pub member: MemberId,
}

/// This server is to carry the group's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberOrder {
    /// Under this id, never another.
    pub member: MemberId,
}

/// What a server is to do for one app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppOrders {
    /// The app.
    pub app: AppId,
    /// Bytes to have whole on this server, in this order. Fetching disrupts nobody.
    pub fetch: Vec<FetchOrder>,
    /// The one change to make here, if any.
    pub activation: Option<ActivationOrder>,
    /// What this server runs when nothing is to change (after a boot, say).
    pub run: Option<Release>,
    /// This server owes the good release: it takes no traffic before it has it.
    #[serde(default)]
    pub owes: bool,
    /// The checks that go on while it runs.
    pub checks: Vec<Check>,
    /// Artifacts that must not be removed from disk.
    pub keep: Vec<Digest>,
}

/// Bytes to have whole on this server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchOrder {
    /// What to fetch and verify.
    pub release: Release,
    /// May take bytes from a mirror by itself: the leader's own server. The others take them from
    /// whom the leader names, or from a holder; a mirror only with the leader's leave.
    pub from_mirror: bool,
    /// Servers that hold it whole, best first for this server.
    pub sources: Vec<Source>,
}

/// A server that holds an artifact whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Which server.
    pub server: ServerId,
    /// Its peer port, `host:port`.
    pub address: String,
}

/// One yes that covers drain → hand over → stop → switch → start → check → warm up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivationOrder {
    /// Activation happens exactly once per server and fence.
    pub fence: Fence,
    /// What to run; `None`: stop what runs and leave nothing running.
    pub release: Option<Release>,
    /// Where to go back to when the group cannot be reached in time.
    pub undo_to: Option<Release>,
    /// Why this server, now.
    pub purpose: Purpose,
    /// Servers that are about to be stopped too: leadership should not go there.
    pub avoid: Vec<ServerId>,
    /// How long to wait after the server was taken out of traffic, in milliseconds.
    pub drain_ms: u64,
    /// Healthy without a break for this long before it counts, in milliseconds.
    pub min_healthy_ms: u64,
    /// Checks must have passed this long after the start, in milliseconds.
    pub healthy_deadline_ms: u64,
    /// Put the old release back when the group was not reached for this long, in milliseconds.
    pub confirm_within_ms: u64,
    /// How long traffic ramps up, in milliseconds.
    pub warm_up_ms: u64,
    /// The pre-flight checks.
    pub checks: Vec<Check>,
    /// A person or a policy stopped everything: begin nothing that takes the server out.
    pub begin: bool,
}

/// Why a server is activated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Its wave's turn.
    Wave,
    /// The group goes back to what was good.
    RollBack,
    /// It was away, or failed alone, and owes this.
    Debt,
}
