//! Membership changes: one joint change at a time.
//!
//! ```text
//!   change_membership            drive_membership, on the leader
//!   old ──────────────▶ joint ───────────────────────────────────▶ new
//!        enter applied   │  leader is in the new half: leave        leave applied
//!                        └─ it is not: it transfers leadership first
//! ```

use std::collections::BTreeSet;

use cohort_store::{Index, LogStore, RaftId};
use raft::StateRole;

use crate::convert::{Change, Part};
use crate::{MembershipError, Node};

impl<S: LogStore> Node<S> {
    /// Starts to change the members to `voters` and `standbys`; only the leader can.
    ///
    /// The change is joint: from its first entry on, every decision needs a majority of the old and
    /// of the new voters, until the second entry ends it. The leader completes it on its own, even
    /// after a change of leaders; a leader that is not among `voters` transfers leadership first.
    /// The change is done when [`Effects::configuration`](crate::Effects::configuration) shows it,
    /// on the remaining members; a removed member may never learn of it.
    ///
    /// A new voter must be a standby whose log has caught up, and a majority of the voters must
    /// have been heard from: without one, the change would be the group's last decision.
    ///
    /// # Errors
    /// If the change did not start. `Ok` does not mean that it will complete: a new leader can undo
    /// a change that is not committed yet.
    pub fn change_membership(
        &mut self,
        voters: &BTreeSet<RaftId>,
        standbys: &BTreeSet<RaftId>,
    ) -> Result<(), MembershipError> {
        if self.stopped() {
            return Err(MembershipError::Stopped);
        }
        if self.raw.raft.state != StateRole::Leader {
            return Err(MembershipError::NotLeader { leader: self.leader() });
        }
        self.check_possible(voters, standbys)?;
        // Trap: a second change becomes an empty entry without an error.
        if self.configuration.is_joint() || self.raw.raft.has_pending_conf() {
            return Err(MembershipError::InProgress);
        }
        let steps = self.steps_to(voters, standbys);
        if steps.is_empty() {
            return Ok(());
        }
        for (part, id) in &steps {
            if *part == Part::Voter {
                self.check_caught_up(*id)?;
            }
        }
        self.check_majority(voters)?;
        self.propose_change(&Change::Enter(steps))
    }

    /// On the leader: the members that could become voters now.
    #[must_use]
    pub fn caught_up(&self) -> BTreeSet<RaftId> {
        let members = self.configuration.members();
        members.into_iter().filter(|id| self.check_caught_up(*id).is_ok()).collect()
    }

    fn check_possible(
        &self,
        voters: &BTreeSet<RaftId>,
        standbys: &BTreeSet<RaftId>,
    ) -> Result<(), MembershipError> {
        let limits = &self.config.limits;
        let problem = if voters.is_empty() {
            "a group needs a voter"
        } else if voters.contains(&RaftId(0)) || standbys.contains(&RaftId(0)) {
            "0 is not a valid member number"
        } else if voters.intersection(standbys).next().is_some() {
            "a member is both voter and standby"
        } else if voters.len() > limits.voters_max {
            "too many voters"
        } else if standbys.len() > limits.standbys_max {
            "too many standbys"
        } else {
            return Ok(());
        };
        Err(MembershipError::Invalid(problem))
    }

    fn check_caught_up(&self, id: RaftId) -> Result<(), MembershipError> {
        let raft = &self.raw.raft;
        let Some(progress) = raft.prs().get(id.0) else {
            return Err(MembershipError::NotAStandby { id });
        };
        if self.is_silent(id) {
            return Err(MembershipError::Silent { id });
        }
        let (matched, committed) = (Index(progress.matched), Index(raft.raft_log.committed));
        if matched.0 + self.config.limits.promote_lag_entries_max < committed.0 || matched.0 == 0 {
            return Err(MembershipError::Behind { id, matched, committed });
        }
        Ok(())
    }

    fn check_majority(&self, voters: &BTreeSet<RaftId>) -> Result<(), MembershipError> {
        let heard = |id: &&RaftId| **id == self.config.id || !self.is_silent(**id);
        let (heard, voters) = (voters.iter().filter(heard).count(), voters.len());
        if heard <= voters / 2 {
            return Err(MembershipError::NoMajority { heard, voters });
        }
        Ok(())
    }

    fn steps_to(
        &self,
        voters: &BTreeSet<RaftId>,
        standbys: &BTreeSet<RaftId>,
    ) -> Vec<(Part, RaftId)> {
        let now = &self.configuration;
        let voting = voters.difference(&now.voters).map(|id| (Part::Voter, *id));
        let standing = standbys.difference(&now.standbys).map(|id| (Part::Standby, *id));
        let gone = now
            .members()
            .into_iter()
            .filter(|id| !voters.contains(id) && !standbys.contains(id))
            .map(|id| (Part::Removed, id));
        voting.chain(standing).chain(gone).collect()
    }

    fn propose_change(&mut self, change: &Change) -> Result<(), MembershipError> {
        let library = change.to_library();
        match self.library(|raw| raw.propose_conf_change(Vec::new(), library)) {
            None => Err(MembershipError::Stopped),
            Some(Err(_)) => Err(MembershipError::Busy),
            Some(Ok(())) => Ok(()),
        }
    }

    /// Ends the joint phase, or transfers leadership so that another leader can.
    pub(crate) fn drive_membership(&mut self) {
        let leads = !self.stopped() && self.raw.raft.state == StateRole::Leader;
        if !leads || !self.configuration.is_joint() || self.raw.raft.has_pending_conf() {
            return;
        }
        let stays = self.configuration.voters.contains(&self.config.id);
        if stays || self.config.weaken.no_step_down {
            // Refused during a leadership transfer; the next tick retries.
            let _ = self.propose_change(&Change::Leave);
        } else if self.raw.raft.lead_transferee.is_none() {
            // If no other voter can take over, nothing can be done here: without a majority of the
            // new voters the change cannot end either.
            let _ = self.hand_over();
        }
    }
}
