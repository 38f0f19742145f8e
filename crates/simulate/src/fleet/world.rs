//! The fleet: groups, one registry, one clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cohort_consensus::Limits;
use cohort_core::Offer;
use cohort_core::command::{Body, Event};
use cohort_core::gate::GroupInfo;
use cohort_core::gate::RegistryView;
use cohort_core::ids::{AppId, Digest, GroupId, Revision, ServerId};
use cohort_core::kill::{KillScope, Position};
use cohort_core::phase::{Phase, PhaseName};
use cohort_core::policy::Policy;
use cohort_core::release::Release;
use cohort_server::leading::Placer;
use cohort_server::records::{MemberPlace, Record};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::behaviour::{Behaviour, Behaviours};
use super::chaos::Mutation;
use super::group::Group;
use super::log::Log;
use super::net::{Net, Packet, Weather};
use super::place::Place;
use super::prober::Prober;
use super::registry::Registry;
use super::server::member::Setup;
use super::server::{Around, Holdings, Hub, Server, register};

/// One step of the clock of servers, in milliseconds. Members and packets have their own times.
pub(crate) const TICK_MS: u64 = 100;

/// What a script waits for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Break {
    /// Some app of some group enters this state, of this wave.
    Entered(PhaseName, Option<u32>),
    /// The outcome of the command of this number is known.
    Known(u64),
}

pub(crate) struct Fleet {
    pub(crate) now_ms: u64,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    pub(crate) registry: Registry,
    pub(crate) behaviours: Behaviours,
    pub(crate) releases: BTreeMap<(AppId, String, String), Release>,
    /// How many packets are lost, duplicated or delayed.
    pub(crate) weather: Weather,
    pub(crate) mirrors: bool,
    /// Artifacts that the mirrors do not serve.
    pub(crate) lacking: BTreeSet<Digest>,
    /// How long the whole artifact takes from one source, in milliseconds.
    pub(crate) fetch_ms: u64,
    pub(crate) prober: Prober,
    /// When time stops, even in the middle of a plan, if members propose one entry at a time.
    pub(crate) break_at: Option<Break>,
    pub(crate) limits: Limits,
    /// How leaders place voters.
    pub(crate) placer: Placer,
    /// How many racks the servers of a group are in; 0: each is its own.
    pub(crate) racks: usize,
    /// Only the first server that can lead stands for election, as scripts want it.
    pub(crate) first_leads: bool,
    /// The protection that is switched off.
    pub(crate) mutation: Option<Mutation>,
    /// Members step at every tick, although they could sleep.
    pub(crate) every_tick: bool,
    pub(crate) rng: ChaCha8Rng,
    seed: u64,
    requests: u64,
    /// The epoch of the last kill register.
    epoch: u64,
}

impl Fleet {
    pub(crate) fn new(seed: u64) -> Fleet {
        Fleet {
            now_ms: 0,
            groups: BTreeMap::new(),
            registry: Registry::default(),
            behaviours: Behaviours::default(),
            releases: BTreeMap::new(),
            weather: Weather::default(),
            mirrors: true,
            lacking: BTreeSet::new(),
            fetch_ms: TICK_MS,
            break_at: None,
            limits: Limits::default(),
            placer: Placer::default(),
            racks: 0,
            first_leads: false,
            mutation: None,
            every_tick: false,
            prober: Prober::default(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            seed,
            requests: 0,
            epoch: 0,
        }
    }

    pub(crate) fn add_group(
        &mut self,
        name: &str,
        platform: &str,
        labels: &[(&str, &str)],
        servers: &[ServerId],
    ) -> GroupId {
        let id = GroupId::new(name).expect("a group name");
        let mut map: BTreeMap<String, String> =
            labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        map.insert("platform".into(), platform.into());
        let setup = Setup {
            group: id.clone(),
            limits: self.limits,
            placer: self.placer,
            racks: self.racks,
            seed: self.seed,
            mutation: self.mutation,
            every_tick: self.every_tick,
        };
        let group = Group::found(self.now_ms, platform, &map, servers, setup);
        let platform = group.log.state.platform.clone().expect("set up with one");
        let info = GroupInfo { labels: map, platform };
        Arc::make_mut(&mut self.registry.view).groups.insert(id.clone(), info);
        let members = group.log.state.member_addresses().into_iter();
        let members = members.map(|at| MemberPlace { at, voter: true }).collect();
        self.registry.members.insert(id.clone(), members);
        self.groups.insert(id.clone(), group);
        id
    }

    /// A server leaves permanently; it stops once the group does without its member. Returns the
    /// number of the command.
    pub(crate) fn leave(&mut self, group: &GroupId, server: &ServerId) -> u64 {
        let number = self.say(group, "ana", Body::RemoveServer { server: server.clone() });
        let group = self.groups.get_mut(group).expect("a known group");
        group.leaving.insert(server.clone());
        number
    }

    /// A command, to the leader if there is one. Returns the number under which its outcome will
    /// be found.
    pub(crate) fn say(&mut self, group: &GroupId, actor: &str, body: Body) -> u64 {
        self.requests += 1;
        let number = self.requests;
        let known = self.groups.get_mut(group).expect("a known group");
        // The hub lets nobody join again whom an operator removed.
        if let Body::RemoveServer { server } = &body {
            known.log.admitted.remove(server);
        }
        let runs = |server: &&Server| server.member.is_some() && server.paused_until_ms == 0;
        let any = || known.servers.values().find(runs).map(|server| server.id.clone());
        match known.leader().or_else(any) {
            Some(server) => self.with_server(group, &server, |server, log| {
                server.step_member(log, |member, now_ms, _| {
                    member.say(now_ms, number, actor, body);
                });
            }),
            None => {
                let group = self.groups.get_mut(group).expect("a known group");
                group.log.outcomes.insert(number, None);
            }
        }
        number
    }

    /// A person throws the kill switch on these servers; a reason turns it on. They tell the
    /// others.
    pub(crate) fn throw(
        &mut self,
        scope: KillScope,
        reason: Option<&str>,
        mut reaches: impl FnMut(&Server) -> bool,
    ) {
        self.epoch += 1;
        let position = Position { epoch: self.epoch, on: reason.is_some() };
        let register = register(scope, position, reason.unwrap_or_default());
        for group in self.groups.values_mut() {
            for server in group.servers.values_mut().filter(|server| reaches(server)) {
                server.throw(&register);
            }
        }
    }

    /// Leadership is to move to that server, or to the one that is best prepared.
    pub(crate) fn transfer(&mut self, group: &GroupId, to: Option<&ServerId>) {
        let Some(leader) = self.groups[group].leader() else { return };
        self.with_server(group, &leader, |server, log| {
            server.step_member(log, |member, _, _| member.transfer(to));
        });
    }

    /// The process of a member is about to pause: up to now it has lived through every tick.
    pub(crate) fn catch_up(&mut self, group: &GroupId, server: &ServerId) {
        if self.groups[group].servers[server].paused_until_ms > self.now_ms {
            return;
        }
        self.with_server(group, server, |server, log| {
            server.step_member(log, |_, _, _| ());
        });
    }

    /// Does something with a server, and sends what it has to say.
    pub(crate) fn with_server(
        &mut self,
        group: &GroupId,
        server: &ServerId,
        act: impl FnOnce(&mut Server, &mut Log),
    ) {
        let mut known = self.groups.remove(group).expect("a known group");
        let Group { servers, log, net, .. } = &mut known;
        if let Some(server) = servers.get_mut(server) {
            self.do_with(server, log, net, act);
        }
        self.groups.insert(group.clone(), known);
    }

    fn do_with(
        &mut self,
        server: &mut Server,
        log: &mut Log,
        net: &mut Net,
        act: impl FnOnce(&mut Server, &mut Log),
    ) {
        act(server, log);
        // What a server says that is cut off is lost on the way.
        let linked = server.linked;
        let busy_until_ms = server.busy_until_ms;
        for mut packet in server.sends().filter(|_| linked) {
            if let Some(mutation) = self.mutation {
                packet.alter(mutation);
            }
            // A member speaks once its log is written.
            let at_ms = log.now_ms.max(busy_until_ms);
            net.send(at_ms, packet, self.weather, &mut self.rng);
        }
    }

    pub(crate) fn set_policy(&mut self, policy: Policy) {
        policy.validate().expect("a valid policy");
        let revision = self.next_revision(&policy.app);
        self.prober.policies.insert((policy.app.clone(), revision), policy.clone());
        let view = Arc::make_mut(&mut self.registry.view);
        view.removed.remove(&policy.app);
        view.policies.insert(policy.app.clone(), (revision, policy));
    }

    /// An operator removes an app.
    pub(crate) fn remove_app(&mut self, app: &AppId) {
        let revision = self.next_revision(app);
        let view = Arc::make_mut(&mut self.registry.view);
        view.policies.remove(app);
        view.removed.insert(app.clone(), revision);
        self.prober.removed(app, revision);
    }

    fn next_revision(&self, app: &AppId) -> Revision {
        let RegistryView { policies, removed, .. } = &*self.registry.view;
        let last = policies.get(app).map(|(revision, _)| *revision);
        let last = last.or(removed.get(app).copied());
        last.map_or(Revision(1), Revision::next)
    }

    pub(crate) fn publish(&mut self, app: &AppId, release: Release, behaviour: Behaviour) {
        let key = (app.clone(), release.version.to_string(), release.platform.to_string());
        self.behaviours.add(release.clone(), behaviour);
        self.releases.insert(key, release);
    }

    pub(crate) fn channel(&mut self, app: &AppId, version: &str) {
        for group in self.groups.values_mut() {
            let platform = group.log.state.platform.clone().expect("set up").to_string();
            let release = self.releases.get(&(app.clone(), version.to_owned(), platform));
            if let Some(release) = release {
                let offers = Arc::make_mut(&mut group.offers);
                offers.insert(app.clone(), Offer::Release(release.clone()));
            }
        }
    }

    /// Advances the clock by `ms`, in steps.
    pub(crate) fn run_ms(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        while self.now_ms < until {
            self.tick();
        }
    }

    pub(crate) fn tick(&mut self) {
        self.now_ms += TICK_MS;
        self.registry.arrive(self.now_ms);
        let mut groups = std::mem::take(&mut self.groups);
        for group in groups.values_mut() {
            for server in group.servers.values_mut().chain(group.copies.values_mut()) {
                server.linked = server.reaches(&self.behaviours);
            }
            if self.errands(group) && self.advance(group, self.now_ms) {
                self.servers(group);
                self.advance(group, self.now_ms);
            }
            group.let_go();
            group.settle_copies();
            let calm = self.weather.is_calm();
            self.prober.look(self.now_ms, group, &self.behaviours, calm);
            group.told = group.log.events.len();
        }
        self.groups = groups;
    }

    /// What happens without time going by; `errands`: those of the members, too.
    pub(crate) fn settle(&mut self, errands: bool) {
        let mut groups = std::mem::take(&mut self.groups);
        for group in groups.values_mut() {
            self.advance(group, self.now_ms);
            if errands && self.errands(group) {
                self.advance(group, self.now_ms);
            }
        }
        self.groups = groups;
    }

    /// Members continue until the outcome of that command is known, ahead of the servers: a leader
    /// that is busy is asked again after a pause of less than a step of the servers' clock.
    pub(crate) fn wait_for(&mut self, group: &GroupId, command: u64) {
        let mut known = self.groups.remove(group).expect("a known group");
        self.break_at = Some(Break::Known(command));
        let until_ms = known.log.now_ms + TICK_MS;
        if !self.is_there(&known.log, known.told) {
            self.advance(&mut known, until_ms);
        }
        self.break_at = None;
        self.groups.insert(group.clone(), known);
    }

    /// Members step and packets arrive up to `until_ms`, each at its time. Returns false when it
    /// was broken off (`break_at`).
    fn advance(&mut self, group: &mut Group, until_ms: u64) -> bool {
        let Group { servers, copies, log, net, told, .. } = group;
        let machines = servers.values().chain(copies.values());
        let first_wake_ms = machines.filter_map(Server::wakes_ms).min();
        if first_wake_ms.is_none_or(|wake_ms| wake_ms > until_ms) && net.next_ms() > until_ms {
            log.now_ms = log.now_ms.max(until_ms);
            return true;
        }
        let mut servers: Vec<&mut Server> = servers.values_mut().collect();
        if !copies.is_empty() {
            servers.extend(copies.values_mut());
            servers.sort_by(|one, other| one.id.cmp(&other.id));
        }
        // Few servers carry a member, and only those wake.
        let wakes = |(at, server): (usize, &&mut Server)| Some((server.wakes_ms()?, at));
        let mut wakes: Vec<(u64, usize)> = servers.iter().enumerate().filter_map(wakes).collect();
        let mut packets = Vec::new();
        loop {
            let (wake_ms, first) = wakes.iter().copied().min().unwrap_or((u64::MAX, 0));
            let next_ms = wake_ms.min(net.next_ms());
            if next_ms > until_ms {
                log.now_ms = log.now_ms.max(until_ms);
                return true;
            }
            log.now_ms = log.now_ms.max(next_ms);
            let at = if next_ms == net.next_ms() {
                net.next(next_ms, &mut packets);
                let Some(at) = position(&servers, &packets[0].to) else {
                    nobody_there(&mut servers, packets.drain(..), log.now_ms, net);
                    continue;
                };
                self.arrived(&mut servers, at, &mut packets, log, net);
                at
            } else {
                self.do_with(servers[first], log, net, |server, log| {
                    server.step_member(log, |_, _, _| ());
                });
                first
            };
            wakes.retain(|(_, of)| *of != at);
            wakes.extend(servers[at].wakes_ms().map(|wake_ms| (wake_ms, at)));
            if self.is_there(log, *told) {
                return false;
            }
        }
    }

    /// Packets have come for the server that is there: takes them.
    fn arrived(
        &mut self,
        servers: &mut [&mut Server],
        at: usize,
        packets: &mut Vec<Packet>,
        log: &mut Log,
        net: &mut Net,
    ) {
        let Server { linked, paused_until_ms, busy_until_ms, .. } = *servers[at];
        if !linked {
            return packets.clear();
        }
        if paused_until_ms > log.now_ms {
            return packets.drain(..).for_each(|packet| net.put(paused_until_ms, packet));
        }
        if busy_until_ms > log.now_ms {
            let later = packets.extract_if(.., |packet| !packet.what.is_answer());
            later.for_each(|packet| net.put(busy_until_ms, packet));
        }
        if self.first_leads {
            packets
                .retain(|packet| !packet.is_candidacy() || may_stand(servers, &packet.from.server));
        }
        self.do_with(servers[at], log, net, |server, log| server.receive(packets, log));
    }

    /// The errands of members: what they read, and what the leader writes. Returns false when it
    /// was broken off.
    fn errands(&mut self, group: &mut Group) -> bool {
        let Group { servers, copies, log, net, told, offers, .. } = group;
        for server in servers.values_mut().chain(copies.values_mut()) {
            let mut reaches = server.ability;
            reaches.repository &= server.is_refreshed();
            let answers = !self.registry.away && server.linked && reaches.registry;
            let registry = answers.then_some(&self.registry.view);
            let offers = (self.mirrors && reaches.repository).then_some(&*offers);
            let Some(member) = &mut server.member else { continue };
            if server.paused_until_ms.max(server.busy_until_ms) > log.now_ms {
                continue;
            }
            let writes = !self.registry.refuses;
            let stamp = (member.view.raft.term, member.view.raft.applied);
            let killed = server.kill.stopping();
            let records = member.errands(registry, writes, offers, killed, reaches.disk);
            let has_inputs = member.has_inputs();
            for record in records {
                // Those that nobody reads are not sent.
                if matches!(record, Record::Members(_) | Record::Verdict { .. }) {
                    let slow_ms = self.rng.random_range(0..=self.registry.slow_ms);
                    let at_ms = slow_ms + self.weather.arrives_ms(self.now_ms, &mut self.rng);
                    self.registry.write(at_ms, &log.state.group, stamp, record);
                }
            }
            self.registry.arrive(self.now_ms);
            if !has_inputs {
                continue;
            }
            self.do_with(server, log, net, |server, log| {
                server.step_member(log, |_, _, _| ());
            });
            if self.is_there(log, *told) {
                return false;
            }
        }
        true
    }

    fn servers(&mut self, group: &mut Group) {
        let reachable = |server: &Server| server.up && server.linked;
        let asked = group.servers.values().any(Server::lacks_bytes);
        let holdings: Holdings = group
            .servers
            .iter()
            .filter(|(_, server)| asked && reachable(server))
            .map(|(id, server)| (id.clone(), (server.place.clone(), server.holdings())))
            .collect();
        let Group { servers, copies, log, net, places, .. } = group;
        let members = self.registry.members.get(&log.state.group).filter(|_| !self.registry.away);
        let around = Around {
            now_ms: self.now_ms,
            behaviours: &self.behaviours,
            holdings: &holdings,
            mirrors: self.mirrors,
            lacking: &self.lacking,
            fetch_ms: self.fetch_ms,
            hub: members.map(|members| Hub { members, places }),
        };
        for server in servers.values_mut().chain(copies.values_mut()) {
            server.tick(&around, log);
            server.linked = server.reaches(&self.behaviours);
            let linked = server.linked;
            for packet in server.sends().filter(|_| linked) {
                net.send(self.now_ms, packet, self.weather, &mut self.rng);
            }
        }
    }

    /// Whether what `break_at` names has just happened.
    fn is_there(&self, log: &Log, told: usize) -> bool {
        let number = |phase: &Phase| phase.wave().and(phase.rollout()).map(|rollout| rollout.waves);
        match self.break_at {
            None => false,
            Some(Break::Known(command)) => log.outcomes.contains_key(&command),
            Some(Break::Entered(name, wave)) => {
                let enters =
                    |event: &Event| matches!(event, Event::PhaseChanged { to, .. } if *to == name);
                log.events[told..].iter().any(|happened| enters(&happened.event))
                    && log.state.apps.values().any(|app| {
                        app.phase.name() == name && (wave.is_none() || wave == number(&app.phase))
                    })
            }
        }
    }
}

/// Which of these machines, in the order of their servers, is in that place.
fn position(machines: &[&mut Server], place: &Place) -> Option<usize> {
    let first = machines.partition_point(|machine| machine.id < place.server);
    let own = machines[first..].iter().take_while(|machine| machine.id == place.server);
    own.enumerate().find(|(_, machine)| machine.place == *place).map(|(at, _)| first + at)
}

/// Packets came where no machine of that server is: whoever sent them sees that.
fn nobody_there(
    machines: &mut [&mut Server],
    packets: impl Iterator<Item = Packet>,
    now_ms: u64,
    net: &mut Net,
) {
    for Packet { from, to, id, what, .. } in packets {
        if let Some(at) = position(machines, &from) {
            machines[at].missed(&to);
        }
        if let Some(what) = what.refusal() {
            net.put(now_ms, Packet::new(to, from, id, what));
        }
    }
}

/// Whether a member may stand for election where the first one leads: no server of a lower name
/// runs one that could.
fn may_stand(servers: &[&mut Server], server: &ServerId) -> bool {
    let voters = servers.iter().filter_map(|server| {
        let raft = &server.member.as_ref().filter(|_| server.linked)?.view.raft;
        raft.configuration.is_voter(raft.id).then_some((&server.id, raft.applied))
    });
    let first = voters.max_by_key(|(id, applied)| (*applied, std::cmp::Reverse(*id)));
    first.is_some_and(|(first, _)| first == server)
}
