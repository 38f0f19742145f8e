use std::sync::Arc;
use std::sync::mpsc::Receiver;

use cohort_consensus::{Configuration, Envelope, Index, Message, RaftId, Snapshot, Term};
use cohort_core::ids::{Incarnation, MemberId};
use cohort_core::orders::MemberAddress;
use cohort_identity::Alpn;
use cohort_server::member::Input;
use cohort_wire::frame::{Connections, FrameReceiver};
use cohort_wire::http::Handler;
use tokio::runtime::Handle;

use super::{Net, QUEUE_BYTES_MAX, Senders, take};
use crate::member::{Inputs, Queued};
use crate::shared::Shared;
use crate::testing::{GROUP, Lab, next_input};

fn member(number: u64, server: &str, address: &str) -> MemberAddress {
    let (server, address) = (server.parse().unwrap(), address.to_owned());
    MemberAddress { server, address, member: MemberId(number) }
}

/// From member 1 to member 2.
fn envelope(sequence: u64) -> Envelope {
    Envelope {
        group: GROUP.to_owned(),
        incarnation: 1,
        from: RaftId(1),
        to: RaftId(2),
        life: 1,
        written: 1,
        session: 1,
        sequence,
        message: Message::TakeOver { term: Term(sequence) },
    }
}

fn net(shared: &Arc<Shared>) -> (Net, Receiver<Queued>) {
    let (inputs, queue) = Inputs::queue();
    (Net { shared: Arc::clone(shared), incarnation: Incarnation(1), inputs }, queue)
}

/// Member 1 on `s1`, which sends, and member 2 on `s2`, which takes.
struct Pair {
    lab: Lab,
    sender: Arc<Shared>,
    taker: Arc<Shared>,
    senders: Senders,
    at_sender: Receiver<Queued>,
    at_taker: Receiver<Queued>,
}

async fn pair() -> Pair {
    let lab = Lab::new().await;
    let (sender, taker) = (lab.agent("s1", None).await, lab.agent("s2", None).await);
    let ((sends, at_sender), (takes, at_taker)) = (net(&sender), net(&taker));
    let newest = Arc::new(Connections::default());
    let handler = Handler::raw(move |peer, stream| {
        let (takes, newest) = (takes.clone(), Arc::clone(&newest));
        async move { take(takes, newest, peer, stream).await }
    });
    let address = lab.serve("s2", Alpn::Raft, handler).await;
    sender.book.lock().learn(&[member(2, "s2", &address)]);
    taker.book.lock().learn(&[member(1, "s1", "unused")]);
    let senders = Senders::new(sends, Handle::current());
    Pair { lab, sender, taker, senders, at_sender, at_taker }
}

fn received(queue: &Receiver<Queued>) -> Envelope {
    match next_input(queue) {
        Input::Received(envelope) => *envelope,
        other => panic!("no message: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_arrive_in_order_on_the_first_connection() {
    let mut pair = pair().await;
    let sent: Vec<Envelope> = (1..=20).map(envelope).collect();
    for envelope in &sent {
        pair.senders.send(envelope);
    }
    for envelope in &sent {
        assert_eq!(received(&pair.at_taker), *envelope);
    }
    assert!(pair.at_sender.try_recv().is_err(), "nothing to report about a first connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_speaks_for_another_member_and_what_was_for_a_broken_connection_is_void() {
    let mut pair = pair().await;
    pair.taker.book.lock().learn(&[member(1, "s3", "unused")]);
    pair.senders.send(&envelope(1));
    assert!(matches!(next_input(&pair.at_sender), Input::Unreachable(RaftId(2))));
    assert!(pair.at_taker.try_recv().is_err(), "member 1 is on s3");
    pair.taker.book.lock().learn(&[member(1, "s1", "unused")]);
    // The sender dials again on its own, to learn whether the peer lives.
    assert!(matches!(next_input(&pair.at_sender), Input::Connected(RaftId(2))));
    pair.senders.send(&envelope(3));
    assert_eq!(received(&pair.at_taker).sequence, 3, "the first message is void");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_cannot_be_reached_is_reported() {
    let mut pair = pair().await;
    for nowhere in ["127.0.0.1:1", "not an address"] {
        pair.sender.book.lock().learn(&[member(2, "s2", nowhere)]);
        pair.senders.send(&envelope(1));
        assert!(matches!(next_input(&pair.at_sender), Input::Unreachable(RaftId(2))));
    }
    let to_nobody = Envelope { to: RaftId(7), ..envelope(1) };
    pair.senders.send(&to_nobody);
    assert!(matches!(next_input(&pair.at_sender), Input::Unreachable(RaftId(7))));
}

/// A peer that takes the connection and reads nothing more.
async fn deaf(peer: cohort_identity::Peer, stream: cohort_wire::tls::ServerStream) {
    let (me, group) = ("s2".parse().unwrap(), GROUP.parse().unwrap());
    let newest = Connections::default();
    let accepted = FrameReceiver::accept(stream, &peer, &me, &group, Incarnation(1), &newest).await;
    let _open = accepted.unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_peer_that_does_not_read_is_bounded() {
    let mut pair = pair().await;
    let address = pair.lab.serve("s2", Alpn::Raft, Handler::raw(deaf)).await;
    pair.sender.book.lock().learn(&[member(2, "s2", &address)]);
    let large = Snapshot {
        index: Index(1),
        term: Term(1),
        configuration: Configuration::of([RaftId(1)], []),
        data: vec![0; 1 << 20],
    };
    let message = Message::Snapshot { term: Term(1), snapshot: large };
    let envelope = Envelope { message, ..envelope(1) };
    let mut sent = 0;
    while pair.at_sender.try_recv().is_err() {
        pair.senders.send(&envelope);
        sent += 1;
        assert!(sent < 1_000, "the queue has no end");
    }
    // The queue, and what the task and the kernel have taken from it.
    assert!(sent >= QUEUE_BYTES_MAX >> 20, "{sent}");
}
