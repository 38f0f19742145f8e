//! Draws faults from a seed, lets them all end, and expects that everything comes right.

use std::collections::BTreeMap;

use cohort_core::command::Body;
use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_core::kill::KillScope;
use cohort_core::phase::PhaseName;
use cohort_core::policy::{Duration, Prestage, Size, WaveSizes};
use cohort_core::release::{Release, Rollback};
use cohort_core::report::Step;
use cohort_store::WriteFault;
use cohort_view::command::Command;
use cohort_view::hint::Hint;
use cohort_view::waiting::hints;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::behaviour::{Behaviour, Fault};
use super::build;
use super::group::Group;
pub use super::log::{LOST_ENTRY, OTHER_ENTRY, OTHER_STATE, REPORTED_AGAIN, STALE_READ};
use super::net::Weather;
pub use super::prober::{
    ALSO_ACTS, COLLECTED, DISPLACED, STALE_ORDER, TOO_MANY_OUT, TOO_MANY_VOTERS, UNTRUE,
};
use super::server::{Disk, Service};
pub use super::server::{FORGOTTEN, OWES, TWICE};
use super::world::{Fleet, TICK_MS};
use crate::digest::digest;

mod kind;
mod power;
mod size;
mod trace;
mod trouble;

use kind::Kind;
use trace::ToldByGroup;
pub use trace::Trace;

/// How long faults come, in milliseconds of the fleet's clock.
const FAULTS_MS: u64 = 180_000;
/// How long the fleet has to come right after the last fault, in milliseconds of its clock.
const HEAL_MS: u64 = 900_000;

/// How long the hook of a slow release prepares it, at most, in milliseconds: longer than it takes
/// to lose a silent server, and than orders are valid.
const PREPARES_MS_MAX: u32 = 30_000;

/// For how long a voter may be silent before it is replaced, in milliseconds.
const REPLACE_AFTER_MS: u64 = 5_000;

/// A violation that the tests look for: all faults have ended, and something is still not right.
pub const NOT_RIGHT: &str = "not right";

/// The registry has an older record of a group's members.
pub const OTHER_MEMBERS: &str = "the registry names other members";

/// What one run was like.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The states that were entered, from and to.
    pub arrows: std::collections::BTreeSet<(PhaseName, PhaseName)>,
    /// Steps of the fleet's clock, healing included.
    pub steps: u64,
    /// Reads that members answered.
    pub reads: u64,
    /// Transfers of leadership that succeeded.
    pub transfers: u64,
    /// Logs that servers lost.
    pub logs_lost: u64,
    /// Servers that were restored from an image.
    pub restored: u64,
    /// Servers that were down for good.
    pub gone: u64,
    /// Faults that were drawn.
    pub faults: u64,
    /// Waves that started.
    pub waves: u64,
    /// A digest of what members and servers did, and when.
    pub digest: u64,
}

impl Run {
    /// Counts another run as well.
    pub fn add(&mut self, other: &Run) {
        self.arrows.extend(&other.arrows);
        self.steps += other.steps;
        self.reads += other.reads;
        self.transfers += other.transfers;
        self.logs_lost += other.logs_lost;
        self.gone += other.gone;
        self.faults += other.faults;
        self.restored += other.restored;
        self.waves += other.waves;
    }
}

/// A protection that the tests' own tests switch off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A crash loses the last entry that the disk has reported as durable.
    DropsEntry,
    /// Leaders answer reads without asking a majority whether they still lead.
    StaleReads,
    /// Members accept entries that were altered in transit.
    AltersEntry,
    /// Members accept snapshots that were altered in transit.
    Diverges,
    /// A host accepts orders whatever it has accepted before.
    HostFence,
    /// Orders never expire.
    OrderValidity,
    /// A host acts first, and records later what it is doing.
    IntentBeforeAction,
    /// Members take every report for a new one.
    ReportDeduplication,
    /// A server that starts takes traffic although it owes.
    DebtsBeforeTraffic,
    /// A server that cannot reach its group never undoes a change.
    ConfirmOrUndo,
    /// A host removes all artifacts that it is not running.
    CollectsLastGood,
    /// Groups take every server out of service that they like.
    Ledger,
    /// A late write replaces a newer record of the registry.
    RegistryFence,
    /// A server acknowledges a kill register that is not on its disk.
    KillLatch,
    /// The leader takes every server for one that it has just heard.
    Silence,
    /// A release goes to any number of voters at once.
    QuorumMargin,
    /// A server that lost its log, or an older one, goes on under the same number.
    NewMember,
    /// Members take every agent for one that runs on the same machine as the last.
    CloneCheck,
}

/// A fleet under faults that are drawn from a seed.
pub struct Chaos {
    fleet: Fleet,
    apps: Vec<AppId>,
    groups: Vec<GroupId>,
    versions: u32,
    servers: usize,
    /// How often each kind of fault or wish is drawn, in parts of their sum.
    rates: Vec<(Kind, u32)>,
    trace: Trace,
    told: ToldByGroup,
    faults: u64,
    /// Every policy rolls a release out in ten waves.
    ten_waves: bool,
    /// Logs that servers lost, and when the last one did.
    logs_lost: u64,
    lost_ms: u64,
    gone: u64,
    /// Earlier states of servers.
    images: BTreeMap<ServerId, Image>,
    /// Servers that were restored from one.
    restored: u64,
}

/// A machine's disk and services.
type Image = (Disk, BTreeMap<AppId, Service>);

impl Chaos {
    /// A fleet of one to three groups with one or two apps, all drawn from the seed.
    pub fn new(seed: u64) -> Chaos {
        Chaos::with(seed, None, Trace::Off)
    }

    /// The same, with a protection switched off, and printing what happens.
    pub fn with(seed: u64, off: Option<Mutation>, trace: Trace) -> Chaos {
        let mut fleet = Fleet::new(seed);
        fleet.mutation = off;
        fleet.registry.unfenced = off == Some(Mutation::RegistryFence);
        fleet.placer.no_quorum_margin = off == Some(Mutation::QuorumMargin);
        Chaos::found(fleet, trace)
    }

    /// The same, of members that step at every tick instead of sleeping until something is due.
    pub fn of_every_tick(seed: u64) -> Chaos {
        let mut fleet = Fleet::new(seed);
        fleet.every_tick = true;
        Chaos::found(fleet, Trace::Off)
    }

    fn found(fleet: Fleet, trace: Trace) -> Chaos {
        let mut chaos = Chaos::empty(fleet, trace);
        let zones = chaos.draw(3) + 1;
        for zone in ["zone-a", "zone-b", "zone-c"].iter().take(zones as usize) {
            let count = chaos.draw(8) as usize + 1;
            chaos.add_group(zone, count);
        }
        chaos.first_releases();
        chaos
    }

    /// A fleet without groups, and how its members are opened.
    fn empty(mut fleet: Fleet, trace: Trace) -> Chaos {
        fleet.limits.retained_entries = [0, 5, 1024][fleet.rng.random_range(0..3)];
        fleet.limits.entries_before_snapshot = [30, 4096][fleet.rng.random_range(0..2)];
        fleet.placer.replace_after_ms = REPLACE_AFTER_MS;
        let apps: Vec<AppId> =
            if fleet.rng.random_ratio(1, 3) { vec!["web", "db"] } else { vec!["web"] }
                .into_iter()
                .map(|app| AppId::new(app).expect("an app"))
                .collect();
        let mut chaos = Chaos {
            fleet,
            apps,
            groups: Vec::new(),
            versions: 0,
            servers: 0,
            rates: Vec::new(),
            trace,
            told: ToldByGroup::new(),
            faults: 0,
            ten_waves: false,
            logs_lost: 0,
            lost_ms: 0,
            gone: 0,
            images: BTreeMap::new(),
            restored: 0,
        };
        chaos.rates = kind::rates(&mut chaos.fleet.rng);
        chaos
    }

    fn add_group(&mut self, zone: &str, count: usize) {
        let servers: Vec<ServerId> = (1..=count).map(|n| build::server(self.servers + n)).collect();
        self.servers += count;
        self.say(&format!("{zone}: {servers:?}"));
        let (name, labels) = (format!("intel.{zone}"), [("zone", zone)]);
        self.groups.push(self.fleet.add_group(&name, "intel", &labels, &servers));
    }

    fn first_releases(&mut self) {
        for app in self.apps.clone() {
            self.policy(&app);
            self.release(&app, false);
        }
    }

    fn draw(&mut self, below: u32) -> u32 {
        self.fleet.rng.random_range(0..below)
    }

    fn join(&mut self, group: &GroupId) {
        self.servers += 1;
        let server = build::server(self.servers);
        self.say_of(group, &format!("{server} joins"));
        self.fleet.groups.get_mut(group).expect("known").join(&server);
    }

    fn policy(&mut self, app: &AppId) {
        let mut policy = build::policy(app.as_str());
        let update = &mut policy.update;
        let sizes = [
            WaveSizes(vec![Size::Percent(10)]),
            WaveSizes(vec![Size::Count(1), Size::Percent(50), Size::Percent(100)]),
            WaveSizes(vec![Size::Count(3)]),
        ];
        update.max_parallel = sizes.choose(&mut self.fleet.rng).expect("three").clone();
        update.max_unavailable = Size::Count(self.draw(3));
        update.failures_allowed = Size::Count(self.draw(3));
        update.surroundings_allowed = Size::Count(self.draw(3));
        update.auto_revert = self.draw(8) > 0;
        update.approve_after_wave = u32::from(self.draw(6) == 0);
        update.bake_time = Duration::from_ms(u64::from(self.draw(3)) * 1_000);
        let prestages = [Prestage::All, Prestage::NextWave, Prestage::Wave];
        update.prestage = *prestages.choose(&mut self.fleet.rng).expect("three");
        update.drain_time = Duration::from_ms(u64::from(self.draw(2)) * 500);
        if self.ten_waves {
            size::ten_waves(update);
        }
        self.say(&format!("policy {app}: {:?}", policy.update));
        self.fleet.set_policy(policy);
    }

    /// A release, sound or not, and the channel on it.
    fn release(&mut self, app: &AppId, sound: bool) -> Release {
        self.versions += 1;
        let version = format!("1.{}.0", self.versions);
        let mut release = build::release(app.as_str(), &version, "intel");
        let mut faults = Vec::new();
        if !sound && self.draw(2) == 0 {
            let steps = [Step::Prepare, Step::Drain, Step::Start, Step::Check, Step::WarmUp];
            let step = *steps.choose(&mut self.fleet.rng).expect("five");
            let fault = match self.draw(7) {
                0 | 1 => Fault::Fails(step),
                2 => Fault::Surroundings(step),
                3 => Fault::Hangs(step),
                4 => Fault::Later(step, self.draw(5)),
                5 => Fault::DiesAfter(500 + u64::from(self.draw(5_000))),
                _ => Fault::CutsNetwork,
            };
            // Where the good release cuts a server off, only hands on the machine help.
            let on = if self.draw(2) == 0 || fault == Fault::CutsNetwork {
                None
            } else {
                Some((1..=self.servers).filter(|n| n % 4 == 0).map(build::server).collect())
            };
            faults.push((fault, on));
        }
        if self.draw(3) == 0 {
            let ms = 500 + u64::from(self.draw(PREPARES_MS_MAX));
            faults.push((Fault::Takes(Step::Prepare, ms), None));
        }
        if !sound {
            release.rollback = match self.draw(12) {
                0 => Rollback::Freeze,
                // One that cuts its server off and cannot be undone needs hands on the machine.
                1 if !faults.iter().any(|(fault, _)| *fault == Fault::CutsNetwork) => {
                    Rollback::ForwardOnly
                }
                _ => Rollback::Revert,
            };
        }
        self.say(&format!("{app} {version} ({:?}): {faults:?}", release.rollback));
        self.fleet.publish(app, release.clone(), Behaviour { faults });
        self.fleet.channel(app, &version);
        release
    }

    /// Half of the servers that can be reached hear of it from a person.
    fn throw(&mut self, scope: KillScope, reason: Option<&str>) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.fleet.rng.next_u64());
        let now_ms = self.fleet.now_ms;
        self.fleet.throw(scope, reason, |server| {
            let runs = server.up && server.paused_until_ms <= now_ms;
            runs && server.linked && rng.random_bool(0.5)
        });
    }

    fn voters(&self, group: &GroupId) -> usize {
        let view = self.fleet.groups[group].leader_view();
        view.map_or(0, |(_, view)| view.raft.configuration.voters.len())
    }

    pub(super) fn group(&mut self, group: &GroupId) -> &mut Group {
        self.fleet.groups.get_mut(group).expect("known")
    }

    fn server(&mut self, group: &GroupId, server: &ServerId) -> &mut super::server::Server {
        let group = self.fleet.groups.get_mut(group).expect("known");
        group.servers.get_mut(server).expect("known")
    }

    fn start(&mut self, group: &GroupId, server: &ServerId) {
        let gone = self.fleet.groups[group].gone.contains(server);
        let server = self.server(group, server);
        server.cut = false;
        if !gone {
            server.start();
        }
    }

    fn wish(&mut self, group: &GroupId, body: Body) {
        self.say_of(group, &format!("ana: {body:?}"));
        self.fleet.say(group, "ana", body);
    }

    /// Plays the whole run.
    ///
    /// # Panics
    /// At the first violation.
    pub fn play(mut self) -> Run {
        while self.fleet.now_ms < FAULTS_MS {
            self.fleet.tick();
            self.tell();
            if self.draw(30) == 0 {
                self.fault();
            }
        }
        self.heal();
        let mut run = Run { steps: self.fleet.now_ms / TICK_MS, ..Run::default() };
        for group in self.fleet.groups.values() {
            let log = &group.log;
            run.arrows.extend(&log.arrows);
            run.reads += log.reads;
            run.transfers += log.transfers;
            run.waves += log.events.iter().filter(|event| event.wave.is_some()).count() as u64;
            let state = serde_json::to_vec(&*log.state).expect("a state has text keys only");
            run.digest = digest(run.digest ^ log.digest, &state);
        }
        run.digest ^= self.fleet.rng.next_u64();
        run.gone = self.gone;
        run.faults = self.faults;
        run.restored = self.restored;
        run.logs_lost = self.logs_lost;
        run
    }

    /// All faults end, a sound release is there, and persons do what `why` tells them to.
    fn heal(&mut self) {
        self.say("everything heals");
        self.fleet.weather = Weather::default();
        self.fleet.registry.away = false;
        self.supply(Kind::SupplyIsBack);
        for id in self.groups.clone() {
            let group = self.fleet.groups.get_mut(&id).expect("known");
            // People switch off the machine that the group refuses.
            group.copies.clear();
            group.net.cut.clear();
            for server in group.servers.values_mut() {
                server.crash_in = None;
                server.paused_until_ms = 0;
                server.disk_fails = false;
                server.repair();
                if let Some((_, disk)) = &server.disk.log {
                    disk.set_fault(WriteFault::None);
                }
            }
            let ids: Vec<ServerId> = group.servers.keys().cloned().collect();
            for server in ids {
                self.start(&id, &server);
            }
            self.fleet.throw(KillScope::Group(id), None, |server| server.up);
        }
        self.fleet.throw(KillScope::Fleet, None, |server| server.up);
        let target: BTreeMap<AppId, Release> = self
            .apps
            .clone()
            .into_iter()
            .map(|app| (app.clone(), self.release(&app, true)))
            .collect();
        let end_ms = self.fleet.now_ms + HEAL_MS;
        let mut open = String::new();
        while self.fleet.now_ms < end_ms {
            self.fleet.tick();
            self.tell();
            if !self.fleet.now_ms.is_multiple_of(50 * TICK_MS) {
                continue;
            }
            open = self.open(&target).unwrap_or_default();
            if open.is_empty() {
                return;
            }
            self.agree();
        }
        panic!("{NOT_RIGHT} {HEAL_MS} ms after the last fault: {open}{}", self.waiting());
    }

    /// Everything that waits, for the message of a run that does not come right.
    fn waiting(&self) -> String {
        let groups = self.fleet.groups.iter();
        let all = groups.map(|(id, group)| match group.leader_view() {
            Some((_, view)) => {
                let waiting = view.waiting.iter();
                waiting.map(|on| format!("\n{id}: {}: {:?}", on.app, on.on)).collect::<String>()
            }
            None => group
                .servers
                .iter()
                .map(|(server, it)| {
                    let raft = it.member.as_ref().map(|member| &member.view.raft);
                    format!("\n{id}: {server}: up {}, {raft:?}", it.up)
                })
                .collect(),
        });
        all.collect()
    }

    fn open(&self, target: &BTreeMap<AppId, Release>) -> Option<String> {
        self.fleet
            .groups
            .values()
            .flat_map(|group| target.iter().map(move |(app, release)| (group, app, release)))
            .find_map(|(group, app, release)| group.settled_on(app, release).err())
            .or_else(|| self.fleet.groups.values().find_map(|group| group.whole().err()))
            .or_else(|| {
                let mut groups = self.fleet.groups.iter();
                let known = |id: &GroupId| {
                    let members = self.fleet.registry.members.get(id)?.iter();
                    Some(members.map(|place| place.at.clone()).collect::<Vec<_>>())
                };
                let other = groups
                    .find(|(id, group)| known(id) != Some(group.log.state.member_addresses()));
                other.map(|(id, _)| format!("{id}: {OTHER_MEMBERS}: {:?}", known(id)))
            })
    }

    /// Persons do what `why` suggests, and remove the servers that have left.
    fn agree(&mut self) {
        for id in self.groups.clone() {
            let group = &self.fleet.groups[&id];
            let lost = |server: &ServerId| {
                group.log.state.servers.contains_key(server)
                    && (group.leaving.contains(server) || group.gone.contains(server))
            };
            let left = group.leaving.iter().chain(&group.gone).filter(|server| lost(server));
            let mut wishes: Vec<Body> =
                left.map(|server| Body::RemoveServer { server: server.clone() }).collect();
            let waiting = group.leader_view().map_or(&[][..], |(_, view)| &view.waiting);
            let phase = |app: &AppId| group.log.state.apps.get(app).map(|app| app.phase.name());
            let offered = waiting.iter().flat_map(|on| {
                let phase = phase(&on.app).into_iter();
                phase.flat_map(|phase| hints(&on.on, &id, &on.app, phase))
            });
            for hint in offered {
                let Hint::Run(_, command) = hint else { continue };
                let wish = match command {
                    Command::RolloutApprove { app, .. } => Body::Approve { app },
                    Command::RolloutResume { app, .. } => Body::Resume { app },
                    Command::RolloutRetry { app, .. } => Body::Retry { app },
                    Command::GroupRemoveServer { server, .. } if lost(&server) => {
                        Body::RemoveServer { server }
                    }
                    _ => continue,
                };
                if !wishes.contains(&wish) {
                    wishes.push(wish);
                }
            }
            for wish in wishes {
                self.wish(&id, wish);
            }
        }
    }
}
