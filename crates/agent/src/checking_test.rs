use std::sync::Arc;

use axum::extract::State as Context;
use cohort_core::policy::{CHECKS_MAX, Check};
use cohort_host::CheckContext;
use cohort_identity::{Peer, Role};
use cohort_wire::agent::{CheckAnswer, CheckRequest};
use cohort_wire::http::{ApiError, ApiJson};
use cohort_wire::kill::{KillRegister, KillScope, SignedKill};
use tokio::net::TcpListener;

use super::{AT_ONCE, check};
use crate::shared::Shared;
use crate::testing::Lab;

fn tcp(port: u16) -> Check {
    serde_json::from_value(serde_json::json!({ "type": "tcp", "port": port })).unwrap()
}

async fn tried(shared: &Arc<Shared>, checks: Vec<Check>) -> Result<CheckAnswer, ApiError> {
    let request = CheckRequest { app: "web".parse().unwrap(), checks };
    check(Context(Arc::clone(shared)), ApiJson(request)).await.map(|answer| answer.0)
}

#[tokio::test]
async fn checks_are_tried_where_a_release_runs_and_not_under_the_kill_switch() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let open = listener.local_addr().unwrap().port();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    assert_eq!(tried(&shared, vec![tcp(open)]).await.unwrap_err().status, 404, "nothing runs");
    let web = "web".parse().unwrap();
    shared.check_contexts.lock().insert(web, CheckContext::default());
    let seen = tried(&shared, vec![tcp(open), tcp(closed)]).await.unwrap().checks;
    let failing: Vec<bool> = seen.iter().map(|it| it.failure.is_some()).collect();
    assert_eq!(failing, [false, true]);
    let many = tried(&shared, vec![tcp(open); CHECKS_MAX + 1]).await;
    assert_eq!(many.unwrap_err().status, 400);
    let turns: Vec<_> = (0..AT_ONCE).map(|_| shared.checkers.try_acquire().unwrap()).collect();
    assert_eq!(tried(&shared, vec![tcp(open)]).await.unwrap_err().status, 503);
    drop(turns);
    let register = KillRegister {
        scope: KillScope::Fleet,
        epoch: 1,
        on: true,
        reason: "a test".to_owned(),
        at: 0,
    };
    let operator = lab.slot_of(&Peer::new(Role::Operator, "ann").unwrap());
    let signed = SignedKill::sign(&operator.current(), &register).unwrap();
    shared.latch(vec![signed]).await;
    assert_eq!(tried(&shared, vec![tcp(open)]).await.unwrap_err().status, 409);
}
