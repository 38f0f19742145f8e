//! Orders: the only thing a server obeys.
//!
//! They are a pure function of the committed state ([`State::orders`](crate::State::orders)),
//! served by a member after a linearizable read. A disruptive step begins only while they are
//! fresh.

use serde::{Deserialize, Serialize};

use crate::ids::{AppId, Digest, Generation, GroupId, Incarnation, MemberId, ServerId};
use crate::policy::Check;
use crate::release::Release;

/// Makes orders of an older plan harmless: the higher fence wins.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    /// The group's incarnation; compared first.
    pub incarnation: Incarnation,
    pub generation: Generation,
}

/// Everything that one server is ordered to do now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    pub group: GroupId,
    pub incarnation: Incarnation,
    pub server: ServerId,
    pub apps: Vec<AppOrders>,
    /// Set if this server carries the group's log.
    pub member: Option<MemberOrder>,
    /// The group's members, to ask next time.
    pub members: Vec<MemberAddress>,
}

/// Where a member can be reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MemberAddress {
    pub server: ServerId,
    /// Its peer port, `host:port`.
    pub address: String,
    /// Its number in Raft.
    pub member: MemberId,
}

/// The order to carry the group's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberOrder {
    /// The member's number; never another one.
    pub member: MemberId,
}

/// What a server is ordered to do for one app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppOrders {
    pub app: AppId,
    /// What to fetch, in this order. Fetching is not disruptive.
    pub fetch: Vec<FetchOrder>,
    pub activation: Option<ActivationOrder>,
    /// What to run while nothing changes, for example after a boot.
    pub run: Option<Release>,
    /// The server owes the good release: until it runs it, it takes no traffic.
    pub owes: bool,
    /// The checks to run while the app runs.
    pub checks: Vec<Check>,
    /// Artifacts that must stay on disk.
    pub keep: Vec<Digest>,
}

/// An artifact to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchOrder {
    /// What to fetch and verify.
    pub release: Release,
    /// Whether the server may use a mirror unasked. Others fetch from `sources`, or from a mirror
    /// if the leader lets them.
    pub from_mirror: bool,
    /// Servers that have the whole artifact, best first.
    pub sources: Vec<Source>,
}

/// A server that has the whole artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub server: ServerId,
    /// Its peer port, `host:port`.
    pub address: String,
}

/// Permission for one change: drain, hand over, stop, switch, start, check, warm up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivationOrder {
    /// A server activates at most once per fence.
    pub fence: Fence,
    /// What to run; none: stop what runs.
    pub release: Option<Release>,
    /// What to go back to if the group cannot be reached in time.
    pub undo_to: Option<Release>,
    /// What the change is part of.
    pub purpose: Purpose,
    /// Servers that are about to be stopped too: leadership should not move there.
    pub avoid: Vec<ServerId>,
    /// Wait after leaving traffic, in milliseconds.
    pub drain_ms: u64,
    /// Time that the checks must pass without a break, in milliseconds.
    pub min_healthy_ms: u64,
    /// Deadline for that, from the start of the release, in milliseconds.
    pub healthy_deadline_ms: u64,
    /// Put the old release back if the group was not reached for this long, in milliseconds.
    pub confirm_within_ms: u64,
    pub warm_up_ms: u64,
    pub checks: Vec<Check>,
    /// False under the kill switch: take no step that takes the server out of traffic.
    pub begin: bool,
}

/// What a change is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    Wave,
    /// The roll-back of the whole group.
    RollBack,
    /// A debt of this server alone.
    Debt,
}
