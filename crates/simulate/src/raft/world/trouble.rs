//! What goes wrong in a simulated group, and what people change meanwhile.

use cohort_consensus::RaftId;
use cohort_store::{EntryKind, LogStore as _};
use rand::Rng;

use super::{Event, TROUBLE_MS_MAX, World};
use crate::raft::chaos::{self, Trouble};
use crate::raft::network::Network;

impl World {
    pub(super) fn trouble(&mut self) -> Result<(), String> {
        if self.healing {
            return Ok(());
        }
        let after = self.rng.random_range(1..=TROUBLE_MS_MAX);
        self.schedule(after, Event::Trouble);
        let trouble = self.chaos.pick(&mut self.rng);
        let mut id = self.someone();
        match trouble {
            Trouble::Propose => {
                id = self.someone_leading();
                let command = self.command();
                if let Some(member) = self.members.get_mut(&id) {
                    member.propose(command);
                }
            }
            Trouble::Read => {
                if self.rng.random_bool(0.5) {
                    id = self.someone_leading();
                }
                if let Some(member) = self.members.get_mut(&id)
                    && member.paused_until <= self.now
                {
                    member.read(&self.checker);
                }
            }
            Trouble::Crash => {
                if let Some(member) = self.members.get_mut(&id)
                    && member.process.is_some()
                {
                    self.note(|| format!("{id} crashes"));
                    if let Some(member) = self.members.get_mut(&id) {
                        member.crash();
                    }
                    self.down(id);
                }
            }
            Trouble::FailWrite(fault) => {
                if let Some(member) = self.members.get_mut(&id)
                    && !self.setup.lying_disks
                {
                    member.set_fault(fault);
                }
            }
            Trouble::Pause { ms } => {
                let until = self.now + self.rng.random_range(1..=ms);
                self.note(|| format!("{id} pauses until {until}"));
                if let Some(member) = self.members.get_mut(&id) {
                    member.paused_until = until;
                }
            }
            Trouble::Part => {
                let ids: Vec<RaftId> = self.members.keys().copied().collect();
                self.network.part(&ids, &mut self.rng);
                let cut = self.network.cut.clone();
                self.note(|| format!("cut {cut:?}"));
            }
            Trouble::Isolate => {
                id = self.someone_leading();
                let pairs = self.members.keys().flat_map(|other| [(id, *other), (*other, id)]);
                self.network.cut = pairs.collect();
                self.note(|| format!("{id} is cut off"));
            }
            Trouble::Heal => self.network.cut.clear(),
            Trouble::Redraw => {
                let cut = std::mem::take(&mut self.network.cut);
                self.network = Network { cut, ..Network::draw(&mut self.rng) };
            }
            Trouble::Transfer => {
                id = self.someone_leading();
                let to = self.someone();
                if let Some(process) = self.process(id) {
                    let _ = process.node.transfer_leadership(to);
                }
            }
            Trouble::Change => {
                id = self.someone_leading();
                self.change(id);
            }
            Trouble::Compact => self.compact(id),
            Trouble::Unreachable => {
                let peer = self.someone();
                if let Some(process) = self.process(id) {
                    process.node.report_unreachable(peer);
                }
            }
            Trouble::Reconnect => {
                let peer = self.someone();
                if let Some(process) = self.process(id) {
                    process.node.connected(peer);
                }
            }
            Trouble::LoseDisk => return self.lose_disk(id),
        }
        self.settle(id)
    }

    fn change(&mut self, id: RaftId) {
        let alive: Vec<RaftId> = self.members.keys().copied().collect();
        let Some(process) = self.members.get_mut(&id).and_then(|m| m.process.as_mut()) else {
            return;
        };
        let now = process.node.status().configuration;
        let (voters, standbys) = chaos::target(&now, &alive, &mut self.rng);
        let result = process.node.change_membership(&voters, &standbys);
        self.note(|| format!("{id} changes to {voters:?} {standbys:?}: {result:?}"));
    }

    /// A server loses its disk and comes back under a new number, if the group can survive that:
    /// the membership is settled, nobody holds a change that may yet take effect, and a majority
    /// of the voters keeps its disks.
    fn lose_disk(&mut self, id: RaftId) -> Result<(), String> {
        let running: Vec<_> =
            self.members.values().filter_map(|member| member.process.as_ref()).collect();
        let Some(leader) = running
            .iter()
            .map(|process| process.node.status())
            .filter(|status| status.ready && !status.change_pending)
            .max_by_key(|status| status.term)
        else {
            return Ok(());
        };
        let voters = &leader.configuration.voters;
        let left = voters.iter().filter(|v| **v != id && self.members.contains_key(v)).count();
        let pending = running.iter().any(|process| {
            let image = process.node.store().image();
            image
                .entries(leader.configuration_index.next(), image.last_index().next())
                .any(|entry| entry.kind == EntryKind::Membership)
        });
        if running.len() < self.members.len() || pending || left * 2 <= voters.len() {
            return Ok(());
        }
        self.note(|| format!("{id} loses its disk"));
        if let Some(mut member) = self.members.remove(&id) {
            // Half of them are torn rather than empty, and must be found out.
            member.crash();
            let torn = self.rng.random_bool(0.5) && member.disk.tear_last_entry();
            if torn && member.start().is_ok() {
                return Err(format!("{id} starts from a torn disk"));
            }
        }
        self.outcome.crashes += 1;
        self.new_server(0)
    }
}
