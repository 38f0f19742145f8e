//! The contacts of this server's member, shared by those who hear of servers and those who ask.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use cohort_core::doing::Doing;
use cohort_core::ids::{AppId, ServerId};
use cohort_core::machine::Machine;
use cohort_server::contacts::Contacts;
use cohort_server::machines::{Faults, Machines};
use parking_lot::Mutex;

/// Milliseconds on this process's monotonic clock, which stands still while the machine sleeps.
pub(crate) fn monotonic_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).expect("less than 500 million years")
}

/// [`Contacts`] and [`Machines`] on [`monotonic_ms`]; a snapshot of the contacts is cheap.
#[derive(Debug, Default)]
pub(crate) struct SharedContacts {
    contacts: Mutex<Arc<Contacts>>,
    machines: Mutex<Machines>,
}

impl SharedContacts {
    /// A server asked for its orders `age_ms` ago.
    pub(crate) fn heard(&self, server: &ServerId, age_ms: u64, doing: BTreeMap<AppId, Doing>) {
        Arc::make_mut(&mut self.contacts.lock()).heard(monotonic_ms(), server, age_ms, doing);
    }

    /// A server said this of its machine, `age_ms` ago.
    pub(crate) fn said(&self, server: &ServerId, age_ms: u64, machine: Machine) {
        self.machines.lock().said(monotonic_ms(), server, age_ms, machine);
    }

    /// What each of these servers last said of its machine.
    pub(crate) fn machines<'a>(
        &self,
        servers: impl Iterator<Item = &'a ServerId>,
    ) -> BTreeMap<ServerId, Machine> {
        let machines = self.machines.lock();
        servers.filter_map(|server| Some((server.clone(), machines.of(server)?))).collect()
    }

    /// What is wrong with the servers' machines.
    pub(crate) fn faults(&self) -> BTreeMap<ServerId, Faults> {
        self.machines.lock().faults(monotonic_ms())
    }

    /// How far the clocks of these servers are ahead of most others', where this member, the
    /// leader, can tell.
    pub(crate) fn clocks_ahead_ms<'a>(
        &self,
        servers: impl Iterator<Item = &'a ServerId>,
    ) -> BTreeMap<ServerId, i64> {
        let faults = self.faults();
        let ahead_ms = |server: &ServerId| faults.get(server)?.clock_ahead_ms;
        servers.filter_map(|server| Some((server.clone(), ahead_ms(server)?))).collect()
    }

    /// The leader said how far these clocks are ahead of most others'.
    pub(crate) fn clocks_are(&self, ahead_ms: BTreeMap<ServerId, i64>) {
        self.machines.lock().judged(monotonic_ms(), ahead_ms);
    }

    /// How far the clock of a server is ahead of most others', in milliseconds, as far as this
    /// member knows.
    pub(crate) fn clock_ahead_ms(&self, server: &ServerId, leads: bool) -> Option<i64> {
        self.machines.lock().clock_ahead_ms(monotonic_ms(), server, leads)
    }

    /// Forgets servers that have left the group.
    pub(crate) fn retain(&self, known: impl Fn(&ServerId) -> bool) {
        Arc::make_mut(&mut self.contacts.lock()).retain(&known);
        self.machines.lock().retain(known);
    }

    /// Everything heard so far.
    pub(crate) fn all(&self) -> Arc<Contacts> {
        Arc::clone(&self.contacts.lock())
    }
}
