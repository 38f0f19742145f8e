//! When a running step is interrupted.

use cohort_core::ids::AppId;
use cohort_core::orders::Fence;
use cohort_core::steps::StepAction;

use super::Sight;
use crate::asking::Received;

/// A running step, or a wait of the host: when it is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    fence: Fence,
    /// When the host may go back on its own, unless the group is heard again; and how long that
    /// contact counts. `None` if it does not go back.
    undo: Option<(u64, u64)>,
    begun_ms: u64,
}

impl Running {
    /// The action starts now.
    pub(super) fn new(action: &StepAction, sight: &Sight<'_>) -> Running {
        let known = sight.record.local.activation.as_ref().map(|a| a.order.fence);
        let (fence, undoing) = match action {
            StepAction::Accept { order, .. } | StepAction::GiveBack { order } => {
                (order.fence, false)
            }
            StepAction::Undo { .. } => (known.unwrap_or_default(), true),
            StepAction::Run { .. }
            | StepAction::GiveUp { .. }
            | StepAction::Complete
            | StepAction::Settled
            | StepAction::Wait(_) => (known.unwrap_or_default(), false),
        };
        // A change that the group has confirmed is not undone.
        let confirmed = known.is_some() && sight.confirmed == known;
        let left_ms =
            sight.record.undo_left_ms(sight.reached, sight.now).filter(|_| !undoing && !confirmed);
        let undo =
            left_ms.map(|left_ms| (sight.now.ms + left_ms, sight.record.reached_counts_ms()));
        Running { fence, undo, begun_ms: sight.now.ms }
    }

    /// Traffic is returned until something newer is ordered.
    pub(super) fn undraining(sight: &Sight<'_>) -> Running {
        let known = sight.record.local.activation.as_ref().map(|a| a.order.fence);
        let ordered = sight.orders.and_then(|o| o.activation.as_ref()).map(|order| order.fence);
        let fence = known.max(ordered).unwrap_or_default();
        Running { fence, undo: None, begun_ms: sight.now.ms }
    }

    /// When it is interrupted, by the boot-time clock in milliseconds: 0 for immediately, `None`
    /// for never. `received` are the latest orders.
    #[must_use]
    pub fn interrupted_at_ms(&self, app: &AppId, received: Option<&Received>) -> Option<u64> {
        let ordered = received.and_then(|received| received.of(app)?.activation.as_ref());
        if ordered.is_some_and(|order| order.fence > self.fence) {
            return Some(0);
        }
        let (undo_ms, counts_ms) = self.undo?;
        let asked_ms = received.map(|received| received.asked_ms);
        let heard_ms = asked_ms.filter(|asked_ms| *asked_ms >= self.begun_ms);
        Some(heard_ms.map_or(undo_ms, |asked_ms| undo_ms.max(asked_ms + counts_ms)))
    }
}
