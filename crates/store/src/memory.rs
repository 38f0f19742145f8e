//! A store that lives in memory, for tests of its users.

use crate::{Batch, Image, LogStore, StoreError};

/// A [`LogStore`] that loses everything when dropped.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    image: Image,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl LogStore for MemoryStore {
    fn image(&self) -> &Image {
        &self.image
    }

    fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.image.check(batch)?;
        self.image.apply(batch);
        Ok(())
    }
}
