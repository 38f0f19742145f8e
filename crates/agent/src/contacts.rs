//! The contacts of this server's member, shared by those who hear of servers and those who ask.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use cohort_core::doing::Doing;
use cohort_core::ids::{AppId, ServerId};
use cohort_server::contacts::Contacts;
use parking_lot::Mutex;

/// Milliseconds on this process's monotonic clock, which stands still while the machine sleeps.
pub(crate) fn monotonic_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).expect("less than 500 million years")
}

/// [`Contacts`] on [`monotonic_ms`]; a snapshot is cheap.
#[derive(Debug, Default)]
pub(crate) struct SharedContacts(Mutex<Arc<Contacts>>);

impl SharedContacts {
    /// A server asked for its orders `age_ms` ago.
    pub(crate) fn heard(&self, server: &ServerId, age_ms: u64, doing: BTreeMap<AppId, Doing>) {
        Arc::make_mut(&mut self.0.lock()).heard(monotonic_ms(), server, age_ms, doing);
    }

    /// Forgets servers that have left the group.
    pub(crate) fn retain(&self, known: impl Fn(&ServerId) -> bool) {
        Arc::make_mut(&mut self.0.lock()).retain(known);
    }

    /// Everything heard so far.
    pub(crate) fn all(&self) -> Arc<Contacts> {
        Arc::clone(&self.0.lock())
    }
}
