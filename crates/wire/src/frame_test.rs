use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cohort_core::ids::{GroupId, Incarnation, ServerId};
use cohort_identity::{Alpn, ClientAuth, Peer, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::http::Handler;
use crate::http::testing::{Fleet, Served, peer};
use crate::limits::ServerLimits;

const PATIENCE: Duration = Duration::from_secs(10);

fn server(name: &str) -> ServerId {
    ServerId::new(name).unwrap()
}

fn group() -> GroupId {
    GroupId::new("web.zone-a").unwrap()
}

fn hello(connection: u64) -> Hello {
    Hello {
        group: group(),
        incarnation: Incarnation(3),
        from: server("one"),
        to: server("two"),
        life: 1,
        connection,
    }
}

fn one() -> Peer {
    peer(Role::Agent, "one")
}

async fn accept(
    stream: DuplexStream,
    peer: Peer,
    connections: &Connections,
) -> Result<FrameReceiver<DuplexStream>, FrameError> {
    let me = server("two");
    FrameReceiver::accept(stream, &peer, &me, &group(), Incarnation(3), connections).await
}

/// Two ends after their greetings.
async fn pair(
    connection: u64,
    connections: &Connections,
) -> (FrameSender<DuplexStream>, FrameReceiver<DuplexStream>) {
    let (near, far) = duplex(64 * 1024);
    let hello = hello(connection);
    let (dialled, accepted) =
        tokio::join!(FrameSender::dial_over(near, &hello), accept(far, one(), connections));
    (dialled.unwrap(), accepted.unwrap())
}

async fn received(far: &mut FrameReceiver<DuplexStream>) -> Result<Option<Bytes>, FrameError> {
    timeout(PATIENCE, far.recv()).await.unwrap()
}

#[tokio::test]
async fn messages_arrive_whole_and_in_order() {
    let (mut near, mut far) = pair(1, &Connections::default()).await;
    assert_eq!(far.hello, hello(1));
    let sizes = [0, 1, 100, 65_535, 65_536, 1_000_000];
    let messages: Vec<Bytes> =
        sizes.iter().zip(0..).map(|(size, fill)| Bytes::from(vec![fill; *size])).collect();
    let sent = messages.clone();
    let sending = tokio::spawn(async move {
        near.send(sent.clone()).await.unwrap();
        for message in sent {
            near.send([message]).await.unwrap();
        }
        near
    });
    for message in messages.iter().chain(&messages) {
        assert_eq!(received(&mut far).await.unwrap().unwrap(), message);
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn over_real_connections_with_the_certificates_name() {
    let fleet = Fleet::new();
    let (got, mut messages) = mpsc::channel(10);
    let connections = Arc::new(Connections::default());
    let handler = Handler::raw(move |peer, stream| {
        let (got, connections) = (got.clone(), Arc::clone(&connections));
        async move {
            let (me, group) = (server("two"), group());
            let accepted =
                FrameReceiver::accept(stream, &peer, &me, &group, Incarnation(3), &connections);
            let Ok(mut connection) = accepted.await else { return };
            while let Ok(Some(message)) = connection.recv().await {
                got.send(message).await.unwrap();
            }
        }
    });
    let routes = [(Alpn::Raft, handler)].into();
    let slot = fleet.slot(Role::Agent, "two");
    let served = Served::start(slot, ClientAuth::Required, routes, ServerLimits::default()).await;
    let target = served.target(Alpn::Raft);
    let client = fleet.client(Role::Agent, "one");
    let mut connection = FrameSender::connect(&client, &target, &hello(1)).await.unwrap();
    connection.send([Bytes::from_static(b"vote")]).await.unwrap();
    assert_eq!(timeout(PATIENCE, messages.recv()).await.unwrap().unwrap(), "vote");
    // Another server, or an operator, cannot speak as `one`.
    for (role, name) in [(Role::Agent, "three"), (Role::Operator, "one")] {
        let client = fleet.client(role, name);
        let refused = FrameSender::connect(&client, &target, &hello(9)).await;
        assert!(matches!(refused, Err(FrameError::Refused { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn hellos_for_somebody_else_are_refused_and_told_why() {
    let connections = Connections::default();
    for (wrong, word) in [
        (Hello { to: server("three"), ..hello(1) }, "three"),
        (Hello { from: server("three"), ..hello(1) }, "certificate"),
        (Hello { group: GroupId::new("db").unwrap(), ..hello(1) }, "db"),
        (Hello { incarnation: Incarnation(2), ..hello(1) }, "incarnation"),
    ] {
        let (near, far) = duplex(4096);
        let (dialled, accepted) =
            tokio::join!(FrameSender::dial_over(near, &wrong), accept(far, one(), &connections));
        for end in [dialled.map(drop), accepted.map(drop)] {
            let Err(FrameError::Refused { reason }) = end else { panic!("{end:?}") };
            assert!(reason.contains(word), "{reason}");
        }
    }
    // None of them displaced a good one.
    pair(1, &connections).await;
}

#[tokio::test]
async fn a_newer_connection_supersedes_and_an_older_is_refused() {
    let connections = Connections::default();
    let (mut old_near, mut old_far) = pair(connection_number(1, 7), &connections).await;
    let (mut near, mut far) = pair(connection_number(2, 0), &connections).await;
    assert_eq!(received(&mut old_far).await.unwrap(), None, "the receiver ends the older one");
    drop(old_far);
    timeout(PATIENCE, old_near.closed()).await.expect("its dialler notices");
    for late in [connection_number(1, 8), connection_number(2, 0)] {
        let (near, far) = duplex(4096);
        let late = hello(late);
        let (dialled, accepted) =
            tokio::join!(FrameSender::dial_over(near, &late), accept(far, one(), &connections));
        assert!(matches!(dialled, Err(FrameError::Refused { .. })), "{dialled:?}");
        assert!(accepted.is_err());
    }
    near.send([Bytes::from_static(b"on")]).await.unwrap();
    assert_eq!(received(&mut far).await.unwrap().unwrap(), "on");
}

#[tokio::test]
async fn each_end_notices_when_the_other_is_gone() {
    let (mut near, mut far) = pair(1, &Connections::default()).await;
    near.send([Bytes::from_static(b"last words")]).await.unwrap();
    drop(near);
    assert_eq!(received(&mut far).await.unwrap().unwrap(), "last words");
    assert_eq!(received(&mut far).await.unwrap(), None);
    let (mut near, far) = pair(1, &Connections::default()).await;
    drop(far);
    timeout(PATIENCE, near.closed()).await.unwrap();
    let sent = near.send([Bytes::from_static(b"nobody")]).await;
    assert!(matches!(sent, Err(FrameError::Broken(_))), "{sent:?}");
}

#[tokio::test]
async fn a_message_that_is_too_large_is_not_sent() {
    let (mut near, _far) = pair(1, &Connections::default()).await;
    let sent = near.send([Bytes::from(vec![0; FRAME_BYTES_MAX])]).await;
    assert!(matches!(sent, Err(FrameError::TooLarge { .. })), "{sent:?}");
}

/// Sends the greeting by hand, then `bytes`; returns the receiver's result.
async fn after_hello(bytes: &[u8]) -> Result<Option<Bytes>, FrameError> {
    let connections = Connections::default();
    let (mut near, far) = duplex(64 * 1024);
    write_greeting(&mut near, &hello(1)).await.unwrap();
    let mut accepted = accept(far, one(), &connections).await.unwrap();
    near.write_all(bytes).await.unwrap();
    near.shutdown().await.unwrap();
    received(&mut accepted).await
}

#[tokio::test]
async fn bad_frames_are_refused() {
    let good = after_hello(&[0, 0, 0, 3, 1, 7, 8]).await;
    assert_eq!(good.unwrap().unwrap(), [7, 8].as_slice());
    let version = after_hello(&[0, 0, 0, 3, 2, 7, 8]).await;
    assert!(matches!(version, Err(FrameError::Version { version: 2 })), "{version:?}");
    let empty = after_hello(&[0, 0, 0, 0]).await;
    assert!(matches!(empty, Err(FrameError::Empty)), "{empty:?}");
    let large = after_hello(&[0xff, 0xff, 0xff, 0xff, 1]).await;
    assert!(matches!(large, Err(FrameError::FrameTooLarge)), "{large:?}");
    let cut = after_hello(&[0, 0, 0, 9, 1, 7]).await;
    assert!(matches!(cut, Err(FrameError::Broken(_))), "{cut:?}");
    assert!(matches!(after_hello(&[]).await, Ok(None)));
}

#[tokio::test]
async fn bad_greetings_are_refused() {
    let connections = Connections::default();
    for bytes in [
        b"\x00\x00\x00\x03\x01{}".as_slice(),
        b"\x00\x00\x00\x01\x01",
        b"\x00\x00\x20\x00\x01",
        b"GET / HTTP/1.1\r\n\r\n",
        b"",
    ] {
        let (mut near, far) = duplex(64 * 1024);
        near.write_all(bytes).await.unwrap();
        near.shutdown().await.unwrap();
        let accepted = timeout(PATIENCE, accept(far, one(), &connections)).await.unwrap();
        assert!(accepted.is_err(), "{bytes:?}");
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
    }
}

#[tokio::test]
async fn a_silent_peer_is_given_up() {
    let connections = Connections::default();
    let ((_near, far), (near, _far)) = (duplex(4096), duplex(4096));
    let hello = hello(1);
    let (accepted, dialled) =
        tokio::join!(accept(far, one(), &connections), FrameSender::dial_over(near, &hello));
    assert!(matches!(accepted, Err(FrameError::HelloTimedOut)), "{accepted:?}");
    assert!(matches!(dialled, Err(FrameError::HelloTimedOut)), "{dialled:?}");
}

#[test]
fn frames_and_greetings_are_held() {
    let hello = Hello {
        group: "web.zone-a".parse().unwrap(),
        incarnation: Incarnation(16),
        from: "web-1".parse().unwrap(),
        to: "web-2".parse().unwrap(),
        life: 5,
        connection: connection_number(3, 1),
    };
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    cohort_base::golden::hold(&golden.join("hello.jsonl"), &[hello]);
    let refused = Welcome::Refused { reason: "this is web-3".to_owned() };
    cohort_base::golden::hold(&golden.join("welcome.jsonl"), &[Welcome::Welcome, refused]);
    let framed = |payload: &[u8]| {
        let mut batch = BytesMut::new();
        put_frame(&mut batch, payload);
        hex::encode(batch)
    };
    cohort_base::golden::hold(&golden.join("frames.jsonl"), &[framed(b""), framed(b"raft")]);
}
