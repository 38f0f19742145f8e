//! How a virtual server comes to carry the group's log, and what drives its member.

use std::collections::BTreeMap;

use cohort_core::ids::{AppId, MemberId, ServerId};
use cohort_server::membership::{LOOK_EVERY_MS, carries_another};
use cohort_store::FaultyStore;

use super::member::{Carried, Ended, INCARNATION};
use super::{Disk, Kill, Server, Service};
use crate::fleet::chaos::Mutation;
use crate::fleet::log::Log;
use crate::fleet::net::What;

/// How long an answer to a claim is waited for, in milliseconds.
const CLAIM_MS_MAX: u64 = 2_000;
/// Pause after a claim that was not granted, in milliseconds.
const CLAIM_AGAIN_MS: u64 = 200;

impl Server {
    pub(super) fn open_member(&mut self) {
        let Some((own, disk)) = &self.disk.log else { return };
        let store = FaultyStore::open(disk).expect("no record is ever torn here");
        let (now_ms, killed) = (self.now_ms + self.ahead_ms, self.kill.stopping().cloned());
        let me = (self.id.clone(), self.disk.boot_epoch, self.lives);
        self.member = Some(Box::new(Carried::open(now_ms, me, *own, store, &self.setup, killed)));
    }

    /// The machine as it is now, for [`Self::restore`].
    pub(crate) fn image(&self) -> (Disk, BTreeMap<AppId, Service>) {
        let log = self.disk.log.as_ref().map(|(member, disk)| (*member, disk.image()));
        (Disk { log, ..self.disk.clone() }, self.services.clone())
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
        Some(wakes_ms.saturating_sub(self.ahead_ms).max(self.paused_until_ms))
    }

    /// Whether the member here tells people that a server is unknown.
    pub(crate) fn shows_unknown(&self, server: &ServerId, now_ms: u64) -> bool {
        let now_ms = now_ms + self.ahead_ms;
        self.member.as_ref().is_some_and(|member| member.shows_unknown(server, now_ms))
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
        let ended = member.step(now_ms, self.disk_fails, log);
        self.agent.outgoing.append(&mut member.outgoing);
        match ended {
            Ended::Not => {}
            Ended::Failed => self.crash(),
            Ended::Stopped => {
                self.crash();
                self.start();
            }
            Ended::WentBack => {
                self.crash();
                self.disk.log = None;
                self.start();
            }
        }
        Some(acted)
    }

    /// Claims the member that the orders name; starts over when they name another one than the log
    /// on the disk is of.
    pub(super) fn follow_member_order(&mut self, now_ms: u64, log: &mut Log) {
        let Some(received) = &self.agent.received else { return };
        if let Some((own, _)) = &self.disk.log {
            if now_ms >= self.agent.look_ms {
                self.agent.look_ms = now_ms + LOOK_EVERY_MS;
                if carries_another(received, now_ms, INCARNATION, *own) {
                    self.crash();
                    self.disk.log = None;
                    self.start();
                }
            }
            return;
        }
        let Some(order) = received.orders.member.as_ref().filter(|_| now_ms >= self.agent.claim.1)
        else {
            return;
        };
        let member = order.member;
        if self.is_off(Mutation::NewMember) {
            return self.carry(order.member, cohort_store::Disk::new(), log);
        }
        let mut others = self.agent.members.iter().filter(|member| member.server != self.id);
        let count = others.clone().count().max(1);
        let Some(to) = others.nth(self.agent.claims % count).map(|to| to.server.clone()) else {
            return;
        };
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
