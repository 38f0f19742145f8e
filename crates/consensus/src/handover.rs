//! Handing over before a clean stop.

use cohort_store::{Index, LogStore, RaftId};
use raft::StateRole;

use crate::{Node, TransferError};

impl<S: LogStore> Node<S> {
    /// Hands leadership over to the best prepared voter: the reachable one with the longest log.
    /// Returns its number.
    ///
    /// # Errors
    /// When it was not begun; [`TransferError::NobodyElse`] for a group of one.
    pub fn hand_over(&mut self) -> Result<RaftId, TransferError> {
        if self.raw.raft.state != StateRole::Leader {
            return Err(TransferError::NotLeader { leader: self.leader() });
        }
        let matched = |id: RaftId| self.raw.raft.prs().get(id.0).map_or(0, |p| p.matched);
        let best = self
            .configuration
            .voters
            .iter()
            .copied()
            .filter(|id| *id != self.config.id && !self.is_silent(*id))
            .max_by_key(|id| (Index(matched(*id)), std::cmp::Reverse(*id)))
            .ok_or(TransferError::NobodyElse)?;
        self.transfer_leadership(best).map(|()| best)
    }
}

/// A hand-over before the process stops; poll it after every tick.
///
/// ```text
///   begin ──▶ Waiting { to } ──▶ Done        this member does not lead (any more)
///                  │
///                  └──────────▶ GaveUp       nobody could take over, or time is up
/// ```
///
/// The process may stop in either end state; after *gave up* the group waits out an election
/// timeout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handover {
    /// Leadership is being handed over.
    Waiting {
        /// The member to take over, once chosen.
        to: Option<RaftId>,
        /// Ticks left.
        ticks_left: u32,
    },
    /// This member does not lead.
    Done,
    /// It still leads, and may stop anyway.
    GaveUp {
        /// Why.
        reason: TransferError,
    },
}

impl Handover {
    /// Begins to hand over, and gives up after `ticks_max` ticks.
    pub fn begin<S: LogStore>(node: &mut Node<S>, ticks_max: u32) -> Self {
        Handover::Waiting { to: None, ticks_left: ticks_max }.step(node)
    }

    /// One tick later. A failed attempt is repeated, perhaps with another member.
    pub fn poll<S: LogStore>(&mut self, node: &mut Node<S>) -> &Self {
        if let Handover::Waiting { to, ticks_left } = *self {
            let later = Handover::Waiting { to, ticks_left: ticks_left.saturating_sub(1) };
            *self = later.step(node);
        }
        self
    }

    /// Whether the process may stop.
    #[must_use]
    pub fn is_over(&self) -> bool {
        !matches!(self, Handover::Waiting { .. })
    }

    fn step<S: LogStore>(self, node: &mut Node<S>) -> Self {
        let Handover::Waiting { ticks_left, .. } = self else { return self };
        let status = node.status();
        if !status.is_leader() {
            return Handover::Done;
        }
        if status.configuration.voters.len() < 2 {
            return Handover::GaveUp { reason: TransferError::NobodyElse };
        }
        let attempt = match status.transfer {
            Some(to) => Ok(to),
            None => node.hand_over(),
        };
        match attempt {
            Err(reason) if ticks_left == 0 => Handover::GaveUp { reason },
            Ok(to) if ticks_left == 0 => Handover::GaveUp { reason: TransferError::Silent(to) },
            attempt => Handover::Waiting { to: attempt.ok(), ticks_left },
        }
    }
}
