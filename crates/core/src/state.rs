//! The replicated state of a group: plain data, written by `apply` alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::ids::{
    AppId, BootEpoch, ClockMs, Digest, Generation, GroupId, Incarnation, MemberId, Platform,
    RequestId, Revision, ServerId, Version,
};
use crate::orders::{Fence, Purpose};
use crate::phase::Phase;
use crate::policy::Policy;
use crate::release::Release;
use crate::report::{Blame, Step};

/// The schema of a snapshot.
pub const STATE_SCHEMA: u32 = 1;
/// Servers of one group. 1,000 is the mission's figure; a little room above it.
pub const SERVERS_MAX: usize = 1_200;
/// Apps of one group: each costs an entry per server and step.
pub const APPS_MAX: usize = 32;
/// Requests whose answers are remembered, so that one that comes twice is done once.
pub const REQUESTS_MAX: usize = 256;
/// Rollouts that an app remembers.
pub const HISTORY_MAX: usize = 32;
/// Releases that an app remembers as rejected.
pub const REJECTED_MAX: usize = 16;
/// Releases that were good, newest last: what `rollout undo` can go back to.
pub const GOOD_MAX: usize = 3;
/// Artifacts that a server is remembered to hold, per app.
pub const HOLDS_MAX: usize = 6;
/// Failures kept in words per rollout; beyond that they are only counted.
pub const FAILURES_KEPT_MAX: usize = 16;
/// Verdicts that wait for the registry.
pub const VERDICTS_DUE_MAX: usize = 16;
/// How often a debt is tried by itself before a person is asked.
pub const DEBT_TRIES_MAX: u32 = 3;

/// Everything that a group has decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The schema of this very structure.
    pub schema: u32,
    /// The group.
    pub group: GroupId,
    /// Which life of the group.
    pub incarnation: Incarnation,
    /// The labels that its servers share.
    pub labels: BTreeMap<String, String>,
    /// Their platform; none before the group was set up.
    pub platform: Option<Platform>,
    /// The group clock.
    pub clock: ClockMs,
    /// What every member understands.
    pub feature_level: u32,
    /// The number that the next member gets.
    pub next_member: MemberId,
    /// The number that the next server gets in the order of joining.
    pub next_joined: u64,
    /// The servers.
    pub servers: BTreeMap<ServerId, Server>,
    /// The apps.
    pub apps: BTreeMap<AppId, App>,
    /// The last requests and how they ended, oldest first.
    pub requests: VecDeque<Answered>,
}

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    /// Which request.
    pub request: RequestId,
    /// Why it was refused; none when it was done.
    pub refused: Option<String>,
}

/// A server of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Its peer port, `host:port`.
    pub address: String,
    /// Its failure domain, if it has a name.
    pub rack: Option<String>,
    /// Its place in the order of joining.
    pub joined: u64,
    /// The member that it carries.
    pub member: Option<MemberId>,
    /// What a person said about it carrying a member; nothing: the order of joining decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placed: Option<bool>,
    /// The last start of its agent that was heard of.
    pub boot_epoch: BootEpoch,
    /// The last report of that start.
    pub sequence: u64,
}

/// An app in this group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// The revision of the policy in the registry.
    pub revision: Revision,
    /// The policy for rollouts to come.
    pub policy: Policy,
    /// Raised by every change of plan.
    pub generation: Generation,
    /// The last release that the whole group baked.
    pub last_good: Option<Release>,
    /// Releases that were good before and are no longer, newest last.
    pub good_before: Vec<Release>,
    /// Where the group is with this app.
    pub phase: Phase,
    /// What is known of each server.
    pub servers: BTreeMap<ServerId, ServerApp>,
    /// Releases that are not tried again by themselves, newest last.
    pub rejected: Vec<Rejected>,
    /// What happened, oldest first.
    pub history: VecDeque<HistoryEntry>,
    /// Counts the changes that the registry has to hear of,
    pub record: u64,
    /// and how many of them it has.
    pub record_written: u64,
    /// What the registry has to hear about releases.
    pub verdicts_due: Vec<Verdict>,
}

/// What is known of one app on one server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerApp {
    /// Whether the server has said what it found there; before that nothing is known.
    pub found: bool,
    /// What runs there, as last reported.
    pub running: Option<Release>,
    /// Whether it takes traffic, as last reported.
    pub in_service: bool,
    /// Why it does not, in words.
    pub health: String,
    /// Artifacts that it has whole and verified.
    pub holds: Vec<Digest>,
    /// The highest generation that it was ever activated under.
    pub activated: Generation,
    /// The change that is being made there.
    pub activation: Option<Activation>,
    /// What it still owes: to run `last_good`.
    pub debt: Option<Debt>,
}

/// A change that one server was told to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activation {
    /// Under which fence.
    pub fence: Fence,
    /// What to run; none: nothing.
    pub release: Option<Release>,
    /// What ran before.
    pub before: Option<Release>,
    /// Why.
    pub purpose: Purpose,
    /// Whether it takes a server out of service that was in: counted against `max_unavailable`.
    pub costs: bool,
    /// The server was lost in the middle of it: nobody orders it any more, it counts no more, and
    /// another change may take its place. How it ended is still heard.
    pub void: bool,
    /// When it was granted.
    pub granted: ClockMs,
    /// How far it is.
    pub stage: ActivationStage,
}

/// How far a change is, as far as the group was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ActivationStage {
    /// The server may begin,
    Granted,
    /// has started the release,
    Applied {
        /// When the group heard.
        at: ClockMs,
    },
    /// has passed its checks,
    Checked {
        /// When the group heard.
        at: ClockMs,
    },
    /// or failed,
    Failed {
        /// When the group heard.
        at: ClockMs,
        /// At which step.
        step: Step,
        /// Which budget.
        blame: Blame,
        /// In words.
        reason: String,
    },
    /// or went back by itself.
    Undone {
        /// When the group heard.
        at: ClockMs,
        /// In words.
        reason: String,
    },
}

impl Activation {
    /// Whether the server is still at it, by order of the group.
    #[must_use]
    pub fn in_flight(&self) -> bool {
        !self.void && self.open()
    }

    /// Whether the server may still be at it.
    #[must_use]
    pub fn open(&self) -> bool {
        match self.stage {
            ActivationStage::Granted
            | ActivationStage::Applied { .. }
            | ActivationStage::Checked { .. } => true,
            ActivationStage::Failed { .. } | ActivationStage::Undone { .. } => false,
        }
    }
}

/// What a server owes: to run `last_good`, before it takes traffic again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Debt {
    /// Since when.
    pub since: ClockMs,
    /// Why, in words.
    pub reason: String,
    /// How often it was tried.
    pub tries: u32,
}

/// One rollout of one release through the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// What is rolled out.
    pub release: Release,
    /// The policy, pinned,
    pub policy: Policy,
    /// and its revision.
    pub revision: Revision,
    /// Who began it.
    pub by: String,
    /// When.
    pub started: ClockMs,
    /// The leader's server: the one that fetches from a mirror.
    pub lead: ServerId,
    /// Waves begun so far.
    pub waves: u32,
    /// A person, or a verdict from elsewhere, said stop.
    pub pause: Option<Pause>,
    /// A person let it go on after the wave that asks for approval.
    pub approved: bool,
    /// Failures of the release so far.
    pub release_failures: u32,
    /// Failures of the surroundings so far.
    pub surroundings_failures: u32,
    /// The first of them in words.
    pub failures: Vec<Failure>,
    /// When anything last went forward.
    pub progress: ClockMs,
    /// Servers that it goes on without; they owe.
    pub lost: BTreeSet<ServerId>,
    /// Groups whose bad verdict a person has overruled by `resume`.
    pub overruled: BTreeSet<GroupId>,
}

/// Why a rollout is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// Who said so.
    pub by: String,
    /// In words.
    pub reason: String,
    /// Since when.
    pub since: ClockMs,
    /// The group whose verdict it was, if it was one.
    pub verdict_of: Option<GroupId>,
}

/// A failure on one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Where.
    pub server: ServerId,
    /// Which budget.
    pub blame: Blame,
    /// At which step.
    pub step: Step,
    /// In words.
    pub reason: String,
    /// The last output of the hook or the service.
    pub output: String,
    /// When.
    pub at: ClockMs,
}

/// A release that this group does not try again by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejected {
    /// Which release.
    pub release: Release,
    /// Why.
    pub reason: String,
    /// When.
    pub at: ClockMs,
}

/// A rollout that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryEntry {
    /// Which version it was about.
    pub version: Version,
    /// How it ended.
    pub ending: Ending,
    /// Why, in words; empty when it completed.
    pub reason: String,
    /// Who began it.
    pub by: String,
    /// When it began.
    pub started: ClockMs,
    /// When it ended.
    pub ended: ClockMs,
    /// How many waves were begun.
    pub waves: u32,
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// Every reachable server runs it.
    Completed,
    /// The group went back.
    RolledBack,
    /// It was stopped in place.
    HeldInPlace,
    /// Another release took its place.
    Superseded,
    /// An existing installation was adopted.
    Adopted,
}

/// What a group found about a release on its platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Which version.
    pub version: Version,
    /// On which platform.
    pub platform: Platform,
    /// Good or bad.
    pub good: bool,
    /// Why it is bad, in words.
    pub reason: String,
}

impl State {
    /// The state before the first entry.
    #[must_use]
    pub fn new(group: GroupId, incarnation: Incarnation) -> State {
        State {
            schema: STATE_SCHEMA,
            group,
            incarnation,
            labels: BTreeMap::new(),
            platform: None,
            clock: ClockMs(0),
            feature_level: 1,
            next_member: MemberId(1),
            next_joined: 0,
            servers: BTreeMap::new(),
            apps: BTreeMap::new(),
            requests: VecDeque::new(),
        }
    }

    /// How many servers the group has.
    #[must_use]
    pub fn size(&self) -> u32 {
        u32::try_from(self.servers.len()).unwrap_or(u32::MAX)
    }

    /// The server that carries a member.
    #[must_use]
    pub fn server_of(&self, member: MemberId) -> Option<&ServerId> {
        self.servers.iter().find(|(_, server)| server.member == Some(member)).map(|(id, _)| id)
    }
}

impl App {
    /// An app that nothing was ever rolled out of.
    #[must_use]
    pub fn new(revision: Revision, policy: Policy) -> App {
        App {
            revision,
            policy,
            generation: Generation(0),
            last_good: None,
            good_before: Vec::new(),
            phase: Phase::Empty,
            servers: BTreeMap::new(),
            rejected: Vec::new(),
            history: VecDeque::new(),
            record: 1,
            record_written: 0,
            verdicts_due: Vec::new(),
        }
    }

    /// Why a release is not tried by itself, if it is rejected.
    #[must_use]
    pub fn rejection_of(&self, release: &Release) -> Option<&Rejected> {
        self.rejected.iter().find(|rejected| rejected.release == *release)
    }

    /// Whether a change leads to what this app's plan wants by now. One that does not was told to
    /// a server that was lost meanwhile; another change may take its place.
    #[must_use]
    pub fn wants(&self, activation: &Activation) -> bool {
        let onward = self.phase.forward().is_some_and(|rollout| {
            activation.purpose == Purpose::Wave
                && activation.release.as_ref() == Some(&rollout.release)
        });
        let back = activation.purpose != Purpose::Wave && activation.release == self.last_good;
        onward || back
    }

    /// The servers that are being changed right now.
    pub fn in_flight(&self) -> impl Iterator<Item = (&ServerId, &Activation)> {
        self.servers.iter().filter_map(|(id, server)| {
            server.activation.as_ref().filter(|activation| activation.in_flight()).map(|a| (id, a))
        })
    }
}

impl ServerApp {
    /// Whether it has the artifact whole.
    #[must_use]
    pub fn has(&self, artifact: &Digest) -> bool {
        self.holds.contains(artifact)
    }

    /// Whether it runs the release and nothing is being changed.
    #[must_use]
    pub fn settled_on(&self, release: Option<&Release>) -> bool {
        self.running.as_ref() == release && self.activation.is_none()
    }
}
