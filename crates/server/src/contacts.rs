//! When each server last asked for orders, and what it said it was doing.
//!
//! Soft state: every member has its own and forwards recent contacts to the leader. None of it is
//! replicated; a new leader starts with what its own member has heard.

use std::collections::BTreeMap;

use cohort_core::doing::Doing;
use cohort_core::ids::{AppId, ServerId};
use cohort_core::report::Step;
use cohort_core::state::{APPS_MAX, SERVERS_MAX};

/// Contacts in one batch to the leader. 50: with bounded texts, far below a request's limit.
const BATCH_MAX: usize = 50;
/// How often a member forwards its contacts to the leader, in milliseconds.
pub const PASS_ON_EVERY_MS: u64 = 500;
/// Contacts older than this are not forwarded: they already were, or another member has newer ones.
const PASS_ON_AGE_MS_MAX: u64 = 4 * PASS_ON_EVERY_MS;

/// The last contact with one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// When, by the member's monotonic clock, in milliseconds.
    pub at_ms: u64,
    pub doing: BTreeMap<AppId, Doing>,
}

/// The last contact with each server, as one member knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contacts(BTreeMap<ServerId, Contact>);

impl Contacts {
    /// Records that a server asked for its orders `age_ms` ago. Older news changes nothing.
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
        let doing = doing.into_iter().map(|(app, doing)| (app, doing.bounded())).collect();
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
            let steps = contact.doing.iter().map(|(app, doing)| (app.clone(), doing.step()));
            steps.map(move |(app, step)| ((app, server.clone()), step)).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(one).collect()
    }

    /// What a member forwards to the leader, in batches. Always at least one, possibly empty: kill
    /// registers travel with them. Call [`Self::ages_ms`] when a batch is sent: it may wait for
    /// those before it.
    #[must_use]
    pub fn batches(&self, now_ms: u64) -> Vec<Contacts> {
        let recent = |contact: &Contact| now_ms.saturating_sub(contact.at_ms) <= PASS_ON_AGE_MS_MAX;
        let recent: Vec<_> = self.0.iter().filter(|(_, contact)| recent(contact)).collect();
        if recent.is_empty() {
            return vec![Contacts::default()];
        }
        let owned =
            |(server, contact): &(&ServerId, &Contact)| ((*server).clone(), (*contact).clone());
        recent.chunks(BATCH_MAX).map(|batch| Contacts(batch.iter().map(owned).collect())).collect()
    }

    /// What each server said it was doing.
    #[must_use]
    pub fn doing(&self) -> BTreeMap<ServerId, BTreeMap<AppId, Doing>> {
        let doing =
            |(server, contact): (&ServerId, &Contact)| (server.clone(), contact.doing.clone());
        self.0.iter().map(doing).collect()
    }
}
