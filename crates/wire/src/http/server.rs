//! Serving peers: one port, protocols selected by ALPN, every limit enforced here.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::extract::DefaultBodyLimit;
use axum::response::IntoResponse;
use cohort_base::chain;
use cohort_identity::{
    Alpn, Certified, ClientAuth, Identity, Peer, Role, UnixTime, certified_by, server_config,
};
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_http::timeout::TimeoutBody;

use super::caller::Certificate;
use super::error::ApiError;
use super::gate::{Gate, Pass};
use crate::limits::{ACCEPT_PAUSE, ServerLimits, URGENT_REQUESTS_MAX};
use crate::piecewise::Piecewise;
use crate::revocation::Revocations;
use crate::tls::{IdentitySlot, ServerStream, tune};

/// How long an open connection may outlive its certificate after the clock was set.
const CLOCK_LOOK: Duration = Duration::from_secs(60);

/// Serves a connection that is not HTTP. At shutdown, its future is dropped, which ends the
/// connection.
pub type RawHandler =
    Arc<dyn Fn(Peer, ServerStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// How the connections of one protocol are served.
#[derive(Clone)]
pub enum Handler {
    /// HTTP. Requests have the extensions [`Peer`], unless the client has no certificate, and
    /// [`ConnectInfo`] with its address.
    Http(Router),
    Raw(RawHandler),
}

impl Handler {
    /// Makes a raw handler from an async function.
    pub fn raw<F, W>(handle: F) -> Self
    where
        F: Fn(Peer, ServerStream) -> W + Send + Sync + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        Handler::Raw(Arc::new(move |peer, stream| Box::pin(handle(peer, stream))))
    }
}

/// Serves `routes` over mutual TLS until `shutdown`, then waits for requests in progress, at most
/// for the limits' grace period. Only the hub uses [`ClientAuth::Optional`].
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

/// Serves plain HTTP: probe ports, and repositories, whose content is signed.
pub async fn serve_plain(
    listener: TcpListener,
    router: Router,
    limits: ServerLimits,
    shutdown: CancellationToken,
) {
    run(listener, None, prepare(router), limits, shutdown).await;
}

/// Body sizes are limited here, by path, instead of by axum.
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
    /// The acceptor for the current identity; rebuilt after the identity was replaced.
    fn acceptor(&self) -> Result<TlsAcceptor, cohort_identity::TlsError> {
        let current = self.identity.current();
        let mut kept = self.acceptor.lock();
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

/// Shared by all connections of a server.
struct Shared {
    limits: ServerLimits,
    gate: Arc<Gate>,
    requests: Arc<Semaphore>,
    /// For the paths that have a reserve.
    urgent: Arc<Semaphore>,
    shutdown: CancellationToken,
}

async fn run(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    plain: Router,
    limits: ServerLimits,
    shutdown: CancellationToken,
) {
    let limits = limits.within_process();
    let shared = Arc::new(Shared {
        gate: Gate::new(&limits, tls.is_some()),
        requests: Arc::new(Semaphore::new(limits.requests_max)),
        urgent: Arc::new(Semaphore::new(URGENT_REQUESTS_MAX)),
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
                // Possibly "too many open files": an immediate retry would spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(pass) = shared.gate.admit(from.ip()) else {
            tracing::debug!(%from, "connection refused: its address, or the port, has too many");
            continue;
        };
        let (shared, tls, plain) = (Arc::clone(&shared), tls.clone(), plain.clone());
        tasks.spawn(async move {
            if let Err(error) = tune(&stream) {
                tracing::debug!(%from, %error, "cannot set socket options");
                return;
            }
            match tls {
                Some(tls) => Box::pin(serve_tls(stream, from, pass, &tls, &shared)).await,
                None => {
                    shared.limits.dscp_plain.try_mark(&stream);
                    let pass = Arc::new(pass);
                    Box::pin(serve_http(stream, Some(plain), None, (from, pass), &shared)).await;
                }
            }
        });
    }
    drop(listener);
    tasks.close();
    // Each task has its own grace period.
    tasks.wait().await;
}

async fn serve_tls(stream: TcpStream, from: SocketAddr, pass: Pass, tls: &Tls, shared: &Shared) {
    let Some(stream) = handshake(stream, from, &pass, tls, shared).await else { return };
    let (socket, session) = stream.get_ref();
    let alpn = session.alpn_protocol().and_then(Alpn::from_bytes);
    if alpn == Some(Alpn::Bulk) {
        shared.limits.dscp_bulk.try_mark(socket);
    }
    let Some(handler) = alpn.and_then(|alpn| tls.routes.get(&alpn)) else {
        tracing::debug!(%from, "client offers no protocol");
        return;
    };
    let certified = match session.peer_certificates().map(certified_by).transpose() {
        Ok(certified) => certified,
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(%from, error, "client's certificate is trusted but names no peer");
            return;
        }
    };
    let revocations = tls.identity.revocations();
    if let Some(revoked) = certified.as_ref().filter(|certified| revocations.revokes(certified)) {
        let peer = &revoked.peer;
        tracing::warn!(%from, %peer, "revoked certificate refused");
        // People are told why; programs only have to stay out.
        let is_person = !matches!(peer.role, Role::Agent | Role::Hub);
        if is_person && matches!(handler, Handler::Http(_)) {
            let told = Router::new()
                .fallback(async || ([(header::CONNECTION, "close")], ApiError::revoked()));
            Box::pin(serve_http(stream, Some(told), None, (from, Arc::new(pass)), shared)).await;
        }
        return;
    }
    let peer = certified.as_ref().map(|certified| certified.peer.clone());
    let pass = Arc::new(pass);
    // It ends once its peer's certificate is revoked.
    let revoked = revoked(Arc::clone(revocations), certified.clone());
    let may_stay = peer.as_ref().is_none_or(|peer| pass.certify(peer));
    let served =
        serve_handler(handler, stream, alpn, certified.clone(), (from, pass, may_stay), shared);
    let expired = expired(certified.as_ref().map(|certified| certified.not_after));
    tokio::select! {
        () = revoked => tracing::warn!(%from, ?peer, "connection ended: certificate revoked"),
        () = expired => tracing::info!(%from, ?peer, "connection ended: certificate expired"),
        () = served => {}
    }
}

/// Ends once the certificate is revoked.
async fn revoked(revocations: Arc<Revocations>, certified: Option<Certified>) {
    let Some(certified) = certified else { return std::future::pending().await };
    let mut news = revocations.subscribe();
    while !revocations.revokes(&certified) {
        if news.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Ends once the clock has passed `not_after`; clocks are set, so it is looked at again and again.
async fn expired(not_after: Option<UnixTime>) {
    let Some(not_after) = not_after else { return std::future::pending().await };
    loop {
        let left = (not_after.as_secs() + 1).saturating_sub(UnixTime::now().as_secs());
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_secs(left).min(CLOCK_LOOK)).await;
    }
}

async fn serve_handler(
    handler: &Handler,
    stream: ServerStream,
    alpn: Option<Alpn>,
    certified: Option<Certified>,
    (from, pass, may_stay): (SocketAddr, Arc<Pass>, bool),
    shared: &Shared,
) {
    match handler {
        Handler::Http(router) => {
            let router = may_stay.then(|| router.clone());
            let client = (from, pass);
            if alpn != Some(Alpn::Bulk) {
                return Box::pin(serve_http(stream, router, certified, client, shared)).await;
            }
            match Piecewise::new(stream, |stream| stream.get_ref().0) {
                Ok(stream) => Box::pin(serve_http(stream, router, certified, client, shared)).await,
                Err(error) => tracing::debug!(%from, %error, "cannot set socket options"),
            }
        }
        Handler::Raw(raw) => {
            // Clients without a certificate get HTTP only.
            if let Some(Certified { peer, .. }) = certified.filter(|_| may_stay) {
                let _busy = pass.keep_busy();
                if pass.yielded.is_cancelled() {
                    return;
                }
                tokio::select! {
                    () = shared.shutdown.cancelled() => {}
                    () = raw(peer, stream) => {}
                }
            }
        }
    }
}

/// The TLS handshake, within its limits; `None` if it failed.
async fn handshake(
    stream: TcpStream,
    from: SocketAddr,
    pass: &Pass,
    tls: &Tls,
    shared: &Shared,
) -> Option<ServerStream> {
    let acceptor = match tls.acceptor() {
        Ok(acceptor) => acceptor,
        Err(error) => {
            tracing::error!(error = chain(&error), "cannot use the identity to serve");
            return None;
        }
    };
    let accepted = tokio::select! {
        () = shared.shutdown.cancelled() => return None,
        () = pass.yielded.cancelled() => return None,
        accepted = timeout(shared.limits.handshake_timeout, acceptor.accept(stream)) => accepted,
    };
    match accepted {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%from, %error, "handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!(%from, "handshake timed out");
            None
        }
    }
}

/// Serves one connection. `router` is `None` if its peer has too many connections: it gets an error
/// and is closed.
async fn serve_http<S>(
    stream: S,
    router: Option<Router>,
    certified: Option<Certified>,
    (from, pass): (SocketAddr, Arc<Pass>),
    shared: &Shared,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &shared.limits;
    let router = router.map(TowerToHyperService::new);
    let service = service_fn(|mut request: Request<Incoming>| {
        let router = router.clone();
        request.extensions_mut().insert(ConnectInfo(from));
        if let Some(Certified { peer, group, not_before, .. }) = certified.clone() {
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(Certificate { group, not_before });
        }
        let pass = &pass;
        async move { Ok::<_, Infallible>(answer(request, router, pass, shared).await) }
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
        ended = connection.as_mut() => Some(ended),
        () = pass.yielded.cancelled() => {
            if limits.requests_are_short || !pass.is_busy() {
                tracing::debug!(%from, "idle connection gives way to a newer one");
                return;
            }
            None
        }
        () = shared.shutdown.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            match timeout(limits.shutdown_grace, connection).await {
                Ok(ended) => ended,
                Err(_) => {
                    tracing::warn!(%from, "request aborted: its connection had to end");
                    return;
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%from, error = chain(&error), "connection ended early");
    }
}

async fn answer(
    request: Request<Incoming>,
    router: Option<TowerToHyperService<Router>>,
    pass: &Arc<Pass>,
    shared: &Shared,
) -> Response<Body> {
    // The body is not read, so the connection cannot be reused.
    let refuse = |error: ApiError| {
        let mut response = error.into_response();
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    };
    let Some(router) = router else {
        return refuse(ApiError::overloaded("too many connections from this peer"));
    };
    let Some(busy) = pass.ask() else {
        return refuse(ApiError::overloaded("too many requests from this address"));
    };
    let path = request.uri().path();
    let mut permit = Arc::clone(&shared.requests).try_acquire_owned();
    if permit.is_err() && shared.limits.urgent_path.is_some_and(|urgent| urgent == path) {
        permit = Arc::clone(&shared.urgent).try_acquire_owned();
    }
    let Ok(permit) = permit else {
        shared.gate.count_full();
        return refuse(ApiError::overloaded("too many requests at once"));
    };
    let own = shared.limits.body_limits.iter().find(|(start, _)| path.starts_with(start));
    let bytes_max = own.map_or(shared.limits.request_body_bytes_max, |(_, bytes)| *bytes);
    if request.body().size_hint().lower() > bytes_max {
        return refuse(ApiError::too_large(bytes_max));
    }
    let idle_max = shared.limits.body_idle_timeout;
    let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    let request =
        request.map(|body| Body::new(TimeoutBody::new(idle_max, Limited::new(body, bytes_max))));
    let response = match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    // The request is in progress until its response is sent: the body holds the permit.
    response.map(|body| {
        Body::new(body.map_err(move |error| {
            let _held = (&permit, &busy);
            error
        }))
    })
}
