//! Traffic while the kill switch is on.

use std::fs;

use cohort_core::orders::{ActivationOrder, Purpose};
use cohort_core::report::Step;
use cohort_core::steps::{Progress, StepAction, StepWait, Told, next_action};
use tokio_util::sync::CancellationToken;

use crate::app_host::AppHost;
use crate::testing::{SLEEP, TestServer, order, orders, settle};
use crate::traffic::Traffic;

/// The next action while the kill switch is on.
fn when_killed(host: &AppHost, order: &ActivationOrder) -> StepAction {
    let held: Vec<_> = order.release.iter().map(|release| release.artifact.clone()).collect();
    let moment = host.moment(Told { orders_fresh: true, killed: true, ..Told::default() });
    next_action(Some(&orders(order)), host.local(), &held, moment).step
}

async fn drained(host: &mut AppHost, order: &ActivationOrder) {
    let cancel = CancellationToken::new();
    let accept = StepAction::Accept { order: order.clone(), step: Step::Prepare };
    host.act(accept, &cancel).await.unwrap();
    host.act(StepAction::Run { step: Step::Drain, attempt: 1 }, &cancel).await.unwrap();
    assert_eq!(*host.traffic().borrow(), Traffic::Draining);
}

#[tokio::test]
async fn a_drained_server_serves_while_the_kill_switch_is_on() {
    let server = TestServer::start().await;
    let note = server.folder.path().join("hooks-ran");
    let script = format!("basename $0 >> {}", note.display());
    let hooks = ["before-block-traffic", "before-allow-traffic", "after-allow-traffic"]
        .map(|hook| (hook, script.as_str()));
    let first = server.release("1.0.0", SLEEP, &hooks);
    let next = server.release("2.0.0", SLEEP, &[]);
    let mut host = server.host();
    settle(&mut host, &order(1, Some(&first))).await.unwrap();
    fs::remove_file(&note).unwrap();

    let second = order(2, Some(&next));
    drained(&mut host, &second).await;
    assert_eq!(when_killed(&host, &second), StepAction::Wait(StepWait::KillSwitch));
    for _ in 0..2 {
        host.undrain_for_wait().await.unwrap();
        assert_eq!(*host.traffic().borrow(), Traffic::Ready);
    }
    let progress = &host.local().activation.as_ref().unwrap().progress;
    assert_eq!(*progress, Progress::Done { step: Step::Prepare, attempt: 1 });
    assert_eq!(host.undo_left_ms(), None, "nothing awaits confirmation");
    assert_eq!(when_killed(&host, &second), StepAction::Wait(StepWait::KillSwitch));
    let ran = fs::read_to_string(&note).unwrap();
    assert_eq!(ran, "before-block-traffic\nbefore-allow-traffic\nafter-allow-traffic\n");
    // Also after a restart of the agent.
    drop(host);
    let mut host = server.host();
    host.boot().await.unwrap();
    host.take_traffic();
    assert_eq!(*host.traffic().borrow(), Traffic::Ready);

    // The switch is off: it drains again and continues under the same fence.
    assert_eq!(settle(&mut host, &second).await.unwrap(), StepAction::Settled);
    assert_eq!(host.local().current.as_ref(), Some(&next));
    assert_eq!(server.events(), ["started 1.1", "stopped 1.1", "started 1.2"]);
    let ran = fs::read_to_string(&note).unwrap();
    assert_eq!(ran.matches("before-block-traffic").count(), 2, "{ran}");
    server.end().await;
}

#[tokio::test]
async fn a_release_that_is_not_asked_for_gets_no_traffic_back() {
    let server = TestServer::start().await;
    let good = server.release("1.0.0", SLEEP, &[]);
    let bad = server.release("2.0.0", SLEEP, &[("validate-service", "exit 1")]);
    let next = server.release("3.0.0", SLEEP, &[]);
    let mut host = server.host();
    settle(&mut host, &order(1, Some(&good))).await.unwrap();
    for (generation, purpose) in [(2, Purpose::RollBack), (3, Purpose::Debt)] {
        let mut order = order(generation, Some(&next));
        order.purpose = purpose;
        drained(&mut host, &order).await;
        host.undrain_for_wait().await.unwrap();
        assert_eq!(*host.traffic().borrow(), Traffic::Draining, "{purpose:?}");
    }

    // The running release has failed here.
    settle(&mut host, &order(4, Some(&bad))).await.unwrap();
    drained(&mut host, &order(5, Some(&next))).await;
    host.undrain_for_wait().await.unwrap();
    assert_eq!(*host.traffic().borrow(), Traffic::Draining);

    // The previous release is stopped.
    settle(&mut host, &order(6, Some(&good))).await.unwrap();
    drained(&mut host, &order(7, Some(&next))).await;
    let cancel = CancellationToken::new();
    host.act(StepAction::Run { step: Step::Stop, attempt: 1 }, &cancel).await.unwrap();
    host.undrain_for_wait().await.unwrap();
    assert!(matches!(*host.traffic().borrow(), Traffic::Out { .. }));
    server.end().await;
}
