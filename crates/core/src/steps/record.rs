//! What a server records about one app, and the only methods that change it. The host keeps the
//! record in a file, the simulator in memory.

use serde::{Deserialize, Serialize};

use super::{LocalActivation, LocalApp, Moment, Progress, may_undo};
use crate::orders::{ActivationOrder, Fence, Purpose};
use crate::release::Release;
use crate::report::{Blame, Step};

/// Shortest time that an answered request for orders counts as contact, in milliseconds. 6 s: a
/// server asks again after 2 s and may wait 3 s for the response; with a shorter `confirm_within`
/// it would undo between two responses.
pub const REACHED_MS_MIN: u64 = 6_000;

/// A reading of a machine's boot-time clock.
#[derive(Debug, Clone, Copy)]
pub struct BootTime<'a> {
    /// Identifies the boot: readings from different boots are not comparable.
    pub boot: &'a str,
    /// Milliseconds since that boot, including sleep.
    pub ms: u64,
}

/// Time elapsed since an event, across reboots.
///
/// Stores the time that had elapsed at the last write, so a reboot can only make it late, by at
/// most the time since that write: the group gets longer to respond, never shorter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Elapsed {
    boot: String,
    since_ms: u64,
    before_ms: u64,
}

impl Elapsed {
    /// Starts counting at `now`.
    #[must_use]
    pub fn start(now: BootTime<'_>) -> Elapsed {
        Elapsed { boot: now.boot.to_owned(), since_ms: now.ms, before_ms: 0 }
    }

    /// Milliseconds elapsed at `now`.
    #[must_use]
    pub fn ms(&self, now: BootTime<'_>) -> u64 {
        let same_boot = now.boot == self.boot;
        let since = if same_boot { now.ms.saturating_sub(self.since_ms) } else { now.ms };
        self.before_ms.saturating_add(since)
    }

    /// The same elapsed time, re-based to `now` for writing.
    #[must_use]
    pub fn carried(&self, now: BootTime<'_>) -> Elapsed {
        Elapsed { boot: now.boot.to_owned(), since_ms: now.ms, before_ms: self.ms(now) }
    }
}

/// How long the server has waited for the group's confirmation, counted from the drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirm {
    pub fence: Fence,
    /// Runs since the drain started.
    pub clock: Elapsed,
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The release, or the environment.
    pub blame: Blame,
    pub reason: String,
    pub output: String,
}

/// How long an agent asks after its start before the group may count as out of reach, in
/// milliseconds: some rounds of asking.
const ASKING_MS: u64 = 3_000;

/// When the group was last in contact, for *confirm or undo*. In memory only: an agent that
/// restarts has to reach the group again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The agent's start.
    started_ms: u64,
    /// Contact counts from here on: the agent's start, or the start of the last drain or stop.
    since_ms: u64,
    /// When the latest answered request for orders was sent, by the boot-time clock.
    last_ms: u64,
}

impl Reached {
    /// Not in contact since `now_ms`, the agent's start.
    #[must_use]
    pub fn new(now_ms: u64) -> Reached {
        Reached { started_ms: now_ms, since_ms: now_ms, last_ms: 0 }
    }

    /// Records that a request for orders sent at `asked_ms` was answered.
    pub fn heard(&mut self, asked_ms: u64) {
        self.last_ms = self.last_ms.max(asked_ms);
    }

    /// Records that a step starts; after a drain or a stop, the group has to be reached again.
    pub fn begin(&mut self, step: Step, now_ms: u64) {
        if matches!(step, Step::Drain | Step::Stop) {
            self.since_ms = now_ms;
        }
    }

    /// How long the group does not count as out of reach, in milliseconds: `counts_ms` from the
    /// last contact on. Without one, as long as the agent needs to ask after its start: one that
    /// was down for a while must not go back before.
    fn left_ms(self, now_ms: u64, counts_ms: u64) -> u64 {
        let (from_ms, for_ms) = match self.last_ms > self.since_ms {
            true => (self.last_ms, counts_ms),
            false => (self.started_ms, ASKING_MS),
        };
        for_ms.saturating_sub(now_ms.saturating_sub(from_ms))
    }
}

/// Everything a server has recorded about one app.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppRecord {
    /// Fences, the current release and the activation.
    pub local: LocalApp,
    /// Present from the drain until the activation is complete or undone.
    pub confirm: Option<Confirm>,
    /// The server left traffic and has not returned.
    pub blocked: bool,
    /// The hook that last asked for a retry, within the current step.
    pub later: Option<String>,
}

impl AppRecord {
    /// Accepts an order and starts its first step. `keeps`: whether a release is still unpacked
    /// here.
    pub fn accept(
        &mut self,
        order: ActivationOrder,
        step: Step,
        keeps: impl Fn(&Release) -> bool,
        now: BootTime<'_>,
    ) {
        let previous = self.previous_for(keeps);
        let before = self.local.activation.as_ref();
        let left = self.blocked || before.is_some_and(LocalActivation::drained);
        self.later = None;
        self.confirm = None;
        self.await_confirmation(step, order.fence, now);
        self.local.highest = order.fence;
        let progress = Progress::Begun { step, attempt: 1 };
        let ignored = None;
        self.local.activation = Some(LocalActivation { order, previous, left, ignored, progress });
    }

    /// Gives an order back that has not begun.
    pub fn give_back(&mut self, order: ActivationOrder, keeps: impl Fn(&Release) -> bool) {
        let previous = self.previous_for(keeps);
        self.later = None;
        self.confirm = None;
        self.local.highest = order.fence;
        let progress = Progress::GivenBack;
        let (left, ignored) = (false, None);
        self.local.activation = Some(LocalActivation { order, previous, left, ignored, progress });
    }

    /// What the host may go back to on its own: the last release that ran well here, never a
    /// half-installed one. The order's `undo_to` is only what ran when it was given, perhaps badly.
    fn previous_for(&self, keeps: impl Fn(&Release) -> bool) -> Option<Release> {
        match &self.local.activation {
            Some(LocalActivation { progress, previous, .. })
                if !matches!(progress, Progress::Complete | Progress::Undone { .. }) =>
            {
                previous.clone().filter(keeps)
            }
            Some(_) | None => self.local.current.clone(),
        }
    }

    /// Records that a step is about to run for the `attempt`th time (from 1).
    pub fn begin(&mut self, step: Step, attempt: u32, now: BootTime<'_>) {
        let Some(activation) = &mut self.local.activation else { return };
        activation.progress = Progress::Begun { step, attempt };
        let fence = activation.order.fence;
        self.await_confirmation(step, fence, now);
        if attempt == 1 {
            self.later = None;
        }
    }

    fn await_confirmation(&mut self, step: Step, fence: Fence, now: BootTime<'_>) {
        if self.confirm.as_ref().is_some_and(|confirm| confirm.fence == fence) {
            return;
        }
        self.confirm = (step >= Step::Drain).then(|| Confirm { fence, clock: Elapsed::start(now) });
    }

    /// Records that a step is done. Must be persisted before it is reported (see
    /// [`reported_when_done`]); otherwise it may be written together with the next step: after a
    /// crash in between, the step runs again.
    pub fn done(&mut self, step: Step, attempt: u32) {
        self.later = None;
        self.blocked |= step == Step::Drain;
        let Some(activation) = &mut self.local.activation else { return };
        activation.progress = Progress::Done { step, attempt };
        if step == Step::Switch {
            self.local.current.clone_from(&activation.order.release);
        }
    }

    /// Records a failed hook that does not keep the step from continuing. Must be persisted before
    /// it is reported.
    pub fn ignore_hook(&mut self, reason: String) {
        if let Some(activation) = &mut self.local.activation {
            activation.ignored = Some(reason);
        }
    }

    /// Records that a step failed; only new orders or an undo continue from here.
    pub fn fail(&mut self, step: Step, attempt: u32, failure: Failure) {
        let Failure { blame, reason, output } = failure;
        if let Some(activation) = &mut self.local.activation {
            activation.progress = Progress::Failed { step, attempt, blame, reason, output };
        }
    }

    /// Why a step is given up after `attempt` attempts.
    #[must_use]
    pub fn given_up(&self, attempt: u32) -> Failure {
        let (blame, reason) = match &self.later {
            Some(hook) => (Blame::Release, format!("hook {hook} said \"later\" {attempt} times")),
            None => (Blame::Surroundings, format!("the step was interrupted {attempt} times")),
        };
        Failure { blame, reason, output: String::new() }
    }

    /// Records that the server takes traffic with the release.
    pub fn complete(&mut self) {
        self.confirm = None;
        self.blocked = false;
        if let Some(activation) = &mut self.local.activation {
            activation.progress = Progress::Complete;
        }
    }

    /// Records that the host restored the previous release on its own.
    pub fn undone(&mut self, reason: String) {
        self.confirm = None;
        self.blocked = false;
        if let Some(activation) = &mut self.local.activation {
            self.local.current.clone_from(&activation.previous);
            activation.progress = Progress::Undone { reason };
        }
    }

    /// The release that may return to traffic while the kill switch holds an activation: the next
    /// step may be hours away, and a drained server serves no traffic. Only in a wave, before the
    /// stop.
    #[must_use]
    pub fn undrain_to(&self) -> Option<&Release> {
        let activation = self.local.activation.as_ref()?;
        let between = matches!(activation.progress, Progress::Begun { .. } | Progress::Done { .. })
            && activation.drained()
            && !activation.left
            && !activation.stopped();
        activation.previous.as_ref().filter(|previous| {
            between
                && activation.order.purpose == Purpose::Wave
                && self.local.current.as_ref() == Some(*previous)
        })
    }

    /// Records that [`Self::undrain_to`] returned to traffic: the activation drains again later.
    pub fn undrained(&mut self) {
        self.blocked = false;
        self.confirm = None;
        self.later = None;
        if let Some(activation) = &mut self.local.activation {
            activation.progress = Progress::Done { step: Step::Prepare, attempt: 1 };
        }
    }

    /// Whether an activation has stopped the service and has yet to start it, or failed: then its
    /// steps start the service; the start of the agent does not. One that has started the service
    /// only looks at it from then on: if the machine has lost power since, nobody else would.
    #[must_use]
    pub fn under_way(&self) -> bool {
        self.local.activation.as_ref().is_some_and(|activation| match activation.progress {
            Progress::Begun { step: Step::Check | Step::WarmUp, .. }
            | Progress::Done { step: Step::Start | Step::Check | Step::WarmUp, .. }
            | Progress::GivenBack
            | Progress::Complete => false,
            Progress::Begun { .. }
            | Progress::Done { .. }
            | Progress::Failed { .. }
            | Progress::Undone { .. } => activation.stopped(),
        })
    }

    /// Whether the server may take traffic, as far as the record says.
    ///
    /// # Errors
    /// The reason why not.
    pub fn takes_traffic(&self) -> Result<(), NoTraffic> {
        let activation = self.local.activation.as_ref();
        let out = self.blocked || activation.is_some_and(LocalActivation::drained);
        match (&self.local.current, activation.map(|activation| &activation.progress)) {
            (_, Some(Progress::Failed { reason, .. })) if out => {
                Err(NoTraffic::Failed { reason: reason.clone() })
            }
            (None, _) => Err(NoTraffic::NothingInstalled),
            (Some(_), _) if out => Err(NoTraffic::Installing),
            (Some(_), _) => Ok(()),
        }
    }

    /// How long an answered request counts as contact, in milliseconds: `confirm_within`, since a
    /// release may cut its server off long after starting, but never less than a round of asking.
    #[must_use]
    pub fn reached_counts_ms(&self) -> u64 {
        let activation = self.local.activation.as_ref();
        activation.map_or(0, |known| known.order.confirm_within_ms).max(REACHED_MS_MIN)
    }

    /// Milliseconds until the confirmation is overdue; `None` if none is expected.
    #[must_use]
    pub fn confirm_left_ms(&self, now: BootTime<'_>) -> Option<u64> {
        let activation = self.local.activation.as_ref()?;
        let confirm = self.confirm.as_ref().filter(|c| c.fence == activation.order.fence)?;
        Some(activation.order.confirm_within_ms.saturating_sub(confirm.clock.ms(now)))
    }

    /// Milliseconds until the host may undo if the group is not reached again; `None` if no
    /// confirmation is expected or going back is impossible. A waiting step is interrupted then.
    #[must_use]
    pub fn undo_left_ms(&self, reached: Reached, now: BootTime<'_>) -> Option<u64> {
        self.local.activation.as_ref().filter(|activation| may_undo(activation))?;
        let confirm_left_ms = self.confirm_left_ms(now)?;
        Some(confirm_left_ms.max(reached.left_ms(now.ms, self.reached_counts_ms())))
    }

    /// What [`next_action`](super::next_action) needs besides the record and the orders.
    #[must_use]
    pub fn moment(&self, told: Told, reached: Reached, now: BootTime<'_>) -> Moment {
        Moment {
            orders_fresh: told.orders_fresh,
            killed: told.killed,
            confirmed: told.confirmed,
            reached_since_stop: reached.left_ms(now.ms, self.reached_counts_ms()) > 0,
            confirm_expired: self.confirm_left_ms(now) == Some(0),
        }
    }
}

/// Why an app on a server takes no traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoTraffic {
    /// No release is installed, or none was ordered.
    NothingInstalled,
    /// A release is being installed.
    Installing,
    /// A step or a running check failed.
    Failed { reason: String },
}

/// What the server knows from the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Told {
    /// The orders are still valid, by this server's clock.
    pub orders_fresh: bool,
    /// The kill switch is on, as far as this server knows.
    pub killed: bool,
    /// The group has acknowledged `Checked` for the current fence.
    pub confirmed: bool,
}

/// Whether the end of a step is reported to the group, and must therefore be persisted first.
#[must_use]
pub fn reported_when_done(step: Step) -> bool {
    matches!(step, Step::Start | Step::Check)
}

/// Pause before a step is retried, in milliseconds: 500, doubled with each attempt, at most 30,000.
#[must_use]
pub fn back_off_ms(attempt: u32) -> u64 {
    (500_u64 << attempt.saturating_sub(1).min(6)).min(30_000)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
#[path = "record_test.rs"]
mod record_test;
