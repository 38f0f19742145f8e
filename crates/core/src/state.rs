//! The replicated state of a group: plain data, written only by [`State::apply`].

use std::collections::BTreeMap;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::ids::{
    AppId, BootEpoch, ClockMs, Digest, Generation, GroupId, Incarnation, MemberId, Platform,
    RequestId, Revision, ServerId,
};
use crate::orders::{Fence, Purpose};
use crate::phase::Phase;
use crate::policy::{Policy, Proof};
use crate::reason::{DebtReason, Unfit};
use crate::rejection::Rejection;
use crate::release::Release;
use crate::report::{Blame, Step};
use crate::shared::Shared;
use crate::trial::{CheckSet, Trial};

pub use crate::rollout::{Ending, Failure, HistoryEntry, Pause, Rejected, Rollout, Verdict};

/// The schema of snapshots. Raise it whenever this module's types change.
pub const STATE_SCHEMA: u32 = 1;
/// Most servers in a group. The mission's figure is 1,000; the rest is headroom.
pub const SERVERS_MAX: usize = 1_200;
/// Most apps in a group: each costs one log entry per server and step.
pub const APPS_MAX: usize = 32;
/// Most servers times apps of a group: all of it goes into one snapshot of at most 15 MiB. 12,000:
/// 1,200 servers with 10 apps, or 375 with 32; an app on a server takes some 800 bytes, and 1,300
/// mid-rollout.
pub const SERVER_APPS_MAX: usize = 12_000;
/// Removed apps that are remembered. 256: eight times the apps of a group; of more, the one removed
/// first is forgotten.
pub const REMOVED_MAX: usize = 256;
/// Requests whose outcome is remembered, so that a repeat is applied once.
pub const REQUESTS_MAX: usize = 256;
/// Ended rollouts kept per app.
pub const HISTORY_MAX: usize = 32;
/// Rejected releases kept per app.
pub const REJECTED_MAX: usize = 16;
/// Earlier good releases kept per app: what `rollout undo` can go back to.
pub const GOOD_MAX: usize = 3;
/// Artifacts remembered per server and app.
pub const HOLDS_MAX: usize = 6;
/// Failures kept in detail per rollout; further ones are only counted.
pub const FAILURES_KEPT_MAX: usize = 16;
/// Groups whose verdict an operator has overruled, kept per rollout; a verdict of one that was
/// forgotten pauses the rollout again.
pub const OVERRULED_MAX: usize = 64;
/// Verdicts kept per app until the registry acknowledges them.
pub const VERDICTS_DUE_MAX: usize = 16;
/// Automatic attempts to pay a debt that the release fails, before an operator has to step in.
pub const DEBT_TRIES_MAX: u32 = 3;

/// Everything that a group has decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Always [`STATE_SCHEMA`]: a snapshot with another schema fails to deserialize.
    #[serde(deserialize_with = "known_schema")]
    pub schema: u32,
    pub group: GroupId,
    /// Issued by the registry; commands for another incarnation are rejected.
    pub incarnation: Incarnation,
    /// The grouping labels shared by all its servers.
    pub labels: Shared<BTreeMap<String, String>>,
    /// The platform of all its servers; `None` until `set-up`.
    pub platform: Option<Platform>,
    /// The group clock, advanced by the leader.
    pub clock: ClockMs,
    /// What every member supports; only increases.
    pub feature_level: u32,
    /// The number of the next member; numbers are never reused.
    pub next_member: MemberId,
    /// The position of the next server in joining order.
    pub next_joined: u64,
    pub servers: Shared<BTreeMap<ServerId, Shared<Server>>>,
    /// The generation that a new app starts with: above those of all that were removed, so that no
    /// server takes its orders for older ones.
    pub first_generation: Generation,
    /// The apps that were removed, each with the revision of that: a registry from a backup may
    /// still have their policies.
    pub removed: BTreeMap<AppId, Revision>,
    /// The group's apps. Each lists every server.
    pub apps: BTreeMap<AppId, App>,
    /// The last [`REQUESTS_MAX`] requests, oldest first.
    pub requests: Shared<Vec<Answered>>,
}

/// A request and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    /// Chosen by the sender.
    pub request: RequestId,
    /// Why it was refused; `None` if it was applied.
    pub refused: Option<Rejection>,
}

fn known_schema<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    match u32::deserialize(from)? {
        STATE_SCHEMA => Ok(STATE_SCHEMA),
        other => Err(D::Error::custom(format!(
            "state schema {other} is not supported; this version reads schema {STATE_SCHEMA}"
        ))),
    }
}

/// The agent that speaks for a server: one process at a time, on one machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// A random number, chosen at its start.
    pub life: u64,
    /// The host that it calls from, as the member that it called saw it.
    pub host: String,
}

/// A server of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Its peer port, `host:port`.
    pub address: String,
    pub rack: Option<String>,
    /// Its position in joining order.
    pub joined: u64,
    pub member: Option<MemberId>,
    /// Whether an operator wants it to carry a member; `None`: joining order decides.
    pub placed: Option<bool>,
    /// The agent that speaks for it.
    pub process: Process,
    /// The latest agent start that it has reported from.
    pub boot_epoch: BootEpoch,
    /// Its last report in that boot epoch.
    pub sequence: u64,
}

/// An app in this group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// The registry's revision of `policy`.
    pub revision: Revision,
    /// The policy for the next rollout; one in progress keeps its own.
    pub policy: Shared<Policy>,
    /// What an operator signed at `revision`: the policy, or the app's removal.
    pub proof: Proof,
    /// The sets of checks in use, oldest first; the last is the policy's.
    pub check_sets: Vec<CheckSet>,
    /// The newest checks that `last_good` was seen to pass: what a server must pass on the way
    /// back.
    pub good_checks: Revision,
    /// Incremented by every change of plan.
    pub generation: Generation,
    /// The last release that the whole group ran and baked: the target of a rollback.
    pub last_good: Option<Release>,
    /// Earlier good releases, newest last.
    pub good_before: Shared<Vec<Release>>,
    pub phase: Phase,
    /// No rollout starts, and the one in progress starts nothing new.
    pub pause: Option<Pause>,
    /// What is known about each server; the keys are the group's servers.
    pub servers: Shared<BTreeMap<ServerId, Shared<ServerApp>>>,
    /// Releases not retried without an operator, newest last.
    pub rejected: Shared<Vec<Rejected>>,
    /// Ended rollouts, oldest first.
    pub history: Shared<Vec<HistoryEntry>>,
    /// Number of changes that the registry has to record.
    pub record: u64,
    /// Number of them that the registry has acknowledged.
    pub record_written: u64,
    /// Verdicts that the registry has not acknowledged.
    pub verdicts_due: Vec<Verdict>,
}

/// What is known about one app on one server, from the server's reports.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerApp {
    /// Whether the server has reported what it found when it started; nothing is known until then.
    pub found: bool,
    pub running: Option<Release>,
    pub in_service: bool,
    /// Why it takes no traffic.
    pub unfit: Option<Unfit>,
    /// The set of checks that decides about its traffic.
    pub checks: Revision,
    /// How it does with newer checks, once it has said so.
    pub trial: Option<Trial>,
    /// The server was lost in a change, and has not said since what it runs.
    pub unsure: bool,
    /// Artifacts it has whole and verified, oldest first.
    pub holds: Vec<Digest>,
    /// The highest generation under which it was ever activated.
    pub activated: Generation,
    /// The latest change, until it is done or dropped.
    pub activation: Option<Activation>,
    /// Set while the server has to return to `last_good`.
    pub debt: Option<Debt>,
    /// Since when an operator wants the server to start its release again; any change does.
    pub restart: Option<ClockMs>,
    /// The last hook that failed and was ignored since the latest change was granted, and how.
    pub ignored_hook: Option<String>,
}

/// A change granted to one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activation {
    /// The change's identity: reports with another fence are about another change.
    pub fence: Fence,
    /// What to run; `None`: stop what runs.
    pub release: Option<Release>,
    pub before: Option<Release>,
    /// Why the change was granted.
    pub purpose: Purpose,
    /// Whether it takes a serving server out, and therefore counts against `max_unavailable`.
    pub costs: bool,
    /// The server was lost during the change, which is no longer ordered or counted; another change
    /// may replace it. A late report of its outcome is still accepted.
    pub void: bool,
    pub granted: ClockMs,
    pub stage: ActivationStage,
}

/// How far a change has come, and when the report of that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ActivationStage {
    /// The server may start,
    Granted,
    /// may no longer, unless it has already: the leader took the grant back,
    Withdrawn,
    /// has started the release,
    Applied { at: ClockMs },
    /// has passed its checks,
    Checked { at: ClockMs },
    /// or has failed, at the expense of a budget,
    Failed { at: ClockMs, step: Step, blame: Blame, reason: String },
    /// or has restored the old release on its own.
    Undone { at: ClockMs, reason: String },
}

impl Activation {
    /// Whether the change is in progress and still ordered.
    #[must_use]
    pub fn in_flight(&self) -> bool {
        !self.void && self.open()
    }

    /// Whether the server has not begun, as far as it has said.
    pub(crate) fn not_begun(&self) -> bool {
        matches!(self.stage, ActivationStage::Granted | ActivationStage::Withdrawn)
    }

    /// Whether the server may still be working on it, ordered or not.
    #[must_use]
    pub fn open(&self) -> bool {
        match self.stage {
            ActivationStage::Granted
            | ActivationStage::Withdrawn
            | ActivationStage::Applied { .. }
            | ActivationStage::Checked { .. } => true,
            ActivationStage::Failed { .. } | ActivationStage::Undone { .. } => false,
        }
    }
}

/// A server's debt: it must run `last_good` before it takes traffic again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Debt {
    pub since: ClockMs,
    /// Why it is in debt; after a failed attempt to pay, why that failed.
    pub reason: DebtReason,
    /// Attempts to pay it; after [`DEBT_TRIES_MAX`], only what its surroundings kept it from is
    /// tried again without an operator.
    pub tries: u32,
}

impl State {
    /// The initial state, before the first entry.
    #[must_use]
    pub fn new(group: GroupId, incarnation: Incarnation) -> State {
        State {
            schema: STATE_SCHEMA,
            group,
            incarnation,
            labels: Shared::default(),
            platform: None,
            clock: ClockMs(0),
            feature_level: 1,
            next_member: MemberId(1),
            next_joined: 0,
            servers: Shared::default(),
            first_generation: Generation(0),
            removed: BTreeMap::new(),
            apps: BTreeMap::new(),
            requests: Shared::default(),
        }
    }

    /// Whether this many servers fit with this many apps.
    pub(crate) fn fits(servers: usize, apps: usize) -> bool {
        servers * apps <= SERVER_APPS_MAX
    }

    /// Whether a policy of an app that is not here is older than the app's removal.
    #[must_use]
    pub fn outlived(&self, app: &AppId, revision: Revision) -> bool {
        self.removed.get(app).is_some_and(|removed| revision <= *removed)
    }

    /// Number of servers in the group.
    #[must_use]
    pub fn size(&self) -> u32 {
        u32::try_from(self.servers.len()).unwrap_or(u32::MAX)
    }

    /// The server that carries this member.
    #[must_use]
    pub fn server_of(&self, member: MemberId) -> Option<&ServerId> {
        self.servers.iter().find(|(_, server)| server.member == Some(member)).map(|(id, _)| id)
    }
}

impl App {
    /// An app with no release, and no servers yet.
    #[must_use]
    pub fn new(revision: Revision, policy: Policy) -> App {
        let checks = policy.checks.clone();
        App {
            revision,
            policy: policy.into(),
            proof: Proof::default(),
            check_sets: vec![CheckSet { revision, checks }],
            good_checks: revision,
            generation: Generation(0),
            last_good: None,
            good_before: Shared::default(),
            phase: Phase::Empty,
            pause: None,
            servers: Shared::default(),
            rejected: Shared::default(),
            history: Shared::default(),
            record: 1,
            record_written: 0,
            verdicts_due: Vec::new(),
        }
    }

    /// The pause that holds this rollout, if any.
    #[must_use]
    pub fn pause_of(&self, rollout: &Rollout) -> Option<&Pause> {
        self.pause.as_ref().filter(|_| !rollout.despite_pause)
    }

    /// Whether no server runs the app, as far as every server has said.
    pub(crate) fn is_stopped(&self) -> bool {
        self.servers.values().all(|here| here.has_stopped())
    }

    /// Whether the app was removed, and nothing is left of it.
    pub(crate) fn is_gone(&self) -> bool {
        let forgotten = self.record_written == self.record;
        matches!(self.phase, Phase::Removing { stopped: true, .. } if forgotten)
            && self.is_stopped()
    }

    /// The rejection of a release, if there was one here.
    #[must_use]
    pub fn rejection_of(&self, release: &Release) -> Option<&Rejected> {
        self.rejected.iter().find(|rejected| rejected.release == *release)
    }

    /// Whether a change still leads to what the plan wants. If not, it was granted to a server we
    /// have since lost, and another change may replace it.
    #[must_use]
    pub fn wants(&self, activation: &Activation) -> bool {
        let onward = self.phase.forward().is_some_and(|rollout| {
            activation.purpose == Purpose::Wave
                && activation.release.as_ref() == Some(&rollout.release)
        });
        let back = activation.purpose != Purpose::Wave && activation.release == self.last_good;
        onward || back
    }

    /// Most servers that may be out of service when a change takes one out, in a group of this
    /// size. Always the current policy's: it says what people can spare now, also while a rollout
    /// keeps the rest of an older policy.
    #[must_use]
    pub fn max_unavailable(&self, size: u32) -> u32 {
        self.policy.max_unavailable_of(size)
    }

    /// The policy in force: the one pinned by the rollout in progress, else the current one.
    ///
    /// Debts follow it too: a server that pays gets the same checks as its neighbours. A policy
    /// changed during a rollout applies to debts once that rollout has ended.
    #[must_use]
    pub fn policy_in_force(&self) -> &Policy {
        self.phase.rollout().map_or(&self.policy, |rollout| &rollout.policy)
    }

    /// The servers that are changing right now.
    pub fn in_flight(&self) -> impl Iterator<Item = (&ServerId, &Activation)> {
        self.servers.iter().filter_map(|(id, server)| Some((id, server.in_flight()?)))
    }

    /// The servers that the rollout has not yet moved to its release.
    pub(crate) fn remaining(&self, rollout: &Rollout) -> impl Iterator<Item = &ServerId> {
        self.all_but_lost(rollout, |here| !here.serves(&rollout.release))
    }

    /// The servers that a rollback has not yet moved to `last_good`. If no release was ever good,
    /// only what the rollout touched is rolled back; the rest is left alone.
    pub(crate) fn to_roll_back(&self, rollout: &Rollout) -> impl Iterator<Item = &ServerId> {
        let good = self.last_good.as_ref();
        self.all_but_lost(rollout, move |here| match good {
            Some(_) => !here.settled_on(good),
            None => here.activation.is_some() || here.running.as_ref() == Some(&rollout.release),
        })
    }

    fn all_but_lost(
        &self,
        rollout: &Rollout,
        wanted: impl Fn(&ServerApp) -> bool,
    ) -> impl Iterator<Item = &ServerId> {
        let open = self
            .servers
            .iter()
            .filter(move |(id, here)| wanted(here) && !rollout.lost.contains(*id));
        open.map(|(id, _)| id)
    }

    /// The servers whose change has to finish before another release can take over: all that are
    /// changing, except those that pay a debt or roll back: the release may be their cure.
    pub(crate) fn blocking_takeover(&self) -> Vec<ServerId> {
        let blocks = |(server, change): &(&ServerId, &Activation)| {
            change.purpose == Purpose::Wave && self.servers[*server].debt.is_none()
        };
        self.in_flight().filter(blocks).map(|(id, _)| id.clone()).collect()
    }
}

impl ServerApp {
    /// Whether the server has the whole artifact.
    #[must_use]
    pub fn has(&self, artifact: &Digest) -> bool {
        self.holds.contains(artifact)
    }

    /// Whether the server runs the release and has no activation.
    #[must_use]
    pub fn settled_on(&self, release: Option<&Release>) -> bool {
        self.running.as_ref() == release && self.activation.is_none()
    }

    /// Whether the server has said that it runs nothing, and has no activation.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.found && !self.unsure && self.settled_on(None)
    }

    /// Whether the server takes traffic with the app, as far as it has said.
    pub(crate) fn takes_traffic(&self) -> bool {
        self.running.is_some() && self.in_service
    }

    /// Whether the server is settled on the release and takes traffic, by its last word: it may
    /// have restarted since.
    #[must_use]
    pub fn serves(&self, release: &Release) -> bool {
        self.in_service && self.settled_on(Some(release))
    }

    /// The change in progress, unless it is void.
    #[must_use]
    pub fn in_flight(&self) -> Option<&Activation> {
        self.activation.as_ref().filter(|activation| activation.in_flight())
    }

    /// Records a debt, unless the server already has one.
    pub(crate) fn owe(&mut self, since: ClockMs, reason: DebtReason) {
        self.debt.get_or_insert(Debt { since, reason, tries: 0 });
    }

    /// Records a failed change: the server is in debt, or still is, for this reason now.
    pub(crate) fn owe_after_failure(&mut self, at: ClockMs, text: String) {
        let reason = DebtReason::Failed { text };
        let debt = Debt { since: at, reason: reason.clone(), tries: 0 };
        self.restart = None;
        self.debt.get_or_insert(debt).reason = reason;
    }

    /// Whether its last change failed through no fault of the release.
    pub(crate) fn surrounded(&self) -> bool {
        self.activation.as_ref().is_some_and(|change| {
            matches!(change.stage, ActivationStage::Failed { blame: Blame::Surroundings, .. })
        })
    }

    /// Drops a change that has failed or was undone.
    pub(crate) fn forget_ended(&mut self) {
        self.activation.take_if(|activation| !activation.open());
    }
}

/// Appends an item; beyond `max`, drops the oldest.
pub(crate) fn push_bounded<T>(list: &mut Vec<T>, item: T, max: usize) {
    list.push(item);
    if list.len() > max {
        list.remove(0);
    }
}
