//! The registry's behaviour as plain data: no disk, no clock, no waiting.
//!
//! A change is first decided ([`State::decide`], without any effect), then made durable by the
//! backend, then accepted ([`State::accept`]). Both backends share this, so that the one for tests
//! cannot differ.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use crate::api::{
    Event, KEY_BYTES_MAX, KeyValue, Op, RANGE_BYTES_MAX, RANGE_ITEMS_MAX, RangeAnswer,
    RangeRequest, RegistryError, Selector, TXN_BYTES_MAX, TXN_OPS_MAX, Txn, TxnAnswer,
    VALUE_BYTES_MAX, WATCH_EVENTS_MAX, WatchAnswer,
};

/// Events kept for watchers. A thousand groups in full rollout write about ten records a second, so
/// a watcher may be away for a quarter of an hour.
pub const HISTORY_EVENTS_MAX: usize = 10_000;
/// Bytes of events kept for watchers.
pub const HISTORY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of keys and values. They are in memory as well; a fleet that needs more needs etcd.
pub const STATE_BYTES_MAX: usize = 256 * 1024 * 1024;

const _: () = assert!(HISTORY_EVENTS_MAX > WATCH_EVENTS_MAX + TXN_OPS_MAX, "an answer fits");
const _: () = assert!(HISTORY_BYTES_MAX > TXN_BYTES_MAX, "one transaction never compacts itself");

/// All pairs, the revision, and recent events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    revision: u64,
    /// The last revision whose events were dropped.
    compacted: u64,
    pairs: BTreeMap<String, KeyValue>,
    pairs_bytes: usize,
    events: VecDeque<Event>,
    events_bytes: usize,
}

/// The outcome of a transaction; made by [`State::decide`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Decision {
    /// For the client.
    pub answer: TxnAnswer,
    /// The changes, all of one revision; may be empty.
    pub changes: Vec<Event>,
}

impl Default for State {
    fn default() -> Self {
        State::new()
    }
}

impl State {
    /// An empty registry. Its revision is 1, as in etcd, so that 0 can mean *missing*.
    #[must_use]
    pub fn new() -> Self {
        State {
            revision: 1,
            compacted: 1,
            pairs: BTreeMap::new(),
            pairs_bytes: 0,
            events: VecDeque::new(),
            events_bytes: 0,
        }
    }

    /// Assembles what a backend has read from disk.
    ///
    /// # Errors
    /// When the parts contradict each other.
    pub fn from_parts(
        revision: u64,
        compacted: u64,
        pairs: Vec<KeyValue>,
        events: Vec<Event>,
    ) -> Result<Self, String> {
        let mut state = State { revision, compacted, ..State::new() };
        for pair in pairs {
            state.pairs_bytes += pair.key.len() + pair.value.len();
            state.pairs.insert(pair.key.clone(), pair);
        }
        for event in events {
            if event.revision() > compacted {
                state.events_bytes += event_bytes(&event);
                state.events.push_back(event);
            }
        }
        state.trim();
        state.check()?;
        Ok(state)
    }

    /// The revision of the last change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The last revision whose events are gone.
    #[must_use]
    pub fn compacted(&self) -> u64 {
        self.compacted
    }

    /// The pair with this key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&KeyValue> {
        self.pairs.get(key)
    }

    /// All pairs whose keys begin with this.
    pub fn under(&self, prefix: &str) -> impl Iterator<Item = &KeyValue> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let pairs = self.pairs.range::<str, _>(from);
        pairs.take_while(move |(key, _)| key.starts_with(prefix)).map(|(_, pair)| pair)
    }

    /// Reads pairs.
    ///
    /// # Errors
    /// `Invalid` for a key that is too long.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeAnswer, RegistryError> {
        check_key_length(request.select.text())?;
        let limit = match request.limit {
            0 => RANGE_ITEMS_MAX,
            limit => limit.min(RANGE_ITEMS_MAX),
        } as usize;
        let mut answer = RangeAnswer { items: Vec::new(), revision: self.revision, more: false };
        let start = match (&request.after, request.select.text()) {
            (Some(after), text) if after.as_str() >= text => Bound::Excluded(after.as_str()),
            (_, text) => Bound::Included(text),
        };
        let mut bytes = 0;
        for (key, pair) in self.pairs.range::<str, _>((start, Bound::Unbounded)) {
            if !request.select.matches(key) {
                break;
            }
            bytes += key.len() + pair.value.len();
            if answer.items.len() == limit || bytes > RANGE_BYTES_MAX {
                answer.more = true;
                break;
            }
            answer.items.push(pair.clone());
        }
        Ok(answer)
    }

    /// Computes a transaction's outcome without applying it.
    ///
    /// # Errors
    /// `Invalid` when it breaks a limit or changes a key twice; `Full`.
    pub fn decide(&self, txn: &Txn) -> Result<Decision, RegistryError> {
        check_txn(txn)?;
        let mod_revision = |key: &str| self.pairs.get(key).map_or(0, |pair| pair.mod_revision);
        let succeeded =
            txn.compare.iter().all(|compare| mod_revision(&compare.key) == compare.mod_revision);
        let ops = if succeeded { txn.then.as_slice() } else { &[] };
        let revision = self.revision + 1;
        let changes: Vec<Event> = ops.iter().filter_map(|op| self.change(op, revision)).collect();
        if changes.is_empty() {
            let answer = TxnAnswer { succeeded, revision: self.revision };
            return Ok(Decision { answer, changes });
        }
        let added: usize = changes.iter().map(event_bytes).sum();
        let only_deletes = changes.iter().all(|event| matches!(event, Event::Deleted { .. }));
        if self.pairs_bytes + added > STATE_BYTES_MAX && !only_deletes {
            return Err(RegistryError::Full {
                bytes: self.pairs_bytes,
                bytes_max: STATE_BYTES_MAX,
            });
        }
        Ok(Decision { answer: TxnAnswer { succeeded, revision }, changes })
    }

    /// Applies changes that are durable.
    ///
    /// # Panics
    /// When the changes are not of the next revision: two concurrent writers, which the backends
    /// rule out. Continuing would lose a change.
    pub fn accept(&mut self, changes: Vec<Event>) {
        for event in &changes {
            assert_eq!(event.revision(), self.revision + 1, "changes are of the next revision");
        }
        if changes.is_empty() {
            return;
        }
        self.revision += 1;
        for event in changes {
            let old = match &event {
                Event::Put(pair) => {
                    self.pairs_bytes += pair.key.len() + pair.value.len();
                    self.pairs.insert(pair.key.clone(), pair.clone())
                }
                Event::Deleted { key, .. } => self.pairs.remove(key),
            };
            if let Some(old) = old {
                self.pairs_bytes -= old.key.len() + old.value.len();
            }
            self.events_bytes += event_bytes(&event);
            self.events.push_back(event);
        }
        self.trim();
    }

    /// Skips to a revision beyond any that may have been issued and drops all events, so that no
    /// watcher continues from a revision of before the restore.
    pub fn leap(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
        self.compacted = self.revision;
        self.events.clear();
        self.events_bytes = 0;
    }

    /// The changes from `from_revision` on. An empty answer means: wait.
    ///
    /// # Errors
    /// `Compacted`, `WentBack`, `Invalid`.
    pub fn events_since(
        &self,
        select: &Selector,
        from_revision: u64,
    ) -> Result<WatchAnswer, RegistryError> {
        check_key_length(select.text())?;
        if from_revision > self.revision + 1 {
            let asked = from_revision - 1;
            return Err(RegistryError::WentBack { asked, revision: self.revision });
        }
        if from_revision <= self.compacted {
            let (compacted, revision) = (self.compacted, self.revision);
            return Err(RegistryError::Compacted { compacted, revision });
        }
        let first = self.events.partition_point(|event| event.revision() < from_revision);
        let mut answer = WatchAnswer { events: Vec::new(), revision: self.revision };
        let mut bytes = 0;
        for event in self.events.range(first..) {
            if !select.matches(event.key()) {
                continue;
            }
            let last = answer.events.last().map(Event::revision);
            let full = answer.events.len() >= WATCH_EVENTS_MAX || bytes > RANGE_BYTES_MAX;
            if full && last != Some(event.revision()) {
                answer.revision = event.revision() - 1;
                break;
            }
            bytes += event_bytes(event);
            answer.events.push(event.clone());
        }
        Ok(answer)
    }

    /// Checks the invariants.
    ///
    /// # Errors
    /// The first one that is broken.
    pub fn check(&self) -> Result<(), String> {
        if self.compacted > self.revision {
            return Err(format!("compacted {} is after {}", self.compacted, self.revision));
        }
        for (key, pair) in &self.pairs {
            let possible = 1 < pair.mod_revision && pair.mod_revision <= self.revision;
            if !possible || *key != pair.key {
                return Err(format!("key `{key}` has an impossible revision"));
            }
        }
        let mut last = self.compacted;
        for event in &self.events {
            if event.revision() < last || event.revision() > self.revision {
                return Err(format!("an event of `{}` is out of order", event.key()));
            }
            last = event.revision();
        }
        let bytes: usize = self.pairs.values().map(|pair| pair.key.len() + pair.value.len()).sum();
        if bytes != self.pairs_bytes {
            return Err(format!("{bytes} bytes are counted as {}", self.pairs_bytes));
        }
        Ok(())
    }

    fn change(&self, op: &Op, revision: u64) -> Option<Event> {
        match op {
            Op::Put { key, value } => {
                let (key, value) = (key.clone(), value.clone());
                Some(Event::Put(KeyValue { key, value, mod_revision: revision }))
            }
            Op::Delete { key } => {
                self.pairs.contains_key(key).then(|| Event::Deleted { key: key.clone(), revision })
            }
        }
    }

    /// Drops the oldest events, whole revisions at a time, until the limits hold.
    fn trim(&mut self) {
        while self.events.len() > HISTORY_EVENTS_MAX || self.events_bytes > HISTORY_BYTES_MAX {
            let Some(first) = self.events.front() else { return };
            self.compacted = first.revision();
            while let Some(event) = self.events.front()
                && event.revision() == self.compacted
            {
                self.events_bytes -= event_bytes(event);
                self.events.pop_front();
            }
        }
    }
}

/// An event's size for the limits.
fn event_bytes(event: &Event) -> usize {
    match event {
        Event::Put(pair) => pair.key.len() + pair.value.len(),
        Event::Deleted { key, .. } => key.len(),
    }
}

fn invalid<T>(reason: String) -> Result<T, RegistryError> {
    Err(RegistryError::Invalid { reason })
}

fn check_key_length(key: &str) -> Result<(), RegistryError> {
    if key.len() > KEY_BYTES_MAX {
        return invalid(format!("a key of {} bytes exceeds {KEY_BYTES_MAX}", key.len()));
    }
    Ok(())
}

fn check_txn(txn: &Txn) -> Result<(), RegistryError> {
    if txn.compare.len() > TXN_OPS_MAX {
        let count = txn.compare.len();
        return invalid(format!("{count} comparisons exceed {TXN_OPS_MAX}"));
    }
    for compare in &txn.compare {
        check_key_length(&compare.key)?;
    }
    if txn.then.len() > TXN_OPS_MAX {
        return invalid(format!("{} operations exceed {TXN_OPS_MAX}", txn.then.len()));
    }
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    for op in &txn.then {
        let key = op.key();
        check_key_length(key)?;
        if key.is_empty() {
            return invalid("an empty key".into());
        }
        if !seen.insert(key) {
            return invalid(format!("key `{key}` is changed twice in one transaction"));
        }
        if let Op::Put { value, .. } = op {
            let length = value.len();
            if length > VALUE_BYTES_MAX {
                return invalid(format!(
                    "a value of {length} bytes for `{key}` exceeds {VALUE_BYTES_MAX}"
                ));
            }
            bytes += key.len() + length;
        }
    }
    if bytes > TXN_BYTES_MAX {
        return invalid(format!("{bytes} bytes exceed {TXN_BYTES_MAX}"));
    }
    Ok(())
}
