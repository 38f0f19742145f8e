use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use bytes::Bytes;
use cohort_identity::{Alpn, ClientAuth, PeerName, Role, UnixTime, client_config};
use http::header;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::testing::{Fleet, Served, peer, until};
use super::{ApiJson, Call, CallError, Client, Handler, Routes, Who, serve_plain};
use crate::limits::ServerLimits;
use crate::revocation::{Revocation, SignedRevocation};
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
    let who = Who::Roles(&[Role::Operator, Role::Publisher]);
    let (guarded, _) = Routes::default().post("/kill", who, || async { "done" }).build();
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

/// Routes of which one does not answer, and how many requests it has received.
fn stuck() -> (Router, Arc<Semaphore>) {
    let arrived = Arc::new(Semaphore::new(0));
    let handler = {
        let arrived = Arc::clone(&arrived);
        move || async move {
            arrived.add_permits(1);
            std::future::pending::<()>().await;
        }
    };
    (echo().route("/never", get(handler)), arrived)
}

#[tokio::test]
async fn connections_of_one_peer_are_limited_and_it_is_told() {
    let fleet = Fleet::new();
    let limits = ServerLimits { connections_per_peer_max: 2, ..ServerLimits::default() };
    let (routes, arrived) = stuck();
    let served = fleet.serve(routes, limits.clone()).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = raw(&fleet, &served).await;
        stream.write_all(b"GET /never HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        arrived.acquire().await.unwrap().forget();
        held.push(stream);
    }
    let mut third = raw(&fleet, &served).await;
    third.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let answer = rest(&mut third).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    assert_eq!(limits.refusals.share.get(), 1);
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
async fn a_peers_idle_connection_gives_way_to_its_newer_one() {
    let fleet = Fleet::new();
    let limits = ServerLimits { connections_per_peer_max: 2, ..ServerLimits::default() };
    let served = fleet.serve(echo(), limits.clone()).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut stream = raw(&fleet, &served).await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut start = [0; 15];
        stream.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 200 OK");
        held.push(stream);
    }
    assert_eq!(limits.refusals.gave_way.get(), 3);
    rest(&mut held[0]).await;
}

#[tokio::test]
async fn all_connections_are_limited() {
    let fleet = Fleet::new();
    let limits = ServerLimits { connections_max: 2, strangers_max: 1, ..ServerLimits::default() };
    let (routes, arrived) = stuck();
    let served = fleet.serve(routes, limits.clone()).await;
    let first = fleet.client(Role::Agent, "web-2");
    let busy = tokio::spawn({
        let (client, target) = (first.clone(), served.control());
        async move { client.call(&target, Call::get("/never")).await }
    });
    arrived.acquire().await.unwrap().forget();
    let second = fleet.client(Role::Agent, "web-3");
    let error = second.call(&served.control(), Call::get("/")).await.unwrap_err();
    assert_eq!((error.kind(), limits.refusals.full.get()), ("overloaded", 1));
    // An operator, who may have to stop what goes on, has a reserve.
    let operator = fleet.client(Role::Operator, "ada");
    operator.call(&served.control(), Call::get("/")).await.unwrap();
    busy.abort();
}

/// A connection to a server from another loopback address.
async fn connect_from(from: &str, served: &Served) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket.connect(served.address).await.unwrap()
}

#[tokio::test]
async fn a_flood_from_one_address_keeps_out_nobody_else() {
    let fleet = Fleet::new();
    let limits = ServerLimits {
        strangers_max: 8,
        strangers_per_address_max: 8,
        connects_per_s_max: 1,
        connects_burst_max: 20,
        ..ServerLimits::default()
    };
    let served = fleet.serve(echo(), limits.clone()).await;
    let inside = fleet.client(Role::Agent, "web-2");
    inside.call(&served.control(), Call::get("/")).await.unwrap();
    // None of them starts a handshake, and none is closed by its client.
    let mut flood = Vec::new();
    for _ in 0..200 {
        flood.push(connect_from("127.0.0.2", &served).await);
    }
    until("the flood is refused", || limits.refusals.rate.get() >= 170).await;
    assert!(limits.refusals.gave_way.get() >= 8, "the newer ones won, up to the rate");
    for name in ["web-3", "web-4", "web-5"] {
        let other = fleet.client(Role::Agent, name);
        other.call(&served.control(), Call::get("/")).await.unwrap();
    }
    inside.call(&served.control(), Call::get("/")).await.unwrap();
    assert_eq!(limits.refusals.full.get() + limits.refusals.share.get(), 0);
}

#[tokio::test]
async fn dawdling_handshakes_give_way_to_newer_ones() {
    let fleet = Fleet::new();
    let limits = ServerLimits { strangers_max: 1, ..ServerLimits::default() };
    let served = fleet.serve(echo(), limits).await;
    let mut dawdling = TcpStream::connect(served.address).await.unwrap();
    let client = fleet.client(Role::Agent, "web-2");
    client.call(&served.control(), Call::get("/")).await.unwrap();
    assert_eq!(rest(&mut dawdling).await, "");
}

/// A balancer on the server shares its address with every local user.
#[tokio::test]
async fn connections_that_are_merely_held_do_not_close_a_port_of_probes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let limits = ServerLimits { strangers_per_address_max: 16, ..ServerLimits::probes() };
    let (routes, arrived) = stuck();
    tokio::spawn(serve_plain(listener, routes, limits, shutdown.clone()));
    let mut held = Vec::new();
    for nth in 0..80 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // Some idle, and some with a request whose answer they do not take.
        if nth % 4 == 0 {
            stream.write_all(b"GET /never HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            arrived.acquire().await.unwrap().forget();
        }
        held.push(stream);
    }
    for _ in 0..20 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    }
    shutdown.cancel();
}

#[tokio::test]
async fn the_urgent_path_has_a_reserve_and_an_address_a_rate_of_requests() {
    let fleet = Fleet::new();
    let limits =
        ServerLimits { requests_max: 1, urgent_path: Some("/"), ..ServerLimits::default() };
    let (routes, arrived) = stuck();
    let served = fleet.serve(routes, limits.clone()).await;
    let client = fleet.client(Role::Agent, "web-2");
    let busy = tokio::spawn({
        let (client, target) = (client.clone(), served.control());
        async move { client.call(&target, Call::get("/never")).await }
    });
    arrived.acquire().await.unwrap().forget();
    let call = Call::post("/json", &1);
    let error = client.call(&served.control(), call).await.unwrap_err();
    assert_eq!((error.kind(), limits.refusals.full.get()), ("overloaded", 1));
    client.call(&served.control(), Call::get("/")).await.unwrap();
    busy.abort();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits =
        ServerLimits { requests_per_s_max: 1, requests_burst_max: 2, ..ServerLimits::default() };
    tokio::spawn(serve_plain(listener, echo(), limits, served.shutdown.clone()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all("GET / HTTP/1.1\r\nhost: x\r\n\r\n".repeat(9).as_bytes()).await.unwrap();
    let answers = rest(&mut stream).await;
    assert!(answers.contains("HTTP/1.1 503"), "{answers}");
    assert!(answers.matches("HTTP/1.1 200").count() < 9, "{answers}");
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

#[tokio::test]
async fn an_open_connection_ends_with_its_certificate() {
    let fleet = Fleet::new();
    let hangs = Router::new().route("/hang", get(std::future::pending::<&'static str>));
    let served = fleet.serve(hangs.merge(echo()), ServerLimits::default()).await;
    let brief = Duration::from_secs(2);
    let (eve, now) = (peer(Role::Operator, "eve"), UnixTime::now());
    let eve = fleet.authority.make_identity(&eve, brief, now).unwrap();
    let eve = Client::new(crate::tls::IdentitySlot::new(eve));
    assert_eq!(eve.call(&served.control(), Call::get("/")).await.unwrap(), "here");
    let control = served.control();
    let hanging = eve.call(&control, Call::get("/hang").deadline(2 * PATIENCE));
    let ended = timeout(PATIENCE, hanging).await;
    assert!(ended.expect("its connection was not ended").is_err());
    assert!(eve.call(&served.control(), Call::get("/")).await.is_err());
}

#[tokio::test]
async fn a_revoked_certificate_ends_open_connections_and_opens_no_other() {
    let fleet = Fleet::new();
    let arrived = Arc::new(Notify::new());
    let told = Arc::clone(&arrived);
    let hangs = Router::new().route(
        "/hang",
        get(move || {
            told.notify_one();
            std::future::pending::<&'static str>()
        }),
    );
    let served = fleet.serve(hangs.merge(echo()), ServerLimits::default()).await;
    let revoke = |slot: &crate::tls::IdentitySlot, role, name: &str| {
        let (at, ana) = (UnixTime::now(), fleet.identity(Role::Operator, "ana"));
        let (name, reason) = (PeerName::new(name).unwrap(), String::new());
        let revocation = Revocation { role, name, at: at.as_secs(), again: 0, reason };
        let signed = SignedRevocation::sign(&ana, &revocation).unwrap();
        assert!(slot.revocations().offer(&signed, ana.roots(), at).unwrap());
    };
    let (eve, bob) = (fleet.client(Role::Operator, "eve"), fleet.client(Role::Operator, "bob"));
    assert_eq!(eve.call(&served.control(), Call::get("/")).await.unwrap(), "here");
    let (target, hanging) = (served.control(), eve.clone());
    let open = tokio::spawn(async move { hanging.call(&target, Call::get("/hang")).await });
    arrived.notified().await;
    revoke(&served.slot, Role::Operator, "eve");
    let ended = timeout(PATIENCE, open).await.expect("its connection was not ended").unwrap();
    assert!(ended.is_err());
    assert!(eve.call(&served.control(), Call::get("/")).await.is_err());
    assert_eq!(bob.call(&served.control(), Call::get("/")).await.unwrap(), "here");
    // Nor does a client talk to a server whose key was stolen, on a connection that is open either.
    let slot = fleet.slot(Role::Operator, "cleo");
    let cleo = Client::new(Arc::clone(&slot));
    assert_eq!(cleo.call(&served.control(), Call::get("/")).await.unwrap(), "here");
    revoke(&slot, Role::Agent, "web-1");
    let refused = cleo.call(&served.control(), Call::get("/")).await;
    assert!(matches!(refused, Err(CallError::Identity { .. })), "{refused:?}");
}
