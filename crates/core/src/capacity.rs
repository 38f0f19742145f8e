//! The capacity ledger: one per group, for all its apps.

use std::collections::BTreeSet;

use crate::ids::ServerId;
use crate::orders::Purpose;
use crate::phase::Phase;
use crate::state::{App, ServerApp, State};

/// A server's part in serving traffic, over all apps.
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
    for here in apps_on(state, server) {
        let taken_out = here.in_flight().is_some_and(|change| change.costs);
        if taken_out || (here.running.is_some() && !here.in_service) {
            return Standing::Out;
        }
        if here.running.is_some() {
            standing = Standing::Serving;
        }
    }
    standing
}

/// Whether a change on this server takes capacity away. A server already out costs nothing more,
/// unless it was lost mid-change: then it may be serving after all.
#[must_use]
pub fn costs(state: &State, server: &ServerId) -> bool {
    match standing(state, server) {
        Standing::Serving => true,
        Standing::Out => apps_on(state, server)
            .filter_map(|here| here.activation.as_ref())
            .any(|change| change.void && change.open()),
        Standing::Idle => false,
    }
}

/// Servers that are out of service and count against `max_unavailable`.
///
/// A server in debt does not count: nothing waits for it. It does count while a change takes it out
/// of service, and in a rollback until it is back or lost, so that going back takes no more
/// capacity than going forward did.
#[must_use]
pub fn out_servers(state: &State) -> BTreeSet<ServerId> {
    let counts = |server: &ServerId| {
        let goes_back = |app: &App| match &app.phase {
            Phase::RollingBack { rollout, .. } => !rollout.lost.contains(server),
            Phase::Empty | Phase::Running { .. } | Phase::Forward { .. } | Phase::Held { .. } => {
                false
            }
        };
        let taken_out = |here: &ServerApp| here.in_flight().is_some_and(|change| change.costs);
        !apps_on(state, server).any(|here| here.debt.is_some())
            || apps_on(state, server).any(taken_out)
            || state.apps.values().any(goes_back)
    };
    let out = |server: &&ServerId| standing(state, server) == Standing::Out && counts(server);
    state.servers.keys().filter(out).cloned().collect()
}

/// The same for a change with this purpose. A rollback does not wait for servers that already run
/// the good release and are out of service for other reasons.
#[must_use]
pub fn out_servers_for(state: &State, app: &App, purpose: Purpose) -> BTreeSet<ServerId> {
    let mut out = out_servers(state);
    if purpose == Purpose::RollBack {
        out.retain(|server| {
            let back = |here: &ServerApp| here.settled_on(app.last_good.as_ref());
            apps_on(state, server).any(|here| here.in_flight().is_some())
                || !app.servers.get(server).is_none_or(back)
        });
    }
    out
}

/// Whether there is room for a change that takes this server out of service.
#[must_use]
pub fn has_room(out: &BTreeSet<ServerId>, max: u32, server: &ServerId) -> bool {
    let others = out.len() - usize::from(out.contains(server));
    others < max as usize
}

fn apps_on<'a>(state: &'a State, server: &'a ServerId) -> impl Iterator<Item = &'a ServerApp> {
    state.apps.values().filter_map(move |app| app.servers.get(server))
}
