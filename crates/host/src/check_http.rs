//! One HTTP/1.1 request and its answer, read no further than a check needs.

use std::collections::BTreeMap;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use url::Url;

use crate::check::{CheckFailure, connect};

/// The most of a body that is looked at. 64 KiB: a status page, not a download.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// The most of a wrong body that is told.
const TOLD_CHARS_MAX: usize = 120;

pub(crate) struct Expected<'a> {
    pub(crate) status: u16,
    pub(crate) body: Option<&'a str>,
    pub(crate) headers: &'a BTreeMap<String, String>,
}

/// Asks and judges. Redirects are answers like any other: they are not followed.
pub(crate) async fn look(url: &str, expected: &Expected<'_>) -> Result<(), CheckFailure> {
    let cannot = |why: String| CheckFailure::CannotCheck(why);
    let url = Url::parse(url).map_err(|error| cannot(format!("`{url}`: {error}")))?;
    if url.scheme() != "http" {
        return Err(cannot(format!("`{url}`: only http is spoken; use an exec check")));
    }
    let host = url.host_str().ok_or_else(|| cannot(format!("`{url}` names no host")))?;
    let port = url.port_or_known_default().unwrap_or(80);
    let stream = connect(&format!("{host}:{port}")).await?;
    let request = Request::get(&url[url::Position::BeforePath..url::Position::AfterQuery])
        .header(header::HOST, &url[url::Position::BeforeHost..url::Position::AfterPort])
        .header(header::USER_AGENT, "cohort-check")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| cannot(error.to_string()))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failure)?;
    let ask = async {
        let response = sender.send_request(request).await.map_err(failure)?;
        judge(response, expected).await
    };
    tokio::pin!(ask);
    // The connection moves the bytes; the answer decides, also when both end at once.
    tokio::select! {
        biased;
        result = &mut ask => result,
        _ended = connection => ask.await,
    }
}

async fn judge(response: Response<Incoming>, expected: &Expected<'_>) -> Result<(), CheckFailure> {
    let status = response.status().as_u16();
    if status != expected.status {
        let body = read(response).await.unwrap_or_default();
        let told: String = body.chars().take(TOLD_CHARS_MAX).collect();
        let wanted = expected.status;
        let what = format!("status {status}, expected {wanted}; it says `{}`", told.trim());
        return Err(CheckFailure::WrongAnswer(what));
    }
    for (name, text) in expected.headers {
        let found = response.headers().get(name).and_then(|value| value.to_str().ok());
        if !found.is_some_and(|value| value.contains(text.as_str())) {
            let what = format!("header {name} is {found:?}, expected to hold `{text}`");
            return Err(CheckFailure::WrongAnswer(what));
        }
    }
    if let Some(text) = expected.body {
        let body = read(response).await?;
        if !body.contains(text) {
            let told: String = body.chars().take(TOLD_CHARS_MAX).collect();
            let what = format!("the body does not hold `{text}`; it begins `{}`", told.trim());
            return Err(CheckFailure::WrongAnswer(what));
        }
    }
    Ok(())
}

/// The beginning of the body.
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
        return CheckFailure::WrongAnswer("it does not speak HTTP".to_owned());
    }
    let io = std::error::Error::source(&error).and_then(|source| source.downcast_ref());
    match io {
        Some(io) => CheckFailure::from_io(io),
        // It hung up in the middle, in one of the library's many words.
        None => CheckFailure::Reset,
    }
}
