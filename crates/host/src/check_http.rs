//! HTTP checks: one request, whose response is read only as far as the check needs.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use cohort_base::chain;
use cohort_base::chain::causes;
use cohort_core::policy::{HttpProbe, Scalar};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::check::{ANSWER_BYTES_MAX, CheckFailure, Stream, quoted, until};

/// How much is read of a connection, headers and all, in bytes: a service that never comes to the
/// point takes no processor from others. 256 KiB: more than any answer that is looked at.
const READ_BYTES_MAX: usize = 4 * ANSWER_BYTES_MAX;

/// A connection that breaks once so much was read of it.
pub(crate) struct Bounded {
    stream: Stream,
    left: usize,
}

impl Bounded {
    pub(crate) fn new(stream: Stream) -> TokioIo<Self> {
        TokioIo::new(Bounded { stream, left: READ_BYTES_MAX })
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.left == 0 {
            return Poll::Ready(Err(io::Error::other("the answer does not end")));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        this.left = this.left.saturating_sub(buffer.filled().len() - before);
        read
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Sends the check's request over a connection to `host`, and judges the response. Redirects are
/// not followed. `limit`: how long it may take.
pub(crate) async fn look(
    stream: Stream,
    host: &str,
    probe: &HttpProbe,
    limit: Duration,
) -> Result<(), CheckFailure> {
    let mut request = Request::builder()
        .method(probe.method.as_str())
        .uri(&probe.path)
        .header(header::USER_AGENT, "cohort-check")
        .header(header::CONNECTION, "close");
    if !probe.headers.keys().any(|name| name.eq_ignore_ascii_case("host")) {
        request = request.header(header::HOST, host);
    }
    for (name, value) in &probe.headers {
        request = request.header(name, value);
    }
    let body = probe.body.clone().unwrap_or_default();
    let request = request
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| CheckFailure::CannotCheck(chain(&error)))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(Bounded::new(stream)).await.map_err(failure)?;
    let ask = async {
        let response = sender.send_request(request).await.map_err(failure)?;
        judge(response, probe, limit).await
    };
    tokio::pin!(ask);
    // The connection future moves the bytes; the response decides, even if both end together.
    tokio::select! {
        biased;
        result = &mut ask => result,
        _ended = connection => ask.await,
    }
}

async fn judge(
    response: Response<Incoming>,
    probe: &HttpProbe,
    limit: Duration,
) -> Result<(), CheckFailure> {
    let (found, expected) = (response.status().as_u16(), probe.expect_status.unwrap_or(200));
    if found != expected {
        // The status is the answer, whatever becomes of the body.
        let (body, _) = read(response, limit / 4, |_| false).await;
        return Err(CheckFailure::WrongStatus { found, expected, body: quoted(&body) });
    }
    for (name, text) in &probe.expect_header {
        let found = response.headers().get(name).and_then(|value| value.to_str().ok());
        if !found.is_some_and(|value| value.contains(text.as_str())) {
            let (name, found) = (name.clone(), found.map(|it| quoted(it.as_bytes())));
            return Err(CheckFailure::WrongHeader { name, found, expected: text.clone() });
        }
    }
    if probe.expect_body.is_none() && probe.expect_json.is_empty() {
        return Ok(());
    }
    let has_text = |body: &[u8]| {
        let text = probe.expect_body.as_deref();
        text.is_none_or(|text| String::from_utf8_lossy(body).contains(text))
    };
    let is_enough = |body: &[u8]| probe.expect_json.is_empty() && has_text(body);
    let (body, end) = read(response, limit, is_enough).await;
    if !has_text(&body) {
        // What there is of it tells more than that it did not end.
        if body.is_empty() || end != Err(CheckFailure::TimedOut) {
            end?;
        }
        let (found, expected) = (quoted(&body), probe.expect_body.clone().unwrap_or_default());
        return Err(CheckFailure::WrongBody { found, expected });
    }
    has_values(&body, probe, end)
}

fn has_values(
    body: &[u8],
    probe: &HttpProbe,
    end: Result<(), CheckFailure>,
) -> Result<(), CheckFailure> {
    if probe.expect_json.is_empty() {
        return Ok(());
    }
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(body) else {
        end?;
        let (found, expected) = (quoted(body), "JSON".to_owned());
        return Err(CheckFailure::WrongBody { found, expected });
    };
    for (pointer, value) in &probe.expect_json {
        let expected = match value {
            Scalar::Bool(value) => (*value).into(),
            Scalar::Number(value) => (*value).into(),
            Scalar::Text(value) => serde_json::Value::from(value.as_str()),
        };
        let found = json.pointer(pointer);
        if found != Some(&expected) {
            let found = found.map(|found| quoted(found.to_string().as_bytes()));
            let (pointer, expected) = (pointer.clone(), expected.to_string());
            return Err(CheckFailure::WrongValue { pointer, found, expected });
        }
    }
    Ok(())
}

/// Reads the start of the body, until it is enough or `limit` is nearly over; returns also how that
/// ended.
async fn read(
    response: Response<Incoming>,
    limit: Duration,
    is_enough: impl Fn(&[u8]) -> bool,
) -> (Vec<u8>, Result<(), CheckFailure>) {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    let reading = async {
        while bytes.len() < ANSWER_BYTES_MAX && !is_enough(&bytes) {
            let Some(frame) = body.frame().await else { break };
            if let Ok(data) = frame.map_err(failure)?.into_data() {
                let room = ANSWER_BYTES_MAX - bytes.len();
                bytes.extend_from_slice(&data[..data.len().min(room)]);
            }
        }
        Ok(())
    };
    let end = until(limit, reading).await.unwrap_or(Err(CheckFailure::TimedOut));
    (bytes, end)
}

#[expect(clippy::needless_pass_by_value, reason = "given to `map_err`")]
fn failure(error: hyper::Error) -> CheckFailure {
    if error.is_parse() {
        return CheckFailure::NotHttp;
    }
    match causes(&error).find_map(|cause| cause.downcast_ref()) {
        Some(io) => CheckFailure::from_io(io),
        // The server closed the connection; the library reports that in many ways.
        None => CheckFailure::Reset,
    }
}
