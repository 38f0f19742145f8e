//! What the leader observes, and when it plans.
//!
//! Observations are not replicated. They are dropped at every change of leader: a plan uses only
//! what this leader has seen itself.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ability::Ability;
use cohort_core::capacity::COUNTED_ON_MS;
use cohort_core::command::CLOCK_STEP_MS_MAX;
use cohort_core::errand::{Errand, HubFault};
use cohort_core::gate::RegistryView;
use cohort_core::ids::{AppId, ClockMs, ServerId};
use cohort_core::machine::DiskSpace;
use cohort_core::placement::{Carriers, Next, Placed, Placement, Unheard, placement};
use cohort_core::refused::Refused;
use cohort_core::waiting::{Placing, Waiting, WaitingOn};
use cohort_core::{Body, Observations, Offer, Plan, State, plan};

use crate::asking::ORDERS_VALID_MS;
use crate::contacts::Contacts;
use crate::copies::{Copies, Introduced, Introduction};
use crate::errands::{Errands, Lasting};
use crate::heirs::Heirs;

/// How often the leader plans if nothing has happened, in milliseconds.
pub const PLAN_EVERY_MS: u64 = 250;
/// A voter that has not been heard from for this long is replaced, in milliseconds; the agent's
/// configuration may override it.
pub const REPLACE_AFTER_MS: u64 = 300_000;
/// A longer gap between two ticks was a pause of the whole process (suspended, or starved), in
/// milliseconds.
const PAUSE_MS: u64 = 5_000;
/// How late the group clock may be when another proposer's entry is written, in milliseconds.
const CLOCK_LATE_MS: u64 = 250;
/// How long the mirrors may be unreachable before that is reported, in milliseconds: restarts and
/// single lost requests are not worth a line.
const UNREACHABLE_MS: u64 = 30_000;
/// Pause between two looks at the placement of voters, in milliseconds.
const PLACE_EVERY_MS: u64 = 200;

/// How a leader places the group's voters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placer {
    /// How long a voter may be silent before it is replaced, in milliseconds.
    pub replace_after_ms: u64,
    pub carriers: Carriers,
    /// Whether a release may be put on any number of voters at once: the simulator's own tests
    /// switch the quorum margin off.
    #[doc(hidden)]
    pub no_quorum_margin: bool,
}

impl Default for Placer {
    fn default() -> Self {
        let carriers = Carriers::default();
        Placer { replace_after_ms: REPLACE_AFTER_MS, carriers, no_quorum_margin: false }
    }
}

/// The observations of one member; empty unless it is the leader.
#[derive(Debug, Clone)]
pub struct Leading {
    seen: Observations,
    /// Since when this member has been the leader; `None` while another one is.
    since_ms: Option<u64>,
    /// How far the group clock has been advanced, on this member's monotonic clock, as far as it
    /// knows: late, never early. `None` before the first entry.
    clock_mark_ms: Option<u64>,
    planned_ms: Option<u64>,
    /// When each server joined under this leader; 0 for those that joined before.
    joined_ms: BTreeMap<ServerId, u64>,
    placed_ms: Option<u64>,
    /// What the voters were last placed by, if that left nothing to do and the state is the same.
    placed_by: Option<(Placed, Unheard)>,
    /// Why the repository's metadata is not refreshed.
    refresh_fails: Option<Lasting<Refused>>,
    errands: Errands,
    /// Whether any has succeeded.
    refreshed: bool,
    /// The space on the disk of this member's server, and since when it is so.
    disk: DiskSpace,
    disk_since_ms: u64,
    heirs: Heirs,
    /// Agents refused because another one runs as their server.
    copies: Copies,
    /// What the next change of the voters is waiting for, and since when.
    placing: Option<(Placing, u64)>,
    mute: BTreeSet<ServerId>,
    /// The last of the leader's own proposals not applied yet.
    planned_up_to: u64,
    ticked_ms: Option<u64>,
    /// The end of the last long pause of the process.
    awake_since_ms: u64,
    placer: Placer,
    /// Something has changed since the last plan.
    stale: bool,
    /// Since the last plan, the clock was advanced before another proposer's entry.
    clock_first: bool,
}

/// When this leader last heard the group's servers, on its monotonic clock, in milliseconds.
#[derive(Debug)]
pub struct Heard<'a> {
    /// Their agents.
    pub contacts: &'a Contacts,
    /// Their members, other than the leader's own.
    pub members: BTreeMap<ServerId, u64>,
}

impl Leading {
    /// The observations of the member on `server`, which is not the leader yet.
    #[must_use]
    pub fn new(server: ServerId, killed: Option<String>) -> Leading {
        Leading {
            seen: Observations { leader: Some(server), killed, ..Observations::default() },
            since_ms: None,
            clock_mark_ms: None,
            planned_ms: None,
            joined_ms: BTreeMap::new(),
            placed_ms: None,
            placed_by: None,
            refresh_fails: None,
            errands: Errands::default(),
            refreshed: false,
            disk: DiskSpace::Enough,
            disk_since_ms: 0,
            heirs: Heirs::default(),
            copies: Copies::default(),
            placing: None,
            mute: BTreeSet::new(),
            planned_up_to: 0,
            ticked_ms: None,
            awake_since_ms: 0,
            placer: Placer::default(),
            stale: true,
            clock_first: false,
        }
    }

    /// Records that this member is the leader from now on, in a new term.
    pub fn began(&mut self, now_ms: u64) {
        self.ended();
        self.since_ms = Some(now_ms);
        self.clock_mark_ms.get_or_insert(now_ms);
        self.stale = true;
    }

    /// Records that another member, or none, is the leader: everything seen so far is void, except
    /// the kill switch, which every member has latched itself.
    pub fn ended(&mut self) {
        let fresh = Leading::new(self.server().clone(), self.seen.killed.take());
        *self = Leading {
            ticked_ms: self.ticked_ms,
            awake_since_ms: self.awake_since_ms,
            placer: self.placer,
            clock_mark_ms: self.clock_mark_ms,
            disk: self.disk,
            disk_since_ms: self.disk_since_ms,
            ..fresh
        };
    }

    /// Sets how this member places voters while it is the leader.
    pub fn place_by(&mut self, placer: Placer) {
        self.placer = placer;
    }

    /// Advances time; call this often. After a pause of the whole process (suspended, or starved),
    /// silence counts from its end: no server could be heard during it. Deadlines stand still as
    /// long, and while everything is stopped: they may be late, never early.
    ///
    /// Returns whether the process had paused.
    pub fn tick(&mut self, now_ms: u64) -> bool {
        let gap_ms = self.ticked_ms.map_or(0, |at| now_ms.saturating_sub(at));
        if gap_ms > PAUSE_MS {
            self.awake_since_ms = now_ms;
        }
        if (gap_ms > PAUSE_MS || self.seen.killed.is_some())
            && let Some(mark_ms) = &mut self.clock_mark_ms
        {
            *mark_ms = now_ms.min(*mark_ms + gap_ms);
        }
        self.ticked_ms = Some(now_ms);
        gap_ms > PAUSE_MS
    }

    /// The last tick, on this member's monotonic clock, in milliseconds.
    #[must_use]
    pub fn ticked_ms(&self) -> Option<u64> {
        self.ticked_ms
    }

    /// What the group clock would read if an entry had advanced it at the last tick.
    #[must_use]
    pub fn clock(&self, state: &State) -> ClockMs {
        let behind_ms = self.ticked_ms.map_or(0, |now_ms| self.clock_behind_ms(now_ms));
        state.clock.plus(behind_ms.min(CLOCK_STEP_MS_MAX))
    }

    /// Records that an entry of another leader advanced the group clock, or a snapshot restored it.
    pub fn clock_was_set(&mut self, now_ms: u64) {
        self.clock_mark_ms = Some(now_ms);
    }

    /// Since when this member has listened as the leader, on its monotonic clock, in milliseconds:
    /// longer silence of a server is unknown here. `None` unless it is the leader.
    #[must_use]
    pub fn listens_since_ms(&self) -> Option<u64> {
        self.since_ms.map(|since_ms| since_ms.max(self.awake_since_ms))
    }

    /// How far real time is ahead of the group clock, in milliseconds.
    fn clock_behind_ms(&self, now_ms: u64) -> u64 {
        self.clock_mark_ms.map_or(0, |mark_ms| now_ms.saturating_sub(mark_ms))
    }

    /// The advance of the clock to propose before another proposer's entry, so that the entry gets
    /// the current time; `None` while an entry of the leader's own is in flight, and at most once
    /// between two plans, so that a flood of entries cannot keep the leader from planning.
    pub fn clock_due(&mut self, now_ms: u64, state: &State, applied: u64) -> Option<Body> {
        // What comes first after a pause must not include the pause.
        self.tick(now_ms);
        self.seen.elapsed_ms = self.clock_behind_ms(now_ms);
        let due = self.since_ms.is_some()
            && !self.clock_first
            && self.planned_up_to <= applied
            && self.seen.killed.is_none()
            && self.seen.elapsed_ms >= CLOCK_LATE_MS;
        let to = state.clock.plus(self.seen.elapsed_ms.min(CLOCK_STEP_MS_MAX));
        self.clock_first |= due;
        due.then_some(Body::AdvanceClock { to })
    }

    /// The server of this member.
    #[must_use]
    pub fn server(&self) -> &ServerId {
        self.seen.leader.as_ref().expect("set when it was made, and never taken out")
    }

    /// Records the registry's content; `None` while it does not respond.
    pub fn registry(&mut self, view: Option<RegistryView>) {
        self.stale |= view != self.seen.registry;
        self.seen.registry = view;
    }

    /// Whether the registry responds; `None` unless this member is the leader.
    #[must_use]
    pub fn registry_answers(&self) -> Option<bool> {
        self.since_ms.map(|_| self.seen.registry.is_some())
    }

    /// Records the targets of the channels, the mirrors and releases refused recently, and why the
    /// metadata that the targets are from could not be refreshed, if it could not.
    pub fn offers(
        &mut self,
        now_ms: u64,
        offers: BTreeMap<AppId, Offer>,
        refusals: Vec<Refused>,
        refreshed: Result<(), Refused>,
    ) {
        self.stale |= (&offers, &refusals) != (&self.seen.offers, &self.seen.refusals);
        self.seen.offers = offers;
        self.seen.refusals = refusals;
        self.refreshed |= refreshed.is_ok();
        Lasting::ended(&mut self.refresh_fails, now_ms, refreshed);
    }

    /// Records how an errand at the hub ended. Returns whether that is news.
    pub fn errand(&mut self, now_ms: u64, errand: Errand, ended: Result<(), HubFault>) -> bool {
        self.since_ms.is_some() && self.errands.ended(now_ms, errand, ended)
    }

    /// The errands at the hub that fail.
    #[must_use]
    pub fn errands(&self) -> &Errands {
        &self.errands
    }

    /// Why newer releases may be unknown to this leader, and for how long, once it is worth
    /// reporting.
    fn not_refreshed(&self, now_ms: u64) -> Option<(Refused, u64)> {
        let Lasting { why: refused, since_ms } = self.refresh_fails.as_ref()?;
        let for_ms = now_ms.saturating_sub(*since_ms);
        let told = for_ms >= UNREACHABLE_MS || !refused.why.is_unreachable();
        told.then(|| (refused.clone(), for_ms))
    }

    /// Mirrors and releases that were refused recently, for people.
    #[must_use]
    pub fn refusals(&self) -> &[Refused] {
        &self.seen.refusals
    }

    /// Records the reason for the kill switch, while it is on. Returns whether that is news.
    pub fn killed(&mut self, now_ms: u64, reason: Option<String>) -> bool {
        // Up to now the clock stood still, or did not.
        self.tick(now_ms);
        let news = reason != self.seen.killed;
        self.seen.killed = reason;
        self.stale |= news;
        news
    }

    /// Why everything is stopped, while the kill switch is on.
    #[must_use]
    pub fn why_killed(&self) -> Option<&str> {
        self.seen.killed.as_deref()
    }

    /// Records that the state or the membership has changed.
    pub fn state_changed(&mut self) {
        self.stale = true;
        self.placed_by = None;
    }

    /// Whether a plan is due now: nothing of the last one is in flight, and there is news, or the
    /// last one is old.
    #[must_use]
    pub fn due(&self, now_ms: u64, applied: u64) -> bool {
        let old = self.planned_ms.is_none_or(|at| now_ms - at >= PLAN_EVERY_MS);
        self.since_ms.is_some() && self.planned_up_to <= applied && (self.stale || old)
    }

    /// When a plan is due even without news, on this member's monotonic clock, in milliseconds;
    /// `None` unless it is the leader.
    #[must_use]
    pub fn due_ms(&self) -> Option<u64> {
        self.since_ms.and(self.planned_ms).map(|at| at + PLAN_EVERY_MS)
    }

    /// The input of the last plan.
    #[must_use]
    pub fn seen(&self) -> &Observations {
        &self.seen
    }

    /// Records which servers' members vote.
    pub fn voters(&mut self, voters: BTreeSet<ServerId>) {
        self.seen.voters = voters;
        if self.placer.no_quorum_margin {
            self.seen.voters.clear();
        }
    }

    /// Plans. Report each command that is proposed to [`proposed`](Self::proposed).
    pub fn plan(&mut self, now_ms: u64, state: &State, contacts: &Contacts) -> Plan {
        self.tick(now_ms);
        self.stale = false;
        self.clock_first = false;
        self.note_joined(now_ms, state);
        self.planned_ms = Some(now_ms);
        self.seen.elapsed_ms = self.clock_behind_ms(now_ms);
        self.seen.leading_for_ms = now_ms - self.listens_since_ms().unwrap_or(now_ms);
        self.seen.contact_age_ms = contacts.ages_ms(now_ms);
        for (server, joined_ms) in self.joined_ms.iter().filter(|(_, joined_ms)| **joined_ms > 0) {
            let ages = &mut self.seen.contact_age_ms;
            ages.entry(server.clone()).or_insert(now_ms - joined_ms);
        }
        self.seen.doing = contacts.steps();
        self.seen.not_refreshed = self.not_refreshed(now_ms);
        plan(state, &self.seen)
    }

    /// A server that joins has asked some member, which has not forwarded that yet.
    fn note_joined(&mut self, now_ms: u64, state: &State) {
        if self.joined_ms.keys().eq(state.servers.keys()) {
            return;
        }
        let joins_ms = if self.planned_ms.is_none() { 0 } else { now_ms };
        for server in state.servers.keys() {
            if !self.joined_ms.contains_key(server) {
                self.joined_ms.insert(server.clone(), joins_ms);
            }
        }
        self.joined_ms.retain(|server, _| state.servers.contains_key(server));
    }

    /// Records that a command of this leader was proposed and will be entry `index`, unless it is
    /// lost.
    pub fn proposed(&mut self, now_ms: u64, index: u64, body: &Body) {
        self.planned_up_to = self.planned_up_to.max(index);
        if matches!(body, Body::AdvanceClock { .. }) {
            // What exceeds the step of one entry is dropped.
            self.clock_mark_ms = Some(now_ms);
        }
    }

    /// The next step towards the desired placement of voters. What it is waiting for instead is in
    /// [`placing`](Self::placing).
    pub fn place(
        &mut self,
        now_ms: u64,
        state: &State,
        placed: Placed,
        heard: &Heard<'_>,
    ) -> Option<Placement> {
        self.placed_ms = Some(now_ms);
        let unheard = Unheard {
            lately: self.unheard(now_ms, ORDERS_VALID_MS, state, heard),
            silent: self.unheard(now_ms, self.placer.replace_after_ms, state, heard),
        };
        self.mute = self.mute_voters(now_ms, state, &placed, heard);
        let by = (placed, unheard);
        if self.placed_by.as_ref() == Some(&by) {
            return None;
        }
        self.placed_by = None;
        match placement(state, &by.0, &by.1, self.placer.carriers) {
            Next::Settled => self.placing = None,
            Next::Waits(on) => self.place_waits(now_ms, on),
            Next::Step(step) => return Some(step),
        }
        self.placed_by = Some(by);
        None
    }

    /// Whether to look at the placement of voters now: [`place`](Self::place).
    #[must_use]
    pub fn may_place(&self, now_ms: u64) -> bool {
        self.placed_ms.is_none_or(|at| now_ms - at >= PLACE_EVERY_MS)
    }

    /// Records the space on the disk of this member's server.
    pub fn disk(&mut self, now_ms: u64, disk: DiskSpace) {
        if disk != self.disk {
            (self.disk, self.disk_since_ms, self.stale) = (disk, now_ms, true);
        }
    }

    /// Whether the log may grow. If not, the disk has room only for what is in progress.
    #[must_use]
    pub fn may_write(&self) -> bool {
        self.disk.may_write()
    }

    /// What every app waits for while the log may not grow.
    #[must_use]
    pub fn waiting_for_space(&self, now_ms: u64, state: &State) -> Vec<Waiting> {
        let since = self.clock(state).minus(now_ms.saturating_sub(self.disk_since_ms));
        let on = WaitingOn::NoSpace { leader: self.server().clone(), disk: self.disk };
        let waiting = |app: &AppId| Waiting { app: app.clone(), since, on: on.clone() };
        state.apps.keys().map(waiting).collect()
    }

    /// Judges an agent that introduces itself as `server`. A copy is remembered, for people;
    /// returns also whether that is news.
    pub fn introduced(
        &mut self,
        now_ms: u64,
        state: &State,
        contacts: &Contacts,
        introduced: &Introduced<'_>,
    ) -> (Introduction, bool) {
        let listens_ms = now_ms.saturating_sub(self.listens_since_ms().unwrap_or(now_ms));
        let clock = (now_ms, listens_ms);
        let judged = self.copies.judge(state, contacts, clock, introduced);
        let (server, host) = (introduced.server, &introduced.process.host);
        let news = match judged {
            Introduction::Accepted => self.copies.accepted(server, host),
            Introduction::TooEarly => false,
            Introduction::Elsewhere { .. } => self.copies.refused(now_ms, server, host),
        };
        (judged, news)
    }

    /// The agents refused lately because another one runs as their server.
    #[must_use]
    pub fn copies(&self) -> &Copies {
        &self.copies
    }

    /// Records what a voter says that it reaches.
    pub fn voter_reaches(&mut self, now_ms: u64, voter: ServerId, ability: Ability) {
        self.heirs.heard(now_ms, voter, ability);
    }

    /// What this leader reaches, of what it needs.
    #[must_use]
    pub fn reaches(&self) -> Ability {
        let repository = self.refreshed && self.refresh_fails.is_none();
        let (registry, disk) = (self.seen.registry.is_some(), self.disk == DiskSpace::Enough);
        Ability { registry, repository, disk }
    }

    /// Whether the voters should find out what they reach.
    #[must_use]
    pub fn asks_voters(&self) -> bool {
        self.since_ms.and(self.ticked_ms).is_some_and(|now_ms| self.heirs.asks(now_ms))
    }

    /// The server whose voter should be the leader instead, if any.
    pub fn heir(&mut self, now_ms: u64, is_voter: impl Fn(&ServerId) -> bool) -> Option<ServerId> {
        self.heirs.reaches(now_ms, self.reaches());
        self.heirs.heir(now_ms, is_voter)
    }

    /// Records what the next change of the voters is waiting for.
    pub fn place_waits(&mut self, now_ms: u64, on: Placing) {
        if self.placing.as_ref().is_none_or(|(known, _)| *known != on) {
            self.placing = Some((on, now_ms));
        }
    }

    /// What the next change of the voters is waiting for, and since when, on this member's
    /// monotonic clock, in milliseconds.
    #[must_use]
    pub fn placing(&self) -> Option<&(Placing, u64)> {
        self.placing.as_ref()
    }

    /// The voters whose members this leader has not heard for [`COUNTED_ON_MS`], although their
    /// agents were heard, by other members.
    fn mute_voters(
        &self,
        now_ms: u64,
        state: &State,
        placed: &Placed,
        heard: &Heard<'_>,
    ) -> BTreeSet<ServerId> {
        let since_ms = self.listens_since_ms().unwrap_or(now_ms);
        let is_mute = |(server, at_ms): &(&ServerId, &u64)| {
            let member = state.servers.get(*server).and_then(|known| known.member);
            let votes = member.is_some_and(|member| placed.voters.contains(&member));
            let contact = heard.contacts.of(server);
            let calls = contact.is_some_and(|contact| now_ms < contact.at_ms + COUNTED_ON_MS);
            votes && calls && now_ms >= since_ms.max(**at_ms) + COUNTED_ON_MS
        };
        heard.members.iter().filter(is_mute).map(|(server, _)| server.clone()).collect()
    }

    /// Voters whose members this leader has not heard lately, although their agents call.
    #[must_use]
    pub fn mute(&self) -> &BTreeSet<ServerId> {
        &self.mute
    }

    /// The servers of which the agent, or the member, has not been heard for `after_ms`; never the
    /// leader's own. Silence counts from the start of this leader's time: what other members heard
    /// before is unknown here.
    fn unheard(
        &self,
        now_ms: u64,
        after_ms: u64,
        state: &State,
        heard: &Heard<'_>,
    ) -> BTreeSet<ServerId> {
        let since_ms = self.listens_since_ms().unwrap_or(now_ms);
        let unheard = |server: &&ServerId| {
            let heard_ms = heard.contacts.of(server).map_or(0, |contact| contact.at_ms);
            let heard_ms = heard.members.get(*server).map_or(heard_ms, |at| heard_ms.min(*at));
            *server != self.server() && now_ms >= heard_ms.max(since_ms) + after_ms
        };
        state.servers.keys().filter(unheard).cloned().collect()
    }
}
