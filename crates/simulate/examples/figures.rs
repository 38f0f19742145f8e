//! What deciding costs, for `cargo xtask bench truth`: prints one figure per line, its name and its
//! value. All times are CPU time of the one thread, so that other work on the machine counts
//! little.
//!
//! `cargo run --release -p cohort-simulate --example figures [NAME…]`

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cohort_core::command::COMMAND_VERSION;
use cohort_core::gate::RegistryView;
use cohort_core::ids::{
    AppId, BootEpoch, Channel, Digest, GroupId, Incarnation, Platform, Revision, ServerId, Version,
};
use cohort_core::orders::Fence;
use cohort_core::phase::Phase;
use cohort_core::policy::{Policy, Update};
use cohort_core::release::{Release, Rollback};
use cohort_core::report::{Outcome, Report};
use cohort_core::state::ActivationStage;
use cohort_core::state::Process;
use cohort_core::{Body, Command, Observations, Offer, State, plan};
use cohort_simulate::fleet::chaos::Chaos;

const SERVERS: usize = 1_000;
const APPS: usize = 5;
/// Rounds of the leader's plan in one rollout, at most.
const ROUNDS_MAX: usize = 10_000;
/// Seeds of a group of five, each some 2,000 steps.
const SEEDS: u64 = 60;

fn main() {
    let only: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|only| only.starts_with(name));
    if wanted("plan") || wanted("apply") {
        let worst = Worst::of_a_rollout();
        println!("plan.1000x5_ms {}", ms(worst.plan));
        println!("apply.1000x5_ms {}", ms(worst.apply));
    }
    if wanted("simulate.steps_per_s") {
        println!("simulate.steps_per_s {}", steps_per_s());
    }
    if wanted("simulate.1000_s") {
        let begun = cpu();
        let run = Chaos::of_ten_waves(1, SERVERS).play();
        println!("simulate.1000_s {}", (cpu() - begun).as_secs_f64());
        eprintln!("{} steps, {} waves", run.steps, run.waves);
    }
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("time since the start of the thread")
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// Steps of one group of five under faults, per second of CPU.
fn steps_per_s() -> f64 {
    let begun = cpu();
    let steps: u64 = (0..SEEDS).map(|seed| Chaos::of_five(seed).play().steps).sum();
    steps as f64 / (cpu() - begun).as_secs_f64()
}

/// The longest plan and the longest entry.
#[derive(Default)]
struct Worst {
    plan: Duration,
    apply: Duration,
}

/// A group as its leader's member has it: the state, a view of it that is being read, and what was
/// observed.
struct Group {
    state: Arc<State>,
    view: Arc<State>,
    seen: Observations,
    sequence: u64,
    worst: Worst,
}

impl Worst {
    /// Of a rollout of every app at the same time, after one that installed them.
    fn of_a_rollout() -> Worst {
        let mut group = Group::found();
        group.roll_out("1.0.0");
        group.worst = Worst::default();
        group.roll_out("1.1.0");
        group.worst
    }
}

impl Group {
    fn found() -> Group {
        let state = Arc::new(State::new(name("intel.zone-a", GroupId::new), Incarnation(1)));
        let leader = Some(server(1));
        let seen = Observations { leader, elapsed_ms: 250, ..Observations::default() };
        let view = Arc::clone(&state);
        let mut group = Group { state, view, seen, sequence: 0, worst: Worst::default() };
        group.commit(Body::SetUp { labels: BTreeMap::new(), platform: platform() });
        for n in 1..=SERVERS {
            let address = format!("10.0.{}.{}:7417", n / 250, n % 250);
            group.commit(Body::AddServer {
                server: server(n),
                address,
                rack: None,
                process: Process::default(),
            });
            group.seen.contact_age_ms.insert(server(n), 0);
        }
        let policies = (0..APPS).map(|n| (app(n), (Revision(1), policy(n)))).collect();
        group.seen.registry = Some(RegistryView { policies, ..RegistryView::default() });
        group
    }

    fn commit(&mut self, body: Body) {
        let (version, incarnation) = (COMMAND_VERSION, Incarnation(1));
        let command = Command { version, incarnation, actor: "a".into(), request: None, body };
        let begun = cpu();
        // Nothing depends on whether it is refused: the next plan sees what has changed.
        let _ = Arc::make_mut(&mut self.state).apply(&command);
        self.view = Arc::clone(&self.state);
        self.worst.apply = self.worst.apply.max(cpu() - begun);
    }

    fn roll_out(&mut self, version: &str) {
        let offer = |n| (app(n), Offer::Release(release(n, version)));
        self.seen.offers = (0..APPS).map(offer).collect();
        for _ in 0..ROUNDS_MAX {
            let begun = cpu();
            let plan = plan(&self.state, &self.seen);
            self.worst.plan = self.worst.plan.max(cpu() - begun);
            for body in plan.commands {
                self.commit(body);
            }
            self.write_records();
            for (app, server, fence, outcome) in self.reports() {
                self.sequence += 1;
                let (boot_epoch, sequence, attempt) = (BootEpoch(1), self.sequence, 1);
                let report = Report { server, boot_epoch, sequence, app, fence, attempt, outcome };
                self.commit(Body::Report { report });
            }
            let settled = (0..APPS).all(|n| {
                self.state.apps.get(&app(n)).is_some_and(|app| {
                    matches!(app.phase, Phase::Running { .. })
                        && app.last_good.as_ref() == Some(&release(n, version))
                })
            });
            if settled {
                return;
            }
        }
        panic!("{version} is not everywhere after {ROUNDS_MAX} plans");
    }

    fn write_records(&mut self) {
        let due = self.state.apps.iter().filter(|(_, app)| app.record_written < app.record);
        let due: Vec<_> = due.map(|(id, app)| (id.clone(), app.record)).collect();
        for (app, record) in due {
            self.commit(Body::RecordWritten { app, record });
        }
    }

    /// What every server has done by now: one thing each.
    fn reports(&self) -> Vec<(AppId, ServerId, Fence, Outcome)> {
        let mut reports = Vec::new();
        for (id, app) in &self.state.apps {
            let coming = app.phase.forward().map(|rollout| &rollout.release.artifact);
            for (server, here) in app.servers.iter() {
                let missing = coming.filter(|artifact| !here.has(artifact));
                let (fence, outcome) = if !here.found {
                    (Fence::default(), Outcome::Found { release: None, in_service: false })
                } else if let Some(artifact) = missing {
                    (Fence::default(), Outcome::Holds { artifact: artifact.clone() })
                } else if let Some(change) = here.in_flight() {
                    let outcome = match change.stage {
                        ActivationStage::Granted => Outcome::Applied,
                        ActivationStage::Applied { .. } => Outcome::Checked,
                        _ => Outcome::InService,
                    };
                    (change.fence, outcome)
                } else {
                    continue;
                };
                reports.push((id.clone(), server.clone(), fence, outcome));
            }
        }
        reports
    }
}

fn name<T, E: std::fmt::Debug>(text: &str, new: fn(String) -> Result<T, E>) -> T {
    new(text.to_owned()).expect("a valid name")
}

fn server(n: usize) -> ServerId {
    name(&format!("server-{n:04}"), ServerId::new)
}

fn app(n: usize) -> AppId {
    name(&format!("app-{n}"), AppId::new)
}

fn platform() -> Platform {
    name("intel", Platform::new)
}

fn policy(n: usize) -> Policy {
    let (channel, update) = (name("stable", Channel::new), Update::default());
    Policy { app: app(n), channel, update, checks: Vec::new(), stages: Vec::new() }
}

fn release(n: usize, version: &str) -> Release {
    let digest = |kind: usize| {
        let number: usize = version.bytes().map(usize::from).sum();
        name(&format!("{:064x}", (number * 10 + n) * 10 + kind), Digest::new)
    };
    Release {
        version: name(version, Version::new),
        platform: platform(),
        artifact: digest(1),
        manifest: digest(2),
        length: 1_000_000,
        unpacked_bytes: 64 << 30,
        entries: 250_000,
        rollback: Rollback::Revert,
    }
}
