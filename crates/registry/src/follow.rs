//! Keeping up with a part of the registry: a view that is read once and then follows the changes.

use std::collections::BTreeMap;

use crate::api::{Event, KeyValue, Registry, RegistryError, Selector, WatchRequest};
use crate::typed::list;

/// All pairs below a prefix, as of the last [`Follower::refresh`].
///
/// When the registry is away the view stays as it was: that is what rollouts in progress go on
/// with. `is_current` tells whether the last refresh succeeded, because nothing new may begin on an
/// old view.
#[derive(Debug, Clone)]
pub struct Follower {
    prefix: String,
    view: BTreeMap<String, KeyValue>,
    /// Everything up to here is in the view; `None`: read all of it first.
    revision: Option<u64>,
    is_current: bool,
}

/// What a refresh has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Refreshed {
    /// The view is the same.
    Unchanged,
    /// The view has changed.
    Changed,
}

impl Follower {
    /// Follows all keys that begin with `prefix`. The view is empty until the first refresh.
    #[must_use]
    pub fn new(prefix: impl Into<String>) -> Self {
        let prefix = prefix.into();
        Follower { prefix, view: BTreeMap::new(), revision: None, is_current: false }
    }

    /// The pairs, by key.
    #[must_use]
    pub fn view(&self) -> &BTreeMap<String, KeyValue> {
        &self.view
    }

    /// Whether the last refresh succeeded.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.is_current
    }

    /// The revision that the view is of; `None` before the first refresh.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// Brings the view up to date, waiting up to `wait_ms` milliseconds for a change. History that
    /// is gone, or a registry that was put back, is handled by reading everything again.
    ///
    /// Dropping the future loses nothing: the view changes only when an answer is complete.
    ///
    /// # Errors
    /// [`RegistryError`]; wait a little (more each time), then call it again.
    pub async fn refresh(
        &mut self,
        registry: &dyn Registry,
        wait_ms: u64,
    ) -> Result<Refreshed, RegistryError> {
        let refreshed = match self.revision {
            None => self.read_all(registry).await,
            Some(revision) => match self.follow(registry, revision, wait_ms).await {
                Err(RegistryError::Compacted { .. } | RegistryError::WentBack { .. }) => {
                    self.read_all(registry).await
                }
                followed => followed,
            },
        };
        self.is_current = refreshed.is_ok();
        refreshed
    }

    async fn read_all(&mut self, registry: &dyn Registry) -> Result<Refreshed, RegistryError> {
        let (items, revision) = list(registry, &self.prefix).await?;
        let view = items.into_iter().map(|pair| (pair.key.clone(), pair)).collect();
        let first = self.revision.replace(revision).is_none();
        let changed = first || view != self.view;
        self.view = view;
        Ok(if changed { Refreshed::Changed } else { Refreshed::Unchanged })
    }

    async fn follow(
        &mut self,
        registry: &dyn Registry,
        revision: u64,
        wait_ms: u64,
    ) -> Result<Refreshed, RegistryError> {
        let select = Selector::Prefix(self.prefix.clone());
        let request = WatchRequest { select, from_revision: revision + 1, wait_ms };
        let answer = registry.watch(request).await?;
        let mut refreshed = Refreshed::Unchanged;
        for event in answer.events {
            // A list that took several answers may be ahead of the revision it is followed from.
            let known = self.view.get(event.key()).map_or(0, |pair| pair.mod_revision);
            if event.revision() <= known {
                continue;
            }
            refreshed = Refreshed::Changed;
            match event {
                Event::Put(pair) => self.view.insert(pair.key.clone(), pair),
                Event::Deleted { key, .. } => self.view.remove(&key),
            };
        }
        self.revision = Some(answer.revision);
        Ok(refreshed)
    }
}
