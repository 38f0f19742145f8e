//! How a virtual server comes to carry the group's log, and what drives its member.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use cohort_core::ids::{AppId, MemberId, ServerId};
use cohort_core::state::ServerApp;
use cohort_server::membership::{LOOK_EVERY_MS, carries_another};
use cohort_store::FaultyStore;

use super::member::{Carried, Ended, INCARNATION};
use super::{Around, Disk, Kill, MACHINE_SHIFT, Server, Service};
use crate::fleet::chaos::Mutation;
use crate::fleet::log::Log;
use crate::fleet::net::What;
use crate::fleet::place::Place;

/// How long an answer to a claim is waited for, in milliseconds.
const CLAIM_MS_MAX: u64 = 2_000;
/// Pause after a claim that was not granted, in milliseconds.
const CLAIM_AGAIN_MS: u64 = 200;

impl Server {
    pub(super) fn open_member(&mut self) {
        let Some((own, disk)) = &self.disk.log else { return };
        let store = FaultyStore::open(disk).expect("no record is ever torn here");
        let (now_ms, killed) = (self.now_ms + self.ahead_ms, self.kill.stopping().cloned());
        let me = (self.place.clone(), self.disk.boot_epoch, self.lives);
        let book = Rc::clone(&self.agent.book);
        let carried = Carried::open(now_ms, me, *own, store, &self.setup, killed, book);
        self.member = Some(Box::new(carried));
    }

    /// The machine as it is now, for [`Self::restore`].
    pub(crate) fn image(&self) -> (Disk, BTreeMap<AppId, Service>) {
        let log = self.disk.log.as_ref().map(|(member, disk)| (*member, disk.image()));
        (Disk { log, ..self.disk.clone() }, self.services.clone())
    }

    /// Another machine starts elsewhere, with what is on this one's disk.
    pub(crate) fn copy(&self, place: Place) -> Server {
        let number = u64::from(place.number);
        let mut copy = Server::new(self.now_ms, place, Arc::clone(&self.setup));
        (copy.lives, copy.boots) = (number << MACHINE_SHIFT, number << MACHINE_SHIFT);
        copy.restore(self.image());
        copy
    }

    /// The machine is restored from an image, and starts.
    pub(crate) fn restore(&mut self, (disk, services): (Disk, BTreeMap<AppId, Service>)) {
        self.power_off();
        (self.disk, self.services) = (disk, services);
        self.power_off();
        // The others know, and tell it.
        self.acknowledged = Kill::default();
        self.earlier.clear();
        self.accepted.clear();
        self.collected.clear();
        self.start();
    }

    /// Creates the member, with an empty log, or with what `disk` has of one.
    pub(crate) fn carry(&mut self, member: MemberId, disk: cohort_store::Disk, log: &mut Log) {
        log.created(member, &self.id);
        self.disk.log = Some((member, disk));
        self.open_member();
    }

    /// When the member wants to step, by the fleet's clock; none if there is no member.
    pub(crate) fn wakes_ms(&self) -> Option<u64> {
        let wakes_ms = self.member.as_ref()?.wakes_ms();
        let free_ms = self.paused_until_ms.max(self.busy_until_ms);
        Some(wakes_ms.saturating_sub(self.ahead_ms).max(free_ms))
    }

    /// Whether the member here tells people that a server serves with an app.
    pub(crate) fn shows_serving(&self, app: &AppId, server: &ServerId, here: &ServerApp) -> bool {
        self.member.as_ref().is_some_and(|member| member.shows_serving(app, server, here))
    }

    /// Whether the member here tells people that a server is unknown.
    pub(crate) fn shows_unknown(&self, server: &ServerId, now_ms: u64) -> bool {
        let now_ms = now_ms + self.ahead_ms;
        self.member.as_ref().is_some_and(|member| member.shows_unknown(server, now_ms))
    }

    /// How far each clock is ahead of most others, as the member here tells people; 0: it agrees.
    pub(crate) fn shows_clocks(&self, now_ms: u64) -> BTreeMap<ServerId, i64> {
        let member = self.member.as_ref();
        member.map_or_else(BTreeMap::new, |member| member.shows_clocks(now_ms + self.ahead_ms))
    }

    /// Lets the member do something, and whatever follows from it now.
    pub(crate) fn step_member<T>(
        &mut self,
        log: &mut Log,
        act: impl FnOnce(&mut Carried, u64, &mut Log) -> T,
    ) -> Option<T> {
        let now_ms = log.now_ms + self.ahead_ms;
        let member = self.member.as_mut()?;
        let acted = act(member, now_ms, log);
        let written = member.written();
        let ended = member.step(now_ms, self.disk_fails, log);
        if self.sync_ms > 0 && member.written() != written {
            self.busy_until_ms = log.now_ms + self.sync_ms;
        }
        self.agent.outgoing.append(&mut member.outgoing);
        match ended {
            Ended::Not => {}
            Ended::Failed => self.crash(),
            Ended::Stopped => self.restart(),
            Ended::Copied => self.end(),
            Ended::WentBack => {
                self.disk.log = None;
                self.start_over();
            }
        }
        Some(acted)
    }

    /// Claims the member that the orders name; starts over when they name another one than the log
    /// on the disk is of.
    pub(super) fn follow_member_order(&mut self, around: &Around<'_>, log: &mut Log) {
        let now_ms = around.now_ms;
        if let (Some((own, _)), Some(member)) = (&self.disk.log, &self.member) {
            if now_ms >= self.agent.look_ms {
                self.agent.look_ms = now_ms + LOOK_EVERY_MS;
                let received = self.agent.received.as_ref();
                if received.is_some_and(|it| carries_another(it, now_ms, INCARNATION, *own)) {
                    self.disk.log = None;
                    return self.restart();
                }
                if member.view.raft.leader.is_none() {
                    self.ask_registry(around, false);
                }
            }
            return;
        }
        let Some(received) = &self.agent.received else { return };
        let Some(order) = received.orders.member.as_ref().filter(|_| now_ms >= self.agent.claim.1)
        else {
            return;
        };
        let member = order.member;
        if self.is_off(Mutation::NewMember) {
            return self.carry(order.member, cohort_store::Disk::new(), log);
        }
        let book = self.agent.book.borrow();
        let mut others = book.current().iter().filter(|member| member.server != self.id);
        let count = others.clone().count().max(1);
        let to = others.nth(self.agent.claims % count);
        let Some(to) = to.map(|to| Place::of(&to.server, &to.address)) else { return };
        drop(book);
        let id = self.agent.number();
        self.agent.claims += 1;
        self.agent.claim = (Some((id, member)), now_ms + CLAIM_MS_MAX);
        self.send(to, id, What::Claim(member));
    }

    /// A member has answered a claim.
    pub(super) fn claimed(&mut self, id: u64, granted: Option<bool>, now_ms: u64, log: &mut Log) {
        let Some((_, member)) = self.agent.claim.0.take_if(|(open, _)| *open == id) else { return };
        match granted {
            Some(true) if self.disk.log.is_none() => {
                self.carry(member, cohort_store::Disk::new(), log);
            }
            // Another one leads: ask the next.
            None => self.agent.claim.1 = now_ms,
            Some(_) => self.agent.claim.1 = now_ms + CLAIM_AGAIN_MS,
        }
    }
}
