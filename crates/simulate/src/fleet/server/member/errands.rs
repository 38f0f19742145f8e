//! What the agent does for its member in addition to answering: it reads for it, writes for it, and
//! passes on which servers it has heard from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cohort_consensus::Term;
use cohort_core::Offer;
use cohort_core::ability::Ability;
use cohort_core::capacity;
use cohort_core::doing::Doing;
use cohort_core::gate::RegistryView;
use cohort_core::ids::{AppId, ServerId};
use cohort_core::machine::DiskSpace;
use cohort_core::policy::Size;
use cohort_core::refused::WhyRefused;
use cohort_core::state::ServerApp;
use cohort_server::member::{Input, View};
use cohort_server::records::{Record, Written, due};
use cohort_server::transfers::keep_known;
use cohort_transfer::tracker::{Participant, TransferAnswer, TransferRequest};

use super::{Carried, Waits, command};
use crate::fleet::chaos::Mutation;
use crate::fleet::net::What;

/// What a leader has exchanged with the registry and the repository in its term.
#[derive(Default)]
pub(super) struct Read {
    term: Term,
    /// The registry's content; none while it does not answer.
    registry: Option<Arc<RegistryView>>,
    /// What the repository offered last, and whether it answers now.
    offers: Option<(Arc<BTreeMap<AppId, Offer>>, bool)>,
    written: Written,
    /// A view without records to be written.
    settled: Option<Arc<View>>,
}

impl Carried {
    pub(super) fn pass_on_contacts(&mut self) {
        // By its number: a server that has left the group may still lead.
        let leader = self.view.raft.leader.filter(|_| !self.view.raft.is_leader());
        let Some(leader) = leader.and_then(|leader| self.place_of(leader)) else { return };
        for batch in self.contacts.batches(self.now_ms) {
            let mut doing = batch.doing();
            let mut machines = BTreeMap::new();
            let ages = batch.ages_ms(self.now_ms).into_iter().map(|(server, age_ms)| {
                let doing = doing.remove(&server).unwrap_or_default();
                machines.extend(self.machines.of(&server).map(|it| (server.clone(), it)));
                (server, (age_ms, doing))
            });
            let contacts = ages.collect();
            self.send(leader.clone(), 0, What::Contacts(contacts, machines, self.ability));
        }
    }

    /// Every member hears of the kill switch; one that leads reads the repository and the registry,
    /// unless they are away, and has records for the registry if it `writes`. What it has read
    /// already is no input again.
    pub(crate) fn errands(
        &mut self,
        registry: Option<&Arc<RegistryView>>,
        writes: bool,
        offers: Option<&Arc<BTreeMap<AppId, Offer>>>,
        killed: Option<&String>,
        disk: bool,
    ) -> Vec<Record> {
        if self.view.killed.as_ref() != killed {
            self.inputs.push(Input::Kill(killed.cloned()));
        }
        if self.ability.disk != disk {
            let space = if disk { DiskSpace::Enough } else { DiskSpace::Exhausted };
            self.inputs.push(Input::Disk(space));
        }
        let (registry_answers, repository) = (registry.is_some(), offers.is_some());
        self.ability = Ability { registry: registry_answers, repository, disk };
        if !self.view.leads() {
            return Vec::new();
        }
        let term = self.view.raft.term;
        if self.read.term != term {
            // Another leader may have written since.
            self.read = Read { term, ..Read::default() };
        }
        if self.read.registry.as_ref().map(Arc::as_ptr) != registry.map(Arc::as_ptr) {
            let mut view = registry.map(|view| RegistryView::clone(view));
            if self.mutation == Some(Mutation::Ledger) {
                let policies = view.iter_mut().flat_map(|view| view.policies.values_mut());
                for (_, policy) in policies {
                    policy.update.max_unavailable = Size::Percent(100);
                }
            }
            self.inputs.push(Input::Registry(view));
            self.read.registry = registry.cloned();
        }
        self.read_repository(offers);
        registry.filter(|_| writes).map_or(Vec::new(), |_| self.write_records())
    }

    /// How far each server's clock is ahead of the others', in milliseconds, as people are told.
    pub(crate) fn shows_clocks(&self, now_ms: u64) -> BTreeMap<ServerId, i64> {
        let faults = self.machines.faults(now_ms).into_iter();
        faults.map(|(server, it)| (server, it.clock_ahead_ms.unwrap_or(0))).collect()
    }

    /// Whether people are told that a server serves with an app, of which `here` is known.
    pub(crate) fn shows_serving(&self, app: &AppId, server: &ServerId, here: &ServerApp) -> bool {
        let doing = self.contacts.of(server).and_then(|contact| contact.doing.get(app));
        capacity::serves(here, doing.map(Doing::step))
    }

    /// Whether people are told that a server is unknown.
    pub(crate) fn shows_unknown(&self, server: &ServerId, now_ms: u64) -> bool {
        self.view.is_unknown(server, &self.contacts, now_ms)
    }

    fn read_repository(&mut self, offers: Option<&Arc<BTreeMap<AppId, Offer>>>) {
        let answers = offers.is_some();
        let last = self.read.offers.as_ref();
        let held = last.map_or_else(Arc::default, |(held, _)| Arc::clone(held));
        let offers = offers.map_or(held, Arc::clone);
        let same =
            |(held, answered): &(_, bool)| Arc::ptr_eq(held, &offers) && *answered == answers;
        if last.is_some_and(same) {
            return;
        }
        let away = || WhyRefused::Unreachable { file: "timestamp.json".into() }.into();
        let refreshed = if answers { Ok(()) } else { Err(away()) };
        let (all, refusals) = (BTreeMap::clone(&offers), Vec::new());
        self.inputs.push(Input::Offers { offers: all, refusals, refreshed });
        self.read.offers = Some((offers, answers));
    }

    pub(crate) fn has_inputs(&self) -> bool {
        !self.inputs.is_empty()
    }

    fn write_records(&mut self) -> Vec<Record> {
        let settled = self.read.settled.as_ref().is_some_and(|view| Arc::ptr_eq(view, &self.view));
        if settled || self.asked.values().any(|waits| matches!(waits, Waits::Record)) {
            return Vec::new();
        }
        let records = due(&self.view.state, &self.view.raft.configuration, &self.read.written);
        for record in &records {
            if let Some(body) = self.read.written.took(record.clone()) {
                let command = Box::new(command(format!("leader {}", self.here.server), None, body));
                let ticket = self.wait(Waits::Record);
                self.inputs.push(Input::Propose { ticket, command });
            }
        }
        self.read.settled = records.is_empty().then(|| Arc::clone(&self.view));
        records
    }

    /// Every server of the group has just asked for its orders, if silence is to be missed.
    pub(super) fn hear_everybody(&mut self) {
        for server in self.view.state.servers.keys() {
            let doing = self.contacts.of(server).map(|known| known.doing.clone());
            self.contacts.heard(self.now_ms, server, 0, doing.unwrap_or_default());
        }
    }

    /// A server reports its transfers to the leader's tracker.
    pub(super) fn track(
        &mut self,
        server: &ServerId,
        mut request: TransferRequest,
    ) -> Option<TransferAnswer> {
        let state = &self.view.state;
        keep_known(&mut request, state);
        if !self.view.leads() {
            self.tracker.clear();
            return None;
        }
        let known = state.servers.get(server)?;
        let (address, rack) = (known.address.clone(), known.rack.clone());
        let leads = *server == self.here.server;
        let from = Participant { server: server.clone(), address, rack, leads };
        self.tracker.report(&from, &request, Duration::from_millis(self.now_ms)).ok()
    }
}
