//! Serving peers: one port, several protocols told apart by ALPN, every limit enforced here.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit};
use axum::response::IntoResponse;
use cohort_identity::{Alpn, ClientAuth, Identity, Peer, peer_of, server_config};
use http::{HeaderValue, Request, Response, header};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::{CountedBody, GuardedBody};
use super::error::ApiError;
use crate::limits::{ACCEPT_PAUSE, ServerLimits};
use crate::piecewise::Piecewise;
use crate::tls::{IdentitySlot, ServerStream, tune};

/// What serves a connection that is not HTTP. When its future is dropped, the connection ends; at
/// shutdown it is dropped at once.
pub type RawHandler = Arc<
    dyn Fn(Peer, SocketAddr, ServerStream) -> Pin<Box<dyn Future<Output = ()> + Send>>
        + Send
        + Sync,
>;

/// What serves a protocol.
#[derive(Clone)]
pub enum Handler {
    /// HTTP. Requests carry the extensions [`Peer`] (absent when the client has no certificate),
    /// [`SocketAddr`] and [`ConnectInfo`].
    Http(Router),
    /// Anything else.
    Raw(RawHandler),
}

impl Handler {
    /// A handler of raw streams, from a function.
    pub fn raw<F, W>(handle: F) -> Self
    where
        F: Fn(Peer, SocketAddr, ServerStream) -> W + Send + Sync + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        Handler::Raw(Arc::new(move |peer, from, stream| Box::pin(handle(peer, from, stream))))
    }
}

/// Serves `routes` over mutual TLS until `shutdown`, then lets requests in progress end, within the
/// grace of `limits`. Use [`ClientAuth::Optional`] only at the hub.
pub async fn serve(
    listener: TcpListener,
    identity: Arc<IdentitySlot>,
    client_auth: ClientAuth,
    routes: BTreeMap<Alpn, Handler>,
    limits: ServerLimits,
    shutdown: CancellationToken,
) {
    let routes = routes
        .into_iter()
        .map(|(alpn, handler)| match handler {
            Handler::Http(router) => (alpn, Handler::Http(prepare(router))),
            Handler::Raw(raw) => (alpn, Handler::Raw(raw)),
        })
        .collect();
    let tls = Tls { identity, client_auth, routes, acceptor: Mutex::new(None) };
    run(listener, Some(Arc::new(tls)), Router::new(), limits, shutdown).await;
}

/// Serves plain HTTP: the probe port, and repositories (everything read from one is signed).
pub async fn serve_plain(
    listener: TcpListener,
    router: Router,
    limits: ServerLimits,
    shutdown: CancellationToken,
) {
    run(listener, None, prepare(router), limits, shutdown).await;
}

/// The body's size is limited here, by path; axum's own limit would be in the way.
fn prepare(router: Router) -> Router {
    router.layer(DefaultBodyLimit::disable())
}

struct Tls {
    identity: Arc<IdentitySlot>,
    client_auth: ClientAuth,
    routes: BTreeMap<Alpn, Handler>,
    acceptor: Mutex<Option<(Arc<Identity>, TlsAcceptor)>>,
}

impl Tls {
    /// The acceptor for the identity in use; made anew when that was replaced.
    fn acceptor(&self) -> Result<TlsAcceptor, cohort_identity::TlsError> {
        let current = self.identity.current();
        let mut kept = self.acceptor.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((identity, acceptor)) = kept.as_ref()
            && Arc::ptr_eq(identity, &current)
        {
            return Ok(acceptor.clone());
        }
        let alpns: Vec<Alpn> = self.routes.keys().copied().collect();
        let acceptor = TlsAcceptor::from(server_config(&current, &alpns, self.client_auth)?);
        *kept = Some((current, acceptor.clone()));
        Ok(acceptor)
    }
}

/// Whose connections are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Counted {
    Peer(Peer),
    Address(IpAddr),
}

/// Counts connections per peer.
struct Tally<K>(Mutex<HashMap<K, usize>>);

impl<K: Eq + Hash + Clone> Tally<K> {
    fn enter(self: &Arc<Self>, key: K, max: usize) -> Option<Present<K>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.clone()).or_insert(0);
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Present { tally: Arc::clone(self), key })
    }
}

/// One connection in a [`Tally`]; gone when dropped.
struct Present<K: Eq + Hash + Clone> {
    tally: Arc<Tally<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Drop for Present<K> {
    fn drop(&mut self) {
        let mut counts = self.tally.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// What all connections of a server share.
struct Shared {
    limits: ServerLimits,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    peers: Arc<Tally<Counted>>,
    shutdown: CancellationToken,
}

async fn run(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    plain: Router,
    limits: ServerLimits,
    shutdown: CancellationToken,
) {
    let shared = Arc::new(Shared {
        connections: Arc::new(Semaphore::new(limits.connections_max)),
        handshakes: Arc::new(Semaphore::new(limits.handshakes_max)),
        requests: Arc::new(Semaphore::new(limits.requests_max)),
        peers: Arc::new(Tally(Mutex::new(HashMap::new()))),
        limits,
        shutdown: shutdown.clone(),
    });
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // One of these is "too many open files": going on at once would only spin.
                tracing::warn!(%error, "connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&shared.connections).try_acquire_owned() else {
            tracing::debug!(%from, "connection refused: there are too many");
            continue;
        };
        let (shared, tls, plain) = (Arc::clone(&shared), tls.clone(), plain.clone());
        tasks.spawn(async move {
            let _permit = permit;
            if let Err(error) = tune(&stream) {
                tracing::debug!(%from, %error, "socket cannot be set up");
                return;
            }
            match tls {
                Some(tls) => Box::pin(serve_tls(stream, from, &tls, &shared)).await,
                None => {
                    shared.limits.dscp_plain.try_mark(&stream);
                    let key = Counted::Address(from.ip());
                    let present = shared.peers.enter(key, shared.limits.connections_per_peer_max);
                    let router = present.is_some().then_some(plain);
                    Box::pin(serve_http(stream, router, None, from, &shared)).await;
                }
            }
        });
    }
    drop(listener);
    tasks.close();
    // Every task has its own grace period and ends by itself.
    tasks.wait().await;
}

async fn serve_tls(stream: TcpStream, from: SocketAddr, tls: &Tls, shared: &Shared) {
    let stream = {
        let Ok(_handshake) = shared.handshakes.try_acquire() else {
            tracing::debug!(%from, "connection refused: too many handshakes at once");
            return;
        };
        let acceptor = match tls.acceptor() {
            Ok(acceptor) => acceptor,
            Err(error) => {
                tracing::error!(%error, "identity cannot be used to serve");
                return;
            }
        };
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            accepted = timeout(shared.limits.handshake_timeout, acceptor.accept(stream)) => {
                match accepted {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => {
                        tracing::debug!(%from, %error, "handshake failed");
                        return;
                    }
                    Err(_) => {
                        tracing::debug!(%from, "handshake took too long");
                        return;
                    }
                }
            }
        }
    };
    let session = stream.get_ref().1;
    let alpn = session.alpn_protocol().and_then(Alpn::from_bytes);
    if alpn == Some(Alpn::Bulk) {
        shared.limits.dscp_bulk.try_mark(stream.get_ref().0);
    }
    let Some(handler) = alpn.and_then(|alpn| tls.routes.get(&alpn)) else {
        tracing::debug!(%from, "client names no protocol");
        return;
    };
    let peer = match session.peer_certificates().map(peer_of) {
        None => None,
        Some(Ok(peer)) => Some(peer),
        Some(Err(error)) => {
            tracing::warn!(%from, %error, "client's certificate is good but names nobody");
            return;
        }
    };
    let key = peer.clone().map_or(Counted::Address(from.ip()), Counted::Peer);
    let present = shared.peers.enter(key, shared.limits.connections_per_peer_max);
    match handler {
        Handler::Http(router) => {
            let router = present.is_some().then(|| router.clone());
            if alpn == Some(Alpn::Bulk) {
                match Piecewise::new(stream, |stream| stream.get_ref().0) {
                    Ok(stream) => Box::pin(serve_http(stream, router, peer, from, shared)).await,
                    Err(error) => tracing::debug!(%from, %error, "socket cannot be set up"),
                }
            } else {
                Box::pin(serve_http(stream, router, peer, from, shared)).await;
            }
        }
        Handler::Raw(raw) => {
            // Without a certificate there is only HTTP.
            if let (Some(peer), Some(_present)) = (peer, &present) {
                tokio::select! {
                    () = shared.shutdown.cancelled() => {}
                    () = raw(peer, from, stream) => {}
                }
            }
        }
    }
}

/// Serves one connection. Without a router it has one connection too many, is told so, and closed.
async fn serve_http<S>(
    stream: S,
    router: Option<Router>,
    peer: Option<Peer>,
    from: SocketAddr,
    shared: &Shared,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &shared.limits;
    let router = router.map(TowerToHyperService::new);
    let service = service_fn(|mut request: Request<Incoming>| {
        let router = router.clone();
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        request.extensions_mut().insert(from);
        request.extensions_mut().insert(ConnectInfo(from));
        async move { Ok::<_, Infallible>(answer(request, router, shared).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        .max_headers(limits.headers_max)
        .max_header_size(limits.header_bytes_max)
        .keep_alive(router.is_some())
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shared.shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match timeout(limits.shutdown_grace, connection).await {
                Ok(ended) => ended,
                Err(_) => {
                    tracing::warn!(%from, "request cut off by the shutdown");
                    return;
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%from, %error, "connection ended early");
    }
}

async fn answer(
    request: Request<Incoming>,
    router: Option<TowerToHyperService<Router>>,
    shared: &Shared,
) -> Response<CountedBody> {
    let counted = |response: Response<axum::body::Body>, permit| {
        response.map(|inner| CountedBody { inner, _permit: permit })
    };
    // Answered without reading the body, so the connection cannot be used again.
    let refuse = |error: ApiError| {
        let mut response = error.into_response();
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        counted(response, None)
    };
    let Some(router) = router else {
        return refuse(ApiError::overloaded("too many connections from this peer"));
    };
    let Ok(permit) = Arc::clone(&shared.requests).try_acquire_owned() else {
        return refuse(ApiError::overloaded("too many requests at once"));
    };
    let path = request.uri().path();
    let large = shared.limits.large_bodies.iter().find(|(start, _)| path.starts_with(start));
    let bytes_max = large.map_or(shared.limits.request_body_bytes_max, |(_, bytes)| *bytes);
    if request.body().size_hint().lower() > bytes_max {
        return refuse(ApiError::too_large(bytes_max));
    }
    let idle_max = shared.limits.body_idle_timeout;
    let request =
        request.map(|body| axum::body::Body::new(GuardedBody::new(body, bytes_max, idle_max)));
    let response = match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    counted(response, Some(permit))
}
