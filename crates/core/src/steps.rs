//! The step logic of a server: from its orders and what it durably knows to the next action.
//!
//! Every step is written down as begun before it is run, and as done, failed or undone before it
//! is reported. What is to be reported follows from what is written down, so a crash at any
//! instruction loses nothing: the record is read, the interrupted step runs again with the next
//! attempt, and the last outcome is reported once more.

mod record;

use serde::{Deserialize, Serialize};

pub use record::{
    AppRecord, BootTime, Confirm, Elapsed, Failure, REACHED_MS_MIN, Reached, Told, back_off_ms,
    reported_when_done,
};

use crate::ids::Digest;
use crate::orders::{ActivationOrder, AppOrders, Fence, FetchOrder};
use crate::release::Release;
use crate::report::{Blame, Outcome, Step};

/// How often a step that a crash interrupted, or that said "later", is begun before it counts as
/// failed. 20: a hook that asks to be tried later gets minutes with back-off, a crash loop ends.
pub const ATTEMPTS_MAX: u32 = 20;

/// What a server durably knows about one app.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalApp {
    /// The highest fence that was ever accepted here; lower is refused.
    pub highest: Fence,
    /// What `current` points to.
    pub current: Option<Release>,
    /// The activation that is going on, or the last one.
    pub activation: Option<LocalActivation>,
}

/// One activation, as it is written down on the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalActivation {
    /// The order, as it was accepted.
    pub order: ActivationOrder,
    /// What ran when it began: where the host alone may go back to.
    pub previous: Option<Release>,
    /// How far it is.
    pub progress: Progress,
}

/// How far an activation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "progress", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Progress {
    /// It is known that the step is about to run, for the `attempt`th time,
    Begun {
        /// The step.
        step: Step,
        /// From 1.
        attempt: u32,
    },
    /// or that it ran,
    Done {
        /// The step.
        step: Step,
        /// At which attempt.
        attempt: u32,
    },
    /// or that it failed and nothing more happens without new orders,
    Failed {
        /// The step.
        step: Step,
        /// At which attempt.
        attempt: u32,
        /// Whose fault.
        blame: Blame,
        /// In words.
        reason: String,
        /// Last output.
        output: String,
    },
    /// or that the host went back by itself,
    Undone {
        /// In words.
        reason: String,
    },
    /// or that the server takes traffic with the release, and that is that.
    Complete,
}

impl LocalActivation {
    /// Whether the running release was touched: from the moment its stop was written down.
    #[must_use]
    pub fn stopped(&self) -> bool {
        match &self.progress {
            Progress::Begun { step, .. }
            | Progress::Done { step, .. }
            | Progress::Failed { step, .. } => *step >= Step::Stop,
            Progress::Undone { .. } => false,
            Progress::Complete => true,
        }
    }

    /// Whether traffic was taken away, or is about to be.
    #[must_use]
    pub fn drained(&self) -> bool {
        match &self.progress {
            Progress::Begun { step, .. }
            | Progress::Done { step, .. }
            | Progress::Failed { step, .. } => *step >= Step::Drain,
            Progress::Undone { .. } | Progress::Complete => false,
        }
    }

    /// What the group should hear about it, once: `None` while nothing worth an entry happened.
    #[must_use]
    pub fn outcome(&self) -> Option<(u32, Outcome)> {
        match &self.progress {
            // Neither applied nor checked: it is on its way back.
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
                    None
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
            Progress::Complete => Some((1, Outcome::InService)),
        }
    }
}

/// What the runner sees at this moment; nothing here is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// The orders are still valid by this server's own clock.
    pub orders_fresh: bool,
    /// The latch of the kill switch is on, here.
    pub killed: bool,
    /// The group has acknowledged `Checked` for this fence.
    pub confirmed: bool,
    /// The group was reached (orders were answered) since the drain began, since the service was
    /// stopped, and within the last `confirm_within`: a release can cut its server off long after
    /// its start.
    pub reached_since_stop: bool,
    /// More than `confirm_within` has gone by since the drain began, by this server's own clock.
    pub confirm_expired: bool,
}

/// What to do next for one app.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct NextAction {
    /// Bytes to fetch; goes on beside everything else.
    pub fetch: Vec<FetchOrder>,
    /// The step to take.
    pub step: StepAction,
}

/// The step to take.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "one at a time, and never kept")]
pub enum StepAction {
    /// Write down the new activation with this step as begun, then run it.
    Accept {
        /// The order to accept; its fence becomes the highest.
        order: ActivationOrder,
        /// The first step.
        step: Step,
    },
    /// Write down the step as begun (with this attempt), then run it.
    Run {
        /// The step.
        step: Step,
        /// From 1.
        attempt: u32,
    },
    /// Write down that the activation is complete.
    Complete,
    /// Too many attempts: write down that the step failed.
    GiveUp {
        /// The step.
        step: Step,
        /// How often it was begun.
        attempt: u32,
    },
    /// Put the old release back and take traffic again, then write it down.
    Undo {
        /// In words.
        reason: String,
        /// How often this was begun. From 1.
        attempt: u32,
    },
    /// Nothing to do.
    Settled,
    /// Something to do, but not now.
    Wait(StepWait),
}

/// Why a server does not take its next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepWait {
    /// The artifact is not whole here yet.
    Fetching,
    /// The orders are too old to begin something disruptive.
    FreshOrders,
    /// The kill switch is on.
    KillSwitch,
    /// The group has not acknowledged the passed checks yet.
    Confirmation,
    /// The step failed, or the host went back: the group decides.
    Decision,
}

/// What a server does next for one app.
///
/// `held` are the artifacts that are whole on its disk. `orders` are the last ones that were
/// answered, or `None` when none ever were.
pub fn next_action(
    orders: Option<&AppOrders>,
    local: &LocalApp,
    held: &[Digest],
    moment: Moment,
) -> NextAction {
    let fetch = orders.map_or_else(Vec::new, |orders| {
        orders
            .fetch
            .iter()
            .filter(|fetch| !held.contains(&fetch.release.artifact))
            .cloned()
            .collect()
    });
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
            go_on(activation, same, moment)
        }
        (None, _) => StepAction::Settled,
    }
}

/// Takes a new order; a server that is already out of traffic needs no permission to go on.
fn accept(
    order: &ActivationOrder,
    local: &LocalApp,
    held: &[Digest],
    moment: Moment,
) -> StepAction {
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
    match permission(order, moment) {
        Some(wait) => StepAction::Wait(wait),
        None => StepAction::Accept { order: order.clone(), step },
    }
}

/// Whether something new may begin.
fn permission(order: &ActivationOrder, moment: Moment) -> Option<StepWait> {
    if moment.killed || !order.begin {
        // A person can still roll back while the kill switch is on; the leader says so in `begin`.
        if !order.begin {
            return Some(StepWait::KillSwitch);
        }
        if order.purpose != crate::orders::Purpose::RollBack {
            return Some(StepWait::KillSwitch);
        }
    }
    if moment.orders_fresh { None } else { Some(StepWait::FreshOrders) }
}

fn go_on(
    activation: &LocalActivation,
    same: Option<&ActivationOrder>,
    moment: Moment,
) -> StepAction {
    let (step, attempt, done) = match &activation.progress {
        Progress::Complete => return StepAction::Settled,
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
    if matches!(step, Step::Drain | Step::HandOver | Step::Stop) {
        let Some(order) = same else { return StepAction::Wait(StepWait::FreshOrders) };
        if let Some(wait) = permission(order, moment) {
            return StepAction::Wait(wait);
        }
    }
    if step == Step::WarmUp && !moment.confirmed {
        return StepAction::Wait(StepWait::Confirmation);
    }
    StepAction::Run { step, attempt }
}

/// Confirm or undo: what a server may do without a majority, because it was committed in advance.
fn must_undo(activation: &LocalActivation, moment: Moment) -> bool {
    may_undo(activation)
        && activation.drained()
        && moment.confirm_expired
        && !moment.confirmed
        && !moment.reached_since_stop
}

/// Whether the host may ever go back from this by itself, as far as it is: not from a roll-back,
/// and not from a release that only goes forward once the one before was stopped.
#[must_use]
pub fn may_undo(activation: &LocalActivation) -> bool {
    let forward_only = activation
        .order
        .release
        .as_ref()
        .is_some_and(|release| release.rollback == crate::release::Rollback::ForwardOnly);
    let wave = activation.order.purpose != crate::orders::Purpose::RollBack;
    wave && (!forward_only || !activation.stopped())
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
        | Progress::Complete => format!("the group was not reached within {seconds} s"),
    }
}

/// The step after this one; `None` when the activation is complete.
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
