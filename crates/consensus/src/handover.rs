//! Transferring leadership before a clean stop.

use cohort_store::{Index, LogStore, RaftId};
use raft::StateRole;

use crate::{Node, TransferError};

impl<S: LogStore> Node<S> {
    /// Transfers leadership to the best candidate: the reachable voter with the longest log.
    /// Returns its number.
    ///
    /// # Errors
    /// If the transfer did not start; [`TransferError::NobodyElse`] for a group of one.
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

/// A leadership transfer before the process stops; poll it after every tick.
///
/// It ends when this member is not (or no longer) the leader, when no other voter can take over, or
/// when time is up. In the last case the group waits out an election timeout.
#[derive(Debug)]
pub struct Handover {
    ticks_left: u32,
    is_over: bool,
}

impl Handover {
    /// Starts the transfer; gives up after `ticks_max` ticks.
    pub fn begin<S: LogStore>(node: &mut Node<S>, ticks_max: u32) -> Self {
        let mut handover = Handover { ticks_left: ticks_max, is_over: false };
        handover.step(node);
        handover
    }

    /// One tick has passed. Retries a failed attempt, perhaps with another member.
    pub fn poll<S: LogStore>(&mut self, node: &mut Node<S>) {
        self.ticks_left = self.ticks_left.saturating_sub(1);
        self.step(node);
    }

    /// Whether the process may stop.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    fn step<S: LogStore>(&mut self, node: &mut Node<S>) {
        let raft = &node.raw.raft;
        let alone = node.configuration.voters.len() < 2;
        if self.is_over || raft.state != StateRole::Leader || alone {
            self.is_over = true;
            return;
        }
        if raft.lead_transferee.is_none() {
            // Why it did not start does not matter: the next tick retries.
            let _ = node.hand_over();
        }
        self.is_over = self.ticks_left == 0;
    }
}
