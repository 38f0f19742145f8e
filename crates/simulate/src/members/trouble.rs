//! What goes wrong, and what people do meanwhile.

use cohort_consensus::RaftId;
use cohort_core::gate::RegistryView;
use cohort_server::member::Input;
use cohort_store::WriteFault;
use rand::Rng;

use super::host::{GONE_MS, Host};
use super::world::{Waits, World};
use crate::raft::Network;

/// Time between two troubles at most, in milliseconds.
const EVERY_MS_MAX: u64 = 250;
/// How long a process stays down, or pauses, at most, in milliseconds.
const DOWN_MS_MAX: u64 = 3_000;
/// Time between two disks that are lost, in milliseconds: a group replaces one voter at a time.
const LOST_DISK_EVERY_MS: u64 = 12_000;

impl World {
    pub(super) fn trouble(&mut self) -> Result<(), String> {
        if self.now_ms < self.next_trouble_ms {
            return Ok(());
        }
        self.next_trouble_ms = self.now_ms + self.rng.random_range(1..=EVERY_MS_MAX);
        let mut at = self.rng.random_range(0..self.hosts.len());
        if self.rng.random_bool(0.4) {
            at = self.leader().unwrap_or(at);
        }
        let down_ms = self.rng.random_range(1..=DOWN_MS_MAX);
        match self.rng.random_range(0..20) {
            0 if self.hosts[at].member.is_some() => self.crash(at, down_ms),
            1 => {
                let fault = [WriteFault::FailLost, WriteFault::FailKept];
                let fault = fault[self.rng.random_range(0..fault.len())];
                if let Host { disk: Some((_, disk)), member: Some(_), .. } = &self.hosts[at] {
                    disk.set_fault(fault);
                    self.hosts[at].disk_fails = true;
                }
            }
            2 => {
                self.say(|| format!("s{} pauses for {down_ms} ms", at + 1));
                self.hosts[at].paused_until_ms = self.now_ms + down_ms;
            }
            3 => {
                let ids: Vec<RaftId> = self.carried();
                self.network.part(&ids, &mut self.rng);
                self.say(|| format!("cut {:?}", self.network.cut));
            }
            4 => {
                let own = self.hosts[at].disk.as_ref().map(|(member, _)| RaftId(member.0));
                let Some(own) = own else { return Ok(()) };
                let pairs = self.carried().into_iter().flat_map(|id| [(own, id), (id, own)]);
                self.network.cut = pairs.collect();
                self.say(|| format!("s{} is cut off", at + 1));
            }
            5..=8 => self.network.cut.clear(),
            9 => {
                let cut = std::mem::take(&mut self.network.cut);
                self.network = Network { cut, ..Network::draw(&mut self.rng) };
            }
            10..=12 => return self.transfer(at),
            13 => return self.input(at, Input::Stop),
            14 => {
                let registry = self.rng.random_bool(0.5).then(RegistryView::default);
                return self.input(at, Input::Registry(registry));
            }
            15 => {
                let reason = self.rng.random_bool(0.3).then(|| "stop".to_owned());
                return self.input(at, Input::Kill(reason));
            }
            16 => {
                let ids = self.carried();
                let peer = ids[self.rng.random_range(0..ids.len())];
                let input = [Input::Connected(peer), Input::Unreachable(peer)];
                let input = input[self.rng.random_range(0..2)].clone();
                return self.input(at, input);
            }
            17 => self.lose(at, false),
            18 => self.lose(at, true),
            _ => {}
        }
        Ok(())
    }

    /// The members that have a log.
    fn carried(&self) -> Vec<RaftId> {
        let member = |host: &Host| host.disk.as_ref().map(|(member, _)| RaftId(member.0));
        self.hosts.iter().filter_map(member).collect()
    }

    fn input(&mut self, at: usize, input: Input) -> Result<(), String> {
        let host = &self.hosts[at];
        if host.member.is_none() || host.paused_until_ms > self.now_ms {
            return Ok(());
        }
        self.step(at, vec![input])
    }

    fn transfer(&mut self, at: usize) -> Result<(), String> {
        if self.hosts[at].member.is_none() || self.hosts[at].paused_until_ms > self.now_ms {
            return Ok(());
        }
        let ids = self.carried();
        let to = ids[self.rng.random_range(0..ids.len())];
        let to = self.rng.random_bool(0.7).then_some(to);
        self.say(|| format!("s{} is to hand over to {to:?}", at + 1));
        self.ask(at, Waits::Transfer, |ticket| Input::Transfer { ticket, to })
    }

    /// A server loses its disk, or is gone for good, if the group survives that: everybody else
    /// runs, and no change of membership is under way.
    fn lose(&mut self, at: usize, for_good: bool) {
        if for_good && self.hosts.iter().any(Host::is_gone) {
            return;
        }
        let Some(view) = self.leader().and_then(|leader| self.hosts[leader].view.clone()) else {
            return;
        };
        let settled = !view.raft.change_pending
            && view.raft.configuration.voters.len() >= 3
            && self.network.cut.is_empty()
            && self.now_ms >= self.lost_disk_ms + LOST_DISK_EVERY_MS;
        let whole = self.hosts.iter().filter(|host| host.member.is_some()).count();
        if !settled || whole < view.raft.configuration.members().len() {
            return;
        }
        self.say(|| format!("s{} {}", at + 1, if for_good { "is gone" } else { "loses its disk" }));
        self.lost_disk_ms = self.now_ms;
        self.crash(at, 100);
        self.hosts[at].disk = None;
        if for_good {
            self.outcome.gone += 1;
            self.hosts[at].starts_ms = GONE_MS;
        }
    }

    /// Everything works again.
    pub(super) fn heal(&mut self) -> Result<(), String> {
        self.say(|| "everything heals".to_owned());
        self.healing = true;
        self.network = Network::healed();
        for at in 0..self.hosts.len() {
            self.hosts[at].paused_until_ms = self.now_ms;
            if let Some((_, disk)) = &self.hosts[at].disk {
                disk.set_fault(WriteFault::None);
            }
            if self.hosts[at].starts_ms > 0 && !self.hosts[at].is_gone() {
                self.start(at)?;
            }
            self.input(at, Input::Kill(None))?;
        }
        Ok(())
    }
}
