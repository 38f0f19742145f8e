//! Draws faults from a seed, lets them all end, and expects that everything comes right.

use std::collections::BTreeMap;

use cohort_core::command::Body;
use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_core::phase::PhaseName;
use cohort_core::policy::{Duration, Prestage, Size, WaveSizes};
use cohort_core::release::{Release, Rollback};
use cohort_core::report::Step;
use cohort_core::state::State;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::behaviour::{Behaviour, Fault};
use super::build;
use super::net::Weather;
use super::world::{Fleet, TICK_MS};

/// How long faults come, in milliseconds of the fleet's clock.
const FAULTS_MS: u64 = 180_000;
/// How long the fleet has to come right after the last fault, in milliseconds of its clock.
const HEAL_MS: u64 = 900_000;

/// What one run was like.
#[derive(Debug, Default)]
pub struct Run {
    /// The states that were entered, from and to.
    pub arrows: std::collections::BTreeSet<(PhaseName, PhaseName)>,
    /// Steps of the fleet's clock, healing included.
    pub steps: u64,
}

/// A fleet under faults that are drawn from a seed.
#[derive(Debug)]
pub struct Chaos {
    /// The fleet.
    pub fleet: Fleet,
    apps: Vec<AppId>,
    groups: Vec<GroupId>,
    versions: u32,
    servers: usize,
    talk: bool,
}

impl Chaos {
    /// A fleet of one to three groups with one or two apps, all drawn from the seed.
    #[must_use]
    pub fn new(seed: u64, talk: bool) -> Chaos {
        let mut fleet = Fleet::new(seed);
        let apps: Vec<AppId> =
            if fleet.rng.random_ratio(1, 3) { vec!["web", "db"] } else { vec!["web"] }
                .into_iter()
                .map(|app| AppId::new(app).expect("an app"))
                .collect();
        let mut chaos = Chaos { fleet, apps, groups: Vec::new(), versions: 0, servers: 0, talk };
        let zones = chaos.draw(3) + 1;
        for zone in ["zone-a", "zone-b", "zone-c"].iter().take(zones as usize) {
            let group = chaos.fleet.add_group(&format!("intel.{zone}"), "intel", &[("zone", zone)]);
            chaos.groups.push(group.clone());
            for _ in 0..chaos.draw(8) + 1 {
                chaos.join(&group);
            }
        }
        for app in chaos.apps.clone() {
            chaos.policy(&app);
            chaos.release(&app, false);
        }
        chaos
    }

    fn draw(&mut self, below: u32) -> u32 {
        self.fleet.rng.random_range(0..below)
    }

    fn say(&self, text: &str) {
        if self.talk {
            println!("{:>7} ms  {text}", self.fleet.now_ms);
        }
    }

    fn join(&mut self, group: &GroupId) {
        self.servers += 1;
        let server = build::server(self.servers);
        self.say(&format!("{server} joins {group}"));
        self.fleet.join(group, &server);
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

    /// One fault, or one wish of a person.
    fn fault(&mut self) {
        let group = self.groups.choose(&mut self.fleet.rng).expect("one at least").clone();
        let app = self.apps.choose(&mut self.fleet.rng).expect("one at least").clone();
        let now_ms = self.fleet.now_ms;
        let ids: Vec<ServerId> = self.fleet.groups[&group].state.servers.keys().cloned().collect();
        let server = ids.choose(&mut self.fleet.rng).cloned();
        match (self.draw(20), server) {
            (0, _) if self.servers < 24 => self.join(&group),
            (1, Some(server)) if ids.len() > 2 => {
                self.say(&format!("{server} leaves"));
                self.fleet.leave(&group, &server);
            }
            (2 | 3, Some(server)) => {
                let after = self.draw(6);
                self.say(&format!("{server} crashes in {after} instructions"));
                self.server(&group, &server).crash_in = Some(after);
            }
            (4, Some(server)) if self.draw(3) == 0 => {
                self.say(&format!("{server} loses what it holds"));
                let server = self.server(&group, &server);
                server.crash();
                server.disk.held.clear();
            }
            (4, Some(server)) => {
                self.say(&format!("{server} loses power"));
                self.server(&group, &server).power_off();
            }
            (5 | 6, Some(server)) => {
                self.say(&format!("{server} is cut off"));
                self.server(&group, &server).cut = true;
            }
            (7..=9, Some(server)) => {
                self.say(&format!("{server} comes back"));
                self.server(&group, &server).cut = false;
                self.server(&group, &server).start();
            }
            (10, Some(server)) => {
                self.say(&format!("{server} leads"));
                let group = self.fleet.groups.get_mut(&group).expect("known");
                // Some of what the old leader proposed still comes; the rest is lost.
                let keep = self.fleet.rng.random_range(0..=group.proposed.len());
                group.proposed.truncate(keep);
                group.elect(now_ms, Some(server));
            }
            (11, _) => {
                let app = app.clone();
                self.release(&app, false);
            }
            (12, _) => {
                self.fleet.registry.away = !self.fleet.registry.away;
                self.say(&format!("registry away: {}", self.fleet.registry.away));
            }
            (13, _) => {
                let killed = self.draw(3) == 0;
                self.say(&format!("killed: {killed}"));
                for group in self.fleet.groups.values_mut() {
                    group.killed = killed.then(|| "somebody said so".into());
                }
            }
            (14, _) => {
                let weather = if self.draw(2) == 0 {
                    Weather::default()
                } else {
                    Weather { lost: self.draw(300), twice: self.draw(300), late: self.draw(300) }
                };
                self.fleet.slow_log_ms = self.draw(3) * 200;
                self.say(&format!("{weather:?}, log {} ms late", self.fleet.slow_log_ms));
                self.fleet.weather = weather;
            }
            (15, _) => self.policy(&app),
            (16, _) => self.wish(&group, Body::Pause { app, reason: "lunch".into() }),
            (17, _) => {
                self.wish(&group, Body::Resume { app: app.clone() });
                self.wish(&group, Body::Approve { app });
            }
            (18, _) => match self.draw(3) {
                0 => self.wish(&group, Body::Abort { app, reason: "no".into() }),
                1 => self.wish(&group, Body::Retry { app }),
                _ => {
                    if let Some(lead) = self.fleet.groups[&group].leader.clone() {
                        self.wish(&group, Body::Undo { app, lead });
                    }
                }
            },
            _ => {
                let version = self.versions;
                self.say("a leader slept");
                let group = self.fleet.groups.get_mut(&group).expect("known");
                group.leap(u64::from(version) * 1_000);
            }
        }
    }

    fn server(&mut self, group: &GroupId, server: &ServerId) -> &mut super::server::Server {
        let group = self.fleet.groups.get_mut(group).expect("known");
        group.servers.get_mut(server).expect("known")
    }

    fn wish(&mut self, group: &GroupId, body: Body) {
        let now_ms = self.fleet.now_ms;
        let what = body.name();
        let group = self.fleet.groups.get_mut(group).expect("known");
        let outcome = group.person(now_ms, body);
        self.say(&format!(
            "ana: {what}: {}",
            outcome.map_or_else(|r| cohort_view::words::rejection(&r), |_| "ok".into())
        ));
    }

    /// Plays the whole run.
    ///
    /// # Panics
    /// Wherever something is seen that must never be.
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
            run.arrows.extend(&group.arrows);
            let mut again = State::new(group.state.group.clone(), group.state.incarnation);
            for command in &group.log {
                let _ = again.apply(command);
            }
            assert_eq!(again, group.state, "the log was replayed to another state");
        }
        run
    }

    fn tell(&mut self) {
        if !self.talk {
            return;
        }
        for (id, group) in &self.fleet.groups {
            let new = group.events.iter().rev();
            let new: Vec<_> =
                new.take_while(|happened| happened.at_ms == self.fleet.now_ms).collect();
            for happened in new.into_iter().rev() {
                println!("{:>7} ms  {id}: {:?}", happened.at_ms, happened.event);
            }
        }
    }

    /// All faults end, a sound release is there, and persons agree to everything.
    fn heal(&mut self) {
        self.say("everything heals");
        self.fleet.weather = Weather::default();
        self.fleet.slow_log_ms = 0;
        self.fleet.registry.away = false;
        for group in self.fleet.groups.values_mut() {
            group.killed = None;
            for server in group.servers.values_mut() {
                server.crash_in = None;
                server.cut = false;
                server.start();
            }
        }
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
        for group in self.fleet.groups.values() {
            for waiting in &group.waiting {
                println!("{}: {:?}", group.state.group, waiting.on);
            }
        }
        for group in self.fleet.groups.values() {
            for (id, server) in &group.servers {
                for (app, record) in &server.disk.apps {
                    let current = record.local.current.as_ref();
                    let over = record
                        .local
                        .activation
                        .as_ref()
                        .is_none_or(|a| a.progress == cohort_core::steps::Progress::Complete);
                    if !over || current != Some(&target[app]) {
                        println!("{app} on {id}: {record:?}, {:?}", server.services.get(app));
                    }
                }
            }
        }
        panic!("not right {HEAL_MS} ms after the last fault: {open}");
    }

    fn open(&self, target: &BTreeMap<AppId, Release>) -> Option<String> {
        self.fleet
            .groups
            .values()
            .flat_map(|group| target.iter().map(move |(app, release)| (group, app, release)))
            .find_map(|(group, app, release)| group.settled_on(app, release).err())
    }

    fn agree(&mut self) {
        for group in self.groups.clone() {
            for app in self.apps.clone() {
                let Some(state) = self.fleet.groups[&group].state.apps.get(&app) else { continue };
                if state.phase.forward().is_some_and(|rollout| rollout.pause.is_some()) {
                    self.wish(&group, Body::Resume { app: app.clone() });
                }
                let asks = self.fleet.groups[&group].waiting.iter().any(|waiting| {
                    matches!(waiting.on, cohort_core::waiting::WaitingOn::Approval { .. })
                });
                if asks {
                    self.wish(&group, Body::Approve { app: app.clone() });
                }
                let spent = self.fleet.groups[&group].waiting.iter().any(|waiting| {
                    waiting.app == app
                        && matches!(
                            waiting.on,
                            cohort_core::waiting::WaitingOn::Debt { .. }
                                | cohort_core::waiting::WaitingOn::Person { .. }
                        )
                });
                if spent {
                    self.wish(&group, Body::Retry { app });
                }
            }
        }
    }
}
