//! Calling a peer: one request, one response, within a deadline and a size limit.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cohort_base::Cause;
use cohort_identity::{Alpn, Peer};
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::connect::{Connector, Credentials, refused};
use super::error::{ApiError, CallError};
use super::pool::{Connection, Pool, SentBody};
use crate::dscp::Dscp;
use crate::limits::{
    CALL_DEADLINE, CHUNK_TIMEOUT, CLIENT_CONNECTIONS_MAX, ERROR_BYTES_MAX, HEADER_BYTES_MAX,
    HEADERS_MAX, RESPONSE_BYTES_MAX,
};
use crate::tls::{ClientStream, IdentitySlot};

/// A peer to call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    pub address: String,
    /// The peer whose certificate is expected there.
    pub peer: Peer,
    pub alpn: Alpn,
}

impl Target {
    /// The hub's API at each of its addresses, in the order to try.
    #[must_use]
    pub fn hub(peer: &Peer, addresses: &[String]) -> Vec<Target> {
        let target = |address: &String| Target {
            address: address.clone(),
            peer: peer.clone(),
            alpn: Alpn::Hub,
        };
        addresses.iter().map(target).collect()
    }
}

/// A request as data.
#[derive(Debug, Clone)]
pub struct Call {
    /// Determines whether the call is idempotent, unless overridden.
    pub method: Method,
    /// Path and query, starting with `/`.
    pub path: String,
    pub body: Option<Bytes>,
    /// Sent if there is a body.
    pub content_type: &'static str,
    /// For the whole call; for [`Client::stream`], until the response body starts.
    pub deadline: Duration,
    /// A longer body is [`CallError::TooLarge`].
    pub response_bytes_max: u64,
    /// Whether it may be sent again if a reused connection turns out to be closed.
    pub idempotent: bool,
}

impl Call {
    /// A request without a body. GET, HEAD, PUT and DELETE count as idempotent.
    #[must_use]
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        let idempotent = method.is_idempotent();
        Self {
            method,
            path: path.into(),
            body: None,
            content_type: "application/octet-stream",
            deadline: CALL_DEADLINE,
            response_bytes_max: RESPONSE_BYTES_MAX,
            idempotent,
        }
    }

    /// A GET without a body.
    #[must_use]
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// A POST of JSON.
    #[must_use]
    pub fn post(path: impl Into<String>, body: &impl Serialize) -> Self {
        Self::new(Method::POST, path).json(body)
    }

    /// Sets a JSON body.
    ///
    /// # Panics
    /// If the value is not representable as JSON (a map with non-string keys): a bug in its type.
    #[must_use]
    pub fn json(mut self, body: &impl Serialize) -> Self {
        let bytes = serde_json::to_vec(body).expect("messages are types that can be JSON");
        self.body = Some(bytes.into());
        self.content_type = "application/json";
        self
    }

    /// Sets a body that is not JSON.
    #[must_use]
    pub fn bytes(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Replaces the deadline, [`CALL_DEADLINE`].
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Limits the size of the response, in bytes.
    #[must_use]
    pub fn response_bytes_max(mut self, bytes: u64) -> Self {
        self.response_bytes_max = bytes;
        self
    }

    /// Declares that the request may be sent twice.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }
}

/// Calls peers over mutual TLS. Cheap to clone; clones share idle connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

/// A body that is sent once, and its length in bytes, if known.
struct Upload {
    body: SentBody,
    length: Option<u64>,
}

struct Inner {
    connector: Connector,
    pool: Pool,
    open: Arc<Semaphore>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client that authenticates with the identity in the slot.
    #[must_use]
    pub fn new(identity: Arc<IdentitySlot>) -> Self {
        Self::with(Credentials::Identity(identity))
    }

    /// A client that is joining: it accepts any hub of the authority with this fingerprint (from a
    /// join token), whatever the target's name, but only for [`Alpn::Hub`].
    #[must_use]
    pub fn joining(fingerprint: &str) -> Self {
        Self::with(Credentials::Fingerprint(fingerprint.to_owned()))
    }

    fn with(credentials: Credentials) -> Self {
        let inner = Inner {
            connector: Connector::new(credentials),
            pool: Pool::default(),
            open: Arc::new(Semaphore::new(CLIENT_CONNECTIONS_MAX)),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Sets the DSCP of future [`Alpn::Bulk`] connections; the default is [`Dscp::LOWER_EFFORT`].
    pub fn mark_bulk(&self, dscp: Dscp) {
        self.inner.connector.mark_bulk(dscp);
    }

    /// Closes idle connections, for example after the identity was replaced.
    pub fn forget_connections(&self) {
        self.inner.pool.clear();
    }

    /// Makes a call and returns the whole body of a successful response (2xx).
    ///
    /// # Errors
    /// [`CallError::Answered`] for any status other than 2xx, and the other errors of a call.
    pub async fn call(&self, target: &Target, call: Call) -> Result<Bytes, CallError> {
        self.complete(target, call, None).await
    }

    async fn complete(
        &self,
        target: &Target,
        call: Call,
        upload: Option<Upload>,
    ) -> Result<Bytes, CallError> {
        let deadline = call.deadline;
        let sent = AtomicBool::new(false);
        let work = async { self.begin(target, call, upload, &sent).await?.read_all().await };
        timeout(deadline, work).await.unwrap_or_else(|_| Err(too_late(target, deadline, &sent)))
    }

    /// Makes a call and parses the response as JSON.
    ///
    /// # Errors
    /// As [`Client::call`], and [`CallError::Malformed`] if the response is not a `T`.
    pub async fn call_json<T: DeserializeOwned>(
        &self,
        target: &Target,
        call: Call,
    ) -> Result<T, CallError> {
        let body = self.call(target, call).await?;
        serde_json::from_slice(&body).map_err(|error| CallError::Malformed {
            address: target.address.clone(),
            source: error.into(),
        })
    }

    /// Calls the targets in turn, from the one numbered `first`, until one responds; returns its
    /// number too. The next one is called if the request certainly did not arrive, or if it may be
    /// sent twice and this target is away.
    ///
    /// # Errors
    /// As [`Client::call_json`]: of the target that refused, else of the first that responded, else
    /// of the last.
    pub async fn call_any<T: DeserializeOwned>(
        &self,
        targets: &[Target],
        first: usize,
        call: Call,
    ) -> Result<(usize, T), CallError> {
        let mut failed: Option<CallError> = None;
        for (at, target) in targets.iter().enumerate().cycle().skip(first).take(targets.len()) {
            match self.call_json(target, call.clone()).await {
                Ok(answer) => return Ok((at, answer)),
                Err(error)
                    if error.may_have_happened() && !(call.idempotent && error.is_away()) =>
                {
                    return Err(error);
                }
                // A response says more than silence.
                Err(error) if failed.as_ref().is_none_or(|known| known.status().is_none()) => {
                    failed = Some(error);
                }
                Err(_) => {}
            }
        }
        Err(failed.unwrap_or_else(|| CallError::Request {
            address: "any address".to_owned(),
            source: "none is known".into(),
        }))
    }

    /// Makes a call whose response is read in pieces.
    ///
    /// # Errors
    /// As [`Client::call`], up to the response headers.
    pub async fn stream(&self, target: &Target, call: Call) -> Result<BodyStream, CallError> {
        let deadline = call.deadline;
        let sent = AtomicBool::new(false);
        timeout(deadline, self.begin(target, call, None, &sent))
            .await
            .unwrap_or_else(|_| Err(too_late(target, deadline, &sent)))
    }

    /// Makes a call whose body is a stream, such as a large file of `length` bytes, if known. It is
    /// never sent twice.
    ///
    /// # Errors
    /// As [`Client::call`]; the deadline includes the upload.
    pub async fn upload<S>(
        &self,
        target: &Target,
        call: Call,
        length: Option<u64>,
        body: S,
    ) -> Result<Bytes, CallError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let body = StreamBody::new(body.map(|chunk| chunk.map(Frame::data))).boxed_unsync();
        self.complete(target, call, Some(Upload { body, length })).await
    }

    /// Opens a connection for a protocol other than HTTP ([`crate::frame`]).
    ///
    /// # Errors
    /// If the peer is unreachable or not the expected one.
    pub async fn open(&self, target: &Target) -> Result<ClientStream, CallError> {
        self.inner.connector.connect(target).await
    }

    async fn begin(
        &self,
        target: &Target,
        call: Call,
        upload: Option<Upload>,
        sent: &AtomicBool,
    ) -> Result<BodyStream, CallError> {
        let is_upload = upload.is_some();
        let mut request = build(target, &call, upload)?;
        // An upload can be sent only once, so it gets a new connection.
        if self.inner.connector.has_to_judge() {
            self.inner.pool.clear();
        }
        let kept = if is_upload { None } else { self.inner.pool.take(target) };
        if let Some(mut connection) = kept {
            sent.store(true, Ordering::Relaxed);
            match connection.sender.try_send_request(request).await {
                Ok(response) => return self.answered(target, &call, connection, response).await,
                Err(mut failed) => {
                    // Retry if it was not sent, or if nothing came back and it is idempotent.
                    request = match failed.take_message() {
                        Some(unsent) => unsent,
                        None if call.idempotent && is_stale(failed.error()) => {
                            build(target, &call, None)?
                        }
                        None => return Err(broken(target, failed.into_error())),
                    };
                    sent.store(false, Ordering::Relaxed);
                }
            }
        }
        let mut connection = self.connect(target).await?;
        sent.store(true, Ordering::Relaxed);
        let response =
            connection.sender.send_request(request).await.map_err(|e| broken(target, e))?;
        self.answered(target, &call, connection, response).await
    }

    async fn connect(&self, target: &Target) -> Result<Connection, CallError> {
        let permit = Arc::clone(&self.inner.open).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let stream = self.inner.connector.connect(target).await?;
        let (sender, connection) = http1::Builder::new()
            .max_headers(HEADERS_MAX)
            .max_header_size(HEADER_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(target, error))?;
        let driver = tokio::spawn(async move {
            // The waiting call, if any, gets the error.
            let _ = connection.await;
        });
        Ok(Connection { sender, _driver: AbortOnDropHandle::new(driver), _permit: permit })
    }

    async fn answered(
        &self,
        target: &Target,
        call: &Call,
        connection: Connection,
        response: http::Response<Incoming>,
    ) -> Result<BodyStream, CallError> {
        let (head, body) = response.into_parts();
        let good = head.status.is_success();
        let bytes_max = if good { call.response_bytes_max } else { ERROR_BYTES_MAX };
        let mut stream = BodyStream {
            status: head.status,
            target: target.clone(),
            body,
            connection: Some(connection),
            inner: Arc::clone(&self.inner),
            bytes_left: bytes_max,
            bytes_max,
        };
        if good {
            return Ok(stream);
        }
        // An error response that is too long is still that error.
        let body = stream.read_all().await.unwrap_or_default();
        Err(CallError::Answered {
            address: target.address.clone(),
            answer: Box::new(ApiError::from_answer(head.status, &body)),
        })
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.inner.pool.len()
    }
}

/// A successful response whose body is read in pieces. If dropped early, it closes its connection;
/// if read completely, it returns it to the pool.
pub struct BodyStream {
    pub status: StatusCode,
    target: Target,
    body: Incoming,
    connection: Option<Connection>,
    inner: Arc<Inner>,
    bytes_left: u64,
    bytes_max: u64,
}

impl std::fmt::Debug for BodyStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BodyStream").field("status", &self.status).finish_non_exhaustive()
    }
}

impl BodyStream {
    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// If the body pauses for too long, exceeds the call's limit, or the connection breaks.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            let frame = timeout(CHUNK_TIMEOUT, self.body.frame()).await.map_err(|_| {
                CallError::TimedOut {
                    address: self.target.address.clone(),
                    doing: "sending the answer's body",
                    after: CHUNK_TIMEOUT,
                    sent: true,
                }
            })?;
            let Some(frame) = frame else {
                if let Some(connection) = self.connection.take() {
                    self.keep(connection).await;
                }
                return Ok(None);
            };
            let frame = frame.map_err(|error| CallError::Broken {
                address: self.target.address.clone(),
                doing: "sending the answer's body",
                source: error.into(),
            })?;
            // Trailers are ignored.
            let Ok(data) = frame.into_data() else { continue };
            self.bytes_left = match self.bytes_left.checked_sub(data.len() as u64) {
                Some(left) => left,
                None => return Err(self.too_large()),
            };
            return Ok(Some(data));
        }
    }

    /// The body's length in bytes, if announced.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    async fn read_all(&mut self) -> Result<Bytes, CallError> {
        if self.body.size_hint().lower() > self.bytes_max {
            return Err(self.too_large());
        }
        let mut all = BytesMut::new();
        while let Some(data) = self.chunk().await? {
            all.extend_from_slice(&data);
        }
        Ok(all.freeze())
    }

    /// The connection's task needs a moment to detect that the response is complete; without the
    /// wait, the next call would find the connection busy and open a new one.
    async fn keep(&self, mut connection: Connection) {
        let ready = timeout(Duration::from_millis(100), connection.sender.ready()).await;
        if matches!(ready, Ok(Ok(()))) {
            self.inner.pool.put(&self.target, connection);
        }
    }

    fn too_large(&self) -> CallError {
        CallError::TooLarge { address: self.target.address.clone(), bytes_max: self.bytes_max }
    }
}

fn build(
    target: &Target,
    call: &Call,
    upload: Option<Upload>,
) -> Result<Request<SentBody>, CallError> {
    let unmade = |source: Cause| CallError::Request { address: target.address.clone(), source };
    let uri: Uri =
        call.path.parse().map_err(|error: http::uri::InvalidUri| unmade(error.into()))?;
    if !call.path.starts_with('/') {
        return Err(unmade(format!("path `{}` does not start with `/`", call.path).into()));
    }
    let Upload { body, length } = upload.unwrap_or_else(|| {
        let bytes = call.body.clone().unwrap_or_default();
        let body = Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
        Upload { body, length: None }
    });
    let mut request = Request::new(body);
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = uri;
    if let Some(length) = length {
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    let host =
        HeaderValue::from_str(&target.peer.dns_name()).map_err(|error| unmade(error.into()))?;
    request.headers_mut().insert(header::HOST, host);
    if call.body.is_some() || !request.body().is_end_stream() {
        let content_type = HeaderValue::from_static(call.content_type);
        request.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    Ok(request)
}

/// Whether the server had closed a reused connection before any of the response arrived.
fn is_stale(error: &hyper::Error) -> bool {
    let reset = |error: &hyper::Error| {
        let cause = std::error::Error::source(error);
        cause.and_then(|cause| cause.downcast_ref::<io::Error>()).is_some_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::NotConnected
            )
        })
    };
    error.is_canceled() || error.is_closed() || error.is_incomplete_message() || reset(error)
}

fn broken(target: &Target, error: hyper::Error) -> CallError {
    if let Some(identity) = refused(target, &error) {
        return identity;
    }
    let address = target.address.clone();
    if error.is_parse() {
        CallError::Malformed { address, source: error.into() }
    } else {
        CallError::Broken { address, doing: "waiting for the answer", source: error.into() }
    }
}

fn too_late(target: &Target, after: Duration, sent: &AtomicBool) -> CallError {
    let sent = sent.load(Ordering::Relaxed);
    let doing = if sent { "waiting for the answer" } else { "connecting" };
    CallError::TimedOut { address: target.address.clone(), doing, after, sent }
}
