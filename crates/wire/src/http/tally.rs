//! Bounded counts per peer.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Current counts per key.
#[derive(Debug)]
pub struct Tally<K>(Arc<Mutex<BTreeMap<K, usize>>>);

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Ord + Clone> Tally<K> {
    /// Counts one more; `None` if the key already has `max`.
    #[must_use]
    pub fn enter(&self, key: K, max: usize) -> Option<Present<K>> {
        let mut counts = self.0.lock();
        let count = counts.get(&key).copied().unwrap_or(0);
        if count >= max {
            return None;
        }
        counts.insert(key.clone(), count + 1);
        Some(Present { counts: Arc::clone(&self.0), key })
    }
}

/// Keeps one counted until dropped.
#[derive(Debug)]
pub struct Present<K: Ord> {
    counts: Arc<Mutex<BTreeMap<K, usize>>>,
    key: K,
}

impl<K: Ord> Drop for Present<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}
