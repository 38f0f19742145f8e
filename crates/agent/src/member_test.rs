use std::sync::mpsc::TryRecvError;

use cohort_consensus::{RaftId, TransferError};
use cohort_core::Body;
use cohort_core::ids::MemberId;
use cohort_server::member::{Input, Proposed, TransferFailure};

use super::{INPUTS_MAX, Inputs, Queued};
use crate::shared::Shared;
use crate::testing::{Lab, add, server};

fn unreachable(id: u64) -> Input {
    Input::Unreachable(RaftId(id))
}

#[tokio::test]
async fn every_request_gets_its_own_outcome_and_a_later_read_shows_it() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let handle = lab.carry(&shared).await;
    let propose = |body: Body| {
        handle.inputs.propose(Shared::command(&handle, "test".to_owned(), None, body)).unwrap()
    };
    // All at once: the outcomes of one step are told apart by their tickets.
    let missing = Body::RemoveServer { server: server("s9") };
    let (added, refused) = (propose(add("s2")), propose(missing));
    let read = handle.inputs.read().unwrap();
    let claim = handle.inputs.claim(server("s9"), MemberId(9)).unwrap();
    let transfer = handle.inputs.transfer(Some(RaftId(9))).unwrap();
    let added = added.await.unwrap();
    let view = shared.fresh(&handle).await.unwrap();
    assert!(view.state.servers.contains_key(&server("s2")));
    assert!(matches!(added, Proposed::Done { rejection: None, .. }), "{added:?}");
    let refused = refused.await.unwrap();
    assert!(matches!(refused, Proposed::Done { rejection: Some(_), .. }), "{refused:?}");
    assert!(read.await.unwrap());
    assert_eq!(claim.await.unwrap(), Some(false));
    let refused = TransferError::NotAVoter(RaftId(9));
    assert_eq!(transfer.await.unwrap(), Err(TransferFailure::Refused(refused)));
}

#[tokio::test]
async fn a_stop_is_answered_and_ends_the_thread_and_then_nothing_is_taken() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let mut handle = lab.carry(&shared).await;
    handle.inputs.stop().await.unwrap().await.unwrap();
    handle.ended.wait_for(|ended| *ended).await.unwrap();
    assert!(handle.inputs.read().is_none());
    assert!(!handle.inputs.put(unreachable(2)).await);
    assert!(handle.inputs.stop().await.is_none());
}

#[tokio::test]
async fn a_member_that_nobody_can_reach_any_more_ends() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let mut ended = lab.carry(&shared).await.ended;
    shared.member.send_replace(None);
    ended.wait_for(|ended| *ended).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_requests_and_drops_offers_but_not_what_must_not_get_lost() {
    let (inputs, queue) = Inputs::queue();
    for _ in 0..INPUTS_MAX {
        inputs.offer(unreachable(1));
    }
    inputs.offer(unreachable(2));
    assert!(inputs.read().is_none());
    let putting = tokio::spawn({
        let inputs = inputs.clone();
        async move { inputs.put(unreachable(3)).await }
    });
    tokio::time::advance(super::FULL_PAUSE * 10).await;
    assert!(!putting.is_finished());
    let mut taken = vec![queue.try_recv().unwrap()];
    assert!(putting.await.unwrap());
    taken.extend(std::iter::from_fn(|| queue.try_recv().ok()));
    let of = |id: u64| {
        let one = |queued: &&Queued| match queued {
            Queued::Plain(Input::Unreachable(RaftId(one))) => *one == id,
            _ => false,
        };
        taken.iter().filter(one).count()
    };
    assert_eq!((of(1), of(2), of(3)), (INPUTS_MAX, 0, 1));
    assert_eq!(queue.try_recv().err(), Some(TryRecvError::Empty));
}
