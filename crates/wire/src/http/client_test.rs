use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::{get, post};
use bytes::Bytes;
use cohort_identity::{Alpn, ClientAuth, Role};
use futures_util::{StreamExt, stream};
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::testing::{Fleet, Served, peer};
use super::{ApiError, Call, CallError, Caller, Handler, Target};
use crate::limits::ServerLimits;

const SHORT: Duration = Duration::from_millis(200);

fn routes() -> Router {
    Router::new()
        .route("/who", get(|Caller(peer): Caller| async move { axum::Json(peer) }))
        .route("/echo", post(|body: Bytes| async move { body }))
        .route(
            "/conflict",
            get(|| async {
                ApiError::conflict("it is paused already").hint("cohort rollout resume web")
            }),
        )
        .route("/starting", get(|| async { ApiError::unavailable("starting", "not yet") }))
        .route("/empty", get(|| async { StatusCode::BAD_GATEWAY }))
        .route("/never", get(std::future::pending::<()>))
        .route(
            "/endless",
            get(|| async {
                let chunks =
                    stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from(vec![0; 1024])));
                Body::from_stream(chunks)
            }),
        )
        .route("/large", get(|| async { vec![0_u8; 100_000] }))
}

async fn served() -> (Fleet, Served) {
    let fleet = Fleet::new();
    let served = fleet.serve(routes(), ServerLimits::default()).await;
    (fleet, served)
}

#[tokio::test]
async fn a_call_is_answered_to_the_one_who_asked() {
    let (fleet, served) = served().await;
    let client = fleet.client(Role::Operator, "ann");
    let seen: cohort_identity::Peer =
        client.call_json(&served.control(), Call::get("/who")).await.unwrap();
    assert_eq!(seen, peer(Role::Operator, "ann"));
    let sent = Call::post("/echo", &vec![1, 2, 3]);
    let echoed: Vec<u32> = client.call_json(&served.control(), sent).await.unwrap();
    assert_eq!(echoed, [1, 2, 3]);
}

#[tokio::test]
async fn connections_are_used_again() {
    let (fleet, served) = served().await;
    let client = fleet.client(Role::Agent, "web-2");
    let (address, connections) = counted(served.address).await;
    let target = Target { address, ..served.control() };
    for _ in 0..5 {
        client.call(&target, Call::get("/who")).await.unwrap();
    }
    assert_eq!((client.kept(), connections.load(Ordering::SeqCst)), (1, 1));
    client.forget_connections();
    client.call(&target, Call::get("/who")).await.unwrap();
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

/// An address that leads to `server`, and a count of connections made to it.
async fn counted(server: SocketAddr) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let mut far = TcpStream::connect(server).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    (address, connections)
}

#[tokio::test]
async fn few_connections_are_kept() {
    let (fleet, served) = served().await;
    let client = fleet.client(Role::Agent, "web-2");
    let target = served.control();
    let calls = (0..12).map(|_| client.call(&target, Call::get("/who")));
    for answer in futures_util::future::join_all(calls).await {
        answer.unwrap();
    }
    assert!((1..=4).contains(&client.kept()), "{}", client.kept());
}

#[tokio::test]
async fn error_answers_keep_kind_status_and_hints() {
    let (fleet, served) = served().await;
    let client = fleet.client(Role::Operator, "ann");
    let error = client.call(&served.control(), Call::get("/conflict")).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), ("conflict", Some(409)));
    assert_eq!(error.to_string(), "it is paused already");
    assert_eq!(error.hints(), ["cohort rollout resume web"]);
    // Responses in a foreign format are errors too.
    let error = client.call(&served.control(), Call::get("/empty")).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), ("http", Some(502)));
    let error = client.call(&served.control(), Call::get("/nowhere")).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), ("not_found", Some(404)));
    // An error response does not cost the connection.
    assert_eq!(client.kept(), 1);
}

#[tokio::test]
async fn an_endless_answer_is_cut_at_the_limit() {
    let (fleet, served) = served().await;
    let client = fleet.client(Role::Operator, "ann");
    let call = Call::get("/endless").response_bytes_max(10_000);
    let error = client.call(&served.control(), call).await.unwrap_err();
    assert!(matches!(error, CallError::TooLarge { bytes_max: 10_000, .. }), "{error}");
    // A response that announces too great a length is not read at all.
    let call = Call::get("/large").response_bytes_max(99_999);
    let error = client.call(&served.control(), call).await.unwrap_err();
    assert!(matches!(error, CallError::TooLarge { .. }), "{error}");
    // Neither connection can be reused.
    assert_eq!(client.kept(), 0);
    let call = Call::get("/large").response_bytes_max(100_000);
    assert_eq!(client.call(&served.control(), call).await.unwrap().len(), 100_000);
}

#[tokio::test]
async fn a_stream_is_read_piece_by_piece() {
    let (fleet, served) = served().await;
    let client = fleet.client(Role::Operator, "ann");
    let call = Call::get("/endless").response_bytes_max(u64::MAX);
    let mut answer = client.stream(&served.control(), call).await.unwrap();
    let mut bytes = 0;
    while bytes < 50_000 {
        bytes += answer.chunk().await.unwrap().unwrap().len();
    }
    // Dropped mid-body, its connection is gone.
    drop(answer);
    assert_eq!(client.kept(), 0);
    let mut answer = client.stream(&served.control(), Call::get("/large")).await.unwrap();
    assert_eq!(answer.length(), Some(100_000));
    let mut bytes = 0;
    while let Some(chunk) = answer.chunk().await.unwrap() {
        bytes += chunk.len();
    }
    assert_eq!(bytes, 100_000);
    assert_eq!(client.kept(), 1);
}

#[tokio::test]
async fn an_upload_is_sent_as_a_stream() {
    let fleet = Fleet::new();
    let count = |body: Body| async move {
        let mut chunks = body.into_data_stream();
        let mut bytes = 0;
        while let Some(chunk) = chunks.next().await {
            bytes += chunk.unwrap().len();
        }
        bytes.to_string()
    };
    let limits = ServerLimits {
        request_body_bytes_max: 1000,
        body_limits: vec![("/files/".to_owned(), 100_000_000)],
        ..ServerLimits::default()
    };
    let router = Router::new().route("/files/{name}", post(count));
    let served = fleet.serve(router, limits).await;
    let client = fleet.client(Role::Publisher, "ci");
    for length in [Some(5_000_000), None] {
        let chunks = stream::iter((0..50).map(|_| Ok(Bytes::from(vec![7; 100_000]))));
        let call = Call::new(http::Method::POST, "/files/a");
        let answer = client.upload(&served.control(), call, length, chunks).await.unwrap();
        assert_eq!(answer, "5000000");
    }
}

#[tokio::test]
async fn a_deadline_ends_a_call() {
    let (fleet, served) = served().await;
    let client = fleet.client(Role::Operator, "ann");
    let error =
        client.call(&served.control(), Call::get("/never").deadline(SHORT)).await.unwrap_err();
    assert!(matches!(error, CallError::TimedOut { sent: true, .. }), "{error}");
    assert!(error.may_have_happened());
    assert_eq!(client.kept(), 0);
}

#[tokio::test]
async fn nobody_there_and_nobody_answering_are_told_apart() {
    let fleet = Fleet::new();
    let client = fleet.client(Role::Operator, "ann");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let target = Target { address, peer: peer(Role::Agent, "web-1"), alpn: Alpn::Control };
    // A half-open peer: the kernel accepts the connection, but no process serves it.
    let call = || Call::get("/").deadline(SHORT);
    let error = client.call(&target, call()).await.unwrap_err();
    assert!(matches!(error, CallError::TimedOut { sent: false, .. }), "{error}");
    assert!(!error.may_have_happened());
    drop(listener);
    let error = client.call(&target, call()).await.unwrap_err();
    assert!(matches!(error, CallError::Refused { .. }), "{error}");
    let nowhere = Target { address: "no-port".to_owned(), ..target };
    let error = client.call(&nowhere, call()).await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn the_wrong_one_at_the_address_is_not_spoken_to() {
    let (fleet, served) = served().await;
    let stranger = Fleet::new().client(Role::Operator, "ann");
    let client = fleet.client(Role::Operator, "ann");
    let control = served.control();
    for (client, target) in [
        (&client, Target { peer: peer(Role::Agent, "web-2"), ..control.clone() }),
        (&client, Target { peer: peer(Role::Hub, "web-1"), ..control.clone() }),
        (&client, Target { alpn: Alpn::Bulk, ..control.clone() }),
        (&stranger, control),
    ] {
        let error = client.call(&target, Call::get("/who")).await.unwrap_err();
        assert!(matches!(error, CallError::Identity { .. }), "{target:?}: {error:?}");
        assert!(!error.may_have_happened());
    }
}

/// The server refuses a client of another authority that does not verify the server.
#[tokio::test]
async fn a_strangers_certificate_is_refused_by_the_server() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let served = ours.serve(routes(), ServerLimits::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let operator = theirs.identity(Role::Operator, "ann");
    operator.save(dir.path()).unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    // It trusts our authority in addition to its own.
    let both = format!("{}{}", ours.authority.certificate_pem(), read("ca.pem"));
    let identity =
        cohort_identity::Identity::from_pem(&read("cert.pem"), &read("key.pem"), &both).unwrap();
    let client = super::Client::new(crate::tls::IdentitySlot::new(identity));
    let error = client.call(&served.control(), Call::get("/who")).await.unwrap_err();
    assert!(matches!(error, CallError::Identity { .. }), "{error:?}");
}

#[tokio::test]
async fn who_joins_gets_in_without_a_certificate_where_that_is_allowed() {
    let fleet = Fleet::new();
    let who = |request: Request| async move {
        let peer = request.extensions().get::<cohort_identity::Peer>();
        peer.map_or("nobody".to_owned(), ToString::to_string)
    };
    let routes = || {
        let only_known = get(|Caller(peer): Caller| async move { peer.to_string() });
        let router = Router::new().route("/join", get(who)).route("/known", only_known);
        BTreeMap::from([(Alpn::Hub, Handler::Http(router))])
    };
    let slot = fleet.slot(Role::Hub, "hub");
    let limits = ServerLimits::default();
    let hub = Served::start(slot, ClientAuth::Optional, routes(), limits).await;
    let joining = super::Client::joining(&fleet.authority.fingerprint());
    let target = Target { peer: peer(Role::Hub, "any"), ..hub.target(Alpn::Hub) };
    let answer = joining.call(&target, Call::get("/join")).await.unwrap();
    assert_eq!(answer, "nobody");
    let error = joining.call(&target, Call::get("/known")).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), ("unauthenticated", Some(401)));
    // With a certificate, the caller has an identity.
    let client = fleet.client(Role::Agent, "web-1");
    let answer = client.call(&hub.target(Alpn::Hub), Call::get("/join")).await.unwrap();
    assert_eq!(answer, "agent `web-1`");
    // Another authority's fingerprint is refused.
    let misled = super::Client::joining(&Fleet::new().authority.fingerprint());
    let error = misled.call(&target, Call::get("/join")).await.unwrap_err();
    assert!(matches!(error, CallError::Identity { .. }), "{error:?}");
}

/// A server that responds to the first request of each connection, and closes it at the second.
async fn fickle(fleet: &Fleet) -> (Target, Arc<AtomicUsize>) {
    let identity = fleet.identity(Role::Agent, "web-1");
    let config =
        cohort_identity::server_config(&identity, &[Alpn::Control], ClientAuth::Required).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let requests = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&requests);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, seen) = (TlsAcceptor::from(Arc::clone(&config)), Arc::clone(&seen));
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut buffer = [0; 4096];
                for answer in [true, false] {
                    if stream.read(&mut buffer).await.unwrap() == 0 {
                        return;
                    }
                    seen.fetch_add(1, Ordering::SeqCst);
                    if answer {
                        let text = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        stream.write_all(text).await.unwrap();
                    }
                }
            });
        }
    });
    (Target { address, peer: peer(Role::Agent, "web-1"), alpn: Alpn::Control }, requests)
}

#[tokio::test]
async fn only_what_is_harmless_is_sent_twice() {
    let fleet = Fleet::new();
    let client = fleet.client(Role::Agent, "web-2");
    let (target, requests) = fickle(&fleet).await;
    // First connection: the first request gets a response, the second hits the close and uses a new
    // one.
    for _ in 0..2 {
        assert_eq!(client.call(&target, Call::get("/")).await.unwrap(), "ok");
    }
    assert_eq!(requests.load(Ordering::SeqCst), 3);
    // A POST that hit the close may have taken effect: it is not sent again, and the caller gets an
    // error.
    let error = client.call(&target, Call::post("/", &1)).await.unwrap_err();
    assert!(matches!(error, CallError::Broken { .. }), "{error:?}");
    assert!(error.may_have_happened());
    assert_eq!(requests.load(Ordering::SeqCst), 4);
    // Unless the caller declares that sending it twice is harmless.
    client.call(&target, Call::post("/", &1)).await.unwrap();
    client.call(&target, Call::post("/", &1).idempotent()).await.unwrap();
    assert_eq!(requests.load(Ordering::SeqCst), 7);
}

#[tokio::test]
async fn a_renewed_identity_is_used_by_both_sides_without_a_restart() {
    let fleet = Fleet::new();
    let served = fleet.serve(routes(), ServerLimits::default()).await;
    let slot = fleet.slot(Role::Agent, "web-2");
    let client = super::Client::new(Arc::clone(&slot));
    client.call(&served.control(), Call::get("/who")).await.unwrap();
    // All peers move to another authority; existing connections continue, new ones use the new
    // identity.
    let next = Fleet::new();
    served.slot.replace(next.identity(Role::Agent, "web-1"));
    client.call(&served.control(), Call::get("/who")).await.unwrap();
    client.forget_connections();
    let error = client.call(&served.control(), Call::get("/who")).await.unwrap_err();
    assert!(matches!(error, CallError::Identity { .. }), "{error:?}");
    slot.replace(next.identity(Role::Agent, "web-2"));
    client.call(&served.control(), Call::get("/who")).await.unwrap();
}

#[tokio::test]
async fn the_next_address_is_called_only_where_that_is_harmless() {
    let (fleet, served) = served().await;
    let client = fleet.client(Role::Operator, "ann");
    let nowhere = Target { address: "no-port".to_owned(), ..served.control() };
    let stranger = Target { peer: peer(Role::Agent, "web-2"), ..served.control() };
    let targets = [nowhere.clone(), served.control(), stranger];
    for first in 0..3 {
        let asked = client.call_any::<u8>(&targets, first, Call::post("/echo", &7)).await;
        assert_eq!(asked.unwrap(), (1, 7), "from {first}");
    }
    // A refusal is final, and so is the failure of a request that may have been carried out.
    let error = client.call_any::<u8>(&targets, 0, Call::get("/conflict")).await.unwrap_err();
    assert_eq!(error.status(), Some(409));
    let once = Call { idempotent: false, ..Call::get("/starting") };
    let error = client.call_any::<u8>(&targets[1..], 0, once).await.unwrap_err();
    assert_eq!(error.status(), Some(503));
    // A response says more than silence: of two addresses that are away, the one that said so.
    let away = [served.control(), nowhere];
    let error = client.call_any::<u8>(&away, 0, Call::get("/starting")).await.unwrap_err();
    assert_eq!(error.status(), Some(503));
    let error = client.call_any::<u8>(&[], 0, Call::get("/who")).await.unwrap_err();
    assert!(matches!(error, CallError::Request { .. }), "{error}");
}
