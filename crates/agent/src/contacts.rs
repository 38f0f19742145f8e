//! Who asked for its orders, when, and what it said it was doing. Soft state: every member has
//! its own, and tells the leader.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cohort_core::ids::{AppId, ServerId};
use cohort_core::state::SERVERS_MAX;
use cohort_wire::agent::Doing;

/// The last that was heard of a server.
#[derive(Debug, Clone)]
pub(crate) struct Contact {
    /// When.
    pub at: Instant,
    /// What it said it was doing.
    pub doing: BTreeMap<AppId, Doing>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Contacts(Mutex<BTreeMap<ServerId, Contact>>);

impl Contacts {
    /// A server was heard of, so long ago.
    pub(crate) fn heard(&self, server: &ServerId, age: Duration, doing: BTreeMap<AppId, Doing>) {
        let at = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= SERVERS_MAX && !all.contains_key(server) {
            return;
        }
        if all.get(server).is_none_or(|known| known.at <= at) {
            all.insert(server.clone(), Contact { at, doing });
        }
    }

    /// Everything, as of now.
    pub(crate) fn all(&self) -> BTreeMap<ServerId, Contact> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
