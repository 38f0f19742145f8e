//! A whole activation, interrupted at every durable write and every side effect in turn.

use cohort_core::steps::{Progress, StepAction};

use crate::record::{Cuts, HostError};
use crate::testing::{SLEEP, TestServer, order, settle};
use crate::traffic::Traffic;

#[tokio::test]
async fn cut_anywhere_it_ends_the_same_with_one_start_per_fence() {
    let server = TestServer::start().await;
    let first = server.release("1.0.0", SLEEP, &[]);
    let hooks = [("after-install", "true"), ("application-stop", "true")];
    let second = server.release("2.0.0", SLEEP, &hooks);
    let mut generation = 0;
    for n in 0.. {
        let mut host = server.host();
        generation += 1;
        let mut before = order(generation, Some(&first));
        before.min_healthy_ms = 0;
        settle(&mut host, &before).await.unwrap();
        generation += 1;
        let mut order = order(generation, Some(&second));
        order.min_healthy_ms = 0;
        host.cuts = Cuts::at(n);
        let cut = match settle(&mut host, &order).await {
            Err(HostError::Cut) => true,
            Ok(StepAction::Settled) => false,
            other => panic!("cut {n}: {other:?}"),
        };
        drop(host);
        let mut host = server.host();
        host.boot().await.unwrap();
        host.take_traffic();
        assert_eq!(settle(&mut host, &order).await.unwrap(), StepAction::Settled, "cut {n}");
        let local = host.local();
        assert_eq!(local.current.as_ref(), Some(&second), "cut {n}");
        assert_eq!(host.releases.current().as_ref(), Some(&second), "cut {n}");
        assert_eq!(local.highest, order.fence, "cut {n}");
        assert_eq!(local.activation.as_ref().unwrap().progress, Progress::Complete, "cut {n}");
        assert_eq!(*host.traffic().borrow(), Traffic::Ready, "cut {n}");
        let started = format!("started 1.{generation}");
        let starts = server.events().into_iter().filter(|event| *event == started).count();
        assert_eq!(starts, 1, "cut {n}: {:?}", server.events());
        if !cut {
            assert!(n > 40, "{n} fault points only");
            break;
        }
    }
    server.end().await;
}
