//! Changed checks are on trial: a server keeps the checks it has passed until it passes the new
//! ones, and the group takes those wave by wave.
//!
//! Everything that asks for checks asks here: orders, the planner, and what is applied.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::capacity;
use crate::ids::{ClockMs, Revision, ServerId};
use crate::orders::Purpose;
use crate::policy::{Check, CheckPhase};
use crate::state::{App, ServerApp, State};

/// Most sets of checks kept per app. 8: the policy's, those of `last_good` and of the rollout, and
/// some for servers that have not passed any since; beyond, they use the next newer set.
pub const CHECK_SETS_MAX: usize = 8;
/// Times that a server takes the same checks and then fails them, before an operator has to step
/// in.
pub const FALLS_MAX: u32 = 3;

/// The checks of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckSet {
    /// The policy's revision that brought them.
    pub revision: Revision,
    pub checks: Vec<Check>,
}

/// How a server does with checks that are newer than its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// The set on trial.
    pub revision: Revision,
    /// How often the server has taken them and then failed, at most [`FALLS_MAX`].
    pub falls: u32,
    pub result: TrialResult,
}

/// What came of a trial so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TrialResult {
    /// The server passes, and waits for its turn to take them;
    Passes,
    /// or does not pass;
    Fails { text: String },
    /// or has taken them, and returns to the set `before` if it fails within `min_healthy_time`.
    Taken { before: Revision, at: ClockMs },
}

impl CheckSet {
    fn of(&self, phase: CheckPhase) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(move |check| check.phase.contains(&phase))
    }

    /// Its checks of one phase.
    pub(crate) fn in_phase(&self, phase: CheckPhase) -> Vec<Check> {
        self.of(phase).cloned().collect()
    }

    fn runs_like(&self, other: &CheckSet) -> bool {
        self.of(CheckPhase::Running).eq(other.of(CheckPhase::Running))
    }

    /// Whether a server that passes the running checks of this set and all of `old` passes the
    /// pre-flight checks of this set, too.
    fn is_proven_by(&self, old: &CheckSet) -> bool {
        self.of(CheckPhase::PreFlight)
            .all(|check| check.phase.contains(&CheckPhase::Running) || old.checks.contains(check))
    }
}

impl App {
    /// The set of this revision; if it is no longer kept, the next newer one.
    pub(crate) fn check_set(&self, revision: Revision) -> &CheckSet {
        let set = self.check_sets.iter().find(|set| set.revision >= revision);
        set.unwrap_or_else(|| self.newest_checks())
    }

    /// The policy's checks.
    pub(crate) fn newest_checks(&self) -> &CheckSet {
        self.check_sets.last().expect("an app starts with its policy's checks; none are removed")
    }

    /// The checks that a change must pass before the server takes traffic. On the way back, they
    /// are those that `last_good` has passed.
    pub(crate) fn preflight_set(&self, purpose: Purpose) -> &CheckSet {
        let pinned = self.phase.forward().filter(|_| purpose == Purpose::Wave);
        self.check_set(pinned.map_or(self.good_checks, |rollout| rollout.checks))
    }

    /// The checks that this server should try, next to its own.
    pub(crate) fn on_trial(&self, here: &ServerApp) -> Option<&CheckSet> {
        let newest = self.newest_checks();
        let runs = here.running.is_some() && here.in_flight().is_none();
        (runs && self.check_set(here.checks).revision < newest.revision).then_some(newest)
    }

    /// Whether the server took its checks so recently that it is still watched.
    pub(crate) fn is_watched(&self, here: &ServerApp, clock: ClockMs) -> bool {
        let for_ms = self.policy.update.min_healthy_time.ms;
        here.trial.as_ref().is_some_and(|trial| {
            matches!(trial.result, TrialResult::Taken { at, .. } if clock.since(at) < for_ms)
        })
    }

    /// The policy has other checks: keeps the old ones for those that use them. Whoever passes the
    /// same checks already has nothing to try.
    pub(crate) fn set_checks(&mut self, revision: Revision, checks: &[Check]) {
        if self.newest_checks().checks == checks {
            return;
        }
        let set = CheckSet { revision, checks: checks.to_vec() };
        let same: Vec<Revision> = self
            .check_sets
            .iter()
            .filter(|old| old.checks == set.checks)
            .map(|old| old.revision)
            .collect();
        let alike: Vec<Revision> = self
            .check_sets
            .iter()
            .filter(|old| old.runs_like(&set))
            .map(|old| old.revision)
            .collect();
        let now = |used: Revision, like: &[Revision], app: &App| {
            let used = app.check_set(used).revision;
            if like.contains(&used) { revision } else { used }
        };
        let good = now(self.good_checks, &same, self);
        let pinned = self.phase.forward().map(|rollout| now(rollout.checks, &same, self));
        let each: Vec<Revision> =
            self.servers.values().map(|here| now(here.checks, &alike, self)).collect();
        self.good_checks = if self.last_good.is_some() { good } else { revision };
        if let (Some(rollout), Some(pinned)) = (self.phase.rollout_mut(), pinned) {
            rollout.checks = pinned;
        }
        for (here, checks) in self.servers.values_mut().zip(each) {
            (here.checks, here.trial) = (checks, None);
        }
        self.check_sets.push(set);
        self.forget_checks();
    }

    /// Drops the sets that nothing uses, and the oldest beyond [`CHECK_SETS_MAX`].
    fn forget_checks(&mut self) {
        let running = self.servers.values().filter(|here| here.running.is_some());
        let mut used: BTreeSet<Revision> = running.map(|here| here.checks).collect();
        used.insert(self.newest_checks().revision);
        used.insert(self.good_checks);
        used.extend(self.phase.rollout().map(|rollout| rollout.checks));
        self.check_sets.retain(|set| used.contains(&set.revision));
        let over = self.check_sets.len().saturating_sub(CHECK_SETS_MAX);
        self.check_sets.drain(..over);
    }

    /// A server takes the checks that it passed on trial.
    pub(crate) fn take_checks(&mut self, server: &ServerId, clock: ClockMs) {
        let newest = self.newest_checks().revision;
        let Some(here) = self.servers.get_mut(server) else { return };
        let falls = here.trial.as_ref().map_or(0, |trial| trial.falls);
        let before = std::mem::replace(&mut here.checks, newest);
        let result = TrialResult::Taken { before, at: clock };
        here.trial = Some(Trial { revision: newest, falls, result });
        let on_good = here.running.is_some() && here.running == self.last_good;
        let proves = |old: Revision| self.newest_checks().is_proven_by(self.check_set(old));
        let good = on_good && proves(self.good_checks);
        let pinned = self.phase.forward().is_some_and(|rollout| proves(rollout.checks));
        if good {
            self.good_checks = newest;
        }
        if let Some(rollout) = self.phase.rollout_mut().filter(|_| pinned) {
            rollout.checks = newest;
        }
    }

    /// A server fails checks that it has just taken: goes back to those it had, and so does what
    /// it had proven by taking them.
    pub(crate) fn fall_back(&mut self, server: &ServerId, reason: &str) {
        let Some(here) = self.servers.get_mut(server).map(|here| &mut **here) else { return };
        let Some(Trial { revision, falls, result }) = &mut here.trial else { return };
        let TrialResult::Taken { before, .. } = *result else { return };
        here.checks = before;
        *falls += 1;
        *result = TrialResult::Fails { text: reason.to_owned() };
        let taken = *revision;
        if self.good_checks == taken && here.running == self.last_good {
            self.good_checks = before;
        }
        if let Some(rollout) = self.phase.rollout_mut()
            && rollout.checks == taken
        {
            rollout.checks = before;
        }
    }
}

impl ServerApp {
    /// Whether the server passes the checks on trial and may take them.
    pub(crate) fn may_take(&self) -> bool {
        let ready = |trial: &Trial| trial.result == TrialResult::Passes && trial.falls < FALLS_MAX;
        self.in_flight().is_none() && self.trial.as_ref().is_some_and(ready)
    }
}

/// Those of `servers` that may take the app's newest checks now: all that are out of service, and
/// of the others as many as `max_unavailable` leaves room for if they all failed. `out` are the
/// servers out of service.
pub(crate) fn may_take(
    state: &State,
    app: &App,
    mut out: BTreeSet<ServerId>,
    servers: impl Iterator<Item = ServerId>,
) -> BTreeSet<ServerId> {
    let max = app.max_unavailable(state.size());
    let mut may = BTreeSet::new();
    for server in servers {
        let Some(here) = app.servers.get(&server).filter(|here| here.may_take()) else { continue };
        if app.on_trial(here).is_none() {
            continue;
        }
        if here.in_service {
            if !capacity::has_room(&out, max, &server) {
                continue;
            }
            out.insert(server.clone());
        }
        may.insert(server);
    }
    may
}
