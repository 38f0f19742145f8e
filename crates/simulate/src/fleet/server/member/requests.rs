//! What comes to the member and the agent around it, and the answers about orders.

use cohort_core::command::Body;
use cohort_core::orders::Orders;
use cohort_core::state::Process;
use cohort_server::answers::{self, Joining, ReportRefused};
use cohort_server::asking::{Input as Answer, ORDERS_VALID_MS, Question, WAIT_MS_MAX};
use cohort_server::member::Input;

use super::reports::{Batch, start_of};
use super::{Carried, Client, Held, INCARNATION, Request, Said, Waits};
use crate::fleet::build;
use crate::fleet::chaos::Mutation;
use crate::fleet::log::Log;
use crate::fleet::net::{Packet, What};

impl Carried {
    /// A packet has come, for the member or for the agent around it. [`Self::step`] follows.
    pub(crate) fn receive(&mut self, now_ms: u64, packet: Packet, log: &mut Log) {
        self.clock(now_ms);
        let Packet { from, id, what, .. } = packet;
        let request = Request { from, id };
        match what {
            What::Raft(envelope) => self.inputs.push(Input::Received(envelope)),
            What::Ask { question, doing, machine } => {
                self.asked(request, &question, (doing, machine), log);
            }
            What::Report(reports) => {
                let by = (&request.from.server, request.life());
                let checked = answers::check_report(&self.view.state, by, INCARNATION);
                match checked {
                    Ok(()) => {}
                    Err(ReportRefused::Stranger | ReportRefused::OtherAgent) => {
                        return self.reply(request, What::Taken(None));
                    }
                    Err(ReportRefused::OtherIncarnation) => unreachable!("there is only one"),
                }
                let left = self.renumbered(log.now_ms, reports);
                self.next_report(Batch { request, left, taken: Vec::new(), arrived_ms: now_ms });
            }
            What::Forward(command) => {
                let ticket = self.wait(Waits::Forward(request));
                self.inputs.push(Input::Propose { ticket, command });
            }
            What::Forwarded(outcome) => {
                let Some((_, commit)) = self.forwarded.remove(&request.id) else { return };
                match outcome {
                    Some(rejection) => self.committed(commit, Some(rejection), log),
                    None => self.failed(commit, log),
                }
            }
            What::Claim(member) => {
                let server = request.from.server.clone();
                let ticket = self.wait(Waits::Claim(request));
                self.inputs.push(Input::Claim { ticket, server, member });
            }
            What::Contacts(contacts, machines, ability) => {
                let reaches = Input::Reaches { voter: request.from.server, ability };
                self.inputs.extend(self.view.asks_voters.then_some(reaches));
                for (server, (age_ms, doing)) in contacts {
                    self.contacts.heard(now_ms, &server, age_ms, doing);
                    if let Some(machine) = machines.get(&server) {
                        self.machines.said(now_ms, &server, age_ms, *machine);
                    }
                }
            }
            What::Transfer(report) => {
                let guidance = self.track(&request.from.server, report);
                self.reply(request, What::Guided(guidance));
            }
            What::Answer(_) | What::Taken(_) | What::Guided(_) | What::Claimed(_) | What::Noted => {
            }
        }
    }

    fn asked(&mut self, request: Request, question: &Question, said: Said, log: &mut Log) {
        match question {
            Question::Orders => {
                let ticket = self.wait(Waits::Orders(request, said, log.applied));
                self.inputs.push(Input::Read { ticket });
            }
            Question::Change { known } => {
                self.heard(&request, said);
                let (orders, hash) = self.orders_of(&request);
                if answers::answers_now(self.view.raft.leader.is_some(), hash, *known) {
                    return self.reply(request, What::Answer(Answer::Changed));
                }
                let until_ms = self.now_ms + WAIT_MS_MAX;
                self.held.push(Held { request, orders, until_ms });
            }
            Question::Kill => self.reply(request, What::Answer(Answer::Changed)),
            Question::Join => {
                let (server, address) = (request.from.server.clone(), request.from.address());
                let host = match self.view.state.servers.get(&server) {
                    Some(known) if self.mutation == Some(Mutation::CloneCheck) => {
                        known.process.host.clone()
                    }
                    _ => request.from.host(),
                };
                let process = Process { life: request.life(), host };
                match answers::joining(&self.view, &server, &address, &process) {
                    Joining::Done => self.reply(request, What::Answer(Answer::Joined(true))),
                    Joining::New if !log.admitted.contains(&server) => {
                        self.reply(request, What::Answer(Answer::Joined(false)));
                    }
                    joins @ (Joining::New | Joining::Moved) => {
                        let actor = format!("agent {server}");
                        let rack = build::rack_of(&server, self.racks);
                        let body = match joins {
                            Joining::Moved => Body::MoveServer { server, address, process },
                            _ => Body::AddServer { server, address, rack, process },
                        };
                        self.commit(actor, None, body, Client::Join(request));
                    }
                }
            }
        }
    }

    /// What the agent that speaks for a server says of itself.
    pub(super) fn heard(&mut self, request: &Request, (doing, machine): Said) {
        if answers::speaks_for(&self.view.state, &request.from.server, request.life()) {
            if machine.vouched {
                self.contacts.heard(self.now_ms, &request.from.server, 0, doing);
            }
            self.machines.said(self.now_ms, &request.from.server, 0, machine);
        }
    }

    fn orders_of(&mut self, request: &Request) -> (Option<Orders>, u64) {
        let (server, life) = (&request.from.server, request.life());
        let known = self.orders.entry((server.clone(), life));
        let orders = || {
            let orders = answers::orders(&self.view, server, life);
            let hash = answers::hash_of(orders.as_ref());
            (orders, hash)
        };
        known.or_insert_with(orders).clone()
    }

    pub(super) fn orders(&mut self, request: &Request) -> Answer {
        let (orders, _) = self.orders_of(request);
        let voters = self.view.voters();
        let (mut orders, leader) = (orders.map(Box::new), self.view.leader().cloned());
        if let Some(orders) = &mut orders {
            orders.heard = start_of(orders.heard);
        }
        let elsewhere = answers::elsewhere(&self.view.state, &request.from.server, request.life());
        Answer::Orders { orders, elsewhere, valid_ms: ORDERS_VALID_MS, leader, voters }
    }

    /// Answers the held questions whose orders have changed, or whose time is up.
    pub(super) fn answer_held(&mut self) {
        let (view, now_ms) = (&self.view, self.now_ms);
        let leaderless = view.raft.leader.is_none();
        // The same orders have the same hash.
        let over = |held: &mut Held| {
            held.until_ms <= now_ms
                || leaderless
                || !answers::speaks_for(&view.state, &held.request.from.server, held.request.life())
                || view.orders(&held.request.from.server) != held.orders
        };
        let over: Vec<Held> = self.held.extract_if(.., over).collect();
        for held in over {
            self.reply(held.request, What::Answer(Answer::Changed));
        }
    }
}
