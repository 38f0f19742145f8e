//! A view of a part of the registry that is read once and then follows the changes.

use std::collections::BTreeMap;

use crate::api::{Event, KeyValue, Registry, RegistryError, Selector, WatchRequest};
use crate::typed::list;

/// All pairs under a prefix, as of the last [`Follower::refresh`].
///
/// While the registry is unavailable the view is stale: rollouts in progress continue with it, but
/// nothing new may start; see `is_current`.
#[derive(Debug, Clone)]
pub struct Follower {
    prefix: String,
    view: BTreeMap<String, KeyValue>,
    /// The view includes all changes up to here; `None` before the first read.
    revision: Option<u64>,
    is_current: bool,
}

/// Whether a refresh changed the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Refreshed {
    /// No change within the wait.
    Unchanged,
    /// The view differs from before.
    Changed,
}

impl Follower {
    /// Follows all keys with this prefix. The view is empty until the first refresh.
    #[must_use]
    pub fn new(prefix: impl Into<String>) -> Self {
        let prefix = prefix.into();
        Follower { prefix, view: BTreeMap::new(), revision: None, is_current: false }
    }

    /// The pairs by key.
    #[must_use]
    pub fn view(&self) -> &BTreeMap<String, KeyValue> {
        &self.view
    }

    /// Whether the last refresh succeeded.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.is_current
    }

    /// The view's revision; `None` before the first refresh.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// Updates the view, waiting up to `wait_ms` milliseconds for a change. After compacted history
    /// or a restored registry it reads everything again. Cancel-safe.
    ///
    /// # Errors
    /// [`RegistryError`]; retry with a back-off.
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
            // A list read in several answers may be ahead of the revision it is followed from.
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
