//! The capacity ledger: one per group, for all its apps.

use std::collections::BTreeSet;

use crate::ids::ServerId;
use crate::orders::Purpose;
use crate::state::State;

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
/// service costs nothing more.
#[must_use]
pub fn costs(state: &State, server: &ServerId) -> bool {
    standing(state, server) == Standing::Serving
}

/// Servers that are out of service and that the group still counts on: servers that are lost and
/// owe do not hold up the others.
#[must_use]
pub fn out_servers(state: &State) -> BTreeSet<ServerId> {
    let owes = |server: &ServerId| {
        state.apps.values().filter_map(|app| app.servers.get(server)).any(|here| {
            let settling = here.activation.as_ref().is_some_and(|activation| {
                activation.in_flight() && activation.costs && activation.purpose == Purpose::Debt
            });
            here.debt.is_some() && !settling
        })
    };
    state
        .servers
        .keys()
        .filter(|server| standing(state, server) == Standing::Out && !owes(server))
        .cloned()
        .collect()
}

/// How many servers are out of service.
#[must_use]
pub fn out_of_service(state: &State) -> u32 {
    u32::try_from(out_servers(state).len()).unwrap_or(u32::MAX)
}
