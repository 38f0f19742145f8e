//! Orders: the only thing that a server obeys.
//!
//! They are a pure function of the committed state ([`State::orders`](crate::State::orders)),
//! served by a member after a linearizable read. A disruptive step starts only while they are
//! fresh.

use serde::{Deserialize, Serialize};

use crate::ids::{
    AppId, BootEpoch, Digest, Generation, GroupId, Incarnation, MemberId, Revision, ServerId,
};
use crate::policy::Check;
use crate::release::Release;

/// Makes orders from an older plan harmless: the higher fence wins.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    /// The group's incarnation; compared first.
    pub incarnation: Incarnation,
    pub generation: Generation,
}

/// Everything that one server should do now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    pub group: GroupId,
    pub incarnation: Incarnation,
    pub server: ServerId,
    pub apps: Vec<AppOrders>,
    /// Set if this server carries the group's log.
    pub member: Option<MemberOrder>,
    /// The group's members: where to ask next time.
    pub members: Vec<MemberAddress>,
    /// The latest start of its agent that the group has a report of.
    pub heard: BootEpoch,
}

/// A member's server, number and address.
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
    /// The member's number, fixed for this server.
    pub member: MemberId,
}

/// What a server should do for one app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppOrders {
    pub app: AppId,
    /// What to fetch, in this order. Fetching is not disruptive.
    pub fetch: Vec<FetchOrder>,
    pub activation: Option<ActivationOrder>,
    /// What to run while no change is in progress, for example after a boot.
    pub run: Option<Release>,
    /// The server is in debt: it takes no traffic until it runs the good release.
    pub owes: bool,
    /// Whether the group believes that the server takes traffic with the app; `None` if it lost
    /// sight of it in a change. A server that knows better reports it.
    pub in_service: Option<bool>,
    /// The checks to run while the app runs.
    pub checks: Vec<Check>,
    /// Newer checks, to try next to those.
    pub trial: Option<TrialOrder>,
    /// Artifacts that must stay on disk.
    pub keep: Vec<Digest>,
    /// Artifacts that the group believes the server has. One that does not reports it.
    pub holds: Vec<Digest>,
}

/// Checks to try: they decide nothing yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialOrder {
    /// Names the set in the report.
    pub revision: Revision,
    pub checks: Vec<Check>,
    /// What the group knows of the result. A server that knows better reports it.
    pub passes: Option<bool>,
}

/// An artifact to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchOrder {
    /// What to fetch and verify.
    pub release: Release,
    /// Whether the server may use a mirror without asking the leader. Others fetch from `sources`,
    /// or from a mirror if the leader allows it.
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
    /// What to run; `None`: stop what runs.
    pub release: Option<Release>,
    /// What to go back to if the server cannot reach the group in time.
    pub undo_to: Option<Release>,
    /// Why the change was granted.
    pub purpose: Purpose,
    /// Servers that will be stopped soon too: do not move leadership there.
    pub avoid: Vec<ServerId>,
    /// Wait after leaving traffic, in milliseconds.
    pub drain_ms: u64,
    /// How long the checks must pass without interruption, in milliseconds.
    pub min_healthy_ms: u64,
    /// Deadline for that, counted from the start of the release, in milliseconds.
    pub healthy_deadline_ms: u64,
    /// Restore the old release after this long without contact to the group, in milliseconds.
    pub confirm_within_ms: u64,
    pub warm_up_ms: u64,
    /// Whether to stop what runs although one of its hooks fails.
    pub stop_despite_hooks: bool,
    /// The checks of the policy. Those of the pre-flight have to pass; in a wave, what each of them
    /// runs has to be there.
    pub checks: Vec<Check>,
    /// What forbids to begin a step that takes the server out of traffic.
    pub hold: Option<Hold>,
}

/// Why a granted change must not begin yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// The kill switch is on: no step that takes the server out of traffic.
    KillSwitch,
    /// `max_unavailable` is used up: do not leave traffic.
    Capacity,
    /// The leader took the grant back: a server that has not left traffic for it gives it up.
    Withdrawn,
}

/// Why a change was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    Wave,
    /// The rollback of the whole group.
    RollBack,
    /// This server's own debt.
    Debt,
}
