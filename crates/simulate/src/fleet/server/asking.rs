//! How a virtual server asks for its orders and follows them, and what it and the hub tell each
//! other about places.

use std::collections::BTreeSet;

use cohort_core::ids::BootEpoch;
use cohort_core::orders::{Orders, Source};
use cohort_core::steps::AppRecord;
use cohort_server::asking::{
    ANSWER_MS_MAX, CHANGE_MS_MAX, Effect, Input, Members, ORDERS_VALID_MS, Question, Received,
};
use cohort_server::membership::{Obedience, OwnLog, obedience};
use cohort_server::outbox::ANSWER_MS_MAX as TAKEN_MS_MAX;
use cohort_server::records::MemberPlace;

use super::member::INCARNATION;
use super::{Agent, Around, Hub, KILL_MS_MAX, Open, Server, TELL_HUB_EVERY_MS};
use crate::fleet::log::Log;
use crate::fleet::net::{Packet, What};
use crate::fleet::place::Place;

impl Server {
    pub(super) fn read_inbox(&mut self, around: &Around<'_>, log: &mut Log) {
        for Packet { id, what, .. } in std::mem::take(&mut self.agent.inbox) {
            match what {
                What::Answer(input) => {
                    if let Some(open) = self.agent.open.take_if(|open| open.id == id) {
                        self.answered(open, input, around);
                    }
                }
                What::Taken(taken) if self.agent.sending.is_some_and(|(sent, _)| sent == id) => {
                    self.agent.sending = None;
                    match taken {
                        Some(taken) => {
                            self.agent.outbox.answered(&taken);
                            self.agent.changes += 1;
                        }
                        None => self.agent.outbox.not_answered(around.now_ms),
                    }
                }
                What::Guided(answer) => self.guided(id, answer, around.now_ms),
                What::Claimed(granted) => self.claimed(id, granted, around.now_ms, log),
                _ => {}
            }
        }
        if let Some(open) = self.agent.open.take_if(|open| open.until_ms <= around.now_ms) {
            self.answered(open, Input::NoAnswer, around);
        }
        if self.agent.rest_until_ms.is_some_and(|until_ms| until_ms <= around.now_ms) {
            self.agent.rest_until_ms = None;
            self.ask(Input::Woken, around);
        }
        if self.agent.sending.is_some_and(|(_, until_ms)| until_ms <= around.now_ms) {
            self.agent.sending = None;
            self.agent.outbox.not_answered(around.now_ms);
        }
    }

    /// This came of a question.
    fn answered(&mut self, open: Open, input: Input, around: &Around<'_>) {
        match (open.whom, &input) {
            (Some(_), Input::Orders { orders, .. }) => self.agent.refused = orders.is_none(),
            (Some(whom), Input::NoAnswer) => {
                self.agent.book.borrow_mut().missed(&whom.server, &whom.address);
            }
            _ => {}
        }
        self.ask(input, around);
    }

    /// Steps with what came of the last question, until the next one is open.
    fn ask(&mut self, input: Input, around: &Around<'_>) {
        let now_ms = around.now_ms;
        let address = self.place.address();
        let carries = self.member.is_some();
        let mut input = Some(input);
        while let Some(given) = input.take() {
            let Agent { asking, book, .. } = &mut self.agent;
            let book = book.borrow();
            let own = carries.then_some(address.as_str());
            let effects = asking.step(
                now_ms,
                Members { known: book.current(), voters: &book.voters, own },
                given,
            );
            drop(book);
            for effect in effects {
                match effect {
                    Effect::Obey(received) => {
                        let life = self.lives;
                        self.take_orders(*received);
                        if life != self.lives || !self.up {
                            return;
                        }
                    }
                    Effect::OldIncarnation { .. } => {}
                    Effect::Displaced { .. } => return self.start_over(),
                    Effect::AskRegistry { tell } => {
                        self.ask_registry(around, tell);
                        input = Some(Input::RegistryAsked);
                    }
                    Effect::Ask(whom, question) => {
                        let patience_ms = match question {
                            Question::Orders => ANSWER_MS_MAX,
                            Question::Change { .. } => CHANGE_MS_MAX,
                            Question::Join => TAKEN_MS_MAX,
                            Question::Kill => KILL_MS_MAX,
                        };
                        let id = self.agent.number();
                        let to = Place::of(&whom.server, &whom.address);
                        let whom = Some(whom).filter(|_| {
                            matches!(question, Question::Orders | Question::Change { .. })
                        });
                        let until_ms = now_ms + patience_ms;
                        self.agent.open = Some(Open { id, until_ms, whom });
                        let (doing, machine) = (self.doing(), self.machine_report());
                        self.send(to, id, What::Ask { question, doing, machine });
                    }
                    Effect::Rest { until_ms } => self.agent.rest_until_ms = Some(until_ms),
                }
            }
        }
    }

    /// Orders, as if they had been answered to a question asked at `asked_ms`.
    pub(crate) fn obey(&mut self, orders: Orders, asked_ms: u64) {
        let (valid_ms, leader, voters) = (ORDERS_VALID_MS, None, BTreeSet::new());
        self.take_orders(Received { orders, asked_ms, valid_ms, leader, voters });
    }

    fn take_orders(&mut self, mut received: Received) {
        if std::mem::take(&mut self.hears_earlier) {
            for orders in &mut received.orders.apps {
                let earlier = self.earlier.get(&orders.app);
                orders.activation = earlier.cloned().or(orders.activation.take());
            }
        }
        let first = self.agent.received.is_none();
        let start = (BootEpoch(self.disk.boot_epoch), !first);
        match obedience(&received, self.now_ms, self.own_log(), start) {
            Obedience::Obey => {}
            Obedience::Ignore => return,
            Obedience::Retired { .. } => {
                self.disk.log = None;
                return self.restart();
            }
            Obedience::EarlierDisk { heard } => {
                self.disk.boot_epoch = heard.0;
                return self.start_over();
            }
        }
        if first {
            self.agent.tell_hub_ms = Some(self.now_ms);
        }
        let members = &received.orders.members;
        {
            let mut book = self.agent.book.borrow_mut();
            book.learn(members);
            book.voters.clone_from(&received.voters);
        }
        let leader = received.leader.as_ref();
        if let Some(found) = leader.and_then(|it| members.iter().find(|m| m.server == *it)) {
            let (server, address) = (found.server.clone(), found.address.clone());
            self.agent.leader = Some(Source { server, address });
        }
        for orders in &received.orders.apps {
            if !self.disk.apps.contains_key(&orders.app) {
                self.disk.apps.insert(orders.app.clone(), AppRecord::default());
                self.boot(&orders.app);
            }
        }
        for orders in &received.orders.apps {
            self.keep(&orders.app, &orders.keep);
        }
        for app in self.agent.apps.values_mut() {
            app.reached.heard(received.asked_ms);
        }
        self.agent.received = Some(received);
        self.agent.changes += 1;
    }

    pub(super) fn own_log(&self) -> OwnLog {
        match (&self.disk.log, &self.member) {
            (Some((member, _)), Some(carried)) => {
                let proven = carried.view.raft.proven;
                OwnLog::Open { incarnation: INCARNATION, member: *member, proven }
            }
            (Some(_), None) => OwnLog::Closed,
            (None, _) => OwnLog::None,
        }
    }

    /// Learns from the hub where the members are; with `tell`, it first hears where this one is.
    pub(super) fn ask_registry(&mut self, around: &Around<'_>, tell: bool) {
        let Some(hub) = around.hub.as_ref().filter(|_| self.linked) else { return };
        if tell {
            self.tell_hub(hub);
        }
        let mut book = self.agent.book.borrow_mut();
        let member = |place: &MemberPlace| place.at.clone();
        book.learn(&hub.members.iter().map(member).collect::<Vec<_>>());
        let voters = hub.members.iter().filter(|place| place.voter);
        book.voters = voters.map(|place| place.at.server.clone()).collect();
        if let Some(member) = &self.member {
            book.learn_more(&member.view.state.member_addresses());
        }
        let places = hub.places.borrow();
        for known in book.current().to_vec() {
            if known.server != self.id
                && let Some(place) = places.get(&known.server)
            {
                book.learn_move(&known, &place.address());
            }
        }
    }

    fn tell_hub(&self, hub: &Hub<'_>) {
        hub.places.borrow_mut().insert(self.id.clone(), self.place.clone());
    }

    /// Looks from time to time whether the hub has its address.
    pub(super) fn check_hub(&mut self, around: &Around<'_>) {
        let due = self.agent.tell_hub_ms.is_some_and(|at_ms| at_ms <= around.now_ms);
        if let Some(hub) = around.hub.as_ref().filter(|_| due && self.linked) {
            if !self.agent.refused {
                self.tell_hub(hub);
            }
            self.agent.tell_hub_ms = Some(around.now_ms + TELL_HUB_EVERY_MS);
        }
    }

    /// The leader: as the member here knows it, else as another member named it.
    pub(super) fn leader(&self) -> Option<Source> {
        let own = self.member.as_ref().and_then(|member| {
            let (state, server) = (&member.view.state, member.view.leader()?);
            let address = state.servers.get(server)?.address.clone();
            Some(Source { server: server.clone(), address })
        });
        own.or_else(|| self.agent.leader.clone())
    }
}
