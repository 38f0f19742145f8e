//! gRPC checks: one question by the [gRPC health protocol], without code that is made from its
//! definition: a request and an answer of one field each.
//!
//! [gRPC health protocol]: https://grpc.io/docs/guides/health-checking/

use std::sync::Arc;

use cohort_base::chain;
use cohort_core::policy::GrpcProbe;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderMap;
use hyper::rt::Executor;
use hyper::{Request, Response};
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::check::{ANSWER_BYTES_MAX, CheckFailure, Stream, quoted};
use crate::check_http::Bounded;

/// The key of the only field of request and answer: in the one a text, in the other a number.
const TEXT_FIELD: u8 = 0x0a;
const NUMBER_FIELD: u8 = 0x08;
/// What comes before a message: whether it is compressed, and its length in four bytes.
const PREFIX_BYTES: usize = 5;

/// Asks over a connection to `host`.
pub(crate) async fn look(
    stream: Stream,
    host: &str,
    probe: &GrpcProbe,
) -> Result<(), CheckFailure> {
    let scheme = if probe.tls.is_some() { "https" } else { "http" };
    let request = Request::post(format!("{scheme}://{host}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "cohort-check")
        .body(Full::new(question(probe.service.as_deref())))
        .map_err(|error| CheckFailure::CannotCheck(chain(&error)))?;
    let not_grpc = |error: hyper::Error| CheckFailure::NotGrpc(chain(&error));
    let tasks = Tasks::default();
    let _over = EndOf(tasks.clone());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(tasks, Bounded::new(stream))
            .await
            .map_err(not_grpc)?;
    let ask = async {
        let response = sender.send_request(request).await.map_err(not_grpc)?;
        judge(response).await
    };
    tokio::pin!(ask);
    tokio::select! {
        biased;
        result = &mut ask => result,
        _ended = connection => ask.await,
    }
}

/// What was spawned for a connection; `None` once the check is over.
#[derive(Debug, Clone)]
struct Tasks(Arc<Mutex<Option<Vec<AbortHandle>>>>);

impl Default for Tasks {
    fn default() -> Self {
        Tasks(Arc::new(Mutex::new(Some(Vec::new()))))
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        if let Some(tasks) = &mut *self.0.lock() {
            tasks.push(tokio::spawn(task).abort_handle());
        }
    }
}

/// Ends the tasks when it is dropped: a connection whose other end reads nothing would wait in one
/// of them for ever.
struct EndOf(Tasks);

impl Drop for EndOf {
    fn drop(&mut self) {
        let tasks = self.0.0.lock().take();
        tasks.into_iter().flatten().for_each(|task| task.abort());
    }
}

/// The request's body: a message with the service's name, if it asks about one.
fn question(service: Option<&str>) -> Bytes {
    let mut message = Vec::new();
    if let Some(name) = service {
        let length = u8::try_from(name.len()).expect("policies have short names");
        message.extend([TEXT_FIELD, length]);
        message.extend(name.as_bytes());
    }
    let length = u8::try_from(message.len()).expect("a short message");
    let mut body = vec![0, 0, 0, 0, length];
    body.extend(message);
    body.into()
}

async fn judge(response: Response<Incoming>) -> Result<(), CheckFailure> {
    let (head, body) = response.into_parts();
    let kind = head.headers.get("content-type").and_then(|value| value.to_str().ok());
    if !kind.is_some_and(|kind| kind.starts_with("application/grpc")) {
        return Err(CheckFailure::NotGrpc(format!("status {}", head.status.as_u16())));
    }
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| CheckFailure::NotGrpc(chain(&*error)))?;
    // An answer without a message has its end in the head.
    let trailers = body.trailers().cloned();
    failed(trailers.as_ref().unwrap_or(&head.headers))?;
    match status_of(&body.to_bytes()) {
        Some(1) => Ok(()),
        Some(status) => Err(CheckFailure::NotServing(name_of(status))),
        None => Err(CheckFailure::NotGrpc("no answer of the health protocol".to_owned())),
    }
}

/// What the end of a call says, if that is not *good*.
fn failed(end: &HeaderMap) -> Result<(), CheckFailure> {
    let text = |name| end.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "0" => Ok(()),
        "5" => Err(CheckFailure::NotServing("the service is not known there".to_owned())),
        "12" => {
            let what = "the program does not implement grpc.health.v1.Health";
            Err(CheckFailure::NotServing(what.to_owned()))
        }
        status => {
            let said = quoted(text("grpc-message").as_bytes());
            Err(CheckFailure::NotServing(format!("gRPC status {status} ({said})")))
        }
    }
}

/// The number in an answer: 0 if it has none, which stands for that; `None` if it is malformed.
fn status_of(body: &[u8]) -> Option<u64> {
    let (prefix, message) = body.split_at_checked(PREFIX_BYTES)?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    if prefix[0] != 0 || usize::try_from(length).ok()? != message.len() {
        return None;
    }
    match message {
        [] => Some(0),
        [NUMBER_FIELD, status] if *status < 0x80 => Some(u64::from(*status)),
        _ => None,
    }
}

fn name_of(status: u64) -> String {
    match status {
        0 => "UNKNOWN".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => format!("status {other}"),
    }
}

#[cfg(test)]
#[path = "check_grpc_test.rs"]
mod check_grpc_test;
