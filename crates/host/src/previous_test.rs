//! What the host alone goes back to.

use cohort_core::report::Step;
use cohort_core::steps::StepAction;
use tokio_util::sync::CancellationToken;

use crate::testing::{SLEEP, TestServer, order, settle};

#[tokio::test]
async fn never_to_a_release_that_failed_here() {
    let server = TestServer::start().await;
    let good = server.release("1.0.0", SLEEP, &[]);
    let bad = server.release("2.0.0", SLEEP, &[("validate-service", "exit 1")]);
    let worse = server.release("3.0.0", SLEEP, &[]);
    let mut host = server.host();
    settle(&mut host, &order(1, Some(&good))).await.unwrap();
    settle(&mut host, &order(2, Some(&bad))).await.unwrap();
    assert_eq!(host.local().current.as_ref(), Some(&bad));

    // To the group the bad one ran here when the next began.
    let mut third = order(3, Some(&worse));
    third.undo_to = Some(bad);
    third.confirm_within_ms = 0;
    let cancel = CancellationToken::new();
    host.act(StepAction::Accept { order: third, step: Step::Prepare }, &cancel).await.unwrap();
    for step in [Step::Drain, Step::HandOver, Step::Stop, Step::Switch, Step::Start] {
        host.act(StepAction::Run { step, attempt: 1 }, &cancel).await.unwrap();
    }
    let undo = StepAction::Undo { reason: "not reached".into(), attempt: 1 };
    host.act(undo, &cancel).await.unwrap();
    assert_eq!(host.local().current.as_ref(), Some(&good));
    server.end().await;
}

#[tokio::test]
async fn to_nothing_when_nothing_ever_ran_well_here() {
    let server = TestServer::start().await;
    let bad = server.release("1.0.0", SLEEP, &[("validate-service", "exit 1")]);
    let next = server.release("2.0.0", SLEEP, &[]);
    let mut host = server.host();
    settle(&mut host, &order(1, Some(&bad))).await.unwrap();
    let mut second = order(2, Some(&next));
    second.undo_to = Some(bad);
    let cancel = CancellationToken::new();
    host.act(StepAction::Accept { order: second, step: Step::Prepare }, &cancel).await.unwrap();
    assert_eq!(host.local().activation.as_ref().unwrap().previous, None);
    server.end().await;
}
