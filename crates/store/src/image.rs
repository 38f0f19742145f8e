//! The log in memory (base, entries, snapshot, hard state), and the batch that changes it.

use std::collections::{BTreeMap, VecDeque};

use borsh::BorshDeserialize;

use crate::encoding::{DecodeError, seal, unseal};
use crate::error::StoreError;
use crate::types::{Entry, HardState, Index, Mark, RaftId, Snapshot, Term};

pub(crate) const KEY_HARD_STATE: &str = "hard-state";
pub(crate) const KEY_SNAPSHOT: &str = "snapshot";
pub(crate) const KEY_BASE: &str = "base";
pub(crate) const KEY_WRITTEN: &str = "written";
pub(crate) const KEY_MARKS: &str = "marks";

/// A durable log: the newest snapshot, the entries after it, and the member's vote.
///
/// All reads come from the [`Image`] in memory, which holds exactly what the store reported as
/// durable. Snapshots keep the log short enough for that.
pub trait LogStore {
    /// The durable state as of the last successful [`write`](Self::write).
    fn image(&self) -> &Image;

    /// Persists the batch as one transaction; afterwards [`image`](Self::image) shows it.
    ///
    /// # Errors
    /// [`StoreError::Write`] if the batch may not be durable, and [`StoreError::Poisoned`] for
    /// every later call: do not retry the write, stop the process. [`StoreError::BadBatch`] if the
    /// batch does not fit the log; nothing is written then.
    fn write(&mut self, batch: &Batch) -> Result<(), StoreError>;
}

/// The in-memory copy of what a member has on disk.
///
/// ```text
///   compacted    │ kept behind the snapshot │ after the snapshot
///   …        base│base+1  …   snapshot.index│ …            last
/// ```
///
/// The log keeps entries behind the snapshot for members that lag only a little, so that they need
/// no snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub(crate) hard_state: HardState,
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) base: (Index, Term),
    pub(crate) entries: VecDeque<Entry>,
    pub(crate) written: u64,
    pub(crate) marks: BTreeMap<RaftId, Mark>,
}

/// Sealed records to write and positions to remove, as one transaction.
pub(crate) struct Changes {
    pub(crate) records: Vec<(&'static str, Vec<u8>)>,
    pub(crate) removed: Vec<Index>,
    pub(crate) added: Vec<(Index, Vec<u8>)>,
}

/// Damage found in stored records.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    #[error("{name} is unreadable")]
    Record { name: String, source: DecodeError },
    #[error("{0}")]
    Inconsistent(String),
}

fn read<T: BorshDeserialize>(name: &str, bytes: Option<Vec<u8>>) -> Result<Option<T>, Damage> {
    let record = bytes.map(|bytes| unseal(&bytes)).transpose();
    record.map_err(|source| Damage::Record { name: name.to_owned(), source })
}

/// One durable transaction. Its parts take effect in this order: snapshot, entries, hard state,
/// `cut`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// A snapshot that replaces the whole log (`replace_log`), or was taken of it.
    pub snapshot: Option<Snapshot>,
    /// Whether the snapshot came from the leader and discards the whole log.
    pub replace_log: bool,
    /// Entries to append, after dropping stored entries at or after the first of them.
    pub entries: Vec<Entry>,
    /// Replaces term, vote and commit position.
    pub hard_state: Option<HardState>,
    /// Drop the entries up to and including this position, which may not exceed the snapshot's.
    pub cut: Option<Index>,
    /// Replaces what is known of the peers' disks.
    pub marks: Option<BTreeMap<RaftId, Mark>>,
}

impl Batch {
    /// Whether the batch changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.is_counted() && self.marks.is_none()
    }

    /// Whether the batch changes the log or the vote, and therefore counts in [`Image::written`].
    fn is_counted(&self) -> bool {
        self.snapshot.is_some()
            || !self.entries.is_empty()
            || self.hard_state.is_some()
            || self.cut.is_some()
    }
}

impl Image {
    /// The member's term, vote and commit position.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// The newest snapshot; `None` before the first.
    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// The last compacted position, and its term; (0, 0) if there is none.
    #[must_use]
    pub fn base(&self) -> (Index, Term) {
        self.base
    }

    /// The position after the base, stored or not.
    #[must_use]
    pub fn first_index(&self) -> Index {
        self.base.0.next()
    }

    /// The last stored position; [`base`](Self::base) if there is none.
    #[must_use]
    pub fn last_index(&self) -> Index {
        self.entries.back().map_or(self.base.0, |entry| entry.index)
    }

    /// The term at a position between the base and the last one, both inclusive.
    #[must_use]
    pub fn term(&self, index: Index) -> Option<Term> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        self.entry(index).map(|entry| entry.term)
    }

    /// Number of batches that changed the log or the vote. It only grows; a disk that went back to
    /// an earlier state has fewer than its peers have heard of.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// What the member has heard of its peers' disks, as stored.
    #[must_use]
    pub fn marks(&self) -> &BTreeMap<RaftId, Mark> {
        &self.marks
    }

    /// The entry at a position, if stored.
    #[must_use]
    pub fn entry(&self, index: Index) -> Option<&Entry> {
        let at = index.0.checked_sub(self.base.0.0 + 1)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    /// The stored entries in `low..high`.
    pub fn entries(&self, low: Index, high: Index) -> impl Iterator<Item = &Entry> {
        (low.0.max(self.base.0.0 + 1)..high.0).map_while(|index| self.entry(Index(index)))
    }

    /// Checks that the batch fits the log.
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
                return bad(format!("snapshot {} does not match a stored entry", snapshot.index));
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

    /// The base and the last position after applying a checked batch.
    fn bounds_after(&self, batch: &Batch) -> ((Index, Term), Index) {
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

    /// Applies a checked batch.
    pub(crate) fn apply(&mut self, batch: &Batch) {
        self.written += u64::from(batch.is_counted());
        if let Some(marks) = &batch.marks {
            self.marks.clone_from(marks);
        }
        if let Some(snapshot) = &batch.snapshot {
            if batch.replace_log {
                self.entries.clear();
                self.base = (snapshot.index, snapshot.term);
            }
            self.snapshot = Some(snapshot.clone());
        }
        if let Some(first) = batch.entries.first() {
            let kept = first.index.0.saturating_sub(self.base.0.0 + 1);
            self.entries.truncate(kept as usize);
        }
        self.entries.extend(batch.entries.iter().cloned());
        if let Some(hard_state) = batch.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(cut) = batch.cut
            && let Some(term) = self.term(cut)
        {
            self.entries.drain(..(cut.0 - self.base.0.0) as usize);
            self.base = (cut, term);
        }
    }

    /// A checked batch's changes on disk, as sealed records.
    pub(crate) fn changes(&self, batch: &Batch) -> Changes {
        let mut records = Vec::new();
        if let Some(snapshot) = &batch.snapshot {
            records.push((KEY_SNAPSHOT, seal(snapshot)));
        }
        if let Some(hard_state) = &batch.hard_state {
            records.push((KEY_HARD_STATE, seal(hard_state)));
        }
        if batch.is_counted() {
            records.push((KEY_WRITTEN, seal(&(self.written + 1))));
        }
        if let Some(marks) = &batch.marks {
            records.push((KEY_MARKS, seal(marks)));
        }
        let (base, last) = self.bounds_after(batch);
        if base != self.base {
            records.push((KEY_BASE, seal(&base)));
        }
        let kept = base.0.next()..=last;
        let (front, back) = (self.entries.iter(), self.entries.iter().rev());
        let removed = front
            .take_while(|entry| entry.index < *kept.start())
            .chain(back.take_while(|entry| entry.index > *kept.end()))
            .map(|entry| entry.index)
            .collect();
        let added = batch.entries.iter().filter(|entry| kept.contains(&entry.index));
        let added = added.map(|entry| (entry.index, seal(entry))).collect();
        Changes { records, removed, added }
    }

    /// Loads an image: the named records, and the entries by position.
    pub(crate) fn restore<E: From<Damage>>(
        record: impl Fn(&'static str) -> Result<Option<Vec<u8>>, E>,
        entries: impl IntoIterator<Item = Result<(u64, Vec<u8>), E>>,
    ) -> Result<Self, E> {
        let mut image = Image {
            hard_state: read(KEY_HARD_STATE, record(KEY_HARD_STATE)?)?.unwrap_or_default(),
            snapshot: read(KEY_SNAPSHOT, record(KEY_SNAPSHOT)?)?,
            base: read(KEY_BASE, record(KEY_BASE)?)?.unwrap_or_default(),
            written: read(KEY_WRITTEN, record(KEY_WRITTEN)?)?.unwrap_or_default(),
            marks: read(KEY_MARKS, record(KEY_MARKS)?)?.unwrap_or_default(),
            ..Image::default()
        };
        for item in entries {
            let (index, bytes) = item?;
            let entry: Entry = unseal(&bytes)
                .map_err(|source| Damage::Record { name: format!("entry {index}"), source })?;
            if entry.index.0 != index {
                return Err(
                    Damage::Inconsistent(format!("entry {} at {index}", entry.index)).into()
                );
            }
            image.entries.push_back(entry);
        }
        image.check_whole().map_err(Damage::Inconsistent)?;
        Ok(image)
    }

    /// Checks that the parts are consistent with each other.
    fn check_whole(&self) -> Result<(), String> {
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
