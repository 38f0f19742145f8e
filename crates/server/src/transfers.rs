//! What the log says about transfer reports.

use cohort_core::ids::{Digest, ServerId};
use cohort_core::release::Release;
use cohort_core::state::State;
use cohort_transfer::tracker::TransferRequest;

/// Drops from a server's report what contradicts the log, which outweighs one server's word.
pub fn keep_known(request: &mut TransferRequest, state: &State) {
    let length = |artifact: &Digest| {
        let known = state.apps.values().flat_map(|app| {
            let rollout = app.phase.rollout().map(|rollout| &rollout.release);
            let running = app.servers.values().filter_map(|server| server.running.as_ref());
            rollout.into_iter().chain(&app.last_good).chain(&app.good_before).chain(running)
        });
        let mut found = known.filter(|release: &&Release| release.artifact == *artifact);
        found.next().map(|release| release.length)
    };
    let holder = |artifact: &Digest, server: &ServerId| {
        let holds = state.apps.values().any(|app| {
            let known = app.servers.get(server);
            known.is_some_and(|known| known.has(artifact))
        });
        let known = state.servers.get(server).filter(|_| holds);
        known.map(|known| known.address.clone())
    };
    request.keep_known(length, holder);
}
