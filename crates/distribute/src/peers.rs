//! Requests to other servers of the group, over the mutual TLS of `cohort-wire`.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use cohort_artifact::client::Content;
use cohort_core::ids::Digest;
use cohort_core::orders::Source;
use cohort_identity::{Alpn, Peer, Role};
use cohort_transfer::{ARTIFACT_BYTES_MAX, UnitRun};
use cohort_wire::http::{BodyStream, Call, CallError, Client, Target};
use cohort_wire::limits::RETRY_AFTER_S;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use http::StatusCode;

use crate::request::RequestError;
use crate::subscription::SubscribeRequest;

/// The bytes of a response, as they arrive. Dropping it ends the request.
pub(crate) type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// A response of a server or a mirror.
pub(crate) struct Answer {
    /// What the bytes are; servers always send everything requested.
    pub(crate) content: Content,
    /// Number of bytes, if announced.
    pub(crate) length: Option<u64>,
    pub(crate) pieces: ByteStream,
}

/// Time until a response head, in seconds. Longer than
/// [`cohort_transfer::Limits::first_byte_ms_max`], the limit that applies first.
const HEAD_S_MAX: u64 = 60;

/// How long a parent may hold a request for unit hashes that it does not have yet, in milliseconds.
const HASHES_WAIT_MS: u64 = 5_000;

/// The other servers of the group, over `cohort-bulk/1`. Each must show the certificate of the
/// agent named in the order. The caller adds time limits; dropping a future ends its request.
#[derive(Debug, Clone)]
pub struct WirePeers {
    client: Option<Client>,
}

impl WirePeers {
    /// Sends requests with a client's identity.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client: Some(client) }
    }

    /// A group with no other servers: every request fails.
    #[must_use]
    pub fn none() -> Self {
        Self { client: None }
    }

    pub(crate) async fn unit_hashes(
        &self,
        source: Source,
        digest: &Digest,
    ) -> Result<Answer, RequestError> {
        let path = format!("/v1/artifacts/{digest}/unit-hashes?wait_ms={HASHES_WAIT_MS}");
        self.ask(source, Call::get(path)).await
    }

    pub(crate) async fn subscribe(
        &self,
        source: Source,
        digest: &Digest,
        lacks: Vec<UnitRun>,
    ) -> Result<Answer, RequestError> {
        let path = format!("/v1/artifacts/{digest}/subscription");
        self.ask(source, Call::post(path, &SubscribeRequest { lacks }).idempotent()).await
    }

    async fn ask(&self, source: Source, call: Call) -> Result<Answer, RequestError> {
        let none = || io::Error::new(io::ErrorKind::Unsupported, "no way to ask other servers");
        let client = self.client.as_ref().ok_or_else(|| RequestError::Connection(none()))?;
        let peer = Peer::new(Role::Agent, source.server.as_str()).map_err(RequestError::other)?;
        let target = Target { address: source.address, peer, alpn: Alpn::Bulk };
        let call = call.deadline(Duration::from_secs(HEAD_S_MAX));
        // Every unit once, with its index; plus heartbeats, ten a second.
        match client.stream(&target, call.response_bytes_max(2 * ARTIFACT_BYTES_MAX)).await {
            Ok(answer) if answer.status == StatusCode::OK => Ok(good(answer)),
            Ok(answer) => Err(RequestError::Status(answer.status)),
            Err(CallError::Answered { answer, .. }) => {
                Err(refusal(StatusCode::from_u16(answer.status).map_err(RequestError::other)?))
            }
            Err(error) => Err(RequestError::other(error)),
        }
    }
}

fn good(answer: BodyStream) -> Answer {
    let length = answer.length();
    let pieces = stream::unfold(Some(answer), |answer| async move {
        let mut answer = answer?;
        match answer.chunk().await {
            Ok(Some(piece)) => Some((Ok::<Bytes, io::Error>(piece), Some(answer))),
            Ok(None) => None,
            Err(error) => Some((Err(io::Error::other(error)), None)),
        }
    });
    Answer { content: Content::Whole, length, pieces: pieces.boxed() }
}

fn refusal(status: StatusCode) -> RequestError {
    match status {
        StatusCode::NOT_FOUND => RequestError::Absent,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
            // The wire sends every client the same value.
            RequestError::Busy { retry_after_ms: RETRY_AFTER_S * 1_000 }
        }
        status => RequestError::Status(status),
    }
}
