use std::sync::Arc;
use std::time::Duration;

use cohort_consensus::{Role, Term};
use cohort_core::Body;
use cohort_core::errand::{Errand, HubFault};
use cohort_core::ids::Incarnation;
use cohort_core::phase::PhaseName;
use cohort_registry::records::{GroupRecord, SCHEMA, Stamp, encode};
use cohort_registry::typed::{read_bootstrap, read_group_info, read_members, write_group_record};
use cohort_registry::{EmbeddedRegistry, Op, Registry as _, Txn, keys};
use cohort_server::member::{Input, Proposed, View};
use tokio::sync::watch;

use super::run;
use crate::member::{Queued, Waiter};
use crate::testing::{GROUP, Lab, apply, founded, handle, next_input, next_proposal, policy, web};

/// A group with the app `web`, of which the registry has heard nothing.
fn with_web(view: View) -> View {
    let mut state = founded();
    apply(&mut state, policy());
    View { state: Arc::new(state), ..view }
}

async fn has_members(registry: &EmbeddedRegistry) -> bool {
    read_members(registry, &GROUP.parse().unwrap()).await.unwrap().is_some()
}

async fn forget_members(registry: &EmbeddedRegistry) {
    let then = vec![Op::Delete { key: keys::members(&GROUP.parse().unwrap()) }];
    registry.txn(Txn { then, ..Txn::default() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_group_hears_of_a_record_when_the_registry_has_it_and_not_from_a_follower() {
    let lab = Lab::new().await;
    let registry = lab.registry();
    let shared = lab.agent_over("s1", Arc::clone(&registry) as _).await;
    let leading = with_web(lab.leading());
    let mut follows = leading.clone();
    follows.raft.role = Role::Follower;
    let (handle, views, queue) = handle(follows);
    let (_away, times_away) = watch::channel(0);
    let task = tokio::spawn(run(shared, handle, times_away));
    tokio::task::yield_now().await;
    assert!(!has_members(&registry).await);
    views.send_replace(Arc::new(leading));
    let command = next_proposal(&queue);
    assert!(matches!(command.body, Body::RecordWritten { record: 1, .. }), "{command:?}");
    let group = GROUP.parse().unwrap();
    assert!(registry.get(&keys::group_record(&group, &web())).is_some());
    // What comes before it is there too: other groups read where the members are.
    assert!(has_members(&registry).await);
    assert!(read_group_info(&*registry, &group).await.unwrap().is_some());
    let bootstrap = read_bootstrap(&*registry, &group).await.unwrap().unwrap();
    assert_eq!((bootstrap.incarnation, bootstrap.restored), (Incarnation(1), true));
    drop((views, queue));
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leadership_writes_a_record_once_and_the_next_one_writes_it_again() {
    let lab = Lab::new().await;
    let registry = lab.registry();
    let shared = lab.agent_over("s1", Arc::clone(&registry) as _).await;
    let leading = with_web(lab.leading());
    let (handle, views, queue) = handle(leading.clone());
    let (away, times_away) = watch::channel(0);
    let task = tokio::spawn(run(shared, handle, times_away));
    next_proposal(&queue);
    forget_members(&registry).await;
    // The record of `web` is not acknowledged in the view: written and proposed again.
    views.send_replace(Arc::new(leading.clone()));
    next_proposal(&queue);
    assert!(!has_members(&registry).await, "unchanged since it was written");
    let mut again = leading;
    again.raft.term = Term(again.raft.term.0 + 1);
    views.send_replace(Arc::new(again));
    next_proposal(&queue);
    assert!(has_members(&registry).await, "another leader may have written since");
    forget_members(&registry).await;
    away.send_modify(|times| *times += 1);
    next_proposal(&queue);
    assert!(has_members(&registry).await, "the hub may have come back without it");
    drop((views, queue));
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leadership_first_removes_what_is_left_of_an_app_that_the_group_does_not_have() {
    let lab = Lab::new().await;
    let registry = lab.registry();
    let shared = lab.agent_over("s1", Arc::clone(&registry) as _).await;
    let ghost = GroupRecord {
        schema: SCHEMA,
        group: GROUP.parse().unwrap(),
        app: "old".parse().unwrap(),
        stamp: Stamp { incarnation: Incarnation(1), term: 1, index: 1 },
        sequence: 1,
        state: PhaseName::Removing,
        running: None,
        target: None,
        held_reason: None,
        since: 0,
    };
    let key = keys::group_record(&ghost.group, &ghost.app);
    let put = Op::put(&key, encode(&ghost));
    registry.txn(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
    let (handle, views, queue) = handle(with_web(lab.leading()));
    let (_away, times_away) = watch::channel(0);
    let task = tokio::spawn(run(shared, handle, times_away));
    next_proposal(&queue);
    assert!(registry.get(&key).is_none());
    drop((views, queue));
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_the_registry_did_not_take_is_not_acknowledged() {
    let lab = Lab::new().await;
    // Its registry is a hub that nobody runs.
    let shared = lab.agent("s1", None).await;
    let (handle, views, queue) = handle(with_web(lab.leading()));
    let (_away, times_away) = watch::channel(0);
    let task = tokio::spawn(run(shared, handle, times_away));
    // Many rounds, by the test's clock.
    tokio::time::sleep(super::LOOK_EVERY * 4).await;
    assert!(!task.is_finished());
    let told: Vec<_> = queue.try_iter().collect();
    let fails = |told: &Queued| {
        let Queued::Plain(Input::Errand { errand, ended }) = told else { return false };
        *errand == Errand::WriteRecords && ended.as_ref().is_err_and(HubFault::is_unreachable)
    };
    assert!(!told.is_empty() && told.iter().all(fails), "{told:?}");
    drop(views);
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_refused_is_told_and_does_not_hold_up_the_others() {
    let lab = Lab::new().await;
    let registry = lab.registry();
    let shared = lab.agent_over("s1", Arc::clone(&registry) as _).await;
    let damaged = Op::put(keys::members(&GROUP.parse().unwrap()), "{".to_owned());
    registry.txn(Txn { then: vec![damaged], ..Txn::default() }).await.unwrap();
    let (handle, views, queue) = handle(with_web(lab.leading()));
    let (_away, times_away) = watch::channel(0);
    let task = tokio::spawn(run(shared, handle, times_away));
    let command = next_proposal(&queue);
    assert!(matches!(command.body, Body::RecordWritten { .. }), "what comes after it: {command:?}");
    let Input::Errand { errand: Errand::WriteRecords, ended } = next_input(&queue) else {
        panic!()
    };
    assert!(matches!(ended, Err(HubFault::Damaged { .. })), "{ended:?}");
    forget_members(&registry).await;
    let mended = || match queue.recv_timeout(Duration::from_secs(20)).unwrap() {
        Queued::Plain(Input::Errand { ended, .. }) => ended.is_ok(),
        // The view never shows that it was acknowledged.
        Queued::Request(_, _, Waiter::Proposed(reply)) => {
            let _ = reply.send(Proposed::Done { index: 1, rejection: None });
            false
        }
        other => panic!("{other:?}"),
    };
    tokio::task::block_in_place(|| while !mended() {});
    drop((views, queue));
    task.await.unwrap();
}

/// The only voter was restored from an image: it leads, with a log that others have seen further.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_a_later_leader_is_told_and_not_taken_for_our_own() {
    let lab = Lab::new().await;
    let registry = lab.registry();
    let shared = lab.agent_over("s1", Arc::clone(&registry) as _).await;
    let leading = with_web(lab.leading());
    let (incarnation, term) = (leading.state.incarnation, leading.raft.term.0 + 1);
    let record = GroupRecord {
        schema: SCHEMA,
        group: GROUP.parse().unwrap(),
        app: web(),
        stamp: Stamp { incarnation, term, index: 900 },
        sequence: 9,
        state: PhaseName::Running,
        running: None,
        target: None,
        held_reason: None,
        since: 0,
    };
    let _ = write_group_record(&*registry, &record).await.unwrap();
    let (handle, views, queue) = handle(leading);
    let (_away, times_away) = watch::channel(0);
    let task = tokio::spawn(run(shared, handle, times_away));
    let Input::Errand { errand: Errand::WriteRecords, ended } = next_input(&queue) else {
        panic!("its record counts as written")
    };
    assert!(matches!(ended, Err(HubFault::Refused { .. })), "{ended:?}");
    drop((views, queue));
    task.await.unwrap();
}
