//! Who asked for its orders, when, and what it said it was doing. Soft state: every member has
//! its own, and tells the leader.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cohort_core::ids::{AppId, ServerId};
use cohort_core::state::{APPS_MAX, SERVERS_MAX};
use cohort_wire::agent::Doing;

/// The longest text of what a server is doing, in bytes: a line for people.
const DETAIL_BYTES_MAX: usize = 200;

fn bound(text: &mut String) {
    if text.len() > DETAIL_BYTES_MAX {
        let end = (0..=DETAIL_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
    }
}

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
    pub(crate) fn heard(
        &self,
        server: &ServerId,
        age: Duration,
        mut doing: BTreeMap<AppId, Doing>,
    ) {
        while doing.len() > APPS_MAX {
            doing.pop_last();
        }
        for one in doing.values_mut() {
            bound(&mut one.detail);
        }
        let at = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= SERVERS_MAX && !all.contains_key(server) {
            return;
        }
        if all.get(server).is_none_or(|known| known.at <= at) {
            all.insert(server.clone(), Contact { at, doing });
        }
    }

    /// Forgets servers that are no longer in the group.
    pub(crate) fn retain(&self, known: impl Fn(&ServerId) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|server, _| known(server));
    }

    /// Everything, as of now.
    pub(crate) fn all(&self) -> BTreeMap<ServerId, Contact> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
