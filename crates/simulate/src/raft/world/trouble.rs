//! Faults in a simulated group, and the changes that people make meanwhile.

use std::collections::BTreeSet;

use cohort_consensus::{RaftId, Status};
use cohort_store::{EntryKind, FaultyStore, Index, LogStore as _};
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
                self.restore_image();
                return Ok(());
            }
            Trouble::TakeImage => {
                let Some(member) = self.members.get_mut(&id) else { return Ok(()) };
                // A member that votes alone in its image has no peer that could know better.
                let asks = member.process.as_ref().is_some_and(|process| {
                    process.node.status().configuration.voters.iter().any(|voter| *voter != id)
                });
                if asks && !member.restored {
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
        // A change that needs a disk that went back would wait for ever.
        let keep = self.members.values().filter(|member| !member.restored);
        let alive: Vec<RaftId> = keep.map(|member| member.config.id).collect();
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
    /// other members know of what it has written since.
    fn restore_image(&mut self) {
        let Some(leader) = self.ready_leader() else { return };
        if leader.change_pending || self.is_change_coming(&leader) {
            return;
        }
        let members = leader.configuration.members();
        // Also those that have left: they may vouch for one that has forgotten it.
        let known = |id: RaftId, written: u64| {
            let mut others = self.members.values().filter(|other| other.config.id != id);
            others.all(|other| {
                // A voter that still waits for the end of a joint change needs the others' votes.
                let votes = leader.configuration.voters.contains(&other.config.id);
                let knows = |store: &FaultyStore| {
                    let image = store.image();
                    let settled = image.hard_state().commit >= leader.configuration_index;
                    let mark = image.marks().get(&id);
                    image.last_index() == Index(0)
                        || (mark.is_some_and(|m| m.written > written) && (settled || !votes))
                };
                match &other.process {
                    Some(process) => knows(process.node.store()),
                    None => FaultyStore::open(&other.disk).is_ok_and(|store| knows(&store)),
                }
            })
        };
        let unproven = self.setup.weaken.no_proof;
        let old = self.members.values().find(|member| {
            let image = member.image.as_ref().and_then(|disk| FaultyStore::open(disk).ok());
            let (id, voters) = (member.config.id, &leader.configuration.voters);
            members.contains(&id)
                && self.keeps_majority(voters, id)
                && image.is_some_and(|image| unproven || known(id, image.image().written()))
        });
        let Some(id) = old.map(|member| member.config.id) else { return };
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

    /// Of the leaders that may act, the newest.
    fn ready_leader(&self) -> Option<Status> {
        let running = self.members.values().filter_map(|member| member.process.as_ref());
        let ready = running.map(|process| process.node.status()).filter(|status| status.ready);
        ready.max_by_key(|status| status.term)
    }

    /// Whether a log holds a change of the members that the leader has not made.
    fn is_change_coming(&self, leader: &Status) -> bool {
        let running = self.members.values().filter_map(|member| member.process.as_ref());
        running.map(|process| process.node.store().image()).any(|image| {
            image
                .entries(leader.configuration_index.next(), image.last_index().next())
                .any(|entry| entry.kind == EntryKind::Membership)
        })
    }

    /// Whether most voters have their disks without this one's.
    fn keeps_majority(&self, voters: &BTreeSet<RaftId>, id: RaftId) -> bool {
        let keeps = |id: &RaftId| self.members.get(id).is_some_and(|member| !member.restored);
        let left = voters.iter().filter(|voter| **voter != id && keeps(voter)).count();
        left * 2 > voters.len()
    }

    /// Whether the group has all it needs without the disk of this server.
    fn survives_without(&self, id: RaftId) -> bool {
        let Some(leader) = self.ready_leader() else { return false };
        self.members.values().all(|member| member.process.is_some())
            && !leader.change_pending
            && !self.is_change_coming(&leader)
            && self.keeps_majority(&leader.configuration.voters, id)
    }
}
