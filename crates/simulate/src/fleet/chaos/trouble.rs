//! What goes wrong with the members of a group.

use cohort_consensus::RaftId;
use cohort_core::ids::{GroupId, ServerId};
use cohort_core::release::Release;
use cohort_server::member::Input;
use cohort_store::{FaultyStore, LogStore as _, WriteFault};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::{Chaos, Kind};
use crate::fleet::server::Part;
use crate::fleet::world::TICK_MS;

/// How long a process pauses at most, in milliseconds.
const PAUSE_MS_MAX: u32 = 3_000;
/// The same of one that was stopped by hand, in milliseconds: longer than orders are valid, and
/// than a server may be silent in a change.
const LONG_PAUSE_MS_MAX: u32 = 20_000;
/// How long writes of the registry take at most, in milliseconds: longer than an election, and than
/// a change of members.
const SLOW_WRITES_MS_MAX: u32 = 60_000;
/// Where clocks jump to, in milliseconds ahead: right, a little off, metadata expired, certificates
/// not valid yet or any more, and the first second of Unix time.
const CLOCKS_MS: [i64; 7] = {
    const DAY_MS: i64 = 86_400_000;
    [0, 120_000, -120_000, 2 * DAY_MS, -2 * DAY_MS, 400 * DAY_MS, -40_000 * DAY_MS]
};
/// How long each write of a slow disk takes at most, in milliseconds.
const SYNC_MS_MAX: u32 = 400;
/// Time between two logs that are lost, in milliseconds: a group replaces one voter at a time.
const LOST_EVERY_MS: u64 = 12_000;

/// What a server loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// Its log.
    Log,
    /// Everything, for good.
    Machine,
    /// What it has done since an image was taken, if there is one; else, one is taken.
    SinceImage,
}

impl Chaos {
    /// What groups get from outside: the registry and the mirrors.
    pub(super) fn supply(&mut self, kind: Kind) {
        match kind {
            Kind::RegistryAway => {
                self.fleet.registry.away = !self.fleet.registry.away;
                self.say(&format!("registry away: {}", self.fleet.registry.away));
            }
            Kind::RegistrySlow => {
                self.fleet.registry.slow_ms = u64::from(self.draw(SLOW_WRITES_MS_MAX));
                self.say(&format!("writes take up to {} ms", self.fleet.registry.slow_ms));
            }
            Kind::RegistryRefuses => {
                self.say("the registry fails at every write");
                self.fleet.registry.refuses = true;
            }
            Kind::MirrorsAway => {
                self.say("no mirror answers");
                self.fleet.mirrors = false;
            }
            Kind::MirrorsLack => {
                let releases: Vec<Release> = self.fleet.releases.values().cloned().collect();
                let lacks = releases.choose(&mut self.fleet.rng).expect("one for each app");
                self.say(&format!("mirrors lack {}", lacks.version));
                self.fleet.lacking.insert(lacks.artifact.clone());
            }
            Kind::SourcesSlow => {
                self.fleet.fetch_ms = u64::from(self.draw(20_000));
                self.say(&format!("an artifact takes {} ms", self.fleet.fetch_ms));
            }
            _ => {
                self.say("registry and mirrors are well");
                self.fleet.registry.refuses = false;
                self.fleet.registry.slow_ms = 0;
                self.fleet.mirrors = true;
                self.fleet.lacking.clear();
                self.fleet.fetch_ms = TICK_MS;
            }
        }
    }

    pub(super) fn trouble(&mut self, kind: Kind, group: &GroupId, server: &ServerId) {
        match kind {
            Kind::Crashes => {
                let after = self.draw(6);
                self.say_of(group, &format!("{server} crashes in {after} instructions"));
                self.server(group, server).crash_in = Some(after);
            }
            Kind::LosesPower => {
                self.say_of(group, &format!("{server} loses power"));
                self.server(group, server).power_off();
            }
            Kind::IsCutOff => {
                self.say_of(group, &format!("{server} is cut off"));
                self.server(group, server).cut = true;
            }
            Kind::ComesBack => {
                self.say_of(group, &format!("{server} comes back"));
                self.start(group, server);
            }
            Kind::HearsEarlier => {
                self.say_of(group, &format!("{server} hears earlier orders"));
                self.server(group, server).hears_earlier = true;
            }
            Kind::DiskFails => {
                let fault = [WriteFault::FailLost, WriteFault::FailKept][self.draw(2) as usize];
                self.say_of(group, &format!("{server}: {fault:?}"));
                let server = self.server(group, server);
                if let (Some((_, disk)), true) = (&server.disk.log, server.up) {
                    disk.set_fault(fault);
                    server.disk_fails = true;
                }
            }
            Kind::LeaderPauses | Kind::Pauses => {
                let max_ms = [PAUSE_MS_MAX, LONG_PAUSE_MS_MAX][self.draw(2) as usize];
                let ms = u64::from(self.draw(max_ms));
                let server = match self.fleet.groups[group].leader() {
                    Some(leader) if kind == Kind::LeaderPauses => leader,
                    _ => server.clone(),
                };
                self.say_of(group, &format!("{server} pauses for {ms} ms"));
                self.fleet.catch_up(group, &server);
                self.server(group, &server).paused_until_ms = self.fleet.now_ms + ms;
            }
            Kind::Parted => {
                let rng = &mut self.fleet.rng;
                let parted = self.fleet.groups.get_mut(group).expect("known");
                let side: Vec<(&ServerId, bool)> =
                    parted.servers.keys().map(|id| (id, rng.random_bool(0.5))).collect();
                let pairs = side.iter().flat_map(|one| side.iter().map(move |other| (one, other)));
                let apart = pairs.filter(|(one, other)| one.1 != other.1);
                let cut = apart.map(|(one, other)| (one.0.clone(), other.0.clone())).collect();
                let away: Vec<ServerId> =
                    side.iter().filter(|(_, away)| *away).map(|(id, _)| (*id).clone()).collect();
                parted.net.cut = cut;
                self.say_of(group, &format!("{away:?} are parted from the others"));
            }
            Kind::CutOneWay => {
                // A server reaches itself.
                let leader = self.fleet.groups[group].leader().filter(|leader| leader != server);
                let pair = leader.map(|leader| (leader, server.clone()));
                self.say_of(group, &format!("cut in one direction: {pair:?}"));
                self.fleet.groups.get_mut(group).expect("known").net.cut.extend(pair);
            }
            Kind::PartedNoMore => {
                self.say_of(group, "parted no more");
                self.fleet.groups.get_mut(group).expect("known").net.cut.clear();
            }
            Kind::Stops => self.tell_member(group, server, Input::Stop),
            Kind::Connection => {
                let peers = self.fleet.groups[group].log.carriers.len() as u32;
                let peer = RaftId(u64::from(self.draw(peers)) + 1);
                let input = [Input::Connected(peer), Input::Unreachable(peer)];
                let input = input[self.draw(2) as usize].clone();
                self.tell_member(group, server, input);
            }
            Kind::MachineGone => self.lose(group, server, Loss::Machine),
            Kind::LosesLog => self.lose(group, server, Loss::Log),
            Kind::Image => self.lose(group, server, Loss::SinceImage),
            other => self.machine_trouble(other, group, server),
        }
    }

    /// What happens to the machine of a server.
    fn machine_trouble(&mut self, kind: Kind, group: &GroupId, server: &ServerId) {
        match kind {
            Kind::Wiped => self.wipe(group, server),
            Kind::ClockJumps => {
                let ahead_ms = CLOCKS_MS[self.draw(CLOCKS_MS.len() as u32) as usize];
                self.say_of(group, &format!("the clock of {server} is {ahead_ms} ms ahead"));
                self.server(group, server).clock_ahead_ms = ahead_ms;
            }
            Kind::DiskFills => {
                self.say_of(group, &format!("the disk of {server} is full"));
                self.server(group, server).fill();
            }
            Kind::DiskReadOnly => {
                self.say_of(group, &format!("the disk of {server} is read-only"));
                let server = self.server(group, server);
                server.crash();
                server.read_only = true;
                server.start();
            }
            Kind::DiskSlow => {
                let sync_ms = u64::from(self.draw(SYNC_MS_MAX));
                self.say_of(group, &format!("writes of {server} take {sync_ms} ms"));
                self.server(group, server).sync_ms = sync_ms;
            }
            Kind::Repaired => {
                self.say_of(group, &format!("disk and clock of {server} are repaired"));
                self.server(group, server).repair();
            }
            Kind::Copied => {
                // The only voter of a group has nobody who could know its copy; and one that takes
                // the place of a server has lost its log.
                let known = &self.fleet.groups[group];
                let carries = known.servers[server].disk.log.is_some();
                let lost = self.lost_lately() || !known.copies.is_empty();
                if carries && (self.voters(group) < 3 || lost) {
                    return;
                }
                self.say_of(group, &format!("a copy of {server} starts"));
                self.group(group).copy(server);
            }
            Kind::CopyEnds => {
                self.say_of(group, "copies end");
                self.group(group).copies.clear();
            }
            Kind::Moves => self.move_servers(group, server),
            other => unreachable!("{other:?} concerns no server"),
        }
    }

    /// A server loses a part of its data directory; all of it where its group survives that.
    fn wipe(&mut self, group: &GroupId, server: &ServerId) {
        let parts = [Part::Artifacts, Part::Apps, Part::Kill, Part::BootEpoch, Part::Everything];
        let part = parts[self.draw(parts.len() as u32) as usize];
        let known = &self.fleet.groups[group];
        // Nobody undoes a change that cuts the server off once its record is lost.
        let first = &known.servers[server];
        let changes = first.disk.apps.values().any(|record| record.under_way()) || !first.linked;
        if known.gone.contains(server) || changes && matches!(part, Part::Apps | Part::Everything) {
            return;
        }
        if part == Part::Everything && known.servers[server].disk.log.is_some() {
            if !self.survives_a_loss(group) {
                return;
            }
            self.logs_lost += 1;
            self.lost_ms = self.fleet.now_ms;
        }
        self.say_of(group, &format!("{server} loses {part:?}"));
        self.server(group, server).wipe(part);
    }

    /// One server gets another address, or most, or all at the same time.
    fn move_servers(&mut self, group: &GroupId, server: &ServerId) {
        let (all, reboots) = (self.draw(4), self.draw(2) == 0);
        let known = &self.fleet.groups[group];
        let mut ids: Vec<ServerId> = known.servers.keys().cloned().collect();
        let rng = &mut self.fleet.rng;
        match all {
            0 => {}
            1 => ids.retain(|_| rng.random_ratio(3, 4)),
            _ => ids = vec![server.clone()],
        }
        ids.retain(|id| known.servers.contains_key(id) && !known.gone.contains(id));
        self.say_of(group, &format!("{ids:?} get other addresses; with a reboot: {reboots}"));
        for id in ids {
            self.group(group).move_server(&id, reboots);
        }
    }

    fn tell_member(&mut self, group: &GroupId, server: &ServerId, input: Input) {
        let Some(here) = self.fleet.groups[group].servers.get(server) else { return };
        if here.paused_until_ms > self.fleet.now_ms {
            return;
        }
        self.say_of(group, &format!("{server}: {input:?}"));
        self.fleet.with_server(group, server, |server, log| {
            server.stops |= matches!(input, Input::Stop);
            server.step_member(log, |member, _, _| member.input(input));
        });
    }

    /// Whether a log was lost so lately that the voter may not be replaced yet.
    pub(super) fn lost_lately(&self) -> bool {
        self.fleet.now_ms < self.lost_ms + LOST_EVERY_MS
    }

    /// Takes an image of a server, or restores the one of its group that has been taken, once the
    /// disks of all other members know of what that server has written since.
    fn image(&mut self, group: &GroupId, server: &ServerId) {
        let servers = &self.fleet.groups[group].servers;
        let taken = self.images.keys().find(|server| servers.contains_key(*server)).cloned();
        let Some(server) = taken else {
            // The only voter of a group has nobody who could know that its disk went back.
            if self.voters(group) >= 3 {
                self.images.insert(server.clone(), servers[server].image());
            }
            return;
        };
        if !self.survives_a_loss(group) || !self.is_known_to_have_gone_on(group, &server) {
            return;
        }
        let Some(image) = self.images.remove(&server) else { return };
        self.say_of(group, &format!("{server} is restored from an image"));
        self.lost_ms = self.fleet.now_ms;
        self.restored += 1;
        self.fleet.catch_up(group, &server);
        self.server(group, &server).restore(image);
    }

    fn is_known_to_have_gone_on(&self, group: &GroupId, server: &ServerId) -> bool {
        let Some((member, disk)) = &self.images[server].0.log else { return true };
        let Ok(store) = FaultyStore::open(disk) else { return false };
        let written = store.image().written();
        let others = self.fleet.groups[group].servers.iter().filter(|(id, _)| *id != server);
        let mut members = others.filter_map(|(_, other)| other.member.as_ref());
        members.all(|other| other.knows_written(*member) > written)
    }

    /// Whether everybody runs, and no change of membership is in progress.
    fn survives_a_loss(&self, group: &GroupId) -> bool {
        let known = &self.fleet.groups[group];
        let Some((_, view)) = known.leader_view() else { return false };
        known.whole().is_ok()
            && known.net.cut.is_empty()
            && known.servers.values().all(|server| server.linked && server.up)
            && known.leaving.is_empty()
            && known.copies.is_empty()
            && self.voters(group) >= 3
            && !view.raft.change_pending
            && !self.lost_lately()
    }

    /// A server loses something, if the group survives that: everybody else runs, and no change of
    /// membership is in progress.
    fn lose(&mut self, group: &GroupId, server: &ServerId, loss: Loss) {
        if loss == Loss::SinceImage {
            return self.image(group, server);
        }
        if !self.survives_a_loss(group) {
            return;
        }
        let for_good = loss == Loss::Machine;
        let how = if for_good { "is gone" } else { "loses its log" };
        self.say_of(group, &format!("{server} {how}"));
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
