use std::convert::Infallible;
use std::time::Duration;

use cohort_core::policy::GrpcProbe;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{CheckFailure, look, status_of};

/// Answers for the service `shop` with a status of the health protocol, and knows no other.
async fn answer(
    request: Request<Incoming>,
    status: Option<u8>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    let asked = request.into_body().collect().await.unwrap().to_bytes();
    let (end, message) = match (status, &asked[..]) {
        (Some(status), [0, 0, 0, 0, 6, 0x0a, 4, b's', b'h', b'o', b'p']) => {
            ("0", Some(Bytes::from(vec![0, 0, 0, 0, 2, 0x08, status])))
        }
        (Some(_), [0, 0, 0, 0, 0]) => ("0", Some(Bytes::from_static(&[0, 0, 0, 0, 0]))),
        (Some(_), _) => ("5", None),
        (None, _) => ("12", None),
    };
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), end.parse().unwrap())]);
    let frames = message.map(Frame::data).into_iter().chain([Frame::trailers(trailers)]);
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok)));
    let response = Response::builder().header("content-type", "application/grpc").body(body);
    Ok(response.unwrap())
}

/// What a check of `service` sees.
async fn seen(status: Option<u8>, service: Option<&str>) -> Result<(), CheckFailure> {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let serves = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(theirs), service_fn(move |it| answer(it, status)));
    let serves = tokio::spawn(serves);
    let probe = GrpcProbe { service: service.map(str::to_owned), ..GrpcProbe::default() };
    let seen = look(Box::new(ours), "127.0.0.1:50051", &probe).await;
    serves.abort();
    seen
}

#[tokio::test]
async fn only_a_service_that_says_that_it_serves_passes() {
    assert_eq!(seen(Some(1), Some("shop")).await, Ok(()));
    let says = |what: &str| Err(CheckFailure::NotServing(what.to_owned()));
    assert_eq!(seen(Some(2), Some("shop")).await, says("NOT_SERVING"));
    assert_eq!(seen(Some(1), None).await, says("UNKNOWN"), "an empty message is a zero");
    for (status, service) in [(Some(1), Some("bank")), (None, Some("shop"))] {
        let seen = seen(status, service).await;
        assert!(matches!(seen, Err(CheckFailure::NotServing(_))), "{seen:?}");
    }
}

#[tokio::test]
async fn what_speaks_no_grpc_is_told_so() {
    let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
    let other = tokio::spawn(async move {
        let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
        tokio::io::AsyncWriteExt::write_all(&mut theirs, answer).await.unwrap();
        theirs
    });
    let probe = GrpcProbe::default();
    let asked = look(Box::new(ours), "127.0.0.1:80", &probe);
    let seen = tokio::time::timeout(Duration::from_secs(20), asked).await.unwrap();
    assert!(matches!(seen, Err(CheckFailure::NotGrpc(_))), "{seen:?}");
    drop(other);
}

#[tokio::test]
async fn nothing_is_left_of_a_check_whose_service_reads_nothing() {
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = alive();
    // Room for the 24 bytes that open a connection, and not for what is spawned to follow them.
    let (ours, theirs) = tokio::io::duplex(32);
    let probe = GrpcProbe::default();
    let asked = look(Box::new(ours), "127.0.0.1:80", &probe);
    assert!(tokio::time::timeout(Duration::from_millis(200), asked).await.is_err());
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(alive(), before);
    drop(theirs);
}

#[test]
fn malformed_answers_are_none() {
    assert_eq!(status_of(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
    for wrong in [
        &[][..],
        &[0, 0, 0, 0],
        &[1, 0, 0, 0, 2, 8, 1],
        &[0, 0, 0, 0, 3, 8, 1],
        &[0, 255, 255, 255, 255, 8, 1],
        &[0, 0, 0, 0, 2, 9, 1],
        &[0, 0, 0, 0, 2, 8, 0x81],
    ] {
        assert_eq!(status_of(wrong), None, "{wrong:?}");
    }
}
