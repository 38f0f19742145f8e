use std::sync::Arc;
use std::time::Duration;

use cohort_core::orders::{AppOrders, FetchOrder};
use cohort_core::report::Step;
use cohort_core::steps::{AppRecord, BootTime, Reached};
use cohort_host::boot_time_ms;
use cohort_server::app::{App, Booted, Effect, Running, Sight};
use tokio::time::{Instant, timeout};

use super::Changes;
use crate::reporter::Reporter;
use crate::shared::Shared;
use crate::testing::{Lab, activation, received, release, web, web_runs};

const SOON: Duration = Duration::from_secs(1);

/// Orders to begin this change of `web`; it is undone after 30 s without the group.
fn orders(generation: u64) -> AppOrders {
    let order = activation(generation, Some(release("2.0.0")));
    AppOrders { activation: Some(order), ..web_runs(None) }
}

/// The step after the drain of generation 1, as it begins now.
fn step() -> Running {
    let orders = orders(1);
    let now = BootTime { boot: "a", ms: boot_time_ms() };
    let mut record = AppRecord::default();
    record.accept(orders.activation.clone().unwrap(), Step::Prepare, |_| true, now);
    record.begin(Step::Drain, 1, now);
    record.done(Step::Drain, 1);
    let sight = Sight {
        now,
        orders: Some(&orders),
        orders_fresh: true,
        refused: false,
        killed: false,
        confirmed: None,
        record: &record,
        reached: Reached::new(now.ms),
        held: &[release("2.0.0").artifact],
        health: None,
        trial: None,
        room: true,
        room_for_health: true,
    };
    let effects = App::new(now.ms, 0, Booted { in_service: false, started: false }).look(&sight);
    match effects.last() {
        Some(Effect::Act { running, .. }) => *running,
        other => panic!("{other:?}"),
    }
}

fn ordered(shared: &Shared, orders: AppOrders, asked_ms: u64) {
    let mut received = received(vec![orders], None);
    received.asked_ms = asked_ms;
    shared.orders.send_replace(Some(Arc::new(received)));
}

async fn world() -> (Lab, Arc<Shared>, Changes) {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let reporter = Reporter::spawn(&shared);
    let changes = Changes::new(web(), &shared, &reporter);
    (lab, shared, changes)
}

#[tokio::test(start_paused = true)]
async fn a_change_is_a_reason_to_look_once_and_only_after_it_was_seen() {
    let (_lab, shared, mut changes) = world().await;
    ordered(&shared, orders(1), 0);
    let received = changes.seen().received.unwrap();
    assert!(received.of(&web()).is_some());
    assert!(timeout(SOON, changes.next()).await.is_err(), "seen");
    ordered(&shared, orders(2), 0);
    assert!(timeout(SOON, changes.next()).await.is_ok());
    let _ = changes.seen();
    assert!(timeout(SOON, changes.next()).await.is_err(), "seen");
    let release = release("2.0.0");
    let fetch = FetchOrder { release, from_mirror: false, sources: Vec::new() };
    shared.downloads.set_orders(&[fetch]);
    assert!(timeout(SOON, changes.next()).await.is_ok());
    shared.tasks.stop.cancel();
    assert!(changes.stopped());
    changes.next().await;
}

#[tokio::test(start_paused = true)]
async fn newer_orders_for_the_app_or_a_stop_interrupt_a_step() {
    let (_lab, shared, changes) = world().await;
    let running = step();
    ordered(&shared, orders(1), 0);
    assert!(timeout(SOON, changes.interrupt(running)).await.is_err(), "its own order");
    ordered(&shared, AppOrders { app: "db".parse().unwrap(), ..orders(2) }, 0);
    assert!(timeout(SOON, changes.interrupt(running)).await.is_err(), "another app");
    let interrupt = changes.interrupt(running);
    tokio::pin!(interrupt);
    assert!(timeout(SOON, &mut interrupt).await.is_err());
    ordered(&shared, orders(2), 0);
    assert!(timeout(SOON, &mut interrupt).await.is_ok(), "it came while the step ran");
    ordered(&shared, orders(1), 0);
    shared.tasks.stop.cancel();
    assert!(timeout(SOON, changes.interrupt(running)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_group_out_of_reach_interrupts_a_step_later_if_it_was_heard_meanwhile() {
    let (_lab, shared, changes) = world().await;
    let took = async |running| {
        let began = Instant::now();
        changes.interrupt(running).await;
        began.elapsed().as_secs()
    };
    // The boot-time clock goes on meanwhile.
    assert!((25..=30).contains(&took(step()).await));
    // An answer to a question that is asked in ten seconds.
    let running = step();
    ordered(&shared, orders(1), boot_time_ms() + 10_000);
    assert!((35..=40).contains(&took(running).await));
}
