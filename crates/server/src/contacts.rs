//! When each server last asked for orders, and what it said it was doing.
//!
//! Soft state: every member keeps its own and passes what is recent on to the leader. Nothing of
//! it is replicated; a new leader starts with what its own member has heard.

use std::collections::BTreeMap;

use cohort_core::ids::{AppId, ServerId};
use cohort_core::report::{Doing, Step};
use cohort_core::state::{APPS_MAX, SERVERS_MAX};

/// The longest description of what a server is doing, in bytes: one line for people.
const DETAIL_BYTES_MAX: usize = 200;
/// Contacts in one batch to the leader. 50: with bounded details, far below a request's limit.
const BATCH_MAX: usize = 50;
/// How often a member passes its contacts on to the leader, in milliseconds.
pub const PASS_ON_EVERY_MS: u64 = 500;
/// Contacts older than this are not passed on: they were before, or another member has newer ones.
const PASS_ON_AGE_MS_MAX: u64 = 4 * PASS_ON_EVERY_MS;

/// The last contact with one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// When, by the member's monotonic clock, in milliseconds.
    pub at_ms: u64,
    /// What the server said it was doing.
    pub doing: BTreeMap<AppId, Doing>,
}

/// The last contact with each server, as one member knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contacts(BTreeMap<ServerId, Contact>);

impl Contacts {
    /// A server asked for its orders `age_ms` ago. Older news than what is known changes nothing.
    pub fn heard(
        &mut self,
        now_ms: u64,
        server: &ServerId,
        age_ms: u64,
        mut doing: BTreeMap<AppId, Doing>,
    ) {
        let at_ms = now_ms.saturating_sub(age_ms);
        let known = self.0.get(server);
        if known.is_some_and(|known| known.at_ms > at_ms)
            || known.is_none() && self.0.len() >= SERVERS_MAX
        {
            return;
        }
        while doing.len() > APPS_MAX {
            doing.pop_last();
        }
        for one in doing.values_mut() {
            let end = one.detail.floor_char_boundary(DETAIL_BYTES_MAX);
            one.detail.truncate(end);
        }
        self.0.insert(server.clone(), Contact { at_ms, doing });
    }

    /// Forgets servers that have left the group.
    pub fn retain(&mut self, known: impl Fn(&ServerId) -> bool) {
        self.0.retain(|server, _| known(server));
    }

    /// The last contact with a server.
    #[must_use]
    pub fn of(&self, server: &ServerId) -> Option<&Contact> {
        self.0.get(server)
    }

    /// How long ago each server was heard from, in milliseconds.
    #[must_use]
    pub fn ages_ms(&self, now_ms: u64) -> BTreeMap<ServerId, u64> {
        let age = |contact: &Contact| now_ms.saturating_sub(contact.at_ms);
        self.0.iter().map(|(server, contact)| (server.clone(), age(contact))).collect()
    }

    /// The step each server says it is at, per app.
    #[must_use]
    pub fn steps(&self) -> BTreeMap<(AppId, ServerId), Step> {
        let one = |(server, contact): (&ServerId, &Contact)| {
            let server = server.clone();
            let steps = contact.doing.iter().map(|(app, doing)| (app.clone(), doing.step));
            steps.map(move |(app, step)| ((app, server.clone()), step)).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(one).collect()
    }

    /// What a member passes on to the leader, in batches. Always at least one, if empty: kill
    /// registers travel with them.
    #[must_use]
    pub fn batches(&self, now_ms: u64) -> Vec<BTreeMap<ServerId, Contact>> {
        let recent = |contact: &Contact| now_ms.saturating_sub(contact.at_ms) <= PASS_ON_AGE_MS_MAX;
        let mut batches = vec![BTreeMap::new()];
        for (server, contact) in self.0.iter().filter(|(_, contact)| recent(contact)) {
            if batches.last().is_some_and(|batch: &BTreeMap<_, _>| batch.len() >= BATCH_MAX) {
                batches.push(BTreeMap::new());
            }
            if let Some(batch) = batches.last_mut() {
                batch.insert(server.clone(), contact.clone());
            }
        }
        batches
    }
}
