//! The edge to the network: a request goes out, a status, headers and a stream of bytes come back.

use std::io;

use bytes::Bytes;
use cohort_core::ids::Digest;
use cohort_core::orders::Source;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::unit_set::UnitRun;

/// The bytes of an answer, as they come in. Dropping it ends the request.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// How other servers of the group are asked: `GET` over mutual TLS, ALPN `cohort-bulk/1`.
///
/// The implementation proves that the other side is the agent named in the source. Time limits are
/// put on top here; an implementation needs none of its own. Dropping the future ends the request.
pub trait PeerTransport: Send + Sync + 'static {
    /// Sends one `GET` to a server's peer port. `path` is path and query.
    fn get(
        &self,
        source: &Source,
        path: String,
    ) -> BoxFuture<'static, io::Result<http::Response<ByteStream>>>;

    /// Sends one `POST` of JSON.
    fn post(
        &self,
        source: &Source,
        path: String,
        body: Vec<u8>,
    ) -> BoxFuture<'static, io::Result<http::Response<ByteStream>>>;
}

/// A group without other servers: every request fails.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPeers;

impl PeerTransport for NoPeers {
    fn get(
        &self,
        _source: &Source,
        _path: String,
    ) -> BoxFuture<'static, io::Result<http::Response<ByteStream>>> {
        Box::pin(async { Err(io::Error::new(io::ErrorKind::Unsupported, "no way to ask peers")) })
    }

    fn post(
        &self,
        source: &Source,
        path: String,
        _body: Vec<u8>,
    ) -> BoxFuture<'static, io::Result<http::Response<ByteStream>>> {
        self.get(source, path)
    }
}

/// Path and query of some units at a peer.
#[must_use]
pub fn units_request_path(digest: &Digest, run: UnitRun) -> String {
    format!("/v1/artifacts/{digest}/units?first={}&count={}", run.first, run.count)
}

/// Path of the unit hashes at a peer.
#[must_use]
pub fn hashes_request_path(digest: &Digest) -> String {
    format!("/v1/artifacts/{digest}/unit-hashes")
}

/// Path of a subscription at a peer.
#[must_use]
pub fn subscription_path(digest: &Digest) -> String {
    format!("/v1/artifacts/{digest}/subscription")
}
