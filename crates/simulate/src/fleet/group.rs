//! A group: its servers, some of which carry its log, and the network between them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cohort_consensus::{Config, Index, LogStore, Node, RaftId};
use cohort_core::Offer;
use cohort_core::command::{Body, Command};
use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_core::phase::PhaseName;
use cohort_core::placement::voters_of;
use cohort_core::release::Release;
use cohort_core::state::Process;
use cohort_server::member::View;
use cohort_server::membership::{FIRST_MEMBER, Founder, founding_state};
use cohort_store::{Disk, Entry, EntryKind, FaultyStore};

use super::build;
use super::log::Log;
use super::net::Net;
use super::place::Place;
use super::server::Server;
use super::server::member::{INCARNATION, Setup, command};

pub(crate) struct Group {
    /// Its servers, including those that have left and may not stop yet.
    pub(crate) servers: BTreeMap<ServerId, Server>,
    /// Machines that run next to those, with the same identity.
    pub(crate) copies: BTreeMap<ServerId, Server>,
    /// Where each server is, as it told the hub.
    pub(crate) places: RefCell<BTreeMap<ServerId, Place>>,
    /// Numbers the places of machines that moved, and of copies.
    last_place: u32,
    pub(crate) log: Log,
    pub(crate) net: Net,
    /// Servers that stop once the group does without their members.
    pub(crate) leaving: BTreeSet<ServerId>,
    /// Of these, the ones that are down for good.
    pub(crate) gone: BTreeSet<ServerId>,
    /// What the channels point to, for this group's platform.
    pub(crate) offers: Arc<BTreeMap<AppId, Offer>>,
    /// How many events there were at the end of the last step of the clock.
    pub(crate) told: usize,
    setup: Arc<Setup>,
}

impl Group {
    /// A group that the first of its servers founds at `now_ms`; all of them belong to it.
    pub(crate) fn found(
        now_ms: u64,
        platform: &str,
        labels: &BTreeMap<String, String>,
        servers: &[ServerId],
        setup: Setup,
    ) -> Group {
        let setup = Arc::new(setup);
        let id: &GroupId = &setup.group;
        let first = &servers[0];
        let founder = Founder {
            server: first.clone(),
            address: Place::first(first).address(),
            rack: build::rack_of(first, setup.racks),
            process: Process::default(),
            labels: labels.clone(),
            platform: platform.parse().expect("a platform"),
        };
        let mut state = founding_state(id.clone(), INCARNATION, founder);
        for server in &servers[1..] {
            let rack = build::rack_of(server, setup.racks);
            let (server, address) = (server.clone(), Place::first(server).address());
            let process = Process::default();
            let body = Body::AddServer { server, address, rack, process };
            state.apply(&command("hub".into(), None, body)).expect("there is room");
        }
        let disk = Disk::new();
        let mut store = FaultyStore::open(&disk).expect("an empty disk");
        let config = Config::new(id.as_str(), INCARNATION.0, RaftId(FIRST_MEMBER.0));
        let data = serde_json::to_vec(&state).expect("a state has text keys only");
        Node::bootstrap(&mut store, &config, [config.id], data).expect("an empty store");
        let mut log = Log::new(id.clone());
        log.now_ms = now_ms;
        log.state = Arc::new(state);
        let mut group = Group {
            servers: BTreeMap::new(),
            copies: BTreeMap::new(),
            places: RefCell::default(),
            last_place: 0,
            log,
            net: Net::default(),
            leaving: BTreeSet::new(),
            gone: BTreeSet::new(),
            offers: Arc::default(),
            told: 0,
            setup,
        };
        for server in servers {
            group.join(server);
        }
        let server = group.servers.get_mut(first).expect("it has just joined");
        server.carry(FIRST_MEMBER, disk, &mut group.log);
        group
    }

    /// The hub lets a server join; its agent starts.
    pub(crate) fn join(&mut self, server: &ServerId) {
        let place = Place::first(server);
        let mut new = Server::new(self.log.now_ms, place, Arc::clone(&self.setup));
        new.start();
        self.log.admitted.insert(server.clone());
        self.servers.insert(server.clone(), new);
    }

    fn new_place(&mut self, server: &ServerId) -> Place {
        self.last_place += 1;
        Place { server: server.clone(), number: self.last_place }
    }

    /// A second machine starts with a copy of a server's disk. An earlier one is switched off.
    pub(crate) fn copy(&mut self, server: &ServerId) {
        let place = self.new_place(server);
        let copy = self.servers[server].copy(place);
        self.copies.insert(server.clone(), copy);
    }

    /// A server gets another address.
    pub(crate) fn move_server(&mut self, server: &ServerId, reboots: bool) {
        let place = self.new_place(server);
        let server = self.servers.get_mut(server).expect("a known server");
        let was_up = server.up;
        server.move_to(place, reboots);
        if !was_up {
            server.crash();
        }
    }

    /// All machines.
    pub(crate) fn machines(&self) -> impl Iterator<Item = &Server> {
        self.servers.values().chain(self.copies.values())
    }

    /// A copy that the group takes for the server is that from now on, and the other one the copy.
    pub(super) fn settle_copies(&mut self) {
        let Group { servers, copies, log, leaving, gone, .. } = self;
        copies.retain(|id, _| servers.contains_key(id));
        for (id, copy) in copies {
            let life = log.state.servers.get(id).map(|known| known.process.life);
            if life == Some(copy.lives) {
                std::mem::swap(servers.get_mut(id).expect("retained above"), copy);
                if gone.remove(id) {
                    leaving.remove(id);
                }
            }
        }
    }

    /// What the leader shows; the one of the newest term, while another has not noticed.
    pub(crate) fn leader_view(&self) -> Option<(&ServerId, &Arc<View>)> {
        let members = self.servers.iter();
        let views = members.filter_map(|(id, server)| Some((id, &server.member.as_ref()?.view)));
        views.filter(|(_, view)| view.leads()).max_by_key(|(_, view)| view.raft.term)
    }

    pub(crate) fn leader(&self) -> Option<ServerId> {
        self.leader_view().map(|(server, _)| server.clone())
    }

    /// Servers that have left stop once no vote of their members is wanted.
    pub(super) fn let_go(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        let Some((_, view)) = self.leader_view() else { return };
        let wanted = |server: &ServerId| {
            let member = self.servers[server].disk.log.as_ref().map(|(member, _)| RaftId(member.0));
            let configuration = &view.raft.configuration;
            view.state.servers.contains_key(server)
                || member.is_some_and(|member| configuration.members().contains(&member))
        };
        let free = self.leaving.iter().find(|server| !wanted(server)).cloned();
        if let Some(server) = free {
            self.servers.remove(&server);
            self.leaving.remove(&server);
            self.gone.remove(&server);
        }
    }

    /// Checks that the group is whole: a leader, and as many voters as it can have, which run and
    /// have applied everything.
    pub(crate) fn whole(&self) -> Result<(), String> {
        let name = &self.setup.group;
        let (_, view) = self.leader_view().ok_or_else(|| format!("{name}: nobody leads"))?;
        let (configuration, applied) = (&view.raft.configuration, view.raft.applied);
        let count = voters_of(view.state.servers.len(), self.setup.placer.carriers.voters);
        if configuration.is_joint() || configuration.voters.len() != count {
            return Err(format!("{name}: the membership is {configuration}"));
        }
        if applied.0 < self.log.applied {
            return Err(format!("{name}: the leader has applied {applied} only"));
        }
        let up_to_date = |voter: &RaftId| {
            let server = self.log.carriers.get(voter).and_then(|server| self.servers.get(server));
            let member = server.and_then(|server| server.member.as_ref());
            member.is_some_and(|member| {
                member.view.raft.id == *voter && member.view.raft.applied == applied
            })
        };
        match configuration.voters.iter().find(|voter| !up_to_date(voter)) {
            None => Ok(()),
            Some(voter) => Err(format!("{name}: {voter} of {configuration} is not up to date")),
        }
    }

    /// The commands in the leader's log that it has not compacted, by entry.
    pub(crate) fn commands(&self) -> Vec<(u64, Command)> {
        let leader = self.leader_view().and_then(|(leader, _)| self.servers.get(leader));
        let disk = leader.and_then(|server| server.disk.log.as_ref());
        let Some((_, disk)) = disk else { return Vec::new() };
        let store = FaultyStore::open(disk).expect("no record is ever torn here");
        let image = store.image();
        let entries = image.entries(image.first_index(), Index(image.last_index().0 + 1));
        let command = |entry: &Entry| {
            let command = serde_json::from_slice(&entry.data).expect("a command");
            (entry.index.0, command)
        };
        let written = |entry: &&Entry| entry.kind == EntryKind::Data && !entry.data.is_empty();
        entries.filter(written).map(command).collect()
    }

    /// Checks that the group runs `release` everywhere: nothing in flight, no debts, all serving.
    pub(crate) fn settled_on(&self, app: &AppId, release: &Release) -> Result<(), String> {
        let name = &self.setup.group;
        let Some(state) = self.log.state.apps.get(app) else {
            return Err(format!("{name}: {app} is unknown"));
        };
        if state.phase.name() != PhaseName::Running {
            return Err(format!("{name}: {app} is {}", state.phase.name()));
        }
        if state.last_good.as_ref() != Some(release) {
            return Err(format!("{name}: {app} has another last good"));
        }
        for (id, here) in &state.servers {
            if !here.settled_on(Some(release)) || !here.in_service || here.debt.is_some() {
                return Err(format!("{name}: {app} on {id} is {here:?}"));
            }
            let service = self.servers.get(id).and_then(|server| server.services.get(app));
            if !service.is_some_and(|s| s.serves() && s.release.as_ref() == Some(release)) {
                return Err(format!("{name}: {app} on {id} is really {service:?}"));
            }
        }
        Ok(())
    }
}
