//! What goes wrong with the members of a group.

use cohort_consensus::RaftId;
use cohort_core::ids::{GroupId, ServerId};
use cohort_server::member::Input;
use cohort_store::{FaultyStore, LogStore as _, WriteFault};
use rand::Rng;

use super::Chaos;

/// How long a process pauses at most, in milliseconds.
const PAUSE_MS_MAX: u32 = 3_000;
/// Time between two logs that are lost, in milliseconds: a group replaces one voter at a time.
const LOST_EVERY_MS: u64 = 12_000;

impl Chaos {
    pub(super) fn trouble(&mut self, kind: u32, group: &GroupId, server: &ServerId) {
        match kind {
            20 => {
                let fault = [WriteFault::FailLost, WriteFault::FailKept][self.draw(2) as usize];
                self.say(&format!("{server}: {fault:?}"));
                let server = self.server(group, server);
                if let (Some((_, disk)), true) = (&server.disk.log, server.up) {
                    disk.set_fault(fault);
                    server.disk_fails = true;
                }
            }
            21 | 22 => {
                let ms = u64::from(self.draw(PAUSE_MS_MAX));
                let server = match self.fleet.groups[group].leader() {
                    Some(leader) if kind == 21 => leader,
                    _ => server.clone(),
                };
                self.say(&format!("{server} pauses for {ms} ms"));
                self.fleet.catch_up(group, &server);
                self.server(group, &server).paused_until_ms = self.fleet.now_ms + ms;
            }
            23 => {
                let rng = &mut self.fleet.rng;
                let group = self.fleet.groups.get_mut(group).expect("known");
                let side: Vec<(&ServerId, bool)> =
                    group.servers.keys().map(|id| (id, rng.random_bool(0.5))).collect();
                let pairs = side.iter().flat_map(|one| side.iter().map(move |other| (one, other)));
                let parted = pairs.filter(|(one, other)| one.1 != other.1);
                let cut = parted.map(|(one, other)| (one.0.clone(), other.0.clone())).collect();
                group.net.cut = cut;
                let cut = format!("parted: {:?}", group.net.cut);
                self.say(&cut);
            }
            24 => {
                let leader = self.fleet.groups[group].leader();
                let pair = leader.map(|leader| (leader, server.clone()));
                self.say(&format!("cut in one direction: {pair:?}"));
                self.fleet.groups.get_mut(group).expect("known").net.cut.extend(pair);
            }
            25..=27 => {
                self.say("parted no more");
                self.fleet.groups.get_mut(group).expect("known").net.cut.clear();
            }
            28 => self.tell_member(group, server, Input::Stop),
            29 => {
                let peers = self.fleet.groups[group].log.carriers.len() as u32;
                let peer = RaftId(u64::from(self.draw(peers)) + 1);
                let input = [Input::Connected(peer), Input::Unreachable(peer)];
                let input = input[self.draw(2) as usize].clone();
                self.tell_member(group, server, input);
            }
            _ => self.lose(group, server, kind == 30),
        }
    }

    fn tell_member(&mut self, group: &GroupId, server: &ServerId, input: Input) {
        self.say(&format!("{server}: {input:?}"));
        if self.fleet.groups[group].servers[server].paused_until_ms > self.fleet.now_ms {
            return;
        }
        self.fleet.with_server(group, server, |server, log| {
            server.stops |= matches!(input, Input::Stop);
            server.step_member(log, |member, _, _| member.input(input));
        });
    }

    /// Restores a server from an image, if there is one; takes one if not. The disks of all other
    /// members know of what it has written since.
    fn restore(&mut self, group: &GroupId, server: &ServerId) -> bool {
        let Some(image) = self.images.remove(server) else {
            let image = self.fleet.groups[group].servers[server].image();
            self.images.insert(server.clone(), image);
            return true;
        };
        let servers = &self.fleet.groups[group].servers;
        if let Some((member, disk)) = &image.0.log {
            let Ok(store) = FaultyStore::open(disk) else { return false };
            let written = store.image().written();
            let members =
                servers.iter().filter_map(|(id, other)| Some((id, other.member.as_ref()?)));
            let mut others = members.filter(|(id, _)| *id != server);
            if others.any(|(_, other)| other.knows_written(*member) <= written) {
                return false;
            }
        }
        self.say(&format!("{server} is restored from an image"));
        self.lost_ms = self.fleet.now_ms;
        self.restored += 1;
        self.fleet.catch_up(group, server);
        self.server(group, server).restore(image);
        true
    }

    /// A server loses its log, or is down for good, if the group survives that: everybody else
    /// runs, and no change of membership is in progress.
    fn lose(&mut self, group: &GroupId, server: &ServerId, for_good: bool) {
        let known = &self.fleet.groups[group];
        let Some((_, view)) = known.leader_view() else { return };
        let voters = view.raft.configuration.voters.len();
        let settled = known.whole().is_ok()
            && known.net.cut.is_empty()
            && known.servers.values().all(|server| server.linked && server.up)
            && known.leaving.is_empty()
            && voters >= 3
            && !view.raft.change_pending
            && self.fleet.now_ms >= self.lost_ms + LOST_EVERY_MS;
        if !settled {
            return;
        }
        if !for_good && self.restore(group, server) {
            return;
        }
        self.say(&format!("{server} {}", if for_good { "is gone" } else { "loses its log" }));
        self.lost_ms = self.fleet.now_ms;
        if for_good {
            self.gone += 1;
            self.server(group, server).crash();
            let group = self.fleet.groups.get_mut(group).expect("known");
            group.gone.insert(server.clone());
            group.leaving.insert(server.clone());
        } else {
            self.logs_lost += 1;
            let server = self.server(group, server);
            server.crash();
            server.disk.log = None;
            server.start();
        }
    }
}
