//! The log as it is read: base, entries, snapshot, hard state; and the batch that changes it.

use std::collections::VecDeque;

use crate::{Entry, HardState, Index, Snapshot, StoreError, Term};

/// What a member has on its disk, held in memory.
///
/// ```text
///   cut off      │ kept behind the snapshot │ after the snapshot
///   …        base│base+1  …   snapshot.index│ …            last
/// ```
///
/// Entries behind the snapshot are kept for members that are only a little late, so that they
/// need no snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub(crate) hard_state: HardState,
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) base: (Index, Term),
    pub(crate) entries: VecDeque<Entry>,
    pub(crate) entries_bytes: usize,
}

/// One durable transaction. The parts take effect in this order: snapshot, entries, hard state,
/// cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// A snapshot that replaces the whole log (`replace_log`), or is taken of it.
    pub snapshot: Option<Snapshot>,
    /// Whether the snapshot came from the leader and everything before it is void.
    pub replace_log: bool,
    /// Entries to append; those that are stored at or after the first of them are dropped first.
    pub entries: Vec<Entry>,
    /// The new hard state.
    pub hard_state: Option<HardState>,
    /// Drop the entries up to and including this position, at most up to the snapshot's.
    pub cut: Option<Index>,
}

impl Batch {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.snapshot.is_none()
            && self.entries.is_empty()
            && self.hard_state.is_none()
            && self.cut.is_none()
    }
}

impl Image {
    /// The member's term, vote and commit position.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// The newest snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// The last position that was cut off, and its term; (0, 0) at the very beginning.
    #[must_use]
    pub fn base(&self) -> (Index, Term) {
        self.base
    }

    /// The first position that is stored, or would be.
    #[must_use]
    pub fn first_index(&self) -> Index {
        self.base.0.next()
    }

    /// The last position that is stored; [`base`](Self::base) when none is.
    #[must_use]
    pub fn last_index(&self) -> Index {
        self.entries.back().map_or(self.base.0, |entry| entry.index)
    }

    /// The term at a position between the base and the last, both included.
    #[must_use]
    pub fn term(&self, index: Index) -> Option<Term> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        self.entry(index).map(|entry| entry.term)
    }

    /// The entry at a position.
    #[must_use]
    pub fn entry(&self, index: Index) -> Option<&Entry> {
        let at = index.0.checked_sub(self.base.0.0 + 1)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    /// The entries from `low` to before `high`, as far as they are stored.
    pub fn entries(&self, low: Index, high: Index) -> impl Iterator<Item = &Entry> {
        (low.0.max(self.base.0.0 + 1)..high.0).map_while(|index| self.entry(Index(index)))
    }

    /// How many entries are stored.
    #[must_use]
    pub fn entries_count(&self) -> usize {
        self.entries.len()
    }

    /// How many bytes of data the stored entries carry.
    #[must_use]
    pub fn entries_bytes(&self) -> usize {
        self.entries_bytes
    }

    /// Whether the batch can be applied.
    pub(crate) fn check(&self, batch: &Batch) -> Result<(), StoreError> {
        let bad = |what: String| Err(StoreError::BadBatch { what });
        let (mut base, mut last) = (self.base.0, self.last_index());
        let mut snapshot_index = self.snapshot.as_ref().map_or(Index(0), |s| s.index);
        if let Some(snapshot) = &batch.snapshot {
            if snapshot.index < snapshot_index {
                return bad(format!("snapshot {} is older than {snapshot_index}", snapshot.index));
            }
            snapshot_index = snapshot.index;
            if batch.replace_log {
                (base, last) = (snapshot.index, snapshot.index);
            } else if self.term(snapshot.index) != Some(snapshot.term) {
                return bad(format!("snapshot {} is of no stored entry", snapshot.index));
            }
        }
        if let Some(first) = batch.entries.first() {
            if first.index <= base || first.index > last.next() {
                return bad(format!("entry {} does not follow ({base}, {last}]", first.index));
            }
            if batch.entries.windows(2).any(|pair| pair[1].index != pair[0].index.next()) {
                return bad("entries are not consecutive".to_owned());
            }
            last = first.index;
            last.0 += batch.entries.len() as u64 - 1;
        }
        if let Some(cut) = batch.cut {
            if cut > snapshot_index || cut > last {
                return bad(format!("cut {cut} is beyond the snapshot {snapshot_index}"));
            }
            if batch.replace_log || !batch.entries.is_empty() {
                return bad("a cut together with new entries".to_owned());
            }
        }
        Ok(())
    }

    /// The base and the last position as they will be after a batch that was checked.
    pub(crate) fn bounds_after(&self, batch: &Batch) -> ((Index, Term), Index) {
        let (mut base, mut last) = (self.base, self.last_index());
        if let (Some(snapshot), true) = (&batch.snapshot, batch.replace_log) {
            base = (snapshot.index, snapshot.term);
            last = snapshot.index;
        }
        if let Some(entry) = batch.entries.last() {
            last = entry.index;
        }
        if let Some(cut) = batch.cut
            && let Some(term) = self.term(cut)
        {
            base = (cut, term);
        }
        (base, last)
    }

    /// Applies a batch that was checked.
    pub(crate) fn apply(&mut self, batch: &Batch) {
        if let Some(snapshot) = &batch.snapshot {
            if batch.replace_log {
                self.entries.clear();
                self.entries_bytes = 0;
                self.base = (snapshot.index, snapshot.term);
            }
            self.snapshot = Some(snapshot.clone());
        }
        if let Some(first) = batch.entries.first() {
            while self.last_index() >= first.index {
                self.forget(VecDeque::pop_back);
            }
        }
        for entry in &batch.entries {
            self.entries_bytes += entry.data.len();
            self.entries.push_back(entry.clone());
        }
        if let Some(hard_state) = batch.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(cut) = batch.cut
            && let Some(term) = self.term(cut)
        {
            while self.first_index() <= cut && !self.entries.is_empty() {
                self.forget(VecDeque::pop_front);
                self.base.0 = self.base.0.next();
            }
            self.base = (cut, term);
        }
    }

    fn forget(&mut self, pop: fn(&mut VecDeque<Entry>) -> Option<Entry>) {
        if let Some(entry) = pop(&mut self.entries) {
            self.entries_bytes -= entry.data.len();
        }
    }

    /// Whether the parts fit each other, as they must in every store that is opened.
    pub(crate) fn check_whole(&self) -> Result<(), String> {
        let mut before = self.base.0;
        for entry in &self.entries {
            if entry.index != before.next() {
                return Err(format!("entry {} follows entry {before}", entry.index));
            }
            before = entry.index;
        }
        let snapshot = self.snapshot.as_ref().map_or(Index(0), |s| s.index);
        if snapshot < self.base.0 {
            return Err(format!(
                "snapshot {snapshot} is older than the log's base {}",
                self.base.0
            ));
        }
        if let Some(s) = &self.snapshot
            && self.term(s.index) != Some(s.term)
        {
            return Err(format!("snapshot {snapshot} does not match the log"));
        }
        let commit = self.hard_state.commit;
        if commit < snapshot || commit > before {
            return Err(format!("commit {commit} is outside [{snapshot}, {before}]"));
        }
        Ok(())
    }
}
