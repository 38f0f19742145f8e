//! HTTP checks: one request, whose response is read only as far as the check needs.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use cohort_base::chain;
use cohort_base::chain::causes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::check::CheckFailure;

/// How much of a body is read, in bytes. 64 KiB: a status page, not a download.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// How much of a wrong body is quoted.
const QUOTED_CHARS_MAX: usize = 120;

pub(crate) struct Expected<'a> {
    pub(crate) status: u16,
    pub(crate) body: Option<&'a str>,
    pub(crate) headers: &'a BTreeMap<String, String>,
}

/// Requests `path` over a connection to `address`, and judges the response. Redirects are not
/// followed.
pub(crate) async fn look(
    stream: TcpStream,
    address: SocketAddr,
    path: &str,
    expected: &Expected<'_>,
) -> Result<(), CheckFailure> {
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::USER_AGENT, "cohort-check")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| CheckFailure::CannotCheck(chain(&error)))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failure)?;
    let ask = async {
        let response = sender.send_request(request).await.map_err(failure)?;
        judge(response, expected).await
    };
    tokio::pin!(ask);
    // The connection future moves the bytes; the response decides, even if both end together.
    tokio::select! {
        biased;
        result = &mut ask => result,
        _ended = connection => ask.await,
    }
}

async fn judge(response: Response<Incoming>, expected: &Expected<'_>) -> Result<(), CheckFailure> {
    let status = response.status().as_u16();
    if status != expected.status {
        let body = quoted(&read(response).await.unwrap_or_default());
        let (found, expected) = (status, expected.status);
        return Err(CheckFailure::WrongStatus { found, expected, body });
    }
    for (name, text) in expected.headers {
        let found = response.headers().get(name).and_then(|value| value.to_str().ok());
        if !found.is_some_and(|value| value.contains(text.as_str())) {
            let (name, found) = (name.clone(), found.map(str::to_owned));
            return Err(CheckFailure::WrongHeader { name, found, expected: text.clone() });
        }
    }
    if let Some(text) = expected.body {
        let body = read(response).await?;
        if !body.contains(text) {
            let (found, expected) = (quoted(&body), text.to_owned());
            return Err(CheckFailure::WrongBody { found, expected });
        }
    }
    Ok(())
}

fn quoted(body: &str) -> String {
    let begin: String = body.chars().take(QUOTED_CHARS_MAX).collect();
    begin.trim().to_owned()
}

/// Reads the start of the body.
async fn read(response: Response<Incoming>) -> Result<String, CheckFailure> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while bytes.len() < BODY_BYTES_MAX {
        let Some(frame) = body.frame().await else { break };
        if let Ok(data) = frame.map_err(failure)?.into_data() {
            let room = BODY_BYTES_MAX - bytes.len();
            bytes.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
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
