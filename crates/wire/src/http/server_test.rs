use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use bytes::Bytes;
use cohort_identity::{Alpn, ClientAuth, Role, client_config};
use http::header;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::testing::{Fleet, Served, until};
use super::{ApiJson, Call, CallError, Handler, require_role, serve_plain};
use crate::limits::ServerLimits;
use crate::tls::ClientStream;

const PATIENCE: Duration = Duration::from_secs(10);

/// A raw TLS stream to a server, to send what no proper client would.
async fn raw(fleet: &Fleet, served: &Served) -> ClientStream {
    let identity = fleet.identity(Role::Agent, "web-2");
    let config = client_config(&identity, Alpn::Control).unwrap();
    let stream = TcpStream::connect(served.address).await.unwrap();
    let name = served.slot.current().peer().server_name();
    TlsConnector::from(config).connect(name, stream).await.unwrap()
}

/// Everything until the server closes, which it must do in time.
async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut all = Vec::new();
    // A reset counts as an end too.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("it was not closed");
    String::from_utf8_lossy(&all).into_owned()
}

fn echo() -> Router {
    Router::new()
        .route("/", get(|| async { "here" }))
        .route("/echo", post(|body: Bytes| async move { body }))
        .route("/json", post(|ApiJson(number): ApiJson<u32>| async move { number.to_string() }))
}

#[tokio::test]
async fn roles_are_enforced() {
    let fleet = Fleet::new();
    let guarded = require_role(
        Router::new().route("/kill", post(|| async { "done" })),
        &[Role::Operator, Role::Publisher],
    );
    let served = fleet.serve(guarded.merge(echo()), ServerLimits::default()).await;
    let kill = || Call::post("/kill", &());
    for (role, allowed) in [
        (Role::Operator, true),
        (Role::Publisher, true),
        (Role::Viewer, false),
        (Role::Agent, false),
        (Role::Hub, false),
    ] {
        let client = fleet.client(role, "somebody");
        let answer = client.call(&served.control(), kill()).await;
        match answer {
            Ok(answer) => assert!(allowed && answer == "done", "{role}"),
            Err(error) => {
                assert!(!allowed, "{role}: {error}");
                assert_eq!((error.kind(), error.status()), ("forbidden", Some(403)));
                assert!(error.to_string().contains("operator or publisher"), "{error}");
                assert!(!error.hints().is_empty());
            }
        }
        // Routes without a required role admit every peer.
        client.call(&served.control(), Call::get("/")).await.unwrap();
    }
}

#[tokio::test]
async fn bodies_are_limited_whether_they_say_their_length_or_not() {
    let fleet = Fleet::new();
    let limits = ServerLimits { request_body_bytes_max: 1000, ..ServerLimits::default() };
    let served = fleet.serve(echo(), limits).await;
    let client = fleet.client(Role::Agent, "web-2");
    let call = |bytes: usize| Call::new(http::Method::POST, "/echo").bytes(vec![0; bytes]);
    client.call(&served.control(), call(1000)).await.unwrap();
    let error = client.call(&served.control(), call(1001)).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), ("too_large", Some(413)));
    let chunks = futures_util::stream::iter((0..11).map(|_| Ok(Bytes::from(vec![0; 100]))));
    let call = Call::new(http::Method::POST, "/echo");
    let error = client.upload(&served.control(), call, None, chunks).await.unwrap_err();
    assert_eq!(error.status(), Some(413), "{error:?}");
}

#[tokio::test]
async fn what_is_wrong_with_a_body_is_said() {
    let fleet = Fleet::new();
    let served = fleet.serve(echo(), ServerLimits::default()).await;
    let client = fleet.client(Role::Agent, "web-2");
    let answer = client.call(&served.control(), Call::post("/json", &7)).await.unwrap();
    assert_eq!(answer, "7");
    let error = client.call(&served.control(), Call::post("/json", &"seven")).await.unwrap_err();
    assert_eq!(error.kind(), "bad_request");
}

#[tokio::test]
async fn headers_are_limited_in_size_and_number() {
    let fleet = Fleet::new();
    let limits =
        ServerLimits { header_bytes_max: 2000, headers_max: 10, ..ServerLimits::default() };
    let served = fleet.serve(echo(), limits).await;
    let large = format!("GET / HTTP/1.1\r\nhost: x\r\nlarge: {}\r\n\r\n", "x".repeat(3000));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(20));
    for request in [large, many] {
        let mut stream = raw(&fleet, &served).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
}

#[tokio::test]
async fn slow_headers_slow_bodies_and_slow_handshakes_are_cut_off() {
    let fleet = Fleet::new();
    let short = Duration::from_millis(100);
    let limits = ServerLimits {
        header_read_timeout: short,
        body_idle_timeout: short,
        handshake_timeout: short,
        ..ServerLimits::default()
    };
    let served = fleet.serve(echo(), limits).await;
    // Sends nothing at all, not even TLS.
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    assert_eq!(rest(&mut silent).await, "");
    // Completes the handshake, then stops mid-headers.
    let mut stream = raw(&fleet, &served).await;
    stream.write_all(b"GET / HTTP/1.1\r\nho").await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    // Stops mid-body.
    let mut stream = raw(&fleet, &served).await;
    let half = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf";
    stream.write_all(half).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn connections_of_one_peer_are_limited_and_it_is_told() {
    let fleet = Fleet::new();
    let limits = ServerLimits { connections_per_peer_max: 2, ..ServerLimits::default() };
    let served = fleet.serve(echo(), limits).await;
    let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = raw(&fleet, &served).await;
        stream.write_all(request).await.unwrap();
        let mut start = [0; 15];
        stream.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 200 OK");
        held.push(stream);
    }
    let mut third = raw(&fleet, &served).await;
    third.write_all(request).await.unwrap();
    let answer = rest(&mut third).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    // Others are not affected, nor is this peer once it has let go.
    let other = fleet.client(Role::Agent, "web-3");
    other.call(&served.control(), Call::get("/")).await.unwrap();
    held.clear();
    let client = fleet.client(Role::Agent, "web-2");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while client.call(&served.control(), Call::get("/")).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "its connections are still counted");
    }
}

#[tokio::test]
async fn all_connections_are_limited() {
    let fleet = Fleet::new();
    let limits = ServerLimits { connections_max: 1, ..ServerLimits::default() };
    let served = fleet.serve(echo(), limits).await;
    let first = fleet.client(Role::Agent, "web-2");
    first.call(&served.control(), Call::get("/")).await.unwrap();
    let mut second = TcpStream::connect(served.address).await.unwrap();
    assert_eq!(rest(&mut second).await, "");
    // An established connection stays.
    first.call(&served.control(), Call::get("/")).await.unwrap();
}

#[tokio::test]
async fn handshakes_are_limited() {
    let fleet = Fleet::new();
    let limits = ServerLimits { handshakes_max: 1, ..ServerLimits::default() };
    let served = fleet.serve(echo(), limits).await;
    let inside = fleet.client(Role::Agent, "web-2");
    inside.call(&served.control(), Call::get("/")).await.unwrap();
    let _dawdling = TcpStream::connect(served.address).await.unwrap();
    let mut second = TcpStream::connect(served.address).await.unwrap();
    assert_eq!(rest(&mut second).await, "");
    inside.call(&served.control(), Call::get("/")).await.unwrap();
}

#[tokio::test]
async fn too_many_requests_at_once_are_told_to_come_back() {
    let fleet = Fleet::new();
    let (arrived, go_on) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let handler = {
        let (arrived, go_on) = (Arc::clone(&arrived), Arc::clone(&go_on));
        move || async move {
            arrived.add_permits(1);
            go_on.notified().await;
            "late"
        }
    };
    let router = echo().route("/slow", get(handler));
    let limits = ServerLimits { requests_max: 1, ..ServerLimits::default() };
    let served = fleet.serve(router, limits).await;
    let client = fleet.client(Role::Agent, "web-2");
    let slow = tokio::spawn({
        let (client, target) = (client.clone(), served.control());
        async move { client.call(&target, Call::get("/slow")).await }
    });
    arrived.acquire().await.unwrap().forget();
    let error = client.call(&served.control(), Call::get("/")).await.unwrap_err();
    assert_eq!((error.kind(), error.status()), ("overloaded", Some(503)));
    go_on.notify_one();
    assert_eq!(slow.await.unwrap().unwrap(), "late");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while client.call(&served.control(), Call::get("/")).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the request is still counted");
    }
}

#[tokio::test]
async fn a_stop_lets_requests_in_progress_end_and_closes_the_rest() {
    let fleet = Fleet::new();
    let (arrived, go_on) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let handler = {
        let (arrived, go_on) = (Arc::clone(&arrived), Arc::clone(&go_on));
        move || async move {
            arrived.add_permits(1);
            go_on.notified().await;
            "finished"
        }
    };
    let router = echo().route("/slow", get(handler));
    let mut served = fleet.serve(router, ServerLimits::default()).await;
    let idle = fleet.client(Role::Agent, "web-3");
    idle.call(&served.control(), Call::get("/")).await.unwrap();
    let client = fleet.client(Role::Agent, "web-2");
    let slow = tokio::spawn({
        let target = served.control();
        async move { client.call(&target, Call::get("/slow")).await }
    });
    arrived.acquire().await.unwrap().forget();
    served.shutdown.cancel();
    let target = served.control();
    until("the port is closed", || std::net::TcpStream::connect(served.address).is_err()).await;
    let error = idle.call(&target, Call::get("/")).await.unwrap_err();
    assert!(matches!(error, CallError::Refused { .. }), "{error:?}");
    go_on.notify_one();
    assert_eq!(slow.await.unwrap().unwrap(), "finished");
    timeout(PATIENCE, &mut served.task).await.expect("the server ends").unwrap();
}

#[tokio::test]
async fn a_request_that_does_not_end_does_not_hold_up_a_stop() {
    let fleet = Fleet::new();
    let arrived = Arc::new(Semaphore::new(0));
    let handler = {
        let arrived = Arc::clone(&arrived);
        move || async move {
            arrived.add_permits(1);
            std::future::pending::<()>().await;
        }
    };
    let limits =
        ServerLimits { shutdown_grace: Duration::from_millis(50), ..ServerLimits::default() };
    let mut served = fleet.serve(Router::new().route("/never", get(handler)), limits).await;
    let client = fleet.client(Role::Agent, "web-2");
    let target = served.control();
    let call = tokio::spawn(async move { client.call(&target, Call::get("/never")).await });
    arrived.acquire().await.unwrap().forget();
    served.shutdown.cancel();
    timeout(PATIENCE, &mut served.task).await.expect("the server ends").unwrap();
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Broken { .. }), "{error:?}");
}

#[tokio::test]
async fn raw_protocols_share_the_port() {
    let fleet = Fleet::new();
    let handler = Handler::raw(|peer, mut stream| async move {
        let text = format!("hello {peer}");
        let _ = stream.write_all(text.as_bytes()).await;
        let _ = stream.shutdown().await;
    });
    let routes = BTreeMap::from([(Alpn::Raft, handler), (Alpn::Control, Handler::Http(echo()))]);
    let slot = fleet.slot(Role::Agent, "web-1");
    let served = Served::start(slot, ClientAuth::Required, routes, ServerLimits::default()).await;
    let client = fleet.client(Role::Agent, "web-2");
    let mut stream = client.open(&served.target(Alpn::Raft)).await.unwrap();
    assert_eq!(rest(&mut stream).await, "hello agent `web-2`");
    client.call(&served.control(), Call::get("/")).await.unwrap();
}

#[tokio::test]
async fn plain_http_has_the_same_limits() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let limits = ServerLimits {
        request_body_bytes_max: 10,
        header_read_timeout: Duration::from_millis(100),
        ..ServerLimits::default()
    };
    let task = tokio::spawn(serve_plain(listener, echo(), limits, shutdown.clone()));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "200 OK"),
        ("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\n", "413"),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        let connection = header::CONNECTION.as_str();
        assert!(answer.contains(&format!("{connection}: close")), "{answer}");
    }
    let mut silent = TcpStream::connect(address).await.unwrap();
    rest(&mut silent).await;
    shutdown.cancel();
    timeout(PATIENCE, task).await.expect("the server ends").unwrap();
}
