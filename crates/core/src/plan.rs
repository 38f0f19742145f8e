//! What the leader proposes next, and why everything else waits.
//!
//! `plan` is a pure function of the committed state and of what the leader observes. Only its
//! commands, once committed, have any effect; whoever leads next plans from the same state.

use std::collections::{BTreeMap, BTreeSet};

use crate::capacity;
use crate::command::{Body, CLOCK_STEP_MS_MAX, COMMAND_VERSION, Command};
use crate::gate::{self, RegistryView};
use crate::ids::{AppId, ClockMs, ServerId};
use crate::orders::Purpose;
use crate::phase::{Phase, WaveStep};
use crate::prestage;
use crate::release::Release;
use crate::report::Step;
use crate::state::{Activation, ActivationStage, App, DEBT_TRIES_MAX, Rollout, State};
use crate::transitions::{owing_roll_back, remaining, waits_for_approval};
use crate::waiting::{Waiting, WaitingOn};
use crate::wave;

/// How many steps ahead one plan looks. 16: from a found release to the grants of a wave.
const LOOK_AHEAD_MAX: usize = 16;
/// How often the clock is advanced while a deadline runs, in milliseconds.
const CLOCK_EVERY_MS: u64 = 250;
/// How long a debt that failed is left alone before it is tried again, in milliseconds.
const DEBT_RETRY_MS: u64 = 10_000;

/// What the leader sees. Nothing here is replicated.
#[derive(Debug, Clone, Default)]
pub struct Observations {
    /// The leader's own server.
    pub leader: Option<ServerId>,
    /// Time gone by since the clock was last advanced, by the leader's monotonic clock.
    pub elapsed_ms: u64,
    /// How long this leader has led: who never asked it is not lost before that.
    pub leading_for_ms: u64,
    /// The kill switch is latched here, and why.
    pub killed: Option<String>,
    /// The registry, as last read; none while it does not answer.
    pub registry: Option<RegistryView>,
    /// What the channels point to, verified by the leader.
    pub offers: BTreeMap<AppId, Offer>,
    /// Mirrors and releases that were refused lately, in words; nothing is decided by them.
    pub refusals: Vec<String>,
    /// How long ago each server asked any member for its orders.
    pub contact_age_ms: BTreeMap<ServerId, u64>,
    /// What each server says it is doing.
    pub doing: BTreeMap<(AppId, ServerId), Step>,
}

/// What a channel points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    /// This release; its manifest's signature is good and fresh.
    Release(Release),
    /// Something that was refused.
    Refused {
        /// Why, in words.
        reason: String,
    },
    /// Nothing, or nothing could be read.
    Unknown {
        /// Why, in words.
        reason: String,
    },
}

/// What to propose, and what waits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Plan {
    /// To be proposed in this order.
    pub commands: Vec<Body>,
    /// Why nothing more is proposed.
    pub waiting: Vec<Waiting>,
}

/// What the leader proposes now.
pub fn plan(state: &State, seen: &Observations) -> Plan {
    let mut ahead = state.clone();
    let mut plan = Plan::default();
    let Some(leader) = &seen.leader else { return plan };
    for _ in 0..LOOK_AHEAD_MAX {
        let mut step = Planner { state: &ahead, seen, leader, plan: Plan::default() };
        step.all();
        let Plan { commands, waiting } = step.plan;
        plan.waiting = waiting;
        if commands.is_empty() {
            break;
        }
        let mut moved = false;
        for body in commands {
            let command = Command {
                version: COMMAND_VERSION,
                incarnation: ahead.incarnation,
                actor: "leader".into(),
                request: None,
                body,
            };
            if ahead.apply(&command).is_ok() {
                moved = true;
                plan.commands.push(command.body);
            }
        }
        if !moved {
            break;
        }
    }
    let moving = !plan.commands.is_empty() || ahead.apps.values().any(needs_time);
    let due = !plan.commands.is_empty() || seen.elapsed_ms >= CLOCK_EVERY_MS;
    // Also an idle group knows how late it is, for `since when`.
    let idle_due = seen.elapsed_ms >= CLOCK_STEP_MS_MAX;
    if (moving && due || idle_due) && seen.elapsed_ms > 0 && seen.killed.is_none() {
        let to = state.clock.plus(seen.elapsed_ms.min(CLOCK_STEP_MS_MAX));
        plan.commands.insert(0, Body::AdvanceClock { from: state.clock, to });
    }
    plan
}

/// Whether a deadline or a wait of this app is measured by the group clock.
fn needs_time(app: &App) -> bool {
    app.phase.rollout().is_some()
        || app.servers.values().any(|server| server.debt.is_some())
        || app.in_flight().next().is_some()
}

struct Planner<'a> {
    state: &'a State,
    seen: &'a Observations,
    leader: &'a ServerId,
    plan: Plan,
}

impl Planner<'_> {
    fn all(&mut self) {
        self.policies();
        // A roll-back goes first: it may use what capacity there is.
        for (id, app) in &self.state.apps {
            if matches!(app.phase, Phase::RollingBack { .. }) {
                self.app(id, app);
            }
        }
        for (id, app) in &self.state.apps {
            if !matches!(app.phase, Phase::RollingBack { .. }) {
                self.app(id, app);
            }
        }
    }

    fn policies(&mut self) {
        let Some(view) = &self.seen.registry else { return };
        for (id, (revision, policy)) in &view.policies {
            let newer = self.state.apps.get(id).is_none_or(|app| *revision > app.revision);
            if newer {
                self.propose(Body::SetPolicy { policy: policy.clone(), revision: *revision });
            }
        }
    }

    fn propose(&mut self, body: Body) {
        self.plan.commands.push(body);
    }

    fn wait(&mut self, app: &AppId, since: ClockMs, on: WaitingOn) {
        self.plan.waiting.push(Waiting { app: app.clone(), since, on });
    }

    /// How long a server has not asked for its orders, in milliseconds.
    fn silent_ms(&self, server: &ServerId) -> u64 {
        if server == self.leader {
            return 0;
        }
        // What was heard before this leadership says nothing about the time since: members pass
        // their contacts on, and the first ones take a moment to come.
        let heard = self.seen.contact_age_ms.get(server).copied().unwrap_or(u64::MAX);
        heard.min(self.seen.leading_for_ms)
    }

    /// Whether a server was heard of lately, by whoever led then.
    fn heard_within(&self, server: &ServerId, ms: u64) -> bool {
        let heard = self.seen.contact_age_ms.get(server).copied();
        server == self.leader || heard.is_some_and(|age| age < ms)
    }

    fn app(&mut self, id: &AppId, app: &App) {
        self.phase(id, app);
        if let Some(rollout) = app.phase.forward() {
            self.not_yet_fetching(id, app, rollout);
        }
    }

    /// Servers whose bytes the policy keeps back until their wave is near.
    fn not_yet_fetching(&mut self, id: &AppId, app: &App, rollout: &Rollout) {
        let servers = prestage::not_yet(self.state, app, rollout);
        if servers.is_empty() || self.seen.killed.is_some() || rollout.pause.is_some() {
            return;
        }
        let version = rollout.release.version.clone();
        let prestage = rollout.policy.update.prestage;
        self.wait(id, rollout.progress, WaitingOn::Prestage { version, prestage, servers });
    }

    fn phase(&mut self, id: &AppId, app: &App) {
        let clock = self.state.clock;
        if app.phase.rollout().is_some() && self.take_lead(id, app) {
            return;
        }
        match &app.phase {
            Phase::Empty => {
                if let Some(release) = installed(app) {
                    self.propose(Body::Adopt { app: id.clone(), release });
                    return;
                }
                // Nobody knows what an unheard server runs: it may be an installation to adopt, and
                // taking it out of service may cost.
                let unheard: Vec<ServerId> = app
                    .servers
                    .iter()
                    .filter(|(server, here)| {
                        !here.found
                            && self.silent_ms(server) <= app.policy.update.unreachable_after.ms
                    })
                    .map(|(server, _)| server.clone())
                    .collect();
                if unheard.is_empty() {
                    self.consider(id, app, clock);
                } else {
                    self.wait(id, clock, WaitingOn::FirstReports { servers: unheard });
                }
            }
            Phase::Running { since } => {
                self.debts(id, app);
                self.consider(id, app, *since);
            }
            Phase::Held { since, in_place, .. } => {
                if in_place.is_none() {
                    self.debts(id, app);
                }
                self.consider(id, app, *since);
            }
            Phase::MarkedOld { rollout, recorded } => {
                self.debts(id, app);
                if self.newer(id, app, rollout) || self.stopped(id, rollout) {
                    return;
                }
                let since = rollout.started;
                if !recorded {
                    let on = if self.seen.registry.is_none() {
                        WaitingOn::RegistryAway
                    } else {
                        WaitingOn::RegistryRecord
                    };
                    self.wait(id, since, on);
                }
                if !holds(app, self.leader, &rollout.release) {
                    let servers = BTreeSet::from([self.leader.clone()]);
                    self.wait(id, since, WaitingOn::Download { servers });
                } else if *recorded {
                    let server = self.leader.clone();
                    let (app, generation) = (id.clone(), app.generation);
                    self.propose(Body::LeaderHolds { app, generation, server });
                }
            }
            Phase::LeaderHolds { rollout, .. } => {
                self.debts(id, app);
                if self.newer(id, app, rollout) || self.stopped(id, rollout) {
                    return;
                }
                if holds(app, self.leader, &rollout.release) {
                    let server = self.leader.clone();
                    let (app, generation) = (id.clone(), app.generation);
                    self.propose(Body::Verify { app, generation, server });
                } else {
                    let servers = BTreeSet::from([self.leader.clone()]);
                    self.wait(id, rollout.progress, WaitingOn::Download { servers });
                }
            }
            Phase::Verified { rollout, .. } => {
                self.debts(id, app);
                self.next_wave(id, app, rollout);
            }
            Phase::Wave { rollout, servers, step, since, .. } => {
                self.debts(id, app);
                if *step == WaveStep::Baked {
                    self.next_wave(id, app, rollout);
                } else {
                    self.wave(id, app, rollout, servers, *step, *since);
                }
            }
            Phase::RollingBack { rollout, by_person, since, .. } => {
                self.roll_back(id, app, rollout, *by_person, *since);
            }
        }
    }

    /// The one who leads is the one whose server fetches.
    fn take_lead(&mut self, id: &AppId, app: &App) -> bool {
        let other = app.phase.rollout().is_some_and(|rollout| rollout.lead != *self.leader);
        if other {
            let (lead, generation) = (self.leader.clone(), app.generation);
            self.propose(Body::TakeLead { app: id.clone(), generation, lead });
        }
        other
    }

    /// Is there a release to begin with?
    fn consider(&mut self, id: &AppId, app: &App, since: ClockMs) {
        if let Some(release) = self.eligible(id, app, since, true) {
            let waits: Vec<ServerId> = app
                .in_flight()
                .filter(|(server, _)| app.servers[*server].debt.is_none())
                .map(|(server, _)| server.clone())
                .collect();
            if !waits.is_empty() {
                for server in &waits {
                    if self.silent_ms(server) > app.policy.update.unreachable_after.ms {
                        self.lose(id, app, server);
                    }
                }
                let version = release.version;
                self.wait(id, since, WaitingOn::NewerRelease { version, servers: waits });
                return;
            }
            if self.too_many_silent(id, app, since) {
                return;
            }
            let (revision, lead) = (app.revision, self.leader.clone());
            self.propose(Body::StartRollout { app: id.clone(), release, revision, lead });
        }
    }

    /// A rollout that would lose more servers than it bears does not begin.
    fn too_many_silent(&mut self, id: &AppId, app: &App, since: ClockMs) -> bool {
        let unreachable_ms = app.policy.update.unreachable_after.ms;
        let silent: Vec<(ServerId, u64)> = app
            .servers
            .keys()
            .map(|server| (server.clone(), self.silent_ms(server)))
            .filter(|(_, silent_ms)| *silent_ms > unreachable_ms)
            .collect();
        let bears = app.policy.surroundings_allowed_of(self.state.size()) as usize;
        if silent.len() <= bears {
            return false;
        }
        for (server, for_ms) in silent {
            self.wait(id, since, WaitingOn::ServerUnreachable { server, for_ms });
        }
        true
    }

    /// The release that may begin in this group, or why none does (told if `tell`).
    fn eligible(&mut self, id: &AppId, app: &App, since: ClockMs, tell: bool) -> Option<Release> {
        let mut reasons = Vec::new();
        let release = self.eligible_or(id, app, &mut reasons);
        if tell {
            for on in reasons {
                self.wait(id, since, on);
            }
        }
        release
    }

    fn eligible_or(&self, id: &AppId, app: &App, reasons: &mut Vec<WaitingOn>) -> Option<Release> {
        let release = match self.seen.offers.get(id) {
            Some(Offer::Release(release)) => release,
            Some(Offer::Refused { reason }) => {
                reasons.push(WaitingOn::ReleaseRefused { reason: reason.clone() });
                return None;
            }
            Some(Offer::Unknown { reason }) => {
                reasons.push(WaitingOn::NoRelease { reason: reason.clone() });
                return None;
            }
            None => {
                let reason = "the repository has not been read yet".into();
                reasons.push(WaitingOn::NoRelease { reason });
                return None;
            }
        };
        for reason in &self.seen.refusals {
            reasons.push(WaitingOn::ReleaseRefused { reason: reason.clone() });
        }
        if matches!(app.phase, Phase::Running { .. }) && app.last_good.as_ref() == Some(release) {
            reasons.push(WaitingOn::NewRelease);
            return None;
        }
        if let Some(rejected) = app.rejection_of(release) {
            reasons.push(WaitingOn::Person {
                version: release.version.clone(),
                reason: rejected.reason.clone(),
            });
            return None;
        }
        if let Some(reason) = &self.seen.killed {
            reasons.push(WaitingOn::KillSwitch { reason: reason.clone() });
            return None;
        }
        if self.state.servers.is_empty() {
            reasons.push(WaitingOn::NoServers);
            return None;
        }
        let Some(view) = &self.seen.registry else {
            reasons.push(WaitingOn::RegistryAway);
            return None;
        };
        if let Some(on) = gate::gate(self.state, view, id, &app.policy, &release.version) {
            reasons.push(on);
            return None;
        }
        Some(release.clone())
    }

    /// A newer release in the middle of a rollout takes over between two steps.
    fn newer(&mut self, id: &AppId, app: &App, rollout: &Rollout) -> bool {
        let offered = match self.seen.offers.get(id) {
            Some(Offer::Release(release)) => release,
            Some(Offer::Refused { .. } | Offer::Unknown { .. }) | None => return false,
        };
        if *offered == rollout.release {
            return false;
        }
        let Some(release) = self.eligible(id, app, rollout.progress, false) else { return false };
        self.consider_instead(id, app, rollout, release);
        true
    }

    fn consider_instead(&mut self, id: &AppId, app: &App, rollout: &Rollout, release: Release) {
        let servers: Vec<ServerId> = app
            .in_flight()
            .filter(|(server, _)| app.servers[*server].debt.is_none())
            .map(|(server, _)| server.clone())
            .collect();
        if servers.is_empty() {
            let (revision, lead) = (app.revision, self.leader.clone());
            self.propose(Body::StartRollout { app: id.clone(), release, revision, lead });
        } else {
            let version = release.version;
            self.wait(id, rollout.progress, WaitingOn::NewerRelease { version, servers });
        }
    }

    /// Paused, killed, or found bad elsewhere: nothing new begins.
    fn stopped(&mut self, id: &AppId, rollout: &Rollout) -> bool {
        if let Some(pause) = &rollout.pause {
            let on = WaitingOn::Paused { by: pause.by.clone(), reason: pause.reason.clone() };
            self.wait(id, pause.since, on);
            return true;
        }
        if let Some(reason) = &self.seen.killed {
            self.wait(id, rollout.progress, WaitingOn::KillSwitch { reason: reason.clone() });
            return true;
        }
        let verdict = self
            .seen
            .registry
            .as_ref()
            .and_then(|view| gate::bad_verdict(self.state, view, id, &rollout.release.version))
            .filter(|verdict| !rollout.overruled.contains(&verdict.group));
        if let Some(verdict) = verdict {
            let generation = self.state.apps[id].generation;
            self.propose(Body::PauseForVerdict {
                app: id.clone(),
                generation,
                group: verdict.group.clone(),
                reason: verdict.reason.clone(),
            });
            return true;
        }
        false
    }

    fn next_wave(&mut self, id: &AppId, app: &App, rollout: &Rollout) {
        self.find_lost(id, app, rollout);
        if self.newer(id, app, rollout) || self.stopped(id, rollout) {
            return;
        }
        if waits_for_approval(rollout) {
            self.wait(id, rollout.progress, WaitingOn::Approval { wave: rollout.waves });
            return;
        }
        let open = remaining(app, rollout);
        let unreachable_ms = rollout.policy.update.unreachable_after.ms;
        let (silent, reachable): (Vec<ServerId>, Vec<ServerId>) =
            open.into_iter().partition(|server| self.silent_ms(server) > unreachable_ms);
        if reachable.is_empty() {
            for server in silent {
                self.lose(id, app, &server);
            }
            return;
        }
        // A server that joined, or that failed alone, gets the good release before its turn.
        let ready: Vec<ServerId> = reachable
            .iter()
            .filter(|server| {
                app.servers
                    .get(*server)
                    .is_some_and(|here| here.activation.as_ref().is_none_or(|a| !a.in_flight()))
            })
            .cloned()
            .collect();
        if ready.is_empty() {
            self.steps(id, app, rollout.progress, &reachable.into_iter().collect());
            return;
        }
        let number = rollout.waves + 1;
        let size = rollout.policy.update.max_parallel.of_wave(number, self.state.size());
        let servers = wave::choose(self.state, self.leader, &ready, size);
        let (app, generation) = (id.clone(), app.generation);
        self.propose(Body::StartWave { app, generation, number, servers });
    }

    fn wave(
        &mut self,
        id: &AppId,
        app: &App,
        rollout: &Rollout,
        servers: &BTreeSet<ServerId>,
        step: WaveStep,
        since: ClockMs,
    ) {
        self.find_lost(id, app, rollout);
        let update = &rollout.policy.update;
        let clock = self.state.clock;
        let open: BTreeSet<ServerId> =
            servers.iter().filter(|server| !rollout.lost.contains(*server)).cloned().collect();
        for server in &open {
            let here = &app.servers[server];
            let settled = here.settled_on(Some(&rollout.release)) && here.in_service;
            if !settled && self.silent_ms(server) > update.unreachable_after.ms {
                self.lose(id, app, server);
            }
        }
        let newer = self.newer(id, app, rollout);
        let stopped = !newer && self.stopped(id, rollout);
        if self.seen.killed.is_none()
            && rollout.pause.is_none()
            && step != WaveStep::Baking
            && clock.since(rollout.progress) > update.progress_deadline.ms
        {
            let stuck: Vec<&str> = open
                .iter()
                .filter(|server| !app.servers[*server].settled_on(Some(&rollout.release)))
                .map(ServerId::as_str)
                .collect();
            let reason = format!(
                "no progress within {} in wave {} ({})",
                update.progress_deadline,
                rollout.waves,
                stuck.join(", ")
            );
            let (app, generation) = (id.clone(), app.generation);
            self.propose(Body::Fail { app, generation, reason });
            return;
        }
        match step {
            WaveStep::Assigned => {
                let servers = open
                    .iter()
                    .filter(|server| !app.servers[*server].has(&rollout.release.artifact))
                    .cloned()
                    .collect();
                self.wait(id, since, WaitingOn::Download { servers });
            }
            WaveStep::Baking => {
                let left_ms = update.bake_time.ms.saturating_sub(clock.since(since));
                self.wait(id, since, WaitingOn::BakeTime { left_ms });
            }
            WaveStep::Downloaded | WaveStep::Applied | WaveStep::Checked => {
                if !newer && !stopped {
                    let waiting: Vec<ServerId> = open
                        .iter()
                        .filter(|server| {
                            let here = &app.servers[*server];
                            // What failed under an older plan, or a debt that failed, is no
                            // obstacle: this release may repair it.
                            here.activation.as_ref().is_none_or(|a| {
                                let own = a.purpose == Purpose::Wave
                                    && a.release.as_ref() == Some(&rollout.release);
                                a.void || (!a.in_flight() && !own)
                            }) && !(here.settled_on(Some(&rollout.release)) && here.in_service)
                        })
                        .cloned()
                        .collect();
                    self.grants(id, app, &waiting, Purpose::Wave, since);
                }
                self.steps(id, app, since, &open);
            }
            WaveStep::Baked => {}
        }
    }

    /// Grants as many as the capacity ledger bears; the rest waits, and says so.
    fn grants(
        &mut self,
        id: &AppId,
        app: &App,
        servers: &[ServerId],
        purpose: Purpose,
        since: ClockMs,
    ) {
        let policy = app.phase.rollout().map_or(&app.policy, |rollout| &rollout.policy);
        let max = policy.max_unavailable_of(self.state.size());
        let out = capacity::out_servers_for(self.state, app, purpose);
        // A server that is being brought back from a failure costs nothing; the next ones wait for
        // it nevertheless, so that fewer are out at once.
        let mending = app.in_flight().filter(|(server, activation)| {
            purpose != Purpose::RollBack
                && activation.purpose == Purpose::Debt
                && !out.contains(*server)
                && self.silent_ms(server) <= policy.update.unreachable_after.ms
        });
        let out: BTreeSet<ServerId> =
            out.iter().cloned().chain(mending.map(|(server, _)| server.clone())).collect();
        let mut used = out.clone();
        let mut short = false;
        // Those that cost nothing first.
        let (free, costly): (Vec<&ServerId>, Vec<&ServerId>) =
            servers.iter().partition(|server| !capacity::costs(self.state, server));
        for (server, costs) in
            free.into_iter().map(|s| (s, false)).chain(costly.into_iter().map(|s| (s, true)))
        {
            if let Some(other) = self.other_app(id, server) {
                self.wait(id, since, WaitingOn::OtherApp { server: other });
                continue;
            }
            if costs {
                if !capacity::bears(&used, max, server) {
                    short = true;
                    continue;
                }
                used.insert(server.clone());
            }
            let (app, generation) = (id.clone(), app.generation);
            self.propose(Body::Grant { app, generation, server: server.clone(), purpose });
        }
        if short {
            self.wait(id, since, WaitingOn::Capacity { out, max });
        }
    }

    fn other_app(&self, id: &AppId, server: &ServerId) -> Option<ServerId> {
        self.state
            .apps
            .iter()
            .filter(|(other, _)| *other != id)
            .filter_map(|(_, app)| app.servers.get(server)?.activation.as_ref())
            .any(|activation| activation.in_flight())
            .then(|| server.clone())
    }

    /// What goes on on servers right now.
    fn steps(&mut self, id: &AppId, app: &App, since: ClockMs, servers: &BTreeSet<ServerId>) {
        let going: Vec<(ServerId, Step)> = servers
            .iter()
            .filter_map(|server| {
                let activation = app.servers.get(server)?.activation.as_ref()?;
                if activation.void {
                    return None;
                }
                let told = match &activation.stage {
                    ActivationStage::Granted => Step::Prepare,
                    ActivationStage::Applied { .. } => Step::Check,
                    ActivationStage::Checked { .. } => Step::WarmUp,
                    ActivationStage::Failed { .. } | ActivationStage::Undone { .. } => return None,
                };
                let key = (id.clone(), server.clone());
                Some((server.clone(), self.seen.doing.get(&key).copied().unwrap_or(told)))
            })
            .collect();
        if !going.is_empty() {
            self.wait(id, since, WaitingOn::Steps { servers: going });
        }
    }

    fn lose(&mut self, id: &AppId, app: &App, server: &ServerId) {
        if self.seen.killed.is_some() {
            // Deadlines freeze: it is waited for.
            let on = WaitingOn::ServerUnreachable {
                server: server.clone(),
                for_ms: self.silent_ms(server),
            };
            self.wait(id, self.state.clock, on);
            return;
        }
        let seconds = self.silent_ms(server) / 1000;
        self.propose(Body::LoseServer {
            app: id.clone(),
            generation: app.generation,
            server: server.clone(),
            reason: format!("did not ask for its orders for {seconds} s"),
        });
    }

    /// Lost servers that ask again take part again, once they owe nothing.
    fn find_lost(&mut self, id: &AppId, app: &App, rollout: &Rollout) {
        for server in &rollout.lost {
            let Some(here) = app.servers.get(server) else { continue };
            let failed = rollout.failures.iter().any(|failure| failure.server == *server);
            let back = self.heard_within(server, rollout.policy.update.unreachable_after.ms);
            let free =
                here.activation.is_none() || here.activation.as_ref().is_some_and(Activation::open);
            if back && !failed && free {
                self.propose(Body::FindServer {
                    app: id.clone(),
                    generation: app.generation,
                    server: server.clone(),
                });
            }
        }
    }

    fn roll_back(
        &mut self,
        id: &AppId,
        app: &App,
        rollout: &Rollout,
        by_person: bool,
        since: ClockMs,
    ) {
        if let Some(reason) = &self.seen.killed
            && !by_person
        {
            self.wait(id, since, WaitingOn::KillSwitch { reason: reason.clone() });
            return;
        }
        let unreachable_ms = rollout.policy.update.unreachable_after.ms;
        let owing = owing_roll_back(app, rollout);
        let mut waiting = Vec::new();
        for server in &owing {
            let silent_ms = self.silent_ms(server);
            if silent_ms > unreachable_ms {
                self.lose(id, app, server);
                continue;
            }
            let here = &app.servers[server];
            let going_back = here
                .activation
                .as_ref()
                .is_some_and(|a| a.in_flight() && a.purpose == Purpose::RollBack);
            if !going_back {
                waiting.push(server.clone());
            }
        }
        self.grants(id, app, &waiting, Purpose::RollBack, since);
        self.steps(id, app, since, &owing);
    }

    /// Servers that owe get `last_good` as soon as they can be reached.
    fn debts(&mut self, id: &AppId, app: &App) {
        let Some(good) = &app.last_good else { return };
        let unreachable_ms = app.policy.update.unreachable_after.ms;
        let mut payable = Vec::new();
        for (server, here) in &app.servers {
            let Some(debt) = &here.debt else { continue };
            let silent_ms = self.silent_ms(server);
            if silent_ms > unreachable_ms {
                let takes = |a: &Activation| a.in_flight() && a.costs;
                if here.activation.as_ref().is_some_and(takes) {
                    self.lose(id, app, server);
                }
                let on = WaitingOn::ServerUnreachable { server: server.clone(), for_ms: silent_ms };
                self.wait(id, debt.since, on);
                continue;
            }
            if here.settled_on(Some(good)) && here.in_service {
                // It was away, or was waited for, and has what it owes: nothing is started twice.
                self.propose(Body::FindServer {
                    app: id.clone(),
                    generation: app.generation,
                    server: server.clone(),
                });
                continue;
            }
            match &here.activation {
                Some(activation) if activation.in_flight() && app.wants(activation) => {
                    self.steps(id, app, debt.since, &BTreeSet::from([server.clone()]));
                    continue;
                }
                Some(activation) if activation.open() => {}
                Some(activation) => {
                    let (ActivationStage::Failed { at, .. } | ActivationStage::Undone { at, .. }) =
                        &activation.stage
                    else {
                        continue;
                    };
                    let rest = debt.tries > 0 && self.state.clock.since(*at) < DEBT_RETRY_MS;
                    if debt.tries >= DEBT_TRIES_MAX || rest {
                        let reason = debt.reason.clone();
                        let on = WaitingOn::Debt { server: server.clone(), reason };
                        self.wait(id, debt.since, on);
                        continue;
                    }
                }
                None if debt.tries >= DEBT_TRIES_MAX => {
                    let reason = debt.reason.clone();
                    let on = WaitingOn::Debt { server: server.clone(), reason };
                    self.wait(id, debt.since, on);
                    continue;
                }
                None => {}
            }
            if let Some(reason) = &self.seen.killed {
                let on = WaitingOn::KillSwitch { reason: reason.clone() };
                self.wait(id, debt.since, on);
                continue;
            }
            if here.has(&good.artifact) {
                payable.push(server.clone());
            } else {
                let servers = BTreeSet::from([server.clone()]);
                self.wait(id, debt.since, WaitingOn::Download { servers });
            }
        }
        // One at a time: every grant of a debt is a plan of its own.
        if let Some(first) = payable.first() {
            self.grants(id, app, std::slice::from_ref(first), Purpose::Debt, self.state.clock);
        }
    }
}

fn holds(app: &App, server: &ServerId, release: &Release) -> bool {
    app.servers.get(server).is_some_and(|here| here.has(&release.artifact))
}

/// What every server of an empty group was found to run, if it is one and the same.
fn installed(app: &App) -> Option<Release> {
    let first = app.servers.values().next()?.running.clone()?;
    app.servers.values().all(|server| server.settled_on(Some(&first))).then_some(first)
}
