//! What somebody outside of Cohort sees, and what must never be seen.

use std::collections::{BTreeMap, BTreeSet};

use cohort_consensus::{Configuration, Term};
use cohort_core::capacity::COUNTED_ON_MS;
use cohort_core::command::Event;
use cohort_core::ids::{AppId, GroupId, MemberId, Revision, ServerId};
use cohort_core::orders::{Fence, Purpose};
use cohort_core::policy::Policy;
use cohort_core::state::App;
use cohort_server::asking::ORDERS_VALID_MS;
use cohort_server::outbox::{ANSWER_MS_MAX, PAUSE_MS_MAX};

use super::behaviour::Behaviours;
use super::group::Group;
use super::server::member::INCARNATION;
use super::server::{Server, Service};
use super::world::TICK_MS;

mod clocks;
mod copies;

use clocks::Clocks;
use copies::Copies;
pub use copies::{ALSO_ACTS, DISPLACED};

/// A violation that the tests look for: more servers are out of service than the policy allows.
pub const TOO_MANY_OUT: &str = "left service";
/// See [`TOO_MANY_OUT`].
pub const STALE_ORDER: &str = "acts on an order that was withdrawn";
/// See [`TOO_MANY_OUT`].
pub const COLLECTED: &str = "has removed the last good release";

/// See [`TOO_MANY_OUT`].
pub const TOO_MANY_VOTERS: &str = "may get a release while too many voters have one";

/// See [`TOO_MANY_OUT`].
pub const UNTRUE: &str = "is not what people are told";

/// How long people may be told something about a service that is no longer so, in milliseconds:
/// `unreachable_after` here, what a lost request costs [`LOST_MAX`] times, and a hanging step.
const TOLD_MS_MAX: u64 = 45_000;
/// See [`TOLD_MS_MAX`].
const LOST_MAX: u64 = 2;
/// What each further lost request costs, in milliseconds: the time that an agent waits for an
/// answer, and its longest pause before it asks again.
const LOST_MS: u64 = ANSWER_MS_MAX + PAUSE_MS_MAX;
/// How long a planned entry may take until it is committed, in milliseconds, when its leader stays.
const PLANNED_MS_MAX: u64 = 5_000;
/// The same of one whose agent is silent, too, in milliseconds: the time after which it is not
/// counted on, and what a late packet and a pause of the leader take.
const SILENT_MS_MAX: u64 = COUNTED_ON_MS + 10_000;

/// A prober. Every look panics where something is seen that must never be.
#[derive(Debug, Default)]
pub(crate) struct Prober {
    /// The most servers that were being changed at once.
    pub(crate) most_out: usize,
    /// Servers that a change took away from the users they were serving, until they serve again:
    /// whether they failed, were lost, or crashed meanwhile.
    taken: BTreeSet<(GroupId, ServerId)>,
    /// Every policy that was ever written, as persons wrote it.
    pub(crate) policies: BTreeMap<(AppId, Revision), Policy>,
    /// The changes that each server was lately ordered to make, and when it last was.
    ordered: BTreeMap<(GroupId, AppId, ServerId), BTreeMap<Fence, u64>>,
    /// In which term people were told something untrue of a service, since when, and how many
    /// requests of its server had been lost by then.
    untrue: BTreeMap<(GroupId, AppId, ServerId), (Term, u64, u64)>,
    /// Who leads each group, in which term and since when.
    leads: BTreeMap<GroupId, (ServerId, Term, u64)>,
    /// Servers that do not serve what they have, since when, and since when their agents are silent
    /// as well.
    away: BTreeMap<(GroupId, ServerId), (u64, Option<u64>)>,
    /// When each server was last granted a change.
    granted: BTreeMap<(GroupId, ServerId), u64>,
    /// The configuration of each group, as its leader had it last, and since when.
    voters: BTreeMap<GroupId, (Configuration, u64)>,
    /// The limits of each app of a group, and when they were last in force.
    limits: BTreeMap<(GroupId, AppId), BTreeMap<u32, u64>>,
    copies: Copies,
    clocks: Clocks,
}

impl Prober {
    /// An app was removed at this revision; its servers still stop by the last policy.
    pub(crate) fn removed(&mut self, app: &AppId, revision: Revision) {
        let of_it = self.policies.range(..=(app.clone(), revision)).next_back();
        if let Some(policy) = of_it.map(|(_, policy)| policy.clone()) {
            self.policies.insert((app.clone(), revision), policy);
        }
    }

    /// Looks at every server of a group. `calm`: nothing is lost in the network.
    pub(crate) fn look(&mut self, now_ms: u64, group: &Group, behaviours: &Behaviours, calm: bool) {
        for server in group.machines() {
            for (app, service) in &server.services {
                let runs = service.release.as_ref().filter(|_| service.up);
                assert!(
                    runs.is_none_or(|release| behaviours.knows(release)),
                    "{now_ms} ms: {app} on {} runs what nobody published",
                    server.id
                );
            }
        }
        self.look_at_orders(now_ms, group);
        self.look_at_voters(now_ms, group);
        self.look_at_away(now_ms, group);
        Prober::look_at_artifacts(now_ms, group);
        self.look_at_capacity(now_ms, group);
        Prober::look_at_plan(now_ms, group);
        self.look_at_what_people_are_told(now_ms, group);
        self.copies.look(now_ms, group, calm);
        self.clocks.look(now_ms, group);
    }

    /// What the leader tells people about each service becomes true, or *unknown*, soon.
    fn look_at_what_people_are_told(&mut self, now_ms: u64, group: &Group) {
        let name = &group.log.state.group;
        let told = group.leader_view().filter(|(leader, _)| {
            let leader = &group.servers[*leader];
            // One whose disk is full cannot record what it hears, and says so.
            leader.linked && leader.paused_until_ms <= now_ms && leader.ability.disk
        });
        let Some((leader, view)) = told else {
            return self.untrue.retain(|(of, ..), _| of != name);
        };
        let (leader, term) = (&group.servers[leader], view.raft.term);
        for (app, of) in &view.state.apps {
            for (id, here) in &of.servers {
                let service = group.servers.get(id).and_then(|server| server.services.get(app));
                let serves = service.is_some_and(Service::serves);
                let true_now = leader.shows_serving(app, id, here) == serves;
                if true_now && self.untrue.is_empty() {
                    continue;
                }
                let key = (name.clone(), app.clone(), id.clone());
                if true_now || here.unsure || leader.shows_unknown(id, now_ms) {
                    self.untrue.remove(&key);
                    continue;
                }
                let lost = group.net.lost_requests(id);
                let since = self.untrue.entry(key).or_insert((term, now_ms, lost));
                if since.0 != term {
                    *since = (term, now_ms, lost);
                }
                let (_, since_ms, lost_before) = *since;
                let further = (lost - lost_before).saturating_sub(LOST_MAX);
                assert!(
                    now_ms - since_ms < TOLD_MS_MAX + further * LOST_MS,
                    "{now_ms} ms: {app} on {id} of {name} {UNTRUE} since {since_ms}: {service:?}, \
                     {here:?}"
                );
            }
        }
    }

    /// A server begins only what it is ordered to do, or was a moment ago.
    fn look_at_orders(&mut self, now_ms: u64, group: &Group) {
        let name = &group.log.state.group;
        let fresh_ms = now_ms.saturating_sub(ORDERS_VALID_MS + 2 * TICK_MS);
        for (app, of) in &group.log.state.apps {
            for (server, change) in of.in_flight() {
                let key = (name.clone(), app.clone(), server.clone());
                let ordered = self.ordered.entry(key).or_default();
                ordered.insert(change.fence, now_ms);
                ordered.retain(|_, at_ms| *at_ms >= fresh_ms);
            }
        }
        // One that another follows at once is in no state that a step of the clock ends with.
        for happened in &group.log.events[group.told..] {
            if let Event::Granted { app, server, generation, .. } = &happened.event {
                let key = (name.clone(), app.clone(), server.clone());
                let fence = Fence { incarnation: INCARNATION, generation: *generation };
                self.ordered.entry(key).or_default().insert(fence, now_ms);
            }
        }
        for (id, server) in &group.servers {
            for (app, (fence, at_ms)) in server.begun.iter().filter(|(_, it)| it.1 == now_ms) {
                let ordered = self.ordered.get(&(name.clone(), app.clone(), id.clone()));
                let last_ms = ordered.and_then(|ordered| ordered.get(fence));
                assert!(
                    last_ms.is_some_and(|last_ms| *last_ms >= fresh_ms),
                    "{at_ms} ms: {app} on {id} of {name} {STALE_ORDER}: {fence:?}, \
                     not {ordered:?}; it has {:?}",
                    server.received(app)
                );
            }
        }
    }

    /// A server of which the group knows that it has the last good release has not removed it.
    fn look_at_artifacts(now_ms: u64, group: &Group) {
        for (app, of) in &group.log.state.apps {
            let Some(good) = &of.last_good else { continue };
            let removed = |server: &&Server| server.collected.contains(&good.artifact);
            for Server { id, .. } in group.servers.values().filter(removed) {
                let has = of.servers.get(id).is_some_and(|here| here.has(&good.artifact));
                assert!(!has, "{now_ms} ms: {id} {COLLECTED} of {app}, {}", good.version);
            }
        }
    }

    /// No release goes to more voters at once than the group can lose.
    fn look_at_voters(&mut self, now_ms: u64, group: &Group) {
        let state = &group.log.state;
        let news = &group.log.events[group.told..];
        let Some((_, view)) = group.leader_view() else { return };
        let configuration = &view.raft.configuration;
        let known = self.voters.entry(state.group.clone()).or_default();
        if known.0 != *configuration {
            *known = (configuration.clone(), now_ms);
        }
        let since_ms = known.1;
        if news.is_empty() {
            return;
        }
        let voters = configuration.voters.iter();
        let voters: BTreeSet<ServerId> =
            voters.filter_map(|voter| state.server_of(MemberId(voter.0))).cloned().collect();
        // A grant that is committed now may have been planned when others voted.
        if since_ms + PLANNED_MS_MAX > now_ms {
            return;
        }
        let is_wave = |app: &App, server: &ServerId| {
            let change = app.servers.get(server).and_then(|here| here.in_flight());
            change.is_some_and(|change| change.purpose == Purpose::Wave)
        };
        let has_release = |id: &&ServerId| state.apps.values().any(|app| is_wave(app, id));
        let (changing, of) = (voters.iter().filter(has_release).count(), voters.len());
        for happened in news {
            if let Event::Granted { app, server, purpose: Purpose::Wave, .. } = &happened.event {
                assert!(
                    !voters.contains(server) || changing <= (of.saturating_sub(1) / 2).max(1),
                    "{now_ms} ms: {app} on {server} {TOO_MANY_VOTERS}: {changing} of {of}"
                );
            }
        }
    }

    /// Notes since when servers are away, and since when whoever leads should know.
    fn look_at_away(&mut self, now_ms: u64, group: &Group) {
        let name = &group.log.state.group;
        for (id, server) in &group.servers {
            let is_away = server.is_away();
            if !is_away && self.away.is_empty() {
                continue;
            }
            let key = (name.clone(), id.clone());
            if is_away {
                let (_, silent_ms) = self.away.entry(key).or_insert((now_ms, None));
                let silent = !server.up || !server.linked || server.paused_until_ms > now_ms;
                *silent_ms = silent.then(|| silent_ms.unwrap_or(now_ms));
            } else {
                self.away.remove(&key);
            }
        }
        for happened in &group.log.events[group.told..] {
            if let Event::Granted { server, .. } = &happened.event {
                self.granted.insert((name.clone(), server.clone()), happened.at_ms);
            }
        }
        self.away.retain(|(of, id), _| of != name || group.servers.contains_key(id));
        let leader = group.leader_view().map(|(leader, view)| (leader.clone(), view.raft.term));
        let known = self.leads.get(name).map(|(leader, term, _)| (leader, *term));
        if known != leader.as_ref().map(|(leader, term)| (leader, *term)) {
            self.leads.remove(name);
            if let Some((leader, term)) = leader {
                self.leads.insert(name.clone(), (leader, term, now_ms));
            }
        }
    }

    /// Whether the leader had had the time to find out that a server is away.
    fn was_known_to_be_away(&self, at_ms: u64, key: &(GroupId, ServerId)) -> bool {
        let (Some((.., leads_ms)), Some((away_ms, silent_ms))) =
            (self.leads.get(&key.0), self.away.get(key))
        else {
            return false;
        };
        let knew = |since_ms: u64, within_ms| since_ms.max(*leads_ms) + within_ms <= at_ms;
        let silent_ms = silent_ms.map(|silent_ms| silent_ms.max(*away_ms));
        knew(*away_ms, TOLD_MS_MAX) || silent_ms.is_some_and(|at| knew(at, SILENT_MS_MAX))
    }

    /// No change takes a server away while `max_unavailable` others are away.
    fn look_at_capacity(&mut self, now_ms: u64, group: &Group) {
        let state = &group.log.state;
        let name = &state.group;
        // One that has recorded that it leaves is about to, even if its agent dies first.
        let leaves = |server: &Server, app: &AppId| {
            let has = server.services.get(app).is_some_and(|service| service.release.is_some());
            server.took_away.contains(app) && server.being_changed(app) && has
        };
        let is_away =
            |server: &Server| server.is_away() || state.apps.keys().any(|app| leaves(server, app));
        self.taken.retain(|(of, id)| {
            let server = group.servers.get(id).filter(|_| state.servers.contains_key(id));
            of != name || server.is_some_and(is_away)
        });
        for (app, of) in &state.apps {
            let limits = self.limits.entry((name.clone(), app.clone())).or_default();
            let policy = &self.policies[&(app.clone(), of.revision)];
            limits.insert(policy.max_unavailable_of(state.size()), now_ms);
            limits.retain(|_, at_ms| *at_ms + ORDERS_VALID_MS >= now_ms);
        }
        let granted = |id: &ServerId, app: &App| Some(app.servers.get(id)?.in_flight()?.granted);
        for (id, server) in &group.servers {
            // An app that the server did not have takes nothing away before it is switched in.
            let Some(app) = state.apps.keys().find(|app| leaves(server, app)) else { continue };
            let member = state.servers.contains_key(id);
            if !member || !self.taken.insert((name.clone(), id.clone())) {
                continue;
            }
            // Grants are honoured in their order: one that was made later may have begun earlier.
            let own = granted(id, &state.apps[app]).map(|at| (at, id));
            let before = |other: &&ServerId| {
                let mut changes = state.apps.values().filter_map(|app| granted(other, app));
                *other != id && !changes.any(|at| Some((at, *other)) > own)
            };
            let taken = self.taken.iter().filter(|(of, _)| of == name).map(|(_, id)| id);
            let mut others: BTreeSet<&ServerId> = taken.filter(before).collect();
            // What the leader knows is an entry of the log a moment later, and is in the orders
            // that a server may still have not got.
            let ordered_ms = now_ms.saturating_sub(PLANNED_MS_MAX + ORDERS_VALID_MS);
            let granted_ms = self.granted.get(&(name.clone(), id.clone())).copied();
            let at_ms = granted_ms.map(|at| at.max(ordered_ms));
            let known = state.servers.keys().filter(|other| {
                let key = (name.clone(), (*other).clone());
                *other != id && at_ms.is_some_and(|at| self.was_known_to_be_away(at, &key))
            });
            others.extend(known);
            let max = self.limits[&(name.clone(), app.clone())].keys().max().copied();
            assert!(
                max.is_none_or(|max| others.len() < max as usize),
                "{now_ms} ms: {id} of {name} {TOO_MANY_OUT} for {app}, {others:?} are out, \
                 {max:?} may be"
            );
        }
        self.most_out = self.most_out.max(self.taken.iter().filter(|(of, _)| of == name).count());
    }

    /// Looks at what the leader shows: what does not move says why.
    fn look_at_plan(now_ms: u64, group: &Group) {
        let Some((leader, view)) = group.leader_view() else { return };
        let rests = view.raft.log.1 == view.raft.applied
            && view.raft.transfer.is_none()
            && !group.servers[leader].stops
            && group.servers[leader].busy_until_ms <= now_ms;
        for (id, app) in view.state.apps.iter().filter(|_| rests) {
            assert!(
                view.waiting.iter().any(|waiting| waiting.app == *id),
                "{now_ms} ms: {}: {id} is {} and waits without a reason: {:?}, {:?}",
                view.state.group,
                app.phase.name(),
                view.waiting,
                view.raft,
            );
        }
    }
}
