//! What a member does with its node's output: send, apply, answer.

use std::sync::Arc;

use cohort_consensus::{Committed, Effects, Index, LogStore, RaftId, ReadId, Role, Term};
use cohort_core::command::COMMAND_VERSION;
use cohort_core::phase::PhaseName;
use cohort_core::shared::Shared;
use cohort_core::state::HistoryEntry;
use cohort_core::{Body, Command, Event, State};

use super::{Member, MemberError, Note, Output, Proposed, TransferFailure, Unreadable};

impl<S: LogStore> Member<S> {
    /// Compacts the log up to a snapshot, which may be some entries old by now.
    pub(super) fn compact(&mut self, index: Index, data: Vec<u8>) {
        self.compacting = false;
        if let Err(error) = self.node.compact(index, data) {
            self.outputs.push(Output::Noted(Note::NotCompacted(error)));
        }
    }

    pub(super) fn apply(&mut self, now_ms: u64, effects: Effects) -> Result<(), MemberError> {
        let Effects {
            installed_snapshot,
            committed,
            applied,
            configuration,
            reads_ready,
            role_changed,
            messages,
            snapshot_wanted,
        } = effects;
        // What they promise has been persisted.
        self.outputs.extend(messages.into_iter().map(Output::Send));
        if let Some(snapshot) = installed_snapshot {
            self.restore(snapshot.index.0, &snapshot.data)?;
            self.leading.clock_was_set(now_ms);
        }
        for entry in committed {
            self.apply_one(now_ms, &entry)?;
        }
        if configuration.is_some() {
            self.leading.state_changed();
            self.changed = true;
        }
        if let Some((role, term, leader)) = role_changed {
            self.role_changed(now_ms, role, term, leader);
        }
        if !self.announced && self.node.leads() {
            self.announced = true;
            let term = self.node.status().term;
            self.outputs.push(Output::Noted(Note::Leads { term }));
            self.changed = true;
        }
        if applied.0 != self.shown {
            // Entries without a command count too (such as a new leader's first one): this member's
            // progress must not look old while the group is idle.
            self.shown = applied.0;
            self.changed = true;
        }
        if snapshot_wanted && !self.compacting {
            self.compacting = true;
            let (index, state) = (applied.0, Arc::clone(&self.state));
            self.outputs.push(Output::Compact { index, state });
        }
        self.answer_reads(reads_ready.into_iter().map(|(id, _)| id));
        Ok(())
    }

    fn restore(&mut self, index: u64, data: &[u8]) -> Result<(), MemberError> {
        let state: State = serde_json::from_slice(data)
            .map_err(|source| MemberError::UnknownSnapshot { index, source })?;
        state.check().map_err(|reason| MemberError::Broken { index, reason })?;
        self.state = Arc::new(state);
        self.survey = Arc::default();
        self.changed = true;
        self.outputs.push(Output::Restored { index });
        Ok(())
    }

    fn apply_one(&mut self, now_ms: u64, entry: &Committed) -> Result<(), MemberError> {
        let index = entry.index.0;
        let unknown = |source| MemberError::UnknownEntry { index, source };
        let command: Command = serde_json::from_slice(&entry.data)
            .map_err(|error| unknown(Unreadable::Encoding(error)))?;
        if command.version != COMMAND_VERSION {
            return Err(unknown(Unreadable::Version(command.version)));
        }
        self.survey = Arc::default();
        let state = Arc::make_mut(&mut self.state);
        let outcome = state.apply(&command);
        if cfg!(debug_assertions) {
            state.check().map_err(|reason| MemberError::Broken { index, reason })?;
        }
        let rejection = match outcome {
            Ok(events) => {
                for event in events {
                    let ended = ended(&self.state, &event);
                    self.outputs.push(Output::Happened { index, event, ended });
                }
                None
            }
            Err(rejection) => {
                let (command, rejection_) = (command.body.name(), rejection.clone());
                let note = Note::Rejected { index, command, rejection: rejection_ };
                self.outputs.push(Output::Noted(note));
                Some(rejection)
            }
        };
        if let Some((term, ticket)) = self.proposals.remove(&index) {
            // Another entry at the position: the proposal was lost.
            let outcome = if term == entry.term {
                Proposed::Done { index, rejection }
            } else {
                Proposed::Unknown
            };
            self.outputs.push(Output::Answer { ticket, outcome });
        }
        // This leader counted its own proposals when it made them.
        if matches!(command.body, Body::AdvanceClock { .. }) && self.led != Some(entry.term) {
            self.leading.clock_was_set(now_ms);
        }
        self.leading.state_changed();
        self.changed = true;
        Ok(())
    }

    fn role_changed(&mut self, now_ms: u64, role: Role, term: Term, leader: Option<RaftId>) {
        self.outputs.push(Output::Noted(Note::Role { role, term, leader }));
        self.changed = true;
        self.waiting = Shared::default();
        self.announced = false;
        // The leader that was to answer them may be gone.
        if let Some((_, _, readers)) = self.reading.take() {
            self.next_readers.extend(readers);
        }
        let leads = role == Role::Leader;
        self.led = leads.then_some(term);
        if leads {
            self.leading.began(now_ms);
            self.end_old_transfer();
        } else {
            self.leading.ended();
        }
        // It is unknown whether an earlier leader's proposals were kept.
        let lost = |_: &u64, (of, _): &mut (Term, _)| !leads || *of != term;
        for (_, (_, ticket)) in self.proposals.extract_if(.., lost) {
            self.outputs.push(Output::Answer { ticket, outcome: Proposed::Unknown });
        }
    }

    /// A leader that was to transfer leadership, and is elected again: no other took over. It plans
    /// only if no transfer is open.
    fn end_old_transfer(&mut self) {
        if self.node.status().transfer.is_none()
            && let Some((ticket, _)) = self.transfer.take()
        {
            let outcome = Err(TransferFailure::TimedOut);
            self.outputs.push(Output::Transferred { ticket, outcome });
        }
    }

    fn answer_reads(&mut self, mut ready: impl Iterator<Item = ReadId>) {
        let Some((id, _, _)) = &self.reading else { return };
        if ready.any(|read| read == *id)
            && let Some((_, _, readers)) = self.reading.take()
        {
            if self.changed {
                self.publish();
            }
            let answer =
                |reader: super::Reader| Output::Read { ticket: reader.ticket, fresh: true };
            self.outputs.extend(readers.into_iter().map(answer));
        }
    }
}

/// The history entry that an event created.
fn ended(state: &State, event: &Event) -> Option<Box<HistoryEntry>> {
    match event {
        Event::PhaseChanged { app, to: PhaseName::Running | PhaseName::Held, .. } => {
            state.apps.get(app)?.history.last().cloned().map(Box::new)
        }
        _ => None,
    }
}
