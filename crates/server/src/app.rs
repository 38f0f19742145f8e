//! One app on one server: what the shell should do now, given what it sees.
//!
//! [`next_action`] decides about the steps of an activation. This module adds a server's other
//! duties to its group and users: reports, traffic after a start, running checks, a running
//! service, removal of old releases.

use cohort_core::ids::Digest;
use cohort_core::orders::{AppOrders, Fence, Purpose, TrialOrder};
use cohort_core::policy::Check;
use cohort_core::report::{Health, Outcome, STARTING_MS_MAX, Step};
use cohort_core::steps::{
    AppRecord, BootTime, LocalActivation, LocalApp, Progress, Reached, StepAction, StepWait, Told,
    next_action,
};

use crate::pace::Pace;

mod booted;
mod running;

pub use booted::Booted;
pub use running::Running;

/// The longest time between two looks, in milliseconds, also next to a running step.
pub const LOOK_MS_MAX: u64 = 1_000;
/// How often the guard and the service are checked, in milliseconds.
const ENSURE_RUNNING_EVERY_MS: u64 = 5_000;
/// How often old releases are collected from disk, in milliseconds.
const COLLECT_EVERY_MS: u64 = 60_000;
/// How often a group that believes something else is told what is true here, in milliseconds.
const CORRECT_EVERY_MS: u64 = 5_000;

/// Everything that the shell sees when it looks.
#[derive(Debug, Clone, Copy)]
pub struct Sight<'a> {
    pub now: BootTime<'a>,
    pub orders: Option<&'a AppOrders>,
    /// The orders are still valid; see [`Received::fresh`](crate::asking::Received::fresh).
    pub orders_fresh: bool,
    /// The group answers, and does not take this agent for its server's: it was removed, or is a
    /// copy.
    pub refused: bool,
    /// The kill switch is latched on this server.
    pub killed: bool,
    /// The last fence whose passed checks the group has acknowledged.
    pub confirmed: Option<Fence>,
    /// The app's record on this server.
    pub record: &'a AppRecord,
    pub reached: Reached,
    /// Artifacts that are whole on this server.
    pub held: &'a [Digest],
    /// The result of the running checks, if they are running.
    pub health: Option<&'a Health>,
    /// The result of the checks on trial, once they have one.
    pub trial: Option<&'a Health>,
    /// The outbox has room for outcomes: without it, no step starts, except going back.
    pub room: bool,
    /// The outbox has room for changes of health, and repeated finds.
    pub room_for_health: bool,
}

/// What a server is waiting for between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// The bytes of a release.
    Fetching,
    /// The group's acknowledgement that the checks have passed.
    Confirming,
}

/// What the shell should do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "a handful at a time, and never kept")]
pub enum Effect {
    Report {
        /// The order that the report is about; the default if none.
        fence: Fence,
        attempt: u32,
        outcome: Outcome,
    },
    /// Persist finished steps that are not on disk yet: what follows may take long.
    WriteDown,
    /// Take the step; look again when it has ended. Always the last effect.
    Act {
        action: StepAction,
        running: Running,
    },
    /// Return to traffic for as long as the kill switch is on.
    Undrain {
        running: Running,
    },
    /// Progress, for people; `None` if idle.
    Doing(Option<Doing>),
    /// Take traffic, as far as the record allows it.
    TakeTraffic,
    /// Readiness: `None` if fit, else what is wrong.
    Unfit(Option<String>),
    /// Start the running checks, with this initial result; earlier ones end.
    Watch {
        checks: Vec<Check>,
        /// The health known now.
        first: Health,
    },
    Unwatch,
    /// Try these checks, next to the running ones; an earlier trial ends.
    Try {
        checks: Vec<Check>,
    },
    EndTrial,
    /// Make sure that the guard and the current service are running.
    EnsureRunning,
    /// Remove releases and artifacts that are not among these.
    Collect(Vec<Digest>),
    /// The group has removed the app: remove everything of it here, and look no more.
    Retire,
}

/// One app on this server, between two looks. In memory only: a restarted agent starts over.
#[derive(Debug, Clone)]
pub struct App {
    started_ms: u64,
    /// How long a server without orders stays out of traffic after a start, in milliseconds.
    ready_without_orders_after_ms: u64,
    /// The last outcome of the activation that was reported.
    reported: Option<(Fence, Outcome)>,
    /// The group has yet to be told what runs here.
    untold: bool,
    /// The service ran when the agent started, or an activation has started it since.
    booted: bool,
    /// The boot has started the service, and no check has passed since.
    cold: bool,
    took_traffic: bool,
    /// What the current running checks were started for.
    watched: Option<(Vec<Check>, Option<Digest>)>,
    /// Their last reported result.
    health: Option<Health>,
    health_pace: Pace,
    /// The checks on trial, and what they are tried with.
    tried: Option<(TrialOrder, Option<Digest>)>,
    /// Their last reported result.
    trial_passes: Option<bool>,
    trial_pace: Pace,
    trial_told_ms: Option<u64>,
    corrected_ms: Option<u64>,
    ensured_ms: Option<u64>,
    collected_ms: Option<u64>,
    retired_ms: Option<u64>,
}

impl App {
    /// The state after the host's boot.
    #[must_use]
    pub fn new(now_ms: u64, ready_without_orders_after_ms: u64, booted: Booted) -> App {
        let Booted { in_service, started } = booted;
        App {
            started_ms: now_ms,
            ready_without_orders_after_ms,
            reported: None,
            booted: in_service,
            untold: true,
            cold: started,
            took_traffic: false,
            watched: None,
            health: None,
            health_pace: Pace::default(),
            tried: None,
            trial_passes: None,
            trial_pace: Pace::default(),
            trial_told_ms: None,
            corrected_ms: None,
            ensured_ms: None,
            collected_ms: None,
            retired_ms: None,
        }
    }

    /// What the running checks say while a step runs that leaves them in force: news of them does
    /// not wait for its end.
    pub fn look_beside(
        &mut self,
        now_ms: u64,
        health: Option<&Health>,
        room_for_health: bool,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.watched.is_some() {
            self.health_news(now_ms, health, room_for_health, &mut effects);
        }
        effects
    }

    /// Looks at everything and decides what to do now. Do not call while a step runs.
    pub fn look(&mut self, sight: &Sight<'_>) -> Vec<Effect> {
        let mut effects = Vec::new();
        if sight.room {
            self.report_outcome(sight, &mut effects);
        }
        let fence = sight.record.local.activation.as_ref().map(|known| known.order.fence);
        let told = Told {
            orders_fresh: sight.orders_fresh,
            killed: sight.killed,
            confirmed: fence.is_some() && sight.confirmed == fence,
        };
        let moment = sight.record.moment(told, sight.reached, sight.now);
        let next = next_action(sight.orders, &sight.record.local, sight.held, moment);
        match next.step {
            StepAction::Settled | StepAction::Wait(_) => {
                let fetching = !next.fetch.is_empty();
                self.rest(&next.step, fetching, sight, &mut effects);
            }
            // Its outcome could not be reported: wait for room. Going back does not need the group.
            action if !sight.room && !matches!(action, StepAction::Undo { .. }) => {
                effects.push(Effect::WriteDown);
            }
            action => {
                if matches!(step_of(&action), Some(Step::Fetch | Step::Prepare)) {
                    // While it only prepares, what runs serves, and is still watched.
                    self.traffic(&action, sight, &mut effects);
                } else {
                    self.watched = None;
                    self.health = None;
                    (self.booted, self.cold) = (true, false);
                    effects.extend([Effect::Unwatch, Effect::Unfit(None)]);
                    self.end_trial(&mut effects);
                }
                self.report_boot(sight, &mut effects);
                let running = Running::new(&action, sight);
                effects.push(Effect::Act { action, running });
            }
        }
        effects
    }

    /// Milliseconds until the next look, if nothing changes before.
    #[must_use]
    pub fn look_in_ms(sight: &Sight<'_>) -> u64 {
        match sight.record.confirm_left_ms(sight.now) {
            Some(left_ms) if left_ms > 0 => LOOK_MS_MAX.min(left_ms.max(10)),
            Some(_) | None => LOOK_MS_MAX,
        }
    }

    /// Whether what runs is fit for traffic, as far as known.
    fn fit(&self, sight: &Sight<'_>) -> bool {
        let up = self.booted && !self.is_starting(sight);
        self.health.as_ref().map_or(up, |health| health.in_service)
    }

    /// Reports what is here: the first report to a group about an app on this server. A group that
    /// forgot the app, or this server, gets it again. Not what the start found: until the group
    /// speaks, a change may have gone on; and not before it is decided whether to take traffic.
    fn report_boot(&mut self, sight: &Sight<'_>, effects: &mut Vec<Effect>) {
        let Some(orders) = sight.orders else {
            self.untold = true;
            return;
        };
        // One that is starting says neither that it serves, nor that it is broken.
        if !self.untold || !sight.room || self.is_warming(sight) {
            return;
        }
        self.untold = false;
        self.corrected_ms = Some(sight.now.ms);
        // A server that owes takes no traffic after a start, unless it took traffic while it had no
        // orders.
        let in_service = sight.record.takes_traffic().is_ok()
            && self.fit(sight)
            && !self.is_starting(sight)
            && (self.took_traffic || !orders.owes);
        let release = sight.record.local.current.clone();
        effects.push(report(Outcome::Found { release, in_service }));
    }

    /// Reports what was recorded about the activation and not yet reported.
    fn report_outcome(&mut self, sight: &Sight<'_>, effects: &mut Vec<Effect>) {
        let Some(activation) = &sight.record.local.activation else { return };
        let Some((attempt, outcome)) = activation.outcome() else { return };
        let fence = activation.order.fence;
        if self.reported.as_ref().is_some_and(|(f, o)| *f == fence && *o == outcome) {
            return;
        }
        self.reported = Some((fence, outcome.clone()));
        effects.push(Effect::Report { fence, attempt, outcome });
    }

    /// There is no step to take now.
    fn rest(
        &mut self,
        step: &StepAction,
        fetching: bool,
        sight: &Sight<'_>,
        effects: &mut Vec<Effect>,
    ) {
        effects.push(Effect::WriteDown);
        if *step == StepAction::Wait(StepWait::KillSwitch) && sight.record.undrain_to().is_some() {
            effects.push(Effect::Undrain { running: Running::undraining(sight) });
        }
        effects.push(Effect::Doing(match step {
            StepAction::Wait(StepWait::Fetching) => Some(Doing::Fetching),
            StepAction::Wait(StepWait::Confirmation) => Some(Doing::Confirming),
            _ => fetching.then_some(Doing::Fetching),
        }));
        self.traffic(step, sight, effects);
        self.report_boot(sight, effects);
        self.watch(sight, effects);
        self.trial(sight, effects);
        self.correct(step, sight, effects);
        if due(&mut self.ensured_ms, sight.now.ms, ENSURE_RUNNING_EVERY_MS) {
            effects.push(Effect::EnsureRunning);
        }
        self.collect(sight, effects);
        self.retire(step, sight, effects);
    }

    /// Tells a group that believes something else what is true here: it re-added this server,
    /// started a new incarnation, lost sight of it in a change, or never learned what changed.
    fn correct(&mut self, step: &StepAction, sight: &Sight<'_>, effects: &mut Vec<Effect>) {
        let Some(orders) = sight.orders.filter(|_| !self.untold) else { return };
        let local = &sight.record.local;
        let drained = local.activation.as_ref().is_some_and(LocalActivation::drained);
        // The kill switch returns it to traffic.
        let returns =
            *step == StepAction::Wait(StepWait::KillSwitch) && sight.record.undrain_to().is_some();
        let stays_out = drained && !returns && orders.in_service == Some(true);
        let unknown = orders.in_service.is_none() && !drained;
        if orders.activation.is_some() && !unknown {
            // The steps of the change would tell, but may not go on.
            if stays_out
                && sight.room_for_health
                && due(&mut self.corrected_ms, sight.now.ms, CORRECT_EVERY_MS)
            {
                let reason = "out of traffic for a change that may not go on".to_owned();
                effects.push(report(Outcome::Health { in_service: false, reason }));
            }
            return;
        }
        let at_rest = at_rest(step, local);
        let lost = orders.in_service.is_none() && *step != StepAction::Wait(StepWait::Confirmation);
        let other = at_rest && orders.run != local.current;
        let in_service =
            self.took_traffic && self.fit(sight) && sight.record.takes_traffic().is_ok();
        let told = orders.in_service.is_none_or(|told| told == in_service);
        // A change that is no longer ordered, and has not drained, leaves the service as it is.
        let calm = drained || told;
        let found = lost || other || stays_out;
        if (calm && !found)
            || !sight.room_for_health
            || !due(&mut self.corrected_ms, sight.now.ms, CORRECT_EVERY_MS)
            || !(found || self.health_pace.is_due(sight.now.ms))
        {
            return;
        }
        effects.push(report(if found {
            Outcome::Found { release: local.current.clone(), in_service }
        } else {
            let unfit = self.health.as_ref().filter(|health| !health.in_service);
            let reason = unfit.map_or_else(String::new, |health| health.reason.clone());
            Outcome::Health { in_service, reason }
        }));
    }

    /// After a start: traffic only if nothing is owed, or if the group was unreachable for the
    /// configured time.
    fn traffic(&mut self, step: &StepAction, sight: &Sight<'_>, effects: &mut Vec<Effect>) {
        if self.took_traffic {
            return;
        }
        let activation = sight.record.local.activation.as_ref();
        let settled = match sight.orders {
            // Paying the debt comes before traffic.
            Some(orders) if orders.owes => false,
            Some(orders) => match &orders.activation {
                None => at_rest(step, &sight.record.local),
                // Its turn has come but it may not start yet: until then it serves.
                Some(order) => activation.is_none_or(|known| {
                    known.order.fence < order.fence || known.progress == Progress::GivenBack
                }),
            },
            None => {
                let waited_ms = sight.now.ms.saturating_sub(self.started_ms);
                !sight.refused && waited_ms >= self.ready_without_orders_after_ms
            }
        } && (self.fit(sight) || sight.record.local.current.is_none());
        let busy = activation.filter(|activation| {
            !matches!(activation.progress, Progress::Complete | Progress::GivenBack)
        });
        let goes_on = busy.is_some() && sight.orders.is_some() && !self.is_starting(sight);
        if settled || goes_on {
            // An agent that restarted in an activation that has not drained yet still serves;
            // paying a debt comes before traffic.
            if busy.is_none_or(|activation| activation.order.purpose != Purpose::Debt) {
                effects.push(Effect::TakeTraffic);
                (self.took_traffic, self.cold) = (true, false);
            }
        }
    }

    /// Manages the running checks: restarts them if the release or the checks change, reports
    /// changes.
    fn watch(&mut self, sight: &Sight<'_>, effects: &mut Vec<Effect>) {
        let local = &sight.record.local;
        let serves = local.current.is_some()
            && local.activation.as_ref().is_none_or(|activation| !activation.drained());
        let Some(orders) = sight.orders.filter(|_| serves) else {
            if self.watched.take().is_some() {
                effects.push(Effect::Unwatch);
            }
            return;
        };
        let release = local.current.as_ref().map(|release| release.artifact.clone());
        let same = |(checks, of): &(Vec<Check>, Option<Digest>)| {
            *checks == orders.checks && *of == release
        };
        // Nothing new starts under the kill switch, new checks of what runs included.
        let waits = |(_, of): &(Vec<Check>, Option<Digest>)| sight.killed && *of == release;
        let watched = self.watched.as_ref();
        if !watched.is_some_and(|watched| same(watched) || waits(watched)) {
            let first = self.first_health(sight, &orders.checks, release.as_ref());
            if self.watched.is_some() {
                // Checks changed: the old ones may have left a verdict.
                effects.push(Effect::Unfit((!first.in_service).then(|| first.reason.clone())));
            }
            self.health.get_or_insert_with(|| first.clone());
            self.watched = Some((orders.checks.clone(), release));
            effects.push(Effect::Watch { checks: orders.checks.clone(), first });
        } else {
            self.health_news(sight.now.ms, sight.health, sight.room_for_health, effects);
        }
    }

    /// Reports what the running checks say, if it is news.
    fn health_news(
        &mut self,
        now_ms: u64,
        health: Option<&Health>,
        room_for_health: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(now) = health.filter(|now| self.health.as_ref() != Some(now)) else { return };
        if self.cold && now.in_service {
            // What the start found says so.
            (self.booted, self.cold, self.health) = (true, false, Some(now.clone()));
            return effects.push(Effect::Unfit(None));
        }
        self.booted |= now.in_service;
        effects.push(Effect::Unfit((!now.in_service).then(|| now.reason.clone())));
        // That it broke does not wait: others may rely on this server.
        let broke = !now.in_service && self.health.as_ref().is_none_or(|told| told.in_service);
        let due = self.health_pace.is_due(now_ms) || broke;
        // It has not said that it serves.
        let warming = self.cold && now_ms.saturating_sub(self.started_ms) < STARTING_MS_MAX;
        if room_for_health && due && !warming {
            let Health { in_service, reason } = now.clone();
            effects.push(report(Outcome::Health { in_service, reason }));
            self.health = Some(now.clone());
            self.corrected_ms = Some(now_ms);
        }
    }

    /// The health before these checks have run: what they said on trial, what the earlier ones say
    /// of the same release, or whether the service came up.
    fn first_health(
        &self,
        sight: &Sight<'_>,
        checks: &[Check],
        release: Option<&Digest>,
    ) -> Health {
        let tried = self
            .tried
            .as_ref()
            .filter(|(order, of)| order.checks == checks && of.as_ref() == release);
        let same = self.watched.as_ref().is_some_and(|(_, of)| of.as_ref() == release);
        let known = sight.health.or(self.health.as_ref()).filter(|_| same);
        let passed = sight.trial.filter(|trial| tried.is_some() && trial.in_service);
        passed.or(known).cloned().unwrap_or_else(|| {
            let reason = match (self.booted, self.is_starting(sight)) {
                (false, _) => "the service did not come up",
                (true, true) => "the service has been started, and has not passed its checks yet",
                (true, false) => "",
            };
            Health { in_service: reason.is_empty(), reason: reason.into() }
        })
    }

    /// Tries changed checks next to those that decide, and reports whether they pass.
    fn trial(&mut self, sight: &Sight<'_>, effects: &mut Vec<Effect>) {
        // The server may know of the kill switch before its orders do.
        let order = sight.orders.filter(|_| !sight.killed);
        let order = order.and_then(|orders| orders.trial.as_ref());
        let Some((order, (_, release))) = order.zip(self.watched.as_ref()) else {
            return self.end_trial(effects);
        };
        let same = |(tried, of): &(TrialOrder, Option<Digest>)| {
            tried.checks == order.checks && tried.revision == order.revision && of == release
        };
        if !self.tried.as_ref().is_some_and(same) {
            self.tried = Some((order.clone(), release.clone()));
            self.trial_passes = None;
            return effects.push(Effect::Try { checks: order.checks.clone() });
        }
        let Some(now) = sight.trial.filter(|_| sight.room_for_health) else { return };
        let news = self.trial_passes != Some(now.in_service);
        let unknown = order.passes != Some(now.in_service)
            && due(&mut self.trial_told_ms, sight.now.ms, CORRECT_EVERY_MS);
        if (news || unknown) && self.trial_pace.is_due(sight.now.ms) {
            let failed = (!now.in_service).then(|| now.reason.clone());
            effects.push(report(Outcome::Tried { revision: order.revision, failed }));
            self.trial_passes = Some(now.in_service);
            self.trial_told_ms = Some(sight.now.ms);
        }
    }

    fn end_trial(&mut self, effects: &mut Vec<Effect>) {
        if self.tried.take().is_some() {
            effects.push(Effect::EndTrial);
        }
    }

    /// Removes what is left of an app that the group has removed; retried if that fails.
    fn retire(&mut self, step: &StepAction, sight: &Sight<'_>, effects: &mut Vec<Effect>) {
        if is_removed(step, sight) && due(&mut self.retired_ms, sight.now.ms, COLLECT_EVERY_MS) {
            effects.push(Effect::Retire);
        }
    }

    /// While nothing is changing, removes what no order keeps.
    fn collect(&mut self, sight: &Sight<'_>, effects: &mut Vec<Effect>) {
        let Some(orders) = sight.orders else { return };
        let busy = orders.activation.is_some() || !orders.fetch.is_empty();
        if due(&mut self.collected_ms, sight.now.ms, COLLECT_EVERY_MS) && !busy {
            effects.push(Effect::Collect(orders.keep.clone()));
        }
    }
}

/// Whether the group no longer has the app, and nothing of it runs here: a group drops an app only
/// once every server has stopped it.
fn is_removed(step: &StepAction, sight: &Sight<'_>) -> bool {
    let local = &sight.record.local;
    sight.orders.is_none() && sight.orders_fresh && local.current.is_none() && at_rest(step, local)
}

/// Whether no change is in progress: the last one is complete, or was undone.
fn at_rest(step: &StepAction, local: &LocalApp) -> bool {
    match local.activation.as_ref().map(|activation| &activation.progress) {
        None | Some(Progress::Complete | Progress::GivenBack) => *step == StepAction::Settled,
        Some(Progress::Undone { .. }) => *step == StepAction::Wait(StepWait::Decision),
        Some(Progress::Begun { .. } | Progress::Done { .. } | Progress::Failed { .. }) => false,
    }
}

fn report(outcome: Outcome) -> Effect {
    Effect::Report { fence: Fence::default(), attempt: 1, outcome }
}

/// Whether something that happens at this interval is due; if so, it counts as done.
fn due(last_ms: &mut Option<u64>, now_ms: u64, every_ms: u64) -> bool {
    let due = last_ms.is_none_or(|at| now_ms.saturating_sub(at) >= every_ms);
    if due {
        *last_ms = Some(now_ms);
    }
    due
}

/// Whether the pre-flight checks passed, after `step` ended; `None` if it was another step, or was
/// interrupted.
#[must_use]
pub fn preflight_result(step: Step, local: &LocalApp) -> Option<bool> {
    match (step, &local.activation.as_ref()?.progress) {
        (Step::Check, Progress::Done { step: Step::Check, .. }) => Some(true),
        (Step::Check, Progress::Failed { step: Step::Check, .. }) => Some(false),
        _ => None,
    }
}

/// The step of an action, for people and metrics.
#[must_use]
pub fn step_of(action: &StepAction) -> Option<Step> {
    match action {
        StepAction::Accept { step, .. }
        | StepAction::Run { step, .. }
        | StepAction::GiveUp { step, .. } => Some(*step),
        StepAction::Undo { .. } => Some(Step::Undo),
        // Nothing has begun.
        StepAction::GiveBack { .. } => Some(Step::Prepare),
        StepAction::Complete | StepAction::Settled | StepAction::Wait(_) => None,
    }
}

#[cfg(test)]
#[path = "app_test.rs"]
mod app_test;
