//! Taking snapshots, and compacting the log behind them.

use cohort_store::{Batch, Index, LogStore, Snapshot, Term};

use crate::{CompactError, Node, NodeError};

impl<S: LogStore> Node<S> {
    /// Stores the owner's state as of `applied` and drops the entries that are no longer needed.
    ///
    /// The state must reflect exactly the entries up to `applied`: the
    /// [`Effects::applied`](crate::Effects::applied) of the last drain, once all of it is applied.
    ///
    /// # Errors
    /// If no snapshot was taken. Only [`CompactError::Stopped`] is serious; the next
    /// [`drain`](Node::drain) returns its cause.
    pub fn compact(&mut self, applied: Index, state: Vec<u8>) -> Result<(), CompactError> {
        if self.stopped() {
            return Err(CompactError::Stopped);
        }
        if !self.proof.proven() {
            return Err(CompactError::Unproven);
        }
        let (bytes, limit) = (state.len(), self.config.limits.snapshot_bytes_max);
        if bytes > limit {
            return Err(CompactError::TooLarge { bytes, limit });
        }
        if applied > self.applied {
            return Err(CompactError::NotApplied { asked: applied, applied: self.applied });
        }
        // Trap: a snapshot older than the last membership change. We know the membership as of
        // `applied` only if it has not changed since.
        let changed = self.raw.store().configuration_index;
        if applied < changed {
            return Err(CompactError::BeforeMembershipChange { asked: applied, changed });
        }
        let image = self.store().image();
        let found = image.snapshot().map_or(Index(0), |s| s.index);
        if applied <= found {
            return Err(CompactError::Old { found, asked: applied });
        }
        let term = image.term(applied).unwrap_or(Term(0));
        let mut hard_state = image.hard_state();
        hard_state.commit = hard_state.commit.max(applied);
        let cut = Index(applied.0.saturating_sub(self.config.limits.retained_entries));
        let batch = Batch {
            snapshot: Some(Snapshot {
                index: applied,
                term,
                configuration: self.configuration.clone(),
                data: state,
            }),
            // Applied entries are committed; the stored commit position may lag.
            hard_state: Some(hard_state),
            cut: (cut > image.base().0).then_some(cut),
            ..Batch::default()
        };
        let view = self.raw.mut_store();
        if let Err(error) = view.store.write(&batch) {
            self.fail(NodeError::Store(error));
            return Err(CompactError::Stopped);
        }
        view.snapshot_wanted.set(false);
        Ok(())
    }
}
