//! Reports of this server's transfers, on their way to the leader.

use std::sync::Arc;
use std::time::Duration;

use cohort_distribute::{CallError, TRANSFER, TrackerCalls, TransferAnswer, TransferRequest};
use cohort_wire::agent::ToGroup;
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
            let call = Call::post(TRANSFER, &ToGroup::new(&shared.group, request))
                .deadline(DEADLINE)
                .idempotent();
            let answer = shared.call_member(&leader.server, &leader.address, call).await;
            answer.map_err(CallError::from)
        })
    }
}
