//! A server's step logic: from its orders and its own record to the next action.
//!
//! A step is recorded as begun before it runs, and as done, failed or undone before it is reported.
//! Reports are derived from the record, so a crash at any instruction loses nothing: the
//! interrupted step runs again as the next attempt, and the last outcome is reported again.

mod record;

use serde::{Deserialize, Serialize};

pub use record::{
    AppRecord, BootTime, Confirm, Elapsed, Failure, NoTraffic, REACHED_MS_MIN, Reached, Told,
    back_off_ms, reported_when_done,
};

use crate::ids::Digest;
use crate::orders::{ActivationOrder, AppOrders, Fence, FetchOrder, Hold, Purpose};
use crate::release::{Release, Rollback};
use crate::report::{Blame, Outcome, Step};

/// Attempts at a step that crashes interrupt, or that asks to be retried, before it fails. 20: with
/// back-off, minutes for a hook that asks to be retried; an end to a crash loop.
pub const ATTEMPTS_MAX: u32 = 20;

/// What a server has recorded about one app.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalApp {
    /// The highest fence ever accepted; lower ones are refused.
    pub highest: Fence,
    /// The release that the `current` link points to.
    pub current: Option<Release>,
    /// The latest activation, in progress or ended.
    pub activation: Option<LocalActivation>,
}

/// One activation, as recorded on the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalActivation {
    /// The order as it was accepted; later orders with the same fence do not change it.
    pub order: ActivationOrder,
    /// What ran before: the only release that the host may go back to on its own.
    pub previous: Option<Release>,
    /// The server had left traffic for the change that this one replaced.
    pub left: bool,
    /// The last hook that failed and was ignored, as the order allows, and how.
    pub ignored: Option<String>,
    pub progress: Progress,
}

/// The progress of an activation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "progress", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Progress {
    /// A step is running or about to run,
    Begun { step: Step, attempt: u32 },
    /// or done,
    Done { step: Step, attempt: u32 },
    /// or failed, with this last output, and only new orders continue from here,
    Failed { step: Step, attempt: u32, blame: Blame, reason: String, output: String },
    /// or the host went back to the old release on its own,
    Undone { reason: String },
    /// or the order was withdrawn before the server left traffic for it,
    GivenBack,
    /// or the server takes traffic with the release: the activation is complete.
    Complete,
}

impl LocalActivation {
    /// Whether the running release was touched: true once its stop was recorded as begun.
    #[must_use]
    pub fn stopped(&self) -> bool {
        match &self.progress {
            Progress::Begun { step, .. }
            | Progress::Done { step, .. }
            | Progress::Failed { step, .. } => *step >= Step::Stop,
            Progress::Undone { .. } | Progress::GivenBack => false,
            Progress::Complete => true,
        }
    }

    /// Whether the server is out of traffic, or about to be.
    #[must_use]
    pub fn drained(&self) -> bool {
        match &self.progress {
            Progress::Begun { step, .. }
            | Progress::Done { step, .. }
            | Progress::Failed { step, .. } => self.left || *step >= Step::Drain,
            Progress::Undone { .. } | Progress::GivenBack | Progress::Complete => false,
        }
    }

    /// The attempt and outcome to report; `None` if there is nothing worth a log entry yet.
    #[must_use]
    pub fn outcome(&self) -> Option<(u32, Outcome)> {
        match &self.progress {
            // On the way back: neither applied nor checked.
            Progress::Begun { step: Step::Undo, .. } | Progress::Done { step: Step::Undo, .. } => {
                None
            }
            Progress::Begun { step, attempt } | Progress::Done { step, attempt } => {
                let after_check = *step > Step::Check
                    || matches!(&self.progress, Progress::Done { step: Step::Check, .. });
                let after_start = *step > Step::Start
                    || matches!(&self.progress, Progress::Done { step: Step::Start, .. });
                if after_check {
                    Some((*attempt, Outcome::Checked))
                } else if after_start {
                    Some((*attempt, Outcome::Applied))
                } else {
                    let ignored = self.ignored.clone();
                    ignored.map(|reason| (*attempt, Outcome::HookIgnored { reason }))
                }
            }
            Progress::Failed { step, attempt, blame, reason, output } => Some((
                *attempt,
                Outcome::Failed {
                    blame: *blame,
                    step: *step,
                    reason: reason.clone(),
                    output: output.clone(),
                },
            )),
            Progress::Undone { reason } => Some((
                1,
                Outcome::Undone { release: self.previous.clone(), reason: reason.clone() },
            )),
            Progress::GivenBack => Some((1, Outcome::GivenBack)),
            Progress::Complete => Some((1, Outcome::InService)),
        }
    }
}

/// What else the server knows right now; none of it is persisted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// The orders are still valid, by this server's clock.
    pub orders_fresh: bool,
    /// The kill switch is on, as far as this server knows.
    pub killed: bool,
    /// The group has acknowledged `checked` for this fence.
    pub confirmed: bool,
    /// The group responded after the drain started, after the service was stopped, and within the
    /// last `confirm_within`: a release can cut its server off long after starting.
    pub reached_since_stop: bool,
    /// More than `confirm_within` has passed since the drain started, by this server's clock.
    pub confirm_expired: bool,
}

/// What to do next for one app.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct NextAction {
    /// What to fetch, in parallel with everything else.
    pub fetch: Vec<FetchOrder>,
    /// What to do about the activation.
    pub step: StepAction,
}

/// What to do about the activation. The record is written before the step runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "one at a time, and never kept")]
pub enum StepAction {
    /// Accept the order, whose fence becomes the highest; record this step as begun, then run it.
    Accept { order: ActivationOrder, step: Step },
    /// Record the step as begun, then run it.
    Run { step: Step, attempt: u32 },
    /// Record that this order was given back: its fence becomes the highest, and it never begins.
    GiveBack { order: ActivationOrder },
    /// Record the activation as complete.
    Complete,
    /// Record the step as failed after [`ATTEMPTS_MAX`] attempts.
    GiveUp { step: Step, attempt: u32 },
    /// Restore the old release and return to traffic, then record it.
    Undo { reason: String, attempt: u32 },
    /// The server runs what it should.
    Settled,
    /// The next step has to wait.
    Wait(StepWait),
}

/// Why a server does not take its next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepWait {
    Fetching,
    /// The orders are too old for a disruptive step.
    FreshOrders,
    KillSwitch,
    /// Too many other servers are out of service.
    Capacity,
    /// The group has not acknowledged that the checks passed.
    Confirmation,
    /// The activation failed or was undone: the group decides.
    Decision,
}

/// What a server does next for one app. `orders` are the latest it received, if any; `held` are the
/// complete artifacts on its disk.
pub fn next_action(
    orders: Option<&AppOrders>,
    local: &LocalApp,
    held: &[Digest],
    moment: Moment,
) -> NextAction {
    let mut fetch = orders.map_or_else(Vec::new, |orders| orders.fetch.clone());
    fetch.retain(|order| !held.contains(&order.release.artifact));
    let ordered = orders.and_then(|orders| orders.activation.as_ref());
    NextAction { fetch, step: next_step(ordered, local, held, moment) }
}

fn next_step(
    ordered: Option<&ActivationOrder>,
    local: &LocalApp,
    held: &[Digest],
    moment: Moment,
) -> StepAction {
    match (&local.activation, ordered) {
        (Some(activation), Some(order)) if order.fence > activation.order.fence => {
            accept(order, local, held, moment)
        }
        (None, Some(order)) if order.fence > local.highest => accept(order, local, held, moment),
        (Some(activation), _) => {
            let same = ordered.filter(|order| order.fence == activation.order.fence);
            proceed(activation, same, moment)
        }
        (None, _) => StepAction::Settled,
    }
}

/// Accepts a new order, if it may start.
fn accept(
    order: &ActivationOrder,
    local: &LocalApp,
    held: &[Digest],
    moment: Moment,
) -> StepAction {
    // One that is out of traffic for the change before needs this one to come back.
    let left = local.activation.as_ref().is_some_and(LocalActivation::drained);
    if order.hold == Some(Hold::Withdrawn) && order.fence > local.highest && !left {
        return StepAction::GiveBack { order: order.clone() };
    }
    let step = match &order.release {
        Some(release) if !held.contains(&release.artifact) => {
            return StepAction::Wait(StepWait::Fetching);
        }
        Some(_) => Step::Prepare,
        None => Step::Drain,
    };
    if order.fence < local.highest {
        return StepAction::Settled;
    }
    match permission(order, step, left, moment) {
        Some(wait) => StepAction::Wait(wait),
        None => StepAction::Accept { order: order.clone(), step },
    }
}

/// What forbids this step towards something disruptive, if anything. An operator can roll back
/// under the kill switch: the order says so. A server that has left traffic goes on: waiting would
/// only keep it out for longer.
fn permission(
    order: &ActivationOrder,
    step: Step,
    drained: bool,
    moment: Moment,
) -> Option<StepWait> {
    let killed = moment.killed && order.purpose != Purpose::RollBack;
    if killed || order.hold == Some(Hold::KillSwitch) {
        Some(StepWait::KillSwitch)
    } else if order.hold == Some(Hold::Capacity) && step == Step::Drain && !drained {
        Some(StepWait::Capacity)
    } else if !moment.orders_fresh {
        Some(StepWait::FreshOrders)
    } else {
        None
    }
}

fn proceed(
    activation: &LocalActivation,
    same: Option<&ActivationOrder>,
    moment: Moment,
) -> StepAction {
    let (step, attempt, done) = match &activation.progress {
        Progress::Complete | Progress::GivenBack => return StepAction::Settled,
        Progress::Failed { .. } if !must_undo(activation, moment) => {
            return StepAction::Wait(StepWait::Decision);
        }
        Progress::Undone { .. } => return StepAction::Wait(StepWait::Decision),
        Progress::Begun { step: Step::Undo, attempt } => {
            return StepAction::Undo { reason: undo_reason(activation), attempt: attempt + 1 };
        }
        Progress::Failed { step, attempt, .. } => (*step, *attempt, false),
        Progress::Begun { step, attempt } => (*step, *attempt, false),
        Progress::Done { step, attempt } => (*step, *attempt, true),
    };
    if must_undo(activation, moment) {
        return StepAction::Undo { reason: undo_reason(activation), attempt: 1 };
    }
    let withdrawn = same.filter(|order| order.hold == Some(Hold::Withdrawn));
    if let Some(order) = withdrawn.filter(|_| !activation.drained()) {
        return StepAction::GiveBack { order: order.clone() };
    }
    if !done && attempt >= ATTEMPTS_MAX {
        return StepAction::GiveUp { step, attempt };
    }
    let (step, attempt) = if done {
        match after(step, activation.order.release.is_some()) {
            Some(step) => (step, 1),
            None => return StepAction::Complete,
        }
    } else {
        (step, attempt + 1)
    };
    // A service whose stop has begun is down, or soon will be: only the next steps bring it up.
    let stopping = step == Step::Stop && activation.stopped();
    let alone = finishes_alone(activation, moment);
    if matches!(step, Step::Drain | Step::HandOver | Step::Stop)
        && !stopping
        && (!alone || moment.killed)
    {
        let Some(order) = same else { return StepAction::Wait(StepWait::FreshOrders) };
        if let Some(wait) = permission(order, step, activation.drained(), moment) {
            return StepAction::Wait(wait);
        }
    }
    if step == Step::WarmUp && !moment.confirmed && !alone {
        return StepAction::Wait(StepWait::Confirmation);
    }
    StepAction::Run { step, attempt }
}

/// Confirm or undo: the one thing a server may do without a majority. The order allowed it.
fn must_undo(activation: &LocalActivation, moment: Moment) -> bool {
    may_undo(activation) && is_abandoned(activation, moment)
}

/// A rollback that the group can no longer confirm leads to the release that an undo would restore:
/// a server that is out of traffic for it finishes it without a majority.
fn finishes_alone(activation: &LocalActivation, moment: Moment) -> bool {
    activation.order.purpose == Purpose::RollBack && is_abandoned(activation, moment)
}

/// Whether the server is out of traffic for a change, and the group has been out of reach for
/// `confirm_within`.
fn is_abandoned(activation: &LocalActivation, moment: Moment) -> bool {
    activation.drained()
        && moment.confirm_expired
        && !moment.confirmed
        && !moment.reached_since_stop
}

/// Whether the host may go back from this activation on its own: never from a rollback, and not
/// from a forward-only release once the previous one was stopped.
#[must_use]
pub fn may_undo(activation: &LocalActivation) -> bool {
    let order = &activation.order;
    let forward_only =
        order.release.as_ref().is_some_and(|release| release.rollback == Rollback::ForwardOnly);
    order.purpose != Purpose::RollBack && (!forward_only || !activation.stopped())
}

fn undo_reason(activation: &LocalActivation) -> String {
    let seconds = activation.order.confirm_within_ms / 1000;
    match &activation.progress {
        Progress::Failed { step, reason, .. } => {
            format!(
                "{} failed ({reason}) and the group was not reached within {seconds} s",
                step.name()
            )
        }
        Progress::Begun { .. }
        | Progress::Done { .. }
        | Progress::Undone { .. }
        | Progress::GivenBack
        | Progress::Complete => format!("the group was not reached within {seconds} s"),
    }
}

/// The step after this one; `None` if the activation is complete.
fn after(step: Step, has_release: bool) -> Option<Step> {
    match step {
        Step::Fetch => Some(Step::Prepare),
        Step::Prepare => Some(Step::Drain),
        Step::Drain => Some(Step::HandOver),
        Step::HandOver => Some(Step::Stop),
        Step::Stop => Some(Step::Switch),
        Step::Switch if has_release => Some(Step::Start),
        Step::Switch => None,
        Step::Start => Some(Step::Check),
        Step::Check => Some(Step::WarmUp),
        Step::WarmUp | Step::Undo => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "steps/next_test.rs"]
mod next_test;
