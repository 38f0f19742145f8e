//! A virtual server: what the production agent decides, over a virtual host.
//!
//! What is durable on a real server is in [`Server::disk`]; a crash loses everything else but the
//! services themselves, which live on under their guard. What an agent decides is not here: it is
//! `cohort-server`'s [`Asking`], [`Outbox`] and [`App`], and the core's [`AppRecord`].

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;

use cohort_core::ability::Ability;
use cohort_core::doing::{self, Download};
use cohort_core::ids::{AppId, BootEpoch, Digest, Incarnation, MemberId, ServerId};
use cohort_core::kill::Registers;
use cohort_core::orders::{ActivationOrder, Fence, Source};
use cohort_core::policy::Check;
use cohort_core::release::Release;
use cohort_core::report::{Outcome, Step};
use cohort_core::steps::{AppRecord, LocalActivation, Reached};
use cohort_server::addresses::AddressBook;
use cohort_server::app::{App, Doing, Running};
use cohort_server::asking::{Asking, Received, Whom};
use cohort_server::fetching::Fetching;
use cohort_server::outbox::{ANSWER_MS_MAX as TAKEN_MS_MAX, Outbox};
use cohort_transfer::UnitSet;

use super::behaviour::{Behaviours, Fault};
use super::chaos::Mutation;
use super::log::Log;
use super::net::{Packet, What};
use super::place::Place;
use member::{Carried, Setup};
use transfer::Transfers;

mod asking;
mod carry;
mod host;
mod latch;
mod life;
mod machine;
pub(crate) mod member;
mod service;
mod sight;
mod steps;
mod transfer;

pub use latch::FORGOTTEN;
pub(crate) use latch::register;
pub(crate) use machine::Part;
pub(crate) use service::Service;
pub(crate) use transfer::{Around, Holdings, Hub};

/// A violation that the tests look for: an order is carried out again.
pub const TWICE: &str = "was accepted again";
/// See [`TWICE`].
pub const OWES: &str = "takes traffic before it has paid its debt";

/// How long a server waits for its first orders after a start before it takes traffic without, in
/// milliseconds: the agent's default.
const READY_WITHOUT_ORDERS_AFTER_MS: u64 = 60_000;

/// How long kill registers are waited for, in milliseconds: as in the agent.
const KILL_MS_MAX: u64 = 1_000;

/// How often an agent looks whether the hub has its address, in milliseconds: as in the agent.
const TELL_HUB_EVERY_MS: u64 = 300_000;
/// How soon a process that ended with an error is started again, in milliseconds.
const RESTART_MS: u64 = 1_000;

/// The lives of one machine are the same above these bits.
const MACHINE_SHIFT: u32 = 16;

/// Where an agent and its member find the members of the group.
type Book = Rc<RefCell<AddressBook>>;

/// Kill registers, each with its reason.
pub(crate) type Kill = Arc<Registers<String>>;

#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) apps: BTreeMap<AppId, AppRecord>,
    pub(crate) held: BTreeSet<Digest>,
    /// Signed manifests that have come with them, or from a mirror.
    manifests: BTreeSet<Digest>,
    /// Units of artifacts that are not whole.
    pub(crate) parts: BTreeMap<Digest, UnitSet>,
    /// Counts the starts of the agent.
    pub(crate) boot_epoch: u64,
    /// The latch of the kill switch: registers, with the reason of each.
    pub(crate) kill: Kill,
    /// The group's log, if this server carries a member.
    pub(crate) log: Option<(MemberId, cohort_store::Disk)>,
}

/// What an agent keeps in memory.
struct Agent {
    asking: Asking,
    open: Option<Open>,
    rest_until_ms: Option<u64>,
    received: Option<Received>,
    /// The group answered last that it has no orders for this agent.
    refused: bool,
    book: Book,
    /// When it looks next whether the hub has its address, once the group has spoken.
    tell_hub_ms: Option<u64>,
    /// The server whose agent leads, as other members last named it.
    leader: Option<Source>,
    /// The claim that is open or refused, and until when.
    claim: (Option<(u64, MemberId)>, u64),
    /// Counts claims; every one goes to another member.
    claims: usize,
    look_ms: u64,
    outbox: Outbox,
    /// The reports that are on their way, and until when their answer is waited for.
    sending: Option<(u64, u64)>,
    apps: BTreeMap<AppId, AppAgent>,
    fetching: Fetching,
    transfers: Transfers,
    kept: BTreeMap<AppId, Vec<Digest>>,
    /// Numbers questions and requests of all starts.
    next_id: u64,
    inbox: Vec<Packet>,
    outgoing: Vec<Packet>,
    /// Counts what makes apps look again.
    changes: u64,
    /// Up to which change the orders to fetch were looked at.
    fetched: u64,
}

/// A question whose answer is waited for.
struct Open {
    id: u64,
    until_ms: u64,
    /// Who was asked for orders.
    whom: Option<Whom>,
}

/// One app, as the agent has it in memory.
#[derive(Debug, Clone)]
struct AppAgent {
    app: App,
    /// Ahead of the disk where a step is done and nobody has heard of it.
    record: AppRecord,
    reached: Reached,
    running: Option<(Running, Working)>,
    /// The running checks, and those on trial.
    watched: Option<Vec<Check>>,
    tried: Option<Vec<Check>>,
    doing: Option<Doing>,
    laters: BTreeMap<Step, u32>,
    /// What had changed at the last look, and when the next one is due if nothing else does.
    looked: Option<(Changes, u64)>,
}

/// What makes an app look again: changes of the agent, the kill switch, the service's health.
type Changes = (u64, bool, bool);

/// A step that is being run.
#[derive(Debug, Clone)]
struct Working {
    step: Step,
    attempt: u32,
    ends_ms: u64,
    fault: Option<Fault>,
    /// The step asked for later: only the pause before the next attempt is left.
    backs_off: bool,
}

/// A machine that runs as a server.
pub(crate) struct Server {
    pub(crate) id: ServerId,
    pub(crate) place: Place,
    pub(crate) disk: Disk,
    /// Its services, as they really are.
    pub(crate) services: BTreeMap<AppId, Service>,
    pub(crate) up: bool,
    /// The network between it and the group is cut.
    pub(crate) cut: bool,
    /// Its disk takes no more of any release.
    pub(crate) full: bool,
    /// Its disk takes nothing at all: the agent waits.
    pub(crate) read_only: bool,
    /// How long each write of the log takes, in milliseconds.
    pub(crate) sync_ms: u64,
    /// Until then the member waits for its disk.
    pub(crate) busy_until_ms: u64,
    /// How far its wall clock is ahead, in milliseconds.
    pub(crate) clock_ahead_ms: i64,
    /// The activations that were ever accepted, each once.
    accepted: BTreeSet<(AppId, Fence)>,
    /// The activation of each app that was last accepted, or took it out of traffic, and when.
    pub(crate) begun: BTreeMap<AppId, (Fence, u64)>,
    /// The orders that each app had before its last one.
    earlier: BTreeMap<AppId, ActivationOrder>,
    /// Its next orders are earlier ones that it has carried out.
    pub(crate) hears_earlier: bool,
    /// The kill registers that the agent knows; latched on the disk before it says so.
    pub(crate) kill: Kill,
    /// The registers that it has acknowledged to a person.
    acknowledged: Kill,
    /// Artifacts that were removed because no order kept them.
    pub(crate) collected: BTreeSet<Digest>,
    /// Apps whose change took the server away from users that it was serving.
    pub(crate) took_away: BTreeSet<AppId>,
    /// Crash at this many instructions from now.
    pub(crate) crash_in: Option<u32>,
    /// How far the member's clock is ahead of the fleet's, in milliseconds: the process was stopped
    /// while everybody else kept running.
    pub(crate) ahead_ms: u64,
    /// The agent does nothing until then; packets wait in the sockets.
    pub(crate) paused_until_ms: u64,
    /// A write of the log was made to fail: the member may end.
    pub(crate) disk_fails: bool,
    /// The member was asked to hand over and stop: it plans no more.
    pub(crate) stops: bool,
    /// Packets reach it, and what it sends leaves it.
    pub(crate) linked: bool,
    /// Whether the hub and the mirrors answer it, if they answer at all.
    pub(crate) ability: Ability,
    /// The member, while the agent runs and the disk has its log.
    pub(crate) member: Option<Box<Carried>>,
    setup: Arc<Setup>,
    /// Counts the starts of the agent, whatever the disk says. No two machines of a server ever
    /// have the same.
    pub(crate) lives: u64,
    /// How often the agent started over because another one seems to run as its server.
    contested: u32,
    /// When the agent starts again that has ended.
    restart_ms: Option<u64>,
    /// Counts the boots of the machine.
    boots: u64,
    /// When something on it was last out of service.
    broken_ms: Option<u64>,
    now_ms: u64,
    agent: Agent,
}

impl Agent {
    fn new(id: &ServerId, boot_epoch: u64) -> Agent {
        Agent {
            asking: Asking::new(id.clone(), Incarnation(0)),
            open: None,
            rest_until_ms: Some(0),
            received: None,
            refused: false,
            book: Book::default(),
            tell_hub_ms: None,
            leader: None,
            claim: (None, 0),
            claims: 0,
            look_ms: 0,
            outbox: Outbox::new(id.clone(), BootEpoch(boot_epoch)),
            sending: None,
            apps: BTreeMap::new(),
            fetching: Fetching::default(),
            transfers: Transfers::default(),
            kept: BTreeMap::new(),
            next_id: 0,
            inbox: Vec::new(),
            outgoing: Vec::new(),
            changes: 0,
            fetched: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl Server {
    /// A machine with an empty disk, which is off.
    pub(crate) fn new(now_ms: u64, place: Place, setup: Arc<Setup>) -> Server {
        let id = place.server.clone();
        let kill = Kill::new(Registers::new(Some(setup.group.clone())));
        Server {
            agent: Agent::new(&id, 0),
            place,
            id,
            disk: Disk { kill: Arc::clone(&kill), ..Disk::default() },
            services: BTreeMap::new(),
            up: false,
            cut: false,
            full: false,
            read_only: false,
            sync_ms: 0,
            busy_until_ms: 0,
            clock_ahead_ms: 0,
            accepted: BTreeSet::new(),
            begun: BTreeMap::new(),
            earlier: BTreeMap::new(),
            hears_earlier: false,
            kill,
            acknowledged: Kill::default(),
            collected: BTreeSet::new(),
            took_away: BTreeSet::new(),
            crash_in: None,
            ahead_ms: 0,
            paused_until_ms: 0,
            disk_fails: false,
            stops: false,
            linked: true,
            ability: Ability::FULL,
            member: None,
            setup,
            lives: 0,
            contested: 0,
            restart_ms: None,
            boots: 0,
            broken_ms: None,
            now_ms,
        }
    }

    /// Which machine of its server it is, as its lives say.
    pub(crate) fn machine(life: u64) -> u64 {
        life >> MACHINE_SHIFT
    }

    /// An existing installation: the release runs and serves before Cohort comes.
    pub(crate) fn install(&mut self, app: &AppId, release: &Release) {
        let record = self.disk.apps.entry(app.clone()).or_default();
        record.local.current = Some(release.clone());
        self.disk.held.insert(release.artifact.clone());
        self.boot(app);
        self.services.get_mut(app).expect("booted above").traffic = true;
    }

    /// Whether the app's traffic was taken away by an activation that is neither over nor failed.
    pub(crate) fn being_changed(&self, app: &AppId) -> bool {
        let record = self.disk.apps.get(app);
        let activation = record.and_then(|record| record.local.activation.as_ref());
        activation.is_some_and(LocalActivation::drained)
    }

    /// Whether a service that it has does not serve.
    pub(crate) fn is_away(&self) -> bool {
        self.services.values().any(Service::is_away)
    }

    /// Whether messages go to and fro: a release that is switched in can cut its server off, too.
    pub(crate) fn reaches(&self, behaviours: &Behaviours) -> bool {
        let mut switched_in = self.services.values().filter_map(|service| service.release.as_ref());
        !self.cut
            && self.trusts_certificates()
            && !switched_in.any(|release| behaviours.cuts_off(release, &self.id))
    }

    /// When it asked for the orders that it has, and the change that they order.
    pub(crate) fn received(&self, app: &AppId) -> Option<(u64, Option<Fence>)> {
        let received = self.agent.received.as_ref()?;
        let order = received.of(app)?.activation.as_ref();
        Some((received.asked_ms, order.map(|order| order.fence)))
    }

    fn is_off(&self, mutation: Mutation) -> bool {
        self.setup.mutation == Some(mutation)
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

    /// Packets have come: takes them. What is for the agent's tasks is read at the next tick.
    pub(crate) fn receive(&mut self, packets: &mut Vec<Packet>, log: &mut Log) {
        if self.up {
            for packet in &mut *packets {
                if let Some(kill) = packet.kill.take() {
                    self.latch(&kill);
                }
                if matches!(packet.what, What::Contacts(..)) && self.kill.iter().next().is_some() {
                    self.send(packet.from.clone(), packet.id, What::Noted);
                }
            }
        }
        let answers = packets.extract_if(.., |packet| packet.what.is_answer());
        if self.up {
            self.agent.inbox.extend(answers);
        } else {
            drop(answers);
        }
        if packets.is_empty() {
            return;
        }
        if self.member.is_some() {
            self.step_member(log, |member, now_ms, log| {
                for packet in packets.drain(..) {
                    member.receive(now_ms, packet, log);
                }
            });
        } else {
            for Packet { from, id, what, .. } in packets.drain(..) {
                if let Some(what) = what.refusal() {
                    self.send(from, id, what);
                }
            }
        }
    }

    /// What it has to say. Its kill registers go with everything but the members' own messages.
    pub(crate) fn sends(&mut self) -> impl Iterator<Item = Packet> {
        let kill = self.kill.iter().next().map(|_| &self.kill);
        self.agent.outgoing.drain(..).map(move |mut packet| {
            let tells = !matches!(packet.what, What::Raft(_));
            packet.kill = kill.filter(|_| tells).cloned();
            packet
        })
    }

    fn send(&mut self, to: Place, id: u64, what: What) {
        self.agent.outgoing.push(Packet::new(self.place.clone(), to, id, what));
    }

    /// What it sent found nobody there.
    pub(crate) fn missed(&mut self, place: &Place) {
        self.agent.book.borrow_mut().missed(&place.server, &place.address());
    }

    pub(crate) fn tick(&mut self, around: &Around<'_>, log: &mut Log) {
        let now_ms = around.now_ms;
        self.now_ms = now_ms;
        for (app, service) in &mut self.services {
            // Without a check, nobody could know.
            let orders = self.agent.received.as_ref().and_then(|received| received.of(app));
            let seen = orders.is_none_or(|orders| !orders.checks.is_empty());
            service.cold_until_ms = service.cold_until_ms.filter(|at| seen && *at > now_ms);
            if service.dies_ms.is_some_and(|at| at <= now_ms) {
                service.up = false;
                service.dies_ms = None;
            }
        }
        // What happens while the group does not hear of it counts alike.
        if self.cut || self.is_away() {
            self.broken_ms = Some(now_ms);
        }
        if self.restart_ms.is_some_and(|at_ms| at_ms <= now_ms) {
            self.start();
        }
        if !self.up || self.paused_until_ms > now_ms {
            return;
        }
        if self.is_off(Mutation::ConfirmOrUndo) {
            self.agent.apps.values_mut().for_each(|app| app.reached.heard(now_ms));
        }
        self.read_inbox(around, log);
        self.check_hub(around);
        self.follow_member_order(around, log);
        if !self.up {
            return;
        }
        self.verify(around);
        self.fetch(around);
        self.announce();
        let mut app = self.disk.apps.keys().next().cloned();
        while let Some(now) = app {
            self.tick_app(&now, around);
            if !self.up {
                return;
            }
            let after = (Bound::Excluded(&now), Bound::Unbounded);
            app = self.disk.apps.range::<AppId, _>(after).next().map(|(id, _)| id.clone());
        }
        self.send_reports(around);
    }

    fn doing(&self) -> BTreeMap<AppId, doing::Doing> {
        let doing = self.agent.apps.iter().filter_map(|(id, app)| {
            let doing = match (&app.running, app.doing) {
                (Some((_, working)), _) => doing::Doing::Step { step: working.step },
                (None, Some(Doing::Fetching)) => doing::Doing::Download(Download::Queued),
                (None, Some(Doing::Confirming)) => doing::Doing::Confirming,
                (None, None) => return None,
            };
            Some((id.clone(), doing))
        });
        doing.collect()
    }

    fn send_reports(&mut self, around: &Around<'_>) {
        // Only a group that has spoken can be told something.
        if self.agent.received.is_none() {
            return;
        }
        let Agent { outbox, book, .. } = &mut self.agent;
        let next = outbox.next(around.now_ms, book.borrow().current());
        if let Some(sending) = next {
            let id = self.agent.number();
            self.agent.sending = Some((id, around.now_ms + TAKEN_MS_MAX));
            let to = Place::of(&sending.to.server, &sending.to.address);
            self.send(to, id, What::Report(sending.reports));
        }
    }

    /// Reports what has become whole.
    fn announce(&mut self) {
        let Agent { received, fetching, outbox, changes, fetched, .. } = &mut self.agent;
        let Some(received) = received.as_ref().filter(|_| *fetched != *changes) else { return };
        *fetched = *changes;
        let whole = |artifact: &Digest| self.disk.held.contains(artifact);
        for (app, artifact) in fetching.lost(&received.orders, whole) {
            outbox.report(&app, Fence::default(), 1, Outcome::Lacks { artifact });
        }
        for (app, artifact) in fetching.announce(&received.orders, whole) {
            outbox.report(&app, Fence::default(), 1, Outcome::Holds { artifact });
        }
    }
}
