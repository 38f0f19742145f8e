//! What the leader proposes next, and why everything else waits.
//!
//! `plan` is a pure function of the committed state and of what the leader observes. Only its
//! commands, once committed, have any effect; whoever leads next plans from the same state.

use std::collections::{BTreeMap, BTreeSet};

use crate::command::{Body, CLOCK_STEP_MS_MAX, COMMAND_VERSION, Command};
use crate::gate::RegistryView;
use crate::ids::{AppId, ClockMs, ServerId};
use crate::phase::{Phase, WaveStep};
use crate::prestage;
use crate::release::Release;
use crate::report::Step;
use crate::state::{App, Rollout, State};
use crate::waiting::{Waiting, WaitingOn};

mod back;
mod begin;
mod waves;

/// How many steps ahead one plan looks. 16: from a found release to the grants of a wave.
const LOOK_AHEAD_MAX: usize = 16;
/// How often the clock is advanced while a deadline runs, in milliseconds.
const CLOCK_EVERY_MS: u64 = 250;

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
}

fn holds(app: &App, server: &ServerId, release: &Release) -> bool {
    app.servers.get(server).is_some_and(|here| here.has(&release.artifact))
}

/// What every server of an empty group was found to run, if it is one and the same.
fn installed(app: &App) -> Option<Release> {
    let first = app.servers.values().next()?.running.clone()?;
    app.servers.values().all(|server| server.settled_on(Some(&first))).then_some(first)
}
