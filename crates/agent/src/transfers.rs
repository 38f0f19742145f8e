//! The way from this server's transfers to the leader.

use std::sync::Arc;
use std::time::Duration;

use cohort_distribute::{TRANSFER, TrackerCalls, TransferAnswer, TransferRequest};
use cohort_wire::http::Call;
use futures_util::future::BoxFuture;

use crate::shared::Shared;

/// How long an answer may take. Nobody waits for it with bytes.
const DEADLINE: Duration = Duration::from_secs(2);

/// Reports over the control port.
pub(crate) struct Transfers(pub(crate) Arc<Shared>);

impl TrackerCalls for Transfers {
    fn report(
        &self,
        request: TransferRequest,
    ) -> BoxFuture<'static, Result<TransferAnswer, String>> {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let leader = shared.leader().ok_or("no leader is known")?;
            let target = shared.target(&leader.server, &leader.address);
            let call = Call::post(TRANSFER, &request).deadline(DEADLINE).idempotent();
            let answer = shared.client.call_json(&target, call).await;
            answer.map_err(|error| error.to_string())
        })
    }
}
