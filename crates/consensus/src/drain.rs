//! The order of effects: durable first, then messages and entries to apply.

use cohort_store::{Batch, Index, LogStore, RaftId, Snapshot, Term};
use raft::{SnapshotStatus, StateRole, eraftpb};

use crate::effects::{Committed, Effects, InstalledSnapshot};
use crate::{Message, Node, NodeError, Role, convert};

impl<S: LogStore> Node<S> {
    /// Persists everything since the last drain, and returns what the owner has to do.
    ///
    /// # Errors
    /// The member has stopped and the process must exit. It has acknowledged nothing beyond what it
    /// returned.
    pub fn drain(&mut self) -> Result<Effects, NodeError> {
        self.settle();
        self.drive_membership();
        self.settle();
        self.write_proof();
        self.failure()?;
        let mut effects = std::mem::take(&mut self.effects);
        effects.applied = self.applied;
        effects.reads_ready = self.reads.ready(self.applied);
        let raft = &self.raw.raft;
        let role = (Role::from(raft.state), Term(raft.term), self.leader());
        if role != self.role_seen {
            self.role_seen = role;
            effects.role_changed = Some(role);
        }
        let view = self.raw.store();
        let snapshot = view.store.image().snapshot().map_or(Index(0), |s| s.index);
        effects.snapshot_wanted = self.proof.proven()
            && (view.snapshot_wanted.get()
                || self.applied.0 - snapshot.0 >= self.config.limits.entries_before_snapshot);
        Ok(effects)
    }

    /// Handles everything that the library has ready. Returns whether the member still runs.
    pub(crate) fn settle(&mut self) -> bool {
        while !self.stopped() && self.raw.has_ready() {
            if let Err(error) = self.settle_one() {
                self.fail(error);
            }
        }
        !self.stopped()
    }

    /// One step of the library: one durable transaction, then its effects.
    fn settle_one(&mut self) -> Result<(), NodeError> {
        let stopped = || NodeError::Stopped;
        let mut ready = self.library(|raw| raw.ready()).ok_or_else(stopped)?;

        // 1. Persist, as one transaction.
        let mut batch = Batch::default();
        if let Some(state) = ready.hs() {
            self.hard_state = convert::hard_state_out(state);
        }
        let entries = ready.entries().iter().map(convert::entry_out).collect::<Result<_, _>>();
        batch.entries = entries.map_err(NodeError::Library)?;
        if !ready.snapshot().is_empty() {
            batch.snapshot = Some(convert::snapshot_out(ready.snapshot()));
            batch.replace_log = true;
        }
        let stored = self.store().image().hard_state();
        let vote_changed =
            (stored.term, stored.vote) != (self.hard_state.term, self.hard_state.vote);
        // The commit position alone is not worth a sync: any leader can recompute it.
        if vote_changed || !batch.is_empty() {
            batch.hard_state = Some(self.hard_state);
            batch.marks = self.marks_due();
            self.raw.mut_store().store.write(&batch).map_err(NodeError::Store)?;
        }

        // 2. Collect the library's output from before and after the write.
        for state in ready.take_read_states() {
            if let Some(read) = convert::read_out(&state.request_ctx) {
                self.reads.answer(read, Index(state.index));
            }
        }
        let mut messages = ready.take_messages();
        messages.append(&mut ready.take_persisted_messages());
        let mut committed = ready.take_committed_entries();
        // Not `advance`, which reports entries as applied too early: the membership changes among
        // them take effect below, one by one.
        let mut light = self.library(|raw| raw.advance_append(ready)).ok_or_else(stopped)?;
        if let Some(commit) = light.commit_index() {
            self.hard_state.commit = Index(commit);
        }
        messages.append(&mut light.take_messages());
        committed.append(&mut light.take_committed_entries());

        // 3. A snapshot replaces all earlier entries to apply.
        if let Some(snapshot) = batch.snapshot {
            self.install(snapshot);
        }

        // 4. Address and number the messages.
        for message in &messages {
            self.send(message);
        }

        // 5. Apply the committed entries.
        for entry in committed {
            self.apply(&entry)?;
        }
        let applied = self.applied.0;
        self.library(|raw| raw.advance_apply_to(applied)).ok_or_else(stopped)
    }

    fn install(&mut self, snapshot: Snapshot) {
        let Snapshot { index, term, configuration, data } = snapshot;
        self.applied = index;
        self.raw.mut_store().configuration_index = index;
        self.configuration = configuration.clone();
        self.effects.configuration = Some(configuration);
        self.effects.committed.clear();
        self.effects.installed_snapshot = Some(InstalledSnapshot { index, term, data });
    }

    fn send(&mut self, message: &eraftpb::Message) {
        let to = RaftId(message.to);
        let Ok(said) = convert::message_out(message) else { return };
        let is_snapshot = matches!(said, Message::Snapshot { .. });
        if !self.proof.is_introduced(to) {
            self.introduce_for(to, said);
            if is_snapshot {
                self.library(|raw| raw.report_snapshot(to.0, SnapshotStatus::Failure));
            }
            return;
        }
        if is_snapshot {
            self.snapshots_sent.insert(to, self.clock);
        }
        self.post(to, said);
    }

    fn apply(&mut self, entry: &eraftpb::Entry) -> Result<(), NodeError> {
        self.applied = Index(entry.index);
        match entry.get_entry_type() {
            eraftpb::EntryType::EntryNormal => {
                if !entry.get_data().is_empty() {
                    self.effects.committed.push(Committed {
                        index: Index(entry.index),
                        term: Term(entry.term),
                        data: entry.get_data().to_vec(),
                    });
                }
                Ok(())
            }
            eraftpb::EntryType::EntryConfChange | eraftpb::EntryType::EntryConfChangeV2 => {
                let change = convert::change_in(entry).map_err(NodeError::Library)?.to_library();
                // An error means that the change does not fit the membership. Every member gets the
                // same error, and none applies it.
                let applied =
                    self.library(|raw| raw.apply_conf_change(&change)).ok_or(NodeError::Stopped)?;
                if let Ok(state) = applied {
                    // Durable before anyone hears of it: who has left may be switched off, and a
                    // member that forgot the commit would wait for its vote forever. At a start it
                    // is durable already, and a member that is not proven must not write.
                    let durable = self.store().image().hard_state().commit;
                    if durable < Index(entry.index) {
                        let hard_state = Some(self.hard_state);
                        let batch = Batch { hard_state, ..Batch::default() };
                        self.raw.mut_store().store.write(&batch).map_err(NodeError::Store)?;
                    }
                    self.configuration = convert::configuration_out(&state);
                    self.effects.configuration = Some(self.configuration.clone());
                }
                self.raw.mut_store().configuration_index = self.applied;
                self.step_down_if_no_voter();
                Ok(())
            }
        }
    }

    /// Trap: in the library, a leader that is no longer a voter stays leader, and panics later.
    fn step_down_if_no_voter(&mut self) {
        let zombie = self.raw.raft.state == StateRole::Leader
            && !self.configuration.is_voter(self.config.id);
        if zombie && !self.config.weaken.no_step_down {
            self.library(|raw| {
                let term = raw.raft.term;
                raw.raft.become_follower(term, raft::INVALID_ID);
            });
        }
    }
}
