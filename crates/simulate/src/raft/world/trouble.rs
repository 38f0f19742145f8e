//! Faults in a simulated group, and the changes that people make meanwhile.

use cohort_consensus::RaftId;
use cohort_store::{EntryKind, FaultyStore, LogStore as _};
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
        self.outcome.faults += u64::from(trouble.is_fault());
        let id = self.someone();
        let id = match trouble {
            Trouble::Propose | Trouble::Read | Trouble::Transfer | Trouble::Change => {
                self.request(trouble, id)
            }
            Trouble::Part | Trouble::Isolate | Trouble::Heal | Trouble::Redraw => {
                self.bad_network(trouble, id)
            }
            Trouble::LoseDisk => return self.lose_disk(id),
            Trouble::RestoreImage => {
                self.restore_image(id);
                return Ok(());
            }
            Trouble::TakeImage => {
                if let Some(member) = self.members.get_mut(&id).filter(|member| !member.restored) {
                    member.image = Some(member.disk.image());
                }
                return Ok(());
            }
            Trouble::Crash
            | Trouble::FailWrite(_)
            | Trouble::Pause { .. }
            | Trouble::Compact
            | Trouble::Unreachable
            | Trouble::Reconnect => {
                self.bad_member(trouble, id);
                id
            }
        };
        self.settle(id)
    }

    /// Sends a client's or a person's request to a member.
    fn request(&mut self, trouble: Trouble, mut id: RaftId) -> RaftId {
        if !matches!(trouble, Trouble::Read) || self.rng.random_bool(0.5) {
            id = self.someone_leading();
        }
        match trouble {
            Trouble::Propose => {
                let command = self.command();
                if let Some(member) = self.members.get_mut(&id) {
                    member.propose(command);
                }
            }
            Trouble::Read => {
                if let Some(member) = self.members.get_mut(&id)
                    && member.paused_until <= self.now
                {
                    member.read(&self.checker);
                }
            }
            Trouble::Transfer => {
                let to = self.someone();
                if let Some(process) = self.process(id) {
                    let _ = process.node.transfer_leadership(to);
                }
            }
            _ => self.change(id),
        }
        id
    }

    fn bad_network(&mut self, trouble: Trouble, mut id: RaftId) -> RaftId {
        match trouble {
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
            Trouble::Redraw => {
                let cut = std::mem::take(&mut self.network.cut);
                self.network = Network { cut, ..Network::draw(&mut self.rng) };
            }
            _ => self.network.cut.clear(),
        }
        id
    }

    fn bad_member(&mut self, trouble: Trouble, id: RaftId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        match trouble {
            Trouble::Crash if member.process.is_some() => {
                member.crash();
                self.note(|| format!("{id} crashes"));
                self.down(id);
            }
            Trouble::FailWrite(fault) if !self.setup.lying_disks => member.set_fault(fault),
            Trouble::Pause { ms } => {
                let until = self.now + self.rng.random_range(1..=ms);
                member.paused_until = until;
                self.note(|| format!("{id} pauses until {until}"));
            }
            Trouble::Compact => self.compact(id),
            Trouble::Unreachable | Trouble::Reconnect => {
                let peer = self.someone();
                match self.process(id) {
                    Some(process) if matches!(trouble, Trouble::Reconnect) => {
                        process.node.connected(peer);
                    }
                    Some(process) => process.node.disconnected(peer),
                    None => {}
                }
            }
            _ => {}
        }
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
    /// the membership is settled, no member holds a change that may still take effect, and a
    /// majority of the voters keep their disks.
    fn lose_disk(&mut self, id: RaftId) -> Result<(), String> {
        if !self.survives_without(id) {
            return Ok(());
        }
        self.note(|| format!("{id} loses its disk"));
        if let Some(mut member) = self.members.remove(&id) {
            // Half of the disks are torn rather than empty, which the server must detect.
            member.crash();
            let torn = self.rng.random_bool(0.5) && member.disk.tear_last_entry();
            if torn && member.start().is_ok() {
                return Err(format!("{id} started from a torn disk"));
            }
        }
        self.outcome.crashes += 1;
        self.new_server(0)
    }

    /// A disk is restored from an image, if the group can survive its loss, and if the disks of all
    /// other servers know of what it has written since.
    fn restore_image(&mut self, id: RaftId) {
        let Some(member) = self.members.get(&id) else { return };
        let Some(image) = member.image.as_ref().and_then(|disk| FaultyStore::open(disk).ok())
        else {
            return;
        };
        let written = image.image().written();
        let known = self.members.values().filter(|other| other.config.id != id).all(|other| {
            let process = other.process.as_ref();
            let mark = process.and_then(|p| p.node.store().image().marks().get(&id));
            mark.is_some_and(|mark| mark.written > written)
        });
        if !known || !self.survives_without(id) {
            return;
        }
        self.note(|| format!("{id} is restored from an image"));
        if let Some(member) = self.members.get_mut(&id)
            && let Some(image) = member.image.take()
        {
            member.crash();
            member.disk = image;
            member.restored = true;
        }
        self.down(id);
    }

    /// Whether the group has all it needs without the disk of this server.
    fn survives_without(&self, id: RaftId) -> bool {
        let running: Vec<_> =
            self.members.values().filter_map(|member| member.process.as_ref()).collect();
        let Some(leader) = running
            .iter()
            .map(|process| process.node.status())
            .filter(|status| status.ready && !status.change_pending)
            .max_by_key(|status| status.term)
        else {
            return false;
        };
        let keeps = |id: &RaftId| self.members.get(id).is_some_and(|member| !member.restored);
        let voters = &leader.configuration.voters;
        let left = voters.iter().filter(|v| **v != id && keeps(v)).count();
        let pending = running.iter().any(|process| {
            let image = process.node.store().image();
            image
                .entries(leader.configuration_index.next(), image.last_index().next())
                .any(|entry| entry.kind == EntryKind::Membership)
        });
        running.len() == self.members.len() && !pending && left * 2 > voters.len()
    }
}
