//! Reports of this server's transfers, on their way to the leader.

use std::sync::Arc;
use std::time::Duration;

use cohort_core::ids::{Digest, ServerId};
use cohort_core::release::Release;
use cohort_core::state::State;
use cohort_distribute::{CallError, TRANSFER, TrackerCalls, TransferAnswer, TransferRequest};
use cohort_wire::http::Call;
use futures_util::future::BoxFuture;

use crate::shared::Shared;

/// Time limit for an answer. No transfer waits for it.
const DEADLINE: Duration = Duration::from_secs(2);

/// Reports over the control port.
pub(crate) struct Transfers(pub(crate) Arc<Shared>);

impl TrackerCalls for Transfers {
    fn report(
        &self,
        request: TransferRequest,
    ) -> BoxFuture<'static, Result<TransferAnswer, CallError>> {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let leader = shared.leader().ok_or("no leader is known")?;
            let target = shared.target(&leader.server, &leader.address);
            let call = Call::post(TRANSFER, &request).deadline(DEADLINE).idempotent();
            let answer = shared.client.call_json(&target, call).await;
            answer.map_err(CallError::from)
        })
    }
}

/// Drops what the log contradicts from a server's report: one server's word does not count against it.
pub(crate) fn keep_known(request: &mut TransferRequest, state: &State) {
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
