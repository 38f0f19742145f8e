//! The capacity ledger: one per group, for all its apps.

use std::collections::BTreeSet;

use crate::ids::ServerId;
use crate::orders::Purpose;
use crate::phase::Phase;
use crate::state::{App, ServerApp, State};

/// How a server stands with regard to traffic, over all apps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing was ever in service there: doing something to it takes nothing away.
    Idle,
    /// Everything that runs there takes traffic.
    Serving,
    /// Something there does not take traffic, or is being changed.
    Out,
}

/// How a server stands.
#[must_use]
pub fn standing(state: &State, server: &ServerId) -> Standing {
    let mut standing = Standing::Idle;
    for app in state.apps.values() {
        let Some(here) = app.servers.get(server) else { continue };
        if here.activation.as_ref().is_some_and(|a| a.in_flight() && a.costs) {
            return Standing::Out;
        }
        if here.running.is_some() {
            if !here.in_service {
                return Standing::Out;
            }
            standing = Standing::Serving;
        }
    }
    standing
}

/// Whether a change on this server takes capacity away. One that is already out of
/// service costs nothing more; of one that was lost in the middle of a change nobody knows.
#[must_use]
pub fn costs(state: &State, server: &ServerId) -> bool {
    let unknown = state.apps.values().filter_map(|app| app.servers.get(server)).any(|here| {
        here.activation.as_ref().is_some_and(|activation| activation.void && activation.open())
    });
    match standing(state, server) {
        Standing::Serving => true,
        Standing::Out => unknown,
        Standing::Idle => false,
    }
}

/// The same, as it counts for a change with this purpose. A roll-back is not held up by servers
/// that run the good release already and are out of service for reasons of their own.
#[must_use]
pub fn out_servers_for(state: &State, app: &App, purpose: Purpose) -> BTreeSet<ServerId> {
    let mut out = out_servers(state);
    if purpose == Purpose::RollBack {
        out.retain(|server| {
            let changing =
                state.apps.values().filter_map(|app| app.servers.get(server)).any(|h| {
                    h.activation.as_ref().is_some_and(crate::state::Activation::in_flight)
                });
            let back = app.servers.get(server).is_none_or(|h| h.settled_on(app.last_good.as_ref()));
            changing || !back
        });
    }
    out
}

/// Whether the ledger bears a change on this server that costs, where so many are out already.
#[must_use]
pub fn bears(out: &BTreeSet<ServerId>, max: u32, server: &ServerId) -> bool {
    let others = out.len() - usize::from(out.contains(server));
    others < max as usize
}

/// Servers that are out of service and that the group still counts on.
///
/// Servers that owe hold up nobody, but for two cases: while a change takes one of them away, and
/// in a roll-back until it is back or lost: going back takes away no more than going forward did.
#[must_use]
pub fn out_servers(state: &State) -> BTreeSet<ServerId> {
    let written_off = |server: &ServerId| {
        let here = |app: &App, holds: &dyn Fn(&ServerApp) -> bool| {
            app.servers.get(server).is_some_and(holds)
        };
        let owes = |here: &ServerApp| here.debt.is_some();
        let taken =
            |here: &ServerApp| here.activation.as_ref().is_some_and(|a| a.in_flight() && a.costs);
        state.apps.values().any(|app| here(app, &owes))
            && !state.apps.values().any(|app| here(app, &taken) || goes_back(app, server))
    };
    state
        .servers
        .keys()
        .filter(|server| standing(state, server) == Standing::Out && !written_off(server))
        .cloned()
        .collect()
}

/// Whether the group is about to take the server back to what was good.
fn goes_back(app: &App, server: &ServerId) -> bool {
    match &app.phase {
        Phase::RollingBack { rollout, .. } => !rollout.lost.contains(server),
        Phase::Empty
        | Phase::Running { .. }
        | Phase::MarkedOld { .. }
        | Phase::LeaderHolds { .. }
        | Phase::Verified { .. }
        | Phase::Wave { .. }
        | Phase::Held { .. } => false,
    }
}

/// How many servers are out of service.
#[must_use]
pub fn out_of_service(state: &State) -> u32 {
    u32::try_from(out_servers(state).len()).unwrap_or(u32::MAX)
}
