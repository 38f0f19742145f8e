//! What the leader proposes next, and what everything else is waiting for.
//!
//! A pure function of the committed state and the leader's observations. A plan has no effect until
//! its commands are committed; the next leader plans from the same state.

use std::collections::{BTreeMap, BTreeSet};

use crate::capacity::{self, Held, Standing};
use crate::command::{Body, CLOCK_STEP_MS_MAX, COMMAND_VERSION, Command, Planned};
use crate::gate::RegistryView;
use crate::ids::{AppId, ClockMs, Revision, ServerId};
use crate::phase::{Milestone, Phase};
use crate::policy::Proof;
use crate::prestage;
use crate::refused::Refused;
use crate::release::Release;
use crate::report::Step;
use crate::shared::Shared;
use crate::state::{App, DEBT_TRIES_MAX, Rollout, ServerApp, State};
use crate::waiting::{Waiting, WaitingOn};

mod back;
mod begin;
mod checks;
mod waves;

/// Rounds that one plan looks ahead. 16: from the discovery of a release to the grants of its first
/// wave.
const LOOK_AHEAD_MAX: usize = 16;
/// Commands in one plan; the next one goes on once these are applied. 32: less than 20 ms of
/// planning in a group of a thousand servers with five apps.
const COMMANDS_MAX: usize = 32;
/// Interval of clock entries while a deadline is running but none has expired, in milliseconds: the
/// most that a deadline is late after a change of leader. 15 s: far shorter than any deadline.
const CLOCK_EVERY_MS: u64 = 15_000;

/// What the leader observes. Nothing here is replicated.
#[derive(Debug, Clone, Default)]
pub struct Observations {
    /// The leader's own server; without it, there is no plan.
    pub leader: Option<ServerId>,
    /// Time since the clock was last advanced, by the leader's monotonic clock, in milliseconds.
    pub elapsed_ms: u64,
    /// How long this leader has been the leader, in milliseconds: no server counts as silent for
    /// longer.
    pub leading_for_ms: u64,
    /// The reason of the kill switch while it is on.
    pub killed: Option<String>,
    /// The registry as last read; `None` while it is unreachable.
    pub registry: Option<RegistryView>,
    /// What the channels point to, verified by the leader.
    pub offers: BTreeMap<AppId, Offer>,
    /// Mirrors and releases refused recently, for people; they do not affect decisions.
    pub refusals: Vec<Refused>,
    /// Why the repository's metadata could not be refreshed, and for how long by now, in
    /// milliseconds; `None` while it can.
    pub not_refreshed: Option<(Refused, u64)>,
    /// Time since each server last asked any member for its orders, in milliseconds.
    pub contact_age_ms: BTreeMap<ServerId, u64>,
    /// The servers whose members vote.
    pub voters: BTreeSet<ServerId>,
    /// The step that each server says it is taking.
    pub doing: BTreeMap<(AppId, ServerId), Step>,
}

impl Observations {
    /// Whether this leader or a previous one heard from a server within that time.
    fn has_heard(&self, server: &ServerId, within_ms: u64) -> bool {
        let age_ms = self.contact_age_ms.get(server);
        self.leader.as_ref() == Some(server) || age_ms.is_some_and(|age_ms| *age_ms < within_ms)
    }
}

/// The target of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    /// This release; its manifest is signed and fresh.
    Release(Release),
    /// A release that failed verification.
    Refused(Refused),
    /// None, or it could not be read.
    Unknown(Refused),
}

/// What to propose, and what is waiting for what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Plan {
    /// In the order of proposing.
    pub commands: Vec<Body>,
    /// Why nothing more is proposed.
    pub waiting: Vec<Waiting>,
}

/// The leader's next plan: applies its own commands to a copy of the state until none follow.
pub fn plan(state: &State, seen: &Observations) -> Plan {
    let mut ahead = state.clone();
    let mut plan = Plan::default();
    let Some(leader) = &seen.leader else { return plan };
    let command = |body| Command {
        version: COMMAND_VERSION,
        incarnation: state.incarnation,
        actor: "leader".into(),
        request: None,
        body,
    };
    let elapsed_ms = if seen.killed.is_some() { 0 } else { seen.elapsed_ms };
    let to = state.clock.plus(elapsed_ms.min(CLOCK_STEP_MS_MAX));
    let clock = command(Body::AdvanceClock { to });
    let passed = ahead.apply(&clock).is_ok_and(|events| !events.is_empty());
    for _ in 0..LOOK_AHEAD_MAX {
        let round = plan_round(&ahead, seen, leader);
        plan.waiting = round.waiting;
        let before = plan.commands.len();
        for body in round.commands {
            let command = command(body);
            if plan.commands.len() < COMMANDS_MAX && ahead.apply(&command).is_ok() {
                plan.commands.push(command.body);
            }
        }
        if plan.commands.len() == before || plan.commands.len() >= COMMANDS_MAX {
            break;
        }
    }
    // The clock entry goes out together with what it makes due.
    let due = passed
        || !plan.commands.is_empty()
        || (elapsed_ms >= CLOCK_EVERY_MS && ahead.apps.values().any(|app| needs_time(app, seen)));
    if due && elapsed_ms > 0 {
        plan.commands.insert(0, clock.body);
    }
    plan
}

/// Whether a deadline or a timed wait of this app is running. A debt that waits for its server or
/// for an operator needs no time.
fn needs_time(app: &App, seen: &Observations) -> bool {
    let pays = |(server, here): (&ServerId, &Shared<ServerApp>)| {
        here.debt.as_ref().is_some_and(|debt| debt.tries < DEBT_TRIES_MAX || here.surrounded())
            && seen.has_heard(server, app.policy_in_force().update.unreachable_after.ms)
    };
    app.phase.rollout().is_some()
        || app.servers.iter().any(pays)
        || app.in_flight().next().is_some()
        || app.pause.as_ref().is_some_and(|pause| pause.until.is_some())
}

/// One pass over everything: new policies, then the apps, those rolling back first: they have the
/// first claim on capacity.
fn plan_round(state: &State, seen: &Observations, leader: &ServerId) -> Plan {
    let mut plan = Plan::default();
    for (id, revision) in seen.registry.iter().flat_map(|view| &view.removed) {
        if state.apps.get(id).is_some_and(|app| *revision > app.revision) {
            let (app, revision, proof) = (id.clone(), *revision, proof_of(seen, id, *revision));
            plan.commands.push(Body::RemoveApp { app, revision, proof });
        }
    }
    for (id, (revision, policy)) in seen.registry.iter().flat_map(|view| &view.policies) {
        let takes =
            |app: &App| *revision > app.revision && !matches!(app.phase, Phase::Removing { .. });
        if state.apps.get(id).map_or(!state.outlived(id, *revision), takes) {
            let (policy, revision, proof) =
                (policy.clone(), *revision, proof_of(seen, id, *revision));
            plan.commands.push(Body::SetPolicy { policy, revision, proof });
        }
    }
    let mut round = Round::new(state, seen, leader);
    let (back, other): (Vec<_>, Vec<_>) =
        state.apps.iter().partition(|(_, app)| matches!(app.phase, Phase::RollingBack { .. }));
    for (id, app) in back.into_iter().chain(other) {
        Planner { state, seen, leader, id, app, round: &mut round, plan: &mut plan }.app();
    }
    plan
}

fn proof_of(seen: &Observations, app: &AppId, revision: Revision) -> Proof {
    let of = (app.clone(), revision);
    let proof = seen.registry.as_ref().and_then(|view| view.proofs.get(&of));
    proof.cloned().unwrap_or_default()
}

/// What a round knows of the group's capacity, for all its apps.
struct Round {
    /// The servers that are out of service, or may be: also those not heard recently, unless they
    /// run nothing.
    out: BTreeSet<ServerId>,
    /// Those, and what this round has granted.
    used: BTreeSet<ServerId>,
    /// The changes that may not begin.
    held: Held,
    /// A server that was not heard for this long may be dead, in milliseconds.
    counted_on_ms: u64,
    /// No server of the group has been silent for longer, in milliseconds.
    silent_ms_max: u64,
}

impl Round {
    fn new(state: &State, seen: &Observations, leader: &ServerId) -> Round {
        let mut out = capacity::out_servers(state);
        let counted_on_ms = capacity::unknown_after_ms(state).min(capacity::COUNTED_ON_MS);
        let (mut silent, mut silent_ms_max) = (BTreeSet::new(), 0);
        for server in state.servers.keys() {
            let silent_ms = silent_ms(seen, leader, server);
            silent_ms_max = silent_ms_max.max(silent_ms);
            if !is_counted_on(seen, leader, counted_on_ms, server)
                && capacity::standing(state, server) != Standing::Idle
            {
                silent.insert(server.clone());
            }
        }
        // A new leader takes no grant back for a silence that it cannot know of.
        let knows = seen.leading_for_ms >= capacity::COUNTED_ON_MS;
        let none = BTreeSet::new();
        let known = if knows { &silent } else { &none };
        let held = Held::seen(state, known, |app, server| says_begun(seen, app, server));
        out.extend(silent);
        Round { used: out.clone(), out, held, counted_on_ms, silent_ms_max }
    }
}

/// Whether a server says that it has begun a change of this app.
fn says_begun(seen: &Observations, app: &AppId, server: &ServerId) -> bool {
    let doing = seen.doing.get(&(app.clone(), server.clone()));
    doing.is_some_and(|step| capacity::has_left(*step))
}

/// How long ago a server last asked for its orders, in milliseconds.
fn silent_ms(seen: &Observations, leader: &ServerId, server: &ServerId) -> u64 {
    if server == leader {
        return 0;
    }
    // A new leader starts with what members report to it; it cannot know of silence before its
    // time.
    let heard = seen.contact_age_ms.get(server).copied().unwrap_or(u64::MAX);
    heard.min(seen.leading_for_ms)
}

/// Whether a server was heard so recently that another one may be taken out of service. The same
/// for all apps, and stricter than what makes it unknown: until then, it may be dead.
fn is_counted_on(seen: &Observations, leader: &ServerId, bound_ms: u64, server: &ServerId) -> bool {
    let heard = seen.contact_age_ms.get(server).copied();
    server == leader || heard.is_some_and(|age_ms| age_ms < bound_ms)
}

/// Plans one app, collecting commands and waits.
struct Planner<'a> {
    state: &'a State,
    seen: &'a Observations,
    leader: &'a ServerId,
    id: &'a AppId,
    app: &'a App,
    round: &'a mut Round,
    plan: &'a mut Plan,
}

impl<'a> Planner<'a> {
    fn propose(&mut self, step: Planned) {
        let (app, generation) = (self.id.clone(), self.app.generation);
        self.plan.commands.push(Body::Plan { app, generation, step });
    }

    fn wait(&mut self, since: ClockMs, on: WaitingOn) {
        let known = |waiting: &Waiting| waiting.app == *self.id && waiting.on == on;
        if !self.plan.waiting.iter().any(known) {
            self.plan.waiting.push(Waiting { app: self.id.clone(), since, on });
        }
    }

    fn start_rollout(&mut self, release: Release) {
        let (app, revision, lead) = (self.id.clone(), self.app.revision, self.leader.clone());
        self.plan.commands.push(Body::StartRollout { app, release, revision, lead });
    }

    /// How long ago a server last asked for its orders, in milliseconds.
    fn silent_ms(&self, server: &ServerId) -> u64 {
        silent_ms(self.seen, self.leader, server)
    }

    /// Whether any server has been silent for longer than the policy in force allows.
    fn any_is_silent(&self) -> bool {
        self.round.silent_ms_max > self.app.policy_in_force().update.unreachable_after.ms
    }

    /// Whether a server has been silent for longer than the policy in force allows.
    fn is_silent(&self, server: &ServerId) -> bool {
        self.any_is_silent()
            && self.silent_ms(server) > self.app.policy_in_force().update.unreachable_after.ms
    }

    /// Whether this leader or a previous one heard from a server within `unreachable_after`.
    fn is_heard(&self, server: &ServerId) -> bool {
        self.seen.has_heard(server, self.app.policy_in_force().update.unreachable_after.ms)
    }

    fn app(&mut self) {
        let app = self.app;
        if !self.state.servers.contains_key(self.leader) {
            let leader = self.leader.clone();
            self.wait(self.state.clock, WaitingOn::LeaderLeft { leader });
        }
        if app.phase.rollout().is_some_and(|rollout| rollout.lead != *self.leader) {
            // The leader's server does the fetching.
            self.propose(Planned::TakeLead { lead: self.leader.clone() });
        } else if app
            .pause
            .as_ref()
            .and_then(|it| it.until)
            .is_some_and(|it| it <= self.state.clock)
        {
            self.propose(Planned::EndPause {});
        } else {
            self.phase();
        }
        self.say_paused();
        self.withdraw();
        if let Some(rollout) = app.phase.forward() {
            self.not_yet_fetching(rollout);
            self.left_out(rollout);
        }
        if app.phase.rollout().is_some() {
            // What could take over may be unknown.
            self.not_refreshed();
        }
        self.checks();
        self.policy_lost();
    }

    /// A policy that the hub has lost is asked for by name: nothing else would tell that changes of
    /// it do not arrive.
    fn policy_lost(&mut self) {
        let Some(view) = &self.seen.registry else { return };
        let group = self.app.revision;
        // A removal that is older than the policy was passed off as the present state.
        let removed = matches!(self.app.phase, Phase::Removing { .. })
            || view.removed.get(self.id).is_some_and(|removal| *removal > group);
        if removed || view.unusable.contains(self.id) {
            return;
        }
        let hub = view.policies.get(self.id).map(|(revision, _)| *revision);
        if hub.is_none_or(|hub| hub < group) {
            self.wait(self.state.clock, WaitingOn::PolicyLost { hub, group });
        }
    }

    /// Servers whose download the policy postpones until their wave is near.
    fn not_yet_fetching(&mut self, rollout: &Rollout) {
        let servers = prestage::not_yet(self.state, self.app, rollout);
        if servers.is_empty() || self.seen.killed.is_some() || self.app.pause_of(rollout).is_some()
        {
            return;
        }
        let version = rollout.release.version.clone();
        let prestage = rollout.policy.update.prestage;
        self.wait(rollout.progress, WaitingOn::Prestage { version, prestage, servers });
    }

    /// Servers that the rollout continues without because they have not downloaded it.
    fn left_out(&mut self, rollout: &Rollout) {
        let servers: Vec<ServerId> = rollout.unfetched.iter().cloned().collect();
        if !servers.is_empty() {
            let version = rollout.release.version.clone();
            self.wait(rollout.progress, WaitingOn::NotDownloaded { version, servers });
        }
    }

    fn phase(&mut self) {
        match &self.app.phase {
            Phase::Empty => self.empty(),
            Phase::Running { since } => {
                self.debts(|_| true);
                self.restarts();
                self.consider(*since);
            }
            Phase::Held { since, in_place, .. } => {
                if in_place.is_none() {
                    self.debts(|_| true);
                    self.restarts();
                }
                self.consider(*since);
            }
            Phase::Forward { rollout, at } => {
                self.debts(|_| true);
                self.forward(rollout, at);
            }
            Phase::RollingBack { rollout, by_person, since, .. } => {
                self.roll_back(rollout, *by_person, *since);
            }
            Phase::Removing { since, stopped, .. } => self.remove(*since, *stopped),
        }
    }

    fn empty(&mut self) {
        let (app, clock) = (self.app, self.state.clock);
        if let Some(release) = installed(app) {
            self.plan.commands.push(Body::Adopt { app: self.id.clone(), release });
            return;
        }
        // A server that has not reported may be serving an installation to adopt.
        let unheard = app.servers.iter().filter(|(id, here)| !here.found && !self.is_silent(id));
        let servers: Vec<ServerId> = unheard.map(|(id, _)| id.clone()).collect();
        if servers.is_empty() {
            self.consider(clock);
        } else {
            self.wait(clock, WaitingOn::FirstReports { servers });
        }
    }

    /// The registry has not acknowledged the group's record.
    fn wait_for_record(&mut self, since: ClockMs) {
        let on = match self.seen.registry {
            Some(_) => WaitingOn::RegistryRecord,
            None => WaitingOn::RegistryAway,
        };
        self.wait(since, on);
    }

    fn forward(&mut self, rollout: &'a Rollout, at: &'a Milestone) {
        match at {
            Milestone::MarkedOld { recorded } => {
                if self.is_interrupted(rollout) {
                    return;
                }
                if !recorded {
                    self.wait_for_record(rollout.started);
                }
                if self.leader_has(rollout, rollout.started) && *recorded {
                    self.propose(Planned::LeaderHolds { server: self.leader.clone() });
                }
            }
            Milestone::LeaderHolds => {
                if !self.is_interrupted(rollout) && self.leader_has(rollout, rollout.progress) {
                    self.propose(Planned::Verify { server: self.leader.clone() });
                }
            }
            Milestone::Verified => self.next_wave(rollout),
            Milestone::Wave { servers, step, since } => {
                self.wave(rollout, servers, *step, *since);
            }
        }
    }

    /// Whether the leader's server has the bytes; if not, waits for them.
    fn leader_has(&mut self, rollout: &Rollout, since: ClockMs) -> bool {
        let here = self.app.servers.get(self.leader);
        let has = here.is_some_and(|here| here.has(&rollout.release.artifact));
        if !has {
            let servers = BTreeSet::from([self.leader.clone()]);
            self.wait(since, WaitingOn::Download { servers });
        }
        has
    }
}

/// The release that every server of an empty group was found to run, if it is the same one.
fn installed(app: &App) -> Option<Release> {
    let first = app.servers.values().next()?.running.clone()?;
    app.servers.values().all(|server| server.settled_on(Some(&first))).then_some(first)
}
