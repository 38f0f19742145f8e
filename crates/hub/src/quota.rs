//! How much publishers may upload before a signed timestamp ends the publish.
//!
//! The hub stores artifacts before anything signed refers to them. Only a new timestamp, signed
//! with the repository's keys, proves that a publisher has these; until then, what it uploads
//! counts. Each publisher has its own quota, so that one without keys delays no other.

use std::collections::BTreeMap;
use std::sync::Arc;

use cohort_identity::Peer;
use cohort_wire::http::ApiError;
use parking_lot::Mutex;

/// Bytes that each publisher has uploaded since its last signed timestamp, in this process.
#[derive(Debug)]
pub(crate) struct Quota {
    bytes_max: u64,
    used: Mutex<BTreeMap<Peer, u64>>,
}

impl Quota {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Quota { bytes_max, used: Mutex::default() }
    }

    /// Starts an upload; what it takes is returned unless it is kept.
    pub(crate) fn upload(self: &Arc<Self>, by: &Peer) -> Taken {
        Taken { quota: Arc::clone(self), by: by.clone(), bytes: 0 }
    }

    /// A publisher's timestamp was signed: what it uploaded is published.
    pub(crate) fn published(&self, by: &Peer) {
        self.used.lock().remove(by);
    }
}

/// What one upload has taken of a quota.
#[derive(Debug)]
pub(crate) struct Taken {
    quota: Arc<Quota>,
    by: Peer,
    bytes: u64,
}

impl Taken {
    /// Takes more of the quota.
    ///
    /// # Errors
    /// 503 if it is used up.
    pub(crate) fn more(&mut self, bytes: u64) -> Result<(), ApiError> {
        let mut used = self.quota.used.lock();
        let sum = used.get(&self.by).copied().unwrap_or(0).saturating_add(bytes);
        if sum > self.quota.bytes_max {
            let max = self.quota.bytes_max;
            let by = &self.by;
            let full = format!("{by} uploaded {max} bytes without a signed timestamp");
            return Err(ApiError::unavailable("quota", full)
                .hint("with the keys of the repository: cohort publish DIR --app APP --version V")
                .hint("or raise `unpublished_bytes_max` in hub.toml, and restart the hub"));
        }
        used.insert(self.by.clone(), sum);
        self.bytes += bytes;
        Ok(())
    }

    /// The upload is stored: what it took stays taken.
    pub(crate) fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.bytes > 0
            && let Some(used) = self.quota.used.lock().get_mut(&self.by)
        {
            *used = used.saturating_sub(self.bytes);
        }
    }
}

#[cfg(test)]
mod quota_test {
    use cohort_identity::Role;

    use super::*;

    #[test]
    fn what_is_stored_counts_until_its_publishers_timestamp_is_signed() {
        let quota = Arc::new(Quota::new(10));
        let [ci, other] = ["ci", "x"].map(|name| Peer::new(Role::Publisher, name).unwrap());
        let mut failed = quota.upload(&ci);
        failed.more(8).unwrap();
        assert_eq!(quota.upload(&ci).more(3).unwrap_err().kind, "quota", "also while in progress");
        drop(failed);
        let mut stored = quota.upload(&ci);
        stored.more(4).unwrap();
        stored.more(4).unwrap();
        stored.keep();
        quota.published(&other);
        assert!(quota.upload(&ci).more(3).is_err());
        quota.upload(&other).more(10).unwrap();
        quota.published(&ci);
        quota.upload(&ci).more(10).unwrap();
    }
}
