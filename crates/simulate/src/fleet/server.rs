//! A virtual server: the real step logic over a virtual host.
//!
//! What is durable on a real server is in [`Server::disk`]; a crash loses everything else but the
//! services themselves, which live on under their guard.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cohort_core::ids::{AppId, BootEpoch, Digest, ServerId};
use cohort_core::orders::{Fence, Orders};
use cohort_core::release::Release;
use cohort_core::report::{Blame, Outcome, Report, Step};
use cohort_core::steps::{
    LocalActivation, LocalApp, Moment, Progress, StepAction, StepWait, next_action,
};

use super::behaviour::{Behaviours, Fault};
use super::net::Message;

mod steps;

/// How long orders are valid, in milliseconds.
const ORDERS_VALID_MS: u64 = 3_000;
/// How often a server asks for its orders, in milliseconds.
const ASK_EVERY_MS: u64 = 300;
/// How long it waits for an answer before it asks or says it again, in milliseconds.
const AGAIN_AFTER_MS: u64 = 700;
/// How long a service has to be back before changing it again takes anything away, in milliseconds:
/// the group acts on what it last heard.
const RECOVERED_MS: u64 = 5_000;

/// What survives a crash.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// The records of the apps.
    pub apps: BTreeMap<AppId, LocalApp>,
    /// Artifacts that are whole.
    pub held: BTreeSet<Digest>,
    /// Counts the starts of the agent.
    pub boot_epoch: u64,
    /// The latch of the kill switch.
    pub killed: bool,
}

/// A service, as a prober sees it.
#[derive(Debug, Clone, Default)]
pub struct Service {
    /// What runs, or is broken.
    pub release: Option<Release>,
    /// It answers.
    pub up: bool,
    /// It is given traffic.
    pub traffic: bool,
    /// When it dies, if its release makes it die.
    dies_ms: Option<u64>,
}

impl Service {
    /// Whether users are served.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.up && self.traffic && self.release.is_some()
    }
}

/// What an agent keeps in memory.
#[derive(Debug, Clone, Default)]
struct Memory {
    orders: Option<Orders>,
    /// When the orders that it has were asked for.
    orders_ms: Option<u64>,
    asked_ms: Option<u64>,
    answered: bool,
    sequence: u64,
    outbox: VecDeque<Report>,
    sent_ms: Option<u64>,
    working: BTreeMap<AppId, Working>,
    fetching: BTreeMap<Digest, u64>,
    said: BTreeMap<AppId, (Fence, Outcome)>,
    health: BTreeMap<AppId, bool>,
    confirmed: BTreeMap<AppId, Fence>,
    drained_ms: BTreeMap<AppId, u64>,
    stopped_ms: BTreeMap<AppId, u64>,
    reached_ms: Option<u64>,
    laters: BTreeMap<(AppId, Step), u32>,
    waits: BTreeMap<AppId, StepWait>,
}

/// A step that is being run.
#[derive(Debug, Clone)]
struct Working {
    step: Step,
    attempt: u32,
    ends_ms: u64,
    fault: Option<Fault>,
}

/// A virtual server.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its name.
    pub id: ServerId,
    /// What survives.
    pub disk: Disk,
    /// Its services, as they really are.
    pub services: BTreeMap<AppId, Service>,
    /// The agent runs.
    pub up: bool,
    /// The network between it and the group is cut.
    pub cut: bool,
    /// How often an activation was accepted, per fence: once, ever.
    pub accepted: BTreeMap<(AppId, Fence), u32>,
    /// Apps whose change took the server away from users that it was serving.
    pub took_away: BTreeSet<AppId>,
    /// Crash at this many instructions from now.
    pub crash_in: Option<u32>,
    /// When something on it was last out of service.
    broken_ms: Option<u64>,
    memory: Memory,
}

/// What a server needs to know of its world for one tick.
pub struct Around<'a> {
    /// The time, in milliseconds.
    pub now_ms: u64,
    /// What releases do.
    pub behaviours: &'a Behaviours,
    /// Servers that hold an artifact and can be reached.
    pub holders: &'a dyn Fn(&Digest) -> BTreeSet<ServerId>,
    /// The mirrors answer.
    pub mirrors: bool,
    /// How long a fetch takes, in milliseconds.
    pub fetch_ms: u64,
}

impl Server {
    /// A server with nothing on it.
    #[must_use]
    pub fn new(id: ServerId) -> Server {
        let mut server = Server {
            id,
            disk: Disk::default(),
            services: BTreeMap::new(),
            up: false,
            cut: false,
            accepted: BTreeMap::new(),
            took_away: BTreeSet::new(),
            crash_in: None,
            broken_ms: None,
            memory: Memory::default(),
        };
        server.start();
        server
    }

    /// The agent dies (−9); services live on.
    pub fn crash(&mut self) {
        self.up = false;
        self.memory = Memory::default();
        self.crash_in = None;
    }

    /// The whole server loses power.
    pub fn power_off(&mut self) {
        self.crash();
        for service in self.services.values_mut() {
            service.up = false;
            service.dies_ms = None;
        }
    }

    /// The agent starts; what was running and is not in the middle of a change is started again.
    pub fn start(&mut self) {
        if self.up {
            return;
        }
        self.up = true;
        self.disk.boot_epoch += 1;
        self.memory = Memory::default();
        let apps: Vec<AppId> = self.disk.apps.keys().cloned().collect();
        for app in apps {
            if !self.being_changed(&app)
                && let Some(service) = self.services.get_mut(&app)
            {
                service.up = service.release.is_some();
            }
            self.found(&app);
        }
    }

    /// An existing installation: the release runs and serves before Cohort comes.
    pub fn install(&mut self, app: &AppId, release: &Release) {
        let local = self.disk.apps.entry(app.clone()).or_default();
        local.current = Some(release.clone());
        self.disk.held.insert(release.artifact.clone());
        let service =
            Service { release: Some(release.clone()), up: true, traffic: true, dies_ms: None };
        self.services.insert(app.clone(), service);
        self.found(app);
    }

    /// What waits on this server, by app, for people who look into a scenario.
    #[must_use]
    pub fn waits(&self, app: &AppId) -> Option<StepWait> {
        self.memory.waits.get(app).copied()
    }

    /// Whether the app's traffic was taken away by an activation that is neither over nor failed.
    #[must_use]
    pub fn being_changed(&self, app: &AppId) -> bool {
        let Some(local) = self.disk.apps.get(app) else { return false };
        local.activation.as_ref().is_some_and(LocalActivation::drained)
    }

    /// Said at the agent's start and when an app is first heard of.
    fn found(&mut self, app: &AppId) {
        let serves = self.services.get(app).is_some_and(Service::serves);
        let release = self.disk.apps.get(app).and_then(|local| local.current.clone());
        self.say(app, Fence::default(), 1, Outcome::Found { release, in_service: serves });
        for artifact in self.disk.held.clone() {
            self.say(app, Fence::default(), 1, Outcome::Holds { artifact });
        }
        self.memory.health.insert(app.clone(), serves);
    }

    fn say(&mut self, app: &AppId, fence: Fence, attempt: u32, outcome: Outcome) {
        self.memory.sequence += 1;
        self.memory.outbox.push_back(Report {
            server: self.id.clone(),
            boot_epoch: BootEpoch(self.disk.boot_epoch),
            sequence: self.memory.sequence,
            app: app.clone(),
            fence,
            attempt,
            outcome,
        });
    }

    /// One instruction more; true when the agent dies here.
    fn dies_here(&mut self) -> bool {
        match &mut self.crash_in {
            Some(0) => {
                self.crash();
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// A message has come.
    pub fn receive(&mut self, now_ms: u64, message: Message) {
        if !self.up {
            return;
        }
        match message {
            Message::Orders { asked_ms, orders, .. } => {
                self.memory.answered |= self.memory.asked_ms == Some(asked_ms);
                // An answer that comes late is older than what is known: it changes nothing.
                if self.memory.orders_ms.is_some_and(|known| known >= asked_ms) {
                    return;
                }
                self.memory.orders_ms = Some(asked_ms);
                self.memory.reached_ms = Some(now_ms);
                if let Some(orders) = &orders {
                    for app in &orders.apps {
                        if !self.disk.apps.contains_key(&app.app) {
                            self.disk.apps.insert(app.app.clone(), LocalApp::default());
                            self.found(&app.app);
                        }
                    }
                }
                self.memory.orders = orders;
            }
            Message::Taken { boot_epoch, sequence, .. } => {
                let head = self.memory.outbox.front();
                let ours = head.is_some_and(|report| {
                    report.boot_epoch == boot_epoch && report.sequence == sequence
                });
                if ours && let Some(report) = self.memory.outbox.pop_front() {
                    if report.outcome == Outcome::Checked {
                        self.memory.confirmed.insert(report.app, report.fence);
                    }
                    self.memory.sent_ms = None;
                }
            }
            Message::Ask { .. } | Message::Report(_) => {}
        }
    }

    /// What it sends now.
    pub fn sends(&mut self, now_ms: u64) -> Vec<Message> {
        let mut messages = Vec::new();
        if !self.up {
            return messages;
        }
        let ask = match self.memory.asked_ms {
            None => true,
            Some(at) => {
                now_ms - at >= if self.memory.answered { ASK_EVERY_MS } else { AGAIN_AFTER_MS }
            }
        };
        if ask {
            self.memory.asked_ms = Some(now_ms);
            self.memory.answered = false;
            let doing = self.memory.working.iter().map(|(app, w)| (app.clone(), w.step)).collect();
            messages.push(Message::Ask { server: self.id.clone(), asked_ms: now_ms, doing });
        }
        let again = self.memory.sent_ms.is_none_or(|at| now_ms - at >= AGAIN_AFTER_MS);
        if let Some(report) = self.memory.outbox.front()
            && again
        {
            self.memory.sent_ms = Some(now_ms);
            messages.push(Message::Report(report.clone()));
        }
        messages
    }

    /// Time has gone by.
    pub fn tick(&mut self, around: &Around<'_>) {
        let now_ms = around.now_ms;
        for service in self.services.values_mut() {
            if service.dies_ms.is_some_and(|at| at <= now_ms) {
                service.up = false;
                service.dies_ms = None;
            }
        }
        // What happens while the group does not hear of it counts alike.
        if self.cut || self.services.values().any(|s| s.release.is_some() && !s.serves()) {
            self.broken_ms = Some(now_ms);
        }
        if !self.up {
            return;
        }
        let apps: Vec<AppId> = self.disk.apps.keys().cloned().collect();
        for app in apps {
            self.tick_app(&app, around);
            if !self.up {
                return;
            }
        }
    }

    fn tick_app(&mut self, app: &AppId, around: &Around<'_>) {
        let now_ms = around.now_ms;
        self.say_what_happened(app);
        if let Some(working) = self.memory.working.get(app) {
            if working.ends_ms > now_ms {
                return;
            }
            let working = working.clone();
            self.memory.working.remove(app);
            if self.dies_here() {
                return;
            }
            self.end_step(app, &working, around);
            if !self.up {
                return;
            }
            self.say_what_happened(app);
        }
        let local = self.disk.apps[app].clone();
        let fence = local.activation.as_ref().map(|activation| activation.order.fence);
        let since = |at: Option<&u64>| at.map(|at| now_ms - at);
        let confirm_within =
            local.activation.as_ref().map_or(u64::MAX, |a| a.order.confirm_within_ms);
        if local.activation.as_ref().is_some_and(LocalActivation::drained) {
            // After a crash nobody knows when the drain began: it counts from the start.
            self.memory.drained_ms.entry(app.clone()).or_insert(now_ms);
        } else {
            self.memory.drained_ms.remove(app);
        }
        if local.activation.as_ref().is_some_and(LocalActivation::stopped) {
            self.memory.stopped_ms.entry(app.clone()).or_insert(now_ms);
        } else {
            self.memory.stopped_ms.remove(app);
        }
        let drained_ms = self.memory.drained_ms.get(app).copied();
        let since_ms = self.memory.stopped_ms.get(app).copied().or(drained_ms);
        let moment = Moment {
            orders_fresh: self.memory.orders_ms.is_some_and(|at| now_ms - at < ORDERS_VALID_MS),
            killed: self.disk.killed,
            confirmed: fence.is_some() && self.memory.confirmed.get(app).copied() == fence,
            reached_since_stop: match (self.memory.reached_ms, since_ms) {
                (Some(reached), Some(since)) => {
                    reached > since && now_ms - reached <= confirm_within
                }
                _ => false,
            },
            confirm_expired: since(self.memory.drained_ms.get(app))
                .is_some_and(|ms| ms > confirm_within),
        };
        let held: Vec<Digest> = self.disk.held.iter().cloned().collect();
        let orders = self
            .memory
            .orders
            .as_ref()
            .and_then(|orders| orders.apps.iter().find(|orders| orders.app == *app))
            .cloned();
        let next = next_action(orders.as_ref(), &local, &held, moment);
        self.memory.waits.remove(app);
        for fetch in next.fetch {
            let artifact = fetch.release.artifact.clone();
            let from: BTreeSet<ServerId> = (around.holders)(&artifact);
            let peer = fetch.sources.iter().any(|source| from.contains(&source.server));
            if peer || (fetch.from_mirror && around.mirrors) {
                let ready = *self
                    .memory
                    .fetching
                    .entry(artifact.clone())
                    .or_insert(now_ms + around.fetch_ms);
                if ready <= now_ms {
                    self.memory.fetching.remove(&artifact);
                    self.disk.held.insert(artifact.clone());
                    self.say(app, Fence::default(), 1, Outcome::Holds { artifact });
                }
            }
        }
        match next.step {
            StepAction::Accept { order, step } => {
                assert!(order.fence > local.highest, "an order of an old fence was accepted");
                *self.accepted.entry((app.clone(), order.fence)).or_default() += 1;
                let serves = |service: &Service| service.release.is_none() || service.serves();
                let broken_ms = self.broken_ms;
                let whole = broken_ms.is_none_or(|at| now_ms - at > RECOVERED_MS)
                    && self.services.values().all(serves)
                    && self.services.values().any(Service::serves);
                if whole {
                    self.took_away.insert(app.clone());
                } else if !self.being_changed(app) {
                    self.took_away.remove(app);
                }
                let local = self.disk.apps.get_mut(app).expect("known above");
                local.highest = order.fence;
                local.activation = Some(LocalActivation {
                    previous: local.current.clone(),
                    progress: Progress::Begun { step, attempt: 1 },
                    order,
                });
                self.memory.drained_ms.remove(app);
                self.memory.stopped_ms.remove(app);
                self.begin(app, step, 1, around);
            }
            StepAction::Run { step, attempt } => {
                if self.dies_here() {
                    return;
                }
                self.write(app, Progress::Begun { step, attempt });
                self.begin(app, step, attempt, around);
            }
            StepAction::Complete => {
                if self.dies_here() {
                    return;
                }
                self.write(app, Progress::Complete);
                self.say_what_happened(app);
            }
            StepAction::GiveUp { step, attempt } => {
                let reason = format!("begun {attempt} times and never done");
                self.write_failed(app, step, attempt, Blame::Release, &reason);
            }
            StepAction::Undo { attempt, .. } => {
                self.write(app, Progress::Begun { step: Step::Undo, attempt });
                self.begin(app, Step::Undo, attempt, around);
            }
            StepAction::Settled => {}
            StepAction::Wait(wait) => {
                self.memory.waits.insert(app.clone(), wait);
            }
        }
        self.watch(app);
    }

    fn write(&mut self, app: &AppId, progress: Progress) {
        if let Some(activation) =
            self.disk.apps.get_mut(app).and_then(|local| local.activation.as_mut())
        {
            activation.progress = progress;
        }
    }

    fn write_failed(&mut self, app: &AppId, step: Step, attempt: u32, blame: Blame, reason: &str) {
        let (reason, output) = (reason.to_owned(), String::new());
        self.write(app, Progress::Failed { step, attempt, blame, reason, output });
        self.say_what_happened(app);
    }

    fn order(&self, app: &AppId) -> &cohort_core::orders::ActivationOrder {
        let local = &self.disk.apps[app];
        &local.activation.as_ref().expect("a step runs only within an activation").order
    }

    /// Whether messages go to and fro: a release that is switched in can cut its server off, too.
    #[must_use]
    pub fn reaches(&self, behaviours: &Behaviours) -> bool {
        let switched_in = self.services.values().filter_map(|service| service.release.as_ref());
        let mut faults = switched_in.flat_map(|release| behaviours.faults(release, &self.id));
        !self.cut && faults.all(|fault| *fault != Fault::CutsNetwork)
    }

    fn say_what_happened(&mut self, app: &AppId) {
        let Some(activation) = self.disk.apps.get(app).and_then(|local| local.activation.as_ref())
        else {
            return;
        };
        let fence = activation.order.fence;
        let Some((attempt, outcome)) = activation.outcome() else { return };
        let said = self.memory.said.get(app);
        if said.is_some_and(|(at, last)| *at == fence && *last == outcome) {
            return;
        }
        self.memory.said.insert(app.clone(), (fence, outcome.clone()));
        self.say(app, fence, attempt, outcome);
        let serves = self.services.get(app).is_some_and(Service::serves);
        self.memory.health.insert(app.clone(), serves);
    }

    /// The running checks.
    fn watch(&mut self, app: &AppId) {
        let changing =
            self.disk.apps.get(app).and_then(|local| local.activation.as_ref()).is_some_and(
                |activation| {
                    !matches!(activation.progress, Progress::Complete | Progress::Undone { .. })
                },
            );
        if changing || self.memory.working.contains_key(app) {
            return;
        }
        let serves = self.services.get(app).is_some_and(Service::serves);
        if self.memory.health.insert(app.clone(), serves) != Some(serves) {
            let reason = if serves { "" } else { "the service is not there" };
            let outcome = Outcome::Health { in_service: serves, reason: reason.into() };
            self.say(app, Fence::default(), 1, outcome);
        }
    }
}
