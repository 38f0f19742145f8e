//! What all parts of a cache share.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::blob::Blob;
use crate::config::CacheLimits;
use crate::metrics::Metrics;
use crate::origins::Origins;
use crate::store::Store;

/// What all parts of a cache share.
pub(crate) struct Shared {
    pub(crate) limits: Arc<CacheLimits>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) origins: Origins,
    pub(crate) store: Store,
    /// Readers who get units past the disk.
    pub(crate) passing_on: Semaphore,
}

impl Shared {
    /// The disk did not take a unit of this artifact: what is there of it is given up, and what is
    /// read from it now is passed on.
    pub(crate) fn disk_refused(&self, blob: &Arc<Blob>) {
        blob.keep_no_more();
        self.store.forget(blob);
    }
}
