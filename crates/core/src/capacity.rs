//! The capacity ledger: one per group, for all its apps, and the one definition of *out of
//! service*.
//!
//! A server counts as out until it says otherwise. What only the leader sees (a server that is
//! silent) is added by the planner; everything else is replicated.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{AppId, ServerId};
use crate::orders::Purpose;
use crate::phase::Phase;
use crate::policy::Update;
use crate::report::Step;
use crate::state::{Activation, ActivationStage, App, ServerApp, State};

/// How long a live server may go unheard, in milliseconds: a leader that is new, or a server whose
/// member went silent, needs up to this long until the one hears of the other again. A server that
/// has been silent for longer counts as out for a grant, although it is not unknown yet, and is not
/// lost to a rollout before that if it serves.
pub const COUNTED_ON_MS: u64 = 10_000;

/// How long a server may be silent before it is unknown whether it serves, in milliseconds: the
/// shortest `unreachable_after` of the group's apps, since its silence is the same for all of them.
#[must_use]
pub fn unknown_after_ms(state: &State) -> u64 {
    let bounds = state.apps.values().map(|app| app.policy_in_force().update.unreachable_after.ms);
    bounds.min().unwrap_or_else(|| Update::default().unreachable_after.ms)
}

/// A server's part in serving traffic, over all apps, by its own last word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It runs nothing: changing it takes no capacity.
    Idle,
    /// Every app it runs takes traffic.
    Serving,
    /// At least one app on it takes no traffic, or is being taken out of service.
    Out,
}

/// A server's standing, over all apps.
#[must_use]
pub fn standing(state: &State, server: &ServerId) -> Standing {
    let mut standing = Standing::Idle;
    for app in state.apps.values() {
        let Some(here) = app.servers.get(server) else { continue };
        if is_down_here(app, here) || taken_out(here) {
            return Standing::Out;
        }
        if here.running.is_some() {
            standing = Standing::Serving;
        }
    }
    standing
}

/// Whether a change for this purpose takes capacity away. A server that is already out costs
/// nothing more, unless the app itself serves there, or the server was lost mid-change: then it may
/// be serving after all. Nor does going back to nothing where nothing else runs: nothing would
/// serve afterwards either. Only a removed app is stopped within `max_unavailable` even so: a
/// mistake has to leave time for the kill switch.
#[must_use]
pub fn costs(state: &State, app: &App, server: &ServerId, purpose: Purpose) -> bool {
    let to_nothing = purpose != Purpose::Wave
        && app.last_good.is_none()
        && !matches!(app.phase, Phase::Removing { .. })
        && apps_on(state, server).filter(|here| here.running.is_some()).count() <= 1;
    let may_serve = standing(state, server) == Standing::Serving
        || app.servers.get(server).is_some_and(|here| here.takes_traffic())
        || apps_on(state, server).any(|here| here.unsure);
    may_serve && !to_nothing
}

/// The servers that are out of service, or may be: one that says so, is being changed, was lost in
/// a change, has yet to get the good release, or took changed checks so recently that they may
/// still take it out.
///
/// A server in debt that takes traffic with another release is in service.
#[must_use]
pub fn out_servers(state: &State) -> BTreeSet<ServerId> {
    let is_out = |app: &App, _: &ServerId, here: &ServerApp| {
        is_down_here(app, here) || taken_out(here) || app.is_watched(here, state.clock)
    };
    servers_where(state, is_out).into_iter().cloned().collect()
}

/// The servers of which this holds in some app. Every app lists every server: one pass over each
/// list, because a lookup per server and app would take longer than the rest of a plan.
fn servers_where(
    state: &State,
    is: impl Fn(&App, &ServerId, &ServerApp) -> bool,
) -> BTreeSet<&ServerId> {
    let mut found = BTreeSet::new();
    for app in state.apps.values() {
        let of_app = app.servers.iter().filter(|(server, here)| is(app, server, here));
        found.extend(of_app.map(|(server, _)| server));
    }
    found
}

/// Whether an app is out of service on this server, apart from changes in flight.
pub(crate) fn is_down(app: &App, server: &ServerId) -> bool {
    app.servers.get(server).is_some_and(|here| is_down_here(app, here))
}

fn is_down_here(app: &App, here: &ServerApp) -> bool {
    let joins = here.running.is_none() && here.debt.is_some() && app.last_good.is_some();
    here.unsure || joins || (here.running.is_some() && !here.in_service)
}

fn taken_out(here: &ServerApp) -> bool {
    here.in_flight().is_some_and(|change| change.costs)
}

/// Whether a server takes traffic with an app, as far as known: it said so, and has not left
/// traffic for a change since. `doing` is the step that it says it is taking: the group hears of
/// that before the report that follows.
#[must_use]
pub fn serves(here: &ServerApp, doing: Option<Step>) -> bool {
    let leaves = here.in_flight().is_some() && doing.is_some_and(has_left);
    here.in_service && !here.unsure && !leaves
}

/// Whether a server that is taking this step has left traffic, or is about to.
#[must_use]
pub fn has_left(step: Step) -> bool {
    step >= Step::Drain
}

/// Whether there is room for a change that takes this server out of service.
#[must_use]
pub fn has_room(out: &BTreeSet<ServerId>, max: u32, server: &ServerId) -> bool {
    let others = out.len() - usize::from(out.contains(server));
    others < max as usize
}

/// The granted changes that the ledger no longer bears, none of which has taken anything out of
/// service yet: since the grant, the limit may have been lowered, or other servers may have left
/// service.
///
/// Grants are honoured in their order, so that two of them never wait for each other.
#[derive(Debug, Default)]
pub struct Held(BTreeMap<AppId, BTreeSet<ServerId>>);

impl Held {
    /// Those of this state, in one pass over every app's servers.
    #[must_use]
    pub fn of(state: &State) -> Held {
        Held::seen(state, &BTreeSet::new(), |_, _| false)
    }

    /// The same, with what only the leader knows: the servers that are `silent`, and whether a
    /// server says that it has begun what it was granted.
    pub(crate) fn seen(
        state: &State,
        silent: &BTreeSet<ServerId>,
        says_begun: impl Fn(&AppId, &ServerId) -> bool,
    ) -> Held {
        let mut granted = Vec::new();
        let begun = servers_where(state, |app, _, here| {
            let costs = taken_out(here) && here.in_flight().is_some_and(has_begun);
            costs || is_down_here(app, here)
        });
        let mut out = begun;
        out.extend(silent);
        for (id, app) in &state.apps {
            let open = app.in_flight().filter(|(_, change)| change.costs && !has_begun(change));
            for (server, change) in open {
                if says_begun(id, server) {
                    out.insert(server);
                } else {
                    granted.push((change.granted, server, id, app));
                }
            }
        }
        granted.sort_unstable_by_key(|(at, server, ..)| (*at, *server));
        let mut held: BTreeMap<AppId, BTreeSet<ServerId>> = BTreeMap::new();
        for (_, server, id, app) in granted {
            let others = out.len() - usize::from(out.contains(server));
            let sure = !apps_on(state, server).any(|here| here.unsure);
            let costs_nothing = sure && app.servers.get(server).is_some_and(|here| is_away(here));
            if !costs_nothing && others >= app.max_unavailable(state.size()) as usize {
                held.entry(id.clone()).or_default().insert(server.clone());
            }
            out.insert(server);
        }
        Held(held)
    }

    /// Whether an app's change on a server must not begin.
    #[must_use]
    pub fn holds(&self, app: &AppId, server: &ServerId) -> bool {
        self.0.get(app).is_some_and(|servers| servers.contains(server))
    }
}

fn has_begun(change: &Activation) -> bool {
    change.stage != ActivationStage::Granted
}

/// Whether the app runs here, and takes no traffic.
fn is_away(here: &ServerApp) -> bool {
    here.running.is_some() && !here.in_service
}

fn apps_on<'a>(state: &'a State, server: &'a ServerId) -> impl Iterator<Item = &'a ServerApp> {
    state.apps.values().filter_map(move |app| app.servers.get(server).map(|here| &**here))
}
