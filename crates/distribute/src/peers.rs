//! Asking other servers of the group, over the mutual TLS of `cohort-wire`.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use cohort_artifact::ARTIFACT_BYTES_MAX;
use cohort_core::orders::Source;
use cohort_identity::{Alpn, Peer, Role};
use cohort_wire::http::{BodyStream, Call, CallError, Client, Target};
use cohort_wire::limits::RETRY_AFTER_S;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream;
use http::header::RETRY_AFTER;
use http::{HeaderValue, Method};

use crate::transport::{ByteStream, PeerTransport};

/// Until an answer's head. Above the limit that a fetch itself puts on it, which is the one that
/// counts.
const HEAD_S_MAX: u64 = 60;

/// Peers over `cohort-bulk/1`; each must show the certificate of the agent that the order names.
#[derive(Debug, Clone)]
pub struct WirePeers {
    client: Client,
}

impl WirePeers {
    /// Asks with a client's identity.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

impl PeerTransport for WirePeers {
    fn get(
        &self,
        source: &Source,
        path: String,
    ) -> BoxFuture<'static, io::Result<http::Response<ByteStream>>> {
        self.send(source, Call::get(path).response_bytes_max(ARTIFACT_BYTES_MAX))
    }

    fn post(
        &self,
        source: &Source,
        path: String,
        body: Vec<u8>,
    ) -> BoxFuture<'static, io::Result<http::Response<ByteStream>>> {
        let mut call = Call::new(Method::POST, path).bytes(body).idempotent();
        call.content_type = "application/json";
        // Every unit once, with its index; signs of life come on top, ten a second.
        self.send(source, call.response_bytes_max(2 * ARTIFACT_BYTES_MAX))
    }
}

impl WirePeers {
    fn send(
        &self,
        source: &Source,
        call: Call,
    ) -> BoxFuture<'static, io::Result<http::Response<ByteStream>>> {
        let client = self.client.clone();
        let source = source.clone();
        Box::pin(async move {
            let peer = Peer::new(Role::Agent, source.server.as_str()).map_err(io::Error::other)?;
            let target = Target { address: source.address, peer, alpn: Alpn::Bulk };
            let call = call.deadline(Duration::from_secs(HEAD_S_MAX));
            match client.stream(&target, call).await {
                Ok(answer) => good(answer),
                Err(CallError::Answered { answer, .. }) => refusal(answer.status),
                Err(error) => Err(io::Error::other(flat(&error))),
            }
        })
    }
}

fn good(answer: BodyStream) -> io::Result<http::Response<ByteStream>> {
    let mut response = http::Response::builder().status(answer.status);
    if let Some(headers) = response.headers_mut() {
        *headers = answer.headers.clone();
    }
    let pieces = stream::unfold(Some(answer), |answer| async move {
        let mut answer = answer?;
        match answer.chunk().await {
            Ok(Some(piece)) => Some((Ok::<Bytes, io::Error>(piece), Some(answer))),
            Ok(None) => None,
            Err(error) => Some((Err(io::Error::other(flat(&error))), None)),
        }
    });
    response.body(pieces.boxed()).map_err(io::Error::other)
}

fn refusal(status: u16) -> io::Result<http::Response<ByteStream>> {
    let mut response = http::Response::new(stream::empty().boxed());
    *response.status_mut() = http::StatusCode::from_u16(status).map_err(io::Error::other)?;
    // The wire says the same to everybody.
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
    Ok(response)
}

/// An error and its causes in one line.
fn flat(error: &CallError) -> String {
    use std::error::Error as _;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
