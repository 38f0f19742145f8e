//! The fleet: groups, one registry, one clock.

use std::collections::BTreeMap;

use cohort_core::Offer;
use cohort_core::command::{Body, Event};
use cohort_core::gate::{GroupInfo, RegistryView};
use cohort_core::ids::{AppId, GroupId, Revision, ServerId};
use cohort_core::phase::{Phase, PhaseName};
use cohort_core::policy::Policy;
use cohort_core::release::Release;
use cohort_server::asking::Input;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::behaviour::{Behaviour, Behaviours};
use super::group::Group;
use super::net::{Message, Weather};
use super::prober::Prober;
use super::server::{Around, Holdings, Server};

/// One step of the clock, in milliseconds.
pub const TICK_MS: u64 = 100;
/// How long a group has no leader after losing one, in milliseconds.
const ELECTION_MS: u64 = 1_000;

/// Plans in a row within one step: the leader plans again as soon as its proposals are applied.
/// 4: the second one rarely proposes anything.
const PLANS_MAX: usize = 4;

/// The registry, as leaders read it.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    /// Its content.
    pub view: RegistryView,
    /// Whether it is unreachable.
    pub away: bool,
}

/// A fleet in one thread.
#[derive(Debug)]
pub struct Fleet {
    /// Milliseconds since the fleet began.
    pub now_ms: u64,
    /// The groups, by name.
    pub groups: BTreeMap<GroupId, Group>,
    /// One registry for all groups.
    pub registry: Registry,
    /// The faults of releases.
    pub behaviours: Behaviours,
    /// Releases, by app, version and platform.
    pub releases: BTreeMap<(AppId, String, String), Release>,
    /// How many messages are lost, duplicated or delayed.
    pub weather: Weather,
    /// Whether the mirrors answer.
    pub mirrors: bool,
    /// How long the whole artifact takes from one source, in milliseconds.
    pub fetch_ms: u64,
    /// The longest delay between a leader's proposal and its commit, in milliseconds.
    pub slow_log_ms: u32,
    /// Watches the services from outside, as users would.
    pub prober: Prober,
    /// Stop as soon as some app of some group enters this state (of this wave), even in the middle
    /// of a plan.
    pub break_at: Option<(PhaseName, Option<u32>)>,
    /// Whether it was entered, and the rest of the leader's plan lost.
    pub broke: bool,
    /// The source of all randomness.
    pub rng: ChaCha8Rng,
}

impl Fleet {
    /// An empty fleet.
    #[must_use]
    pub fn new(seed: u64) -> Fleet {
        Fleet {
            now_ms: 0,
            groups: BTreeMap::new(),
            registry: Registry::default(),
            behaviours: Behaviours::default(),
            releases: BTreeMap::new(),
            weather: Weather::default(),
            mirrors: true,
            fetch_ms: TICK_MS,
            slow_log_ms: 0,
            break_at: None,
            broke: false,
            prober: Prober::default(),
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// Adds a group without servers.
    pub fn add_group(&mut self, name: &str, platform: &str, labels: &[(&str, &str)]) -> GroupId {
        let mut map: BTreeMap<String, String> =
            labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        map.insert("platform".into(), platform.into());
        let group = Group::new(name, platform, &map);
        let id = group.state.group.clone();
        let platform = group.state.platform.clone().expect("set up with one");
        self.registry.view.groups.insert(id.clone(), GroupInfo { labels: map, platform });
        self.groups.insert(id.clone(), group);
        id
    }

    /// A server joins a group.
    pub fn join(&mut self, group: &GroupId, server: &ServerId) {
        let now_ms = self.now_ms;
        let group = self.groups.get_mut(group).expect("a known group");
        let address = format!("{server}:7417");
        let body = Body::AddServer { server: server.clone(), address, rack: None };
        group.commit(now_ms, "hub", None, body).expect("there is room");
        group.servers.entry(server.clone()).or_insert_with(|| Server::new(server.clone()));
        group.contact(now_ms, server, &BTreeMap::new());
        let members = group.state.servers.values().filter(|s| s.member.is_some()).count();
        if members < 5 && group.state.servers[server].member.is_none() {
            let body = Body::AllocateMember { server: server.clone() };
            group.commit(now_ms, "hub", None, body).expect("it joined just now");
        }
    }

    /// A server leaves permanently.
    pub fn leave(&mut self, group: &GroupId, server: &ServerId) {
        let now_ms = self.now_ms;
        let group = self.groups.get_mut(group).expect("a known group");
        if group.commit(now_ms, "ana", None, Body::RemoveServer { server: server.clone() }).is_ok()
        {
            group.servers.remove(server);
        }
        if group.leader.as_ref() == Some(server) {
            group.elect(now_ms, None);
        }
    }

    /// Writes a policy to the registry.
    pub fn set_policy(&mut self, policy: Policy) {
        policy.validate().expect("a valid policy");
        let policies = &mut self.registry.view.policies;
        let revision =
            policies.get(&policy.app).map_or(Revision(1), |(revision, _)| revision.next());
        policies.insert(policy.app.clone(), (revision, policy));
    }

    /// Publishes a release and its faults.
    pub fn publish(&mut self, app: &AppId, release: Release, behaviour: Behaviour) {
        let key = (app.clone(), release.version.to_string(), release.platform.to_string());
        self.behaviours.add(release.clone(), behaviour);
        self.releases.insert(key, release);
    }

    /// Points the channel to a version on every platform that has it.
    pub fn channel(&mut self, app: &AppId, version: &str) {
        for group in self.groups.values_mut() {
            let platform = group.state.platform.clone().expect("set up").to_string();
            let release = self.releases.get(&(app.clone(), version.to_owned(), platform));
            if let Some(release) = release {
                group.offers.insert(app.clone(), Offer::Release(release.clone()));
            }
        }
    }

    /// Advances the clock by `ms`, in steps.
    pub fn run_ms(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        while self.now_ms < until {
            self.tick();
        }
    }

    /// One step of the clock.
    pub fn tick(&mut self) {
        self.now_ms += TICK_MS;
        let names: Vec<GroupId> = self.groups.keys().cloned().collect();
        for name in names {
            let mut group = self.groups.remove(&name).expect("a known group");
            self.servers(&mut group);
            self.messages(&mut group);
            self.lead(&mut group);
            self.prober.look(self.now_ms, &group, &self.behaviours);
            self.groups.insert(name, group);
        }
    }

    fn servers(&mut self, group: &mut Group) {
        let reachable = |server: &Server| server.up && server.reaches(&self.behaviours);
        let asked = group.servers.values().any(Server::lacks_bytes);
        let holdings: Holdings = group
            .servers
            .iter()
            .filter(|(_, server)| asked && reachable(server))
            .map(|(id, server)| (id.clone(), server.holdings()))
            .collect();
        let now_ms = self.now_ms;
        let mut sent = Vec::new();
        let members = group.state.member_addresses();
        for server in group.servers.values_mut() {
            let around = Around {
                now_ms,
                behaviours: &self.behaviours,
                group: &group.state.group,
                holdings: &holdings,
                leader: group.leader.as_ref(),
                mirrors: self.mirrors,
                fetch_ms: self.fetch_ms,
                members: &members,
                registry: !self.registry.away,
            };
            server.disk.killed = group.killed.is_some();
            server.tick(&around);
            let messages = server.sends();
            // What a server says that is cut off is lost on the way.
            if server.reaches(&self.behaviours) {
                sent.extend(messages);
            }
        }
        for message in sent {
            self.send(group, &message);
        }
    }

    fn send(&mut self, group: &mut Group, message: &Message) {
        let rng = &mut self.rng;
        let draw = &mut |n| rng.random_range(0..n);
        group.net.send(self.now_ms, message, self.weather, draw);
    }

    /// What servers said reaches members, and what these answer reaches servers.
    fn messages(&mut self, group: &mut Group) {
        let now_ms = self.now_ms;
        for message in group.net.arrived(now_ms) {
            if self.is_there(group) {
                // What comes after is lost; it will be said again.
                break;
            }
            if !self.reachable(group, message.server()) {
                continue;
            }
            if let Some(answer) = self.take(group, message) {
                self.send(group, &answer);
            }
        }
        for (server, id) in group.answer_held(now_ms) {
            let answer = Message::Answer { server, id, input: Input::Changed };
            self.send(group, &answer);
        }
        for message in group.net.arrived(now_ms) {
            if self.reachable(group, message.server()) {
                group.deliver(message);
            }
        }
    }

    fn reachable(&self, group: &Group, server: &ServerId) -> bool {
        group.servers.get(server).is_some_and(|server| server.reaches(&self.behaviours))
    }

    /// A message has arrived; the answer, if there is one at once.
    fn take(&mut self, group: &mut Group, message: Message) -> Option<Message> {
        match message {
            Message::Ask { server, id, to, question, doing } => {
                let input = if self.answers(group, &to)? {
                    group.ask(self.now_ms, &server, id, &question, &doing)?
                } else {
                    Input::NoAnswer
                };
                Some(Message::Answer { server, id, input })
            }
            Message::Report { id, to, reports } => {
                let server = reports[0].server.clone();
                let answers = self.answers(group, &to)? && group.leader.is_some();
                let taken = answers.then(|| group.report(self.now_ms, reports));
                Some(Message::Taken { server, id, taken })
            }
            Message::Transfer { server, id, to, request } => {
                let leads = self.answers(group, &to)? && group.leader.as_ref() == Some(&to);
                let answer = leads.then(|| group.track(self.now_ms, &server, request)).flatten();
                Some(Message::Guided { server, id, answer })
            }
            Message::Answer { .. } | Message::Taken { .. } | Message::Guided { .. } => {
                group.deliver(message);
                None
            }
        }
    }

    /// Whether a server's member takes questions; `None` where nothing comes back at all.
    fn answers(&self, group: &Group, to: &ServerId) -> Option<bool> {
        let server = group.servers.get(to)?;
        if !server.reaches(&self.behaviours) {
            return None;
        }
        let member = group.state.servers.get(to).is_some_and(|known| known.member.is_some());
        Some(server.up && member)
    }

    fn lead(&mut self, group: &mut Group) {
        let now_ms = self.now_ms;
        let fit = |group: &Group, server: &ServerId| {
            group.state.servers.contains_key(server)
                && group.servers.get(server).is_some_and(|s| s.up && s.reaches(&self.behaviours))
        };
        match &group.leader {
            Some(leader) if !fit(group, leader) => group.elect(now_ms, None),
            Some(_) => {}
            None => {
                let since = *group.leaderless_ms.get_or_insert(now_ms);
                let first = now_ms <= ELECTION_MS;
                if first || now_ms - since >= ELECTION_MS {
                    let member = |id: &&ServerId| group.state.servers[*id].member.is_some();
                    let next = group.state.servers.keys().filter(member).find(|id| fit(group, id));
                    let next =
                        next.or_else(|| group.state.servers.keys().find(|id| fit(group, id)));
                    if let Some(next) = next.cloned() {
                        group.elect(now_ms, Some(next));
                    }
                }
            }
        }
        if group.leader.is_none() {
            return;
        }
        let due: Vec<Body>;
        (due, group.proposed) = {
            let (now, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut group.proposed).into_iter().partition(|(at, _)| *at <= now_ms);
            (now.into_iter().map(|(_, body)| body).collect(), later)
        };
        for body in due {
            let _ = group.commit(now_ms, "leader", None, body);
        }
        for _ in 0..PLANS_MAX {
            if !group.plan_due(now_ms) || !self.plan(group) {
                return;
            }
        }
    }

    /// Plans and proposes. Returns false when the rest of the plan was lost (`break_at`).
    fn plan(&mut self, group: &mut Group) -> bool {
        let now_ms = self.now_ms;
        if !self.registry.away {
            group.write_records(now_ms, &mut self.registry.view);
        }
        let registry = (!self.registry.away).then(|| self.registry.view.clone());
        let plan = group.plan(now_ms, registry);
        self.prober.look_at_plan(group, &plan);
        group.waiting = plan.waiting;
        for body in plan.commands {
            group.proposes(now_ms, &body, group.proposed.len());
            if self.slow_log_ms == 0 {
                let _ = group.commit(now_ms, "leader", None, body);
                if self.is_there(group) {
                    return false;
                }
            } else {
                let late = u64::from(self.rng.random_range(0..self.slow_log_ms));
                group.proposed.push((now_ms + late, body));
            }
        }
        true
    }

    /// Whether the state named by `break_at` was just entered.
    fn is_there(&mut self, group: &Group) -> bool {
        let number = |phase: &Phase| phase.wave().and(phase.rollout()).map(|rollout| rollout.waves);
        let entered = |(name, wave): (PhaseName, Option<u32>)| {
            let last =
                group.events.iter().rev().take_while(|happened| happened.at_ms == self.now_ms);
            last.filter(
                |happened| matches!(happened.event, Event::PhaseChanged { to, .. } if to == name),
            )
            .count()
                > 0
                && group.state.apps.values().any(|app| {
                    app.phase.name() == name && (wave.is_none() || wave == number(&app.phase))
                })
        };
        let there = self.break_at.is_some_and(entered);
        self.broke |= there;
        there
    }
}
