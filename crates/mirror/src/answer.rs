//! A cache's responses: artifacts unit by unit as they arrive, small files whole.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use cohort_artifact::{RepositoryFile, UNIT_BYTES};
use cohort_core::ids::Digest;
use cohort_wire::http::ApiError;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::blob::Blob;
use crate::cache::App;
use crate::metrics::Kind;
use crate::origins::Refused;
use crate::request::{About, Reply, reply};

/// Longest `Retry-After`, in seconds: origins recover sooner, and readers have other mirrors.
const RETRY_AFTER_S_MAX: u64 = 30;

/// Serves a request for any file of the repository.
pub(crate) async fn serve(
    State(app): State<Arc<App>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let Ok(place) = Arc::clone(&app.places).try_acquire_owned() else {
        app.cache.metrics.overloaded.inc();
        return ApiError::overloaded("too many requests at once").into_response();
    };
    let path = uri.path().trim_start_matches('/');
    let Some(file) = RepositoryFile::of(path) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let begun = Instant::now();
    let (kind, answered) = match &file {
        RepositoryFile::Blob(root) => {
            ("artifact", artifact(&app, &file, root, &method, &headers, place).await)
        }
        RepositoryFile::Units(root) => {
            ("artifact", hashes(&app, &file, root, &method, &headers).await)
        }
        _ => ("file", small(&app, path, &file, &method, &headers).await),
    };
    let seconds = app.cache.metrics.request_seconds.get_or_create(&Kind { kind });
    seconds.observe(begun.elapsed().as_secs_f64());
    answered.unwrap_or_else(|refused| refuse(path, &refused))
}

fn refuse(path: &str, refused: &Refused) -> Response {
    match refused {
        Refused::Absent => StatusCode::NOT_FOUND.into_response(),
        Refused::Later(after) => {
            let seconds = after.as_secs().saturating_add(1).min(RETRY_AFTER_S_MAX);
            let error = ApiError::unavailable("origin_away", "no origin is available right now");
            let mut response = error.into_response();
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            response
        }
        Refused::Failed(reason) => {
            tracing::warn!(path, %reason, "cannot get the file from any origin");
            let error = format!("no origin delivers {path}: {reason}");
            ApiError::new(StatusCode::BAD_GATEWAY, "bad_gateway", error).into_response()
        }
    }
}

async fn small(
    app: &Arc<App>,
    path: &str,
    kind: &RepositoryFile,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Refused> {
    let file = app.files.get(path, kind.clone()).await?;
    let (etag, length) = (file.etag(), file.body.len() as u64);
    let about = About { etag: &etag, length, kind };
    Ok(with_bytes(app, reply(method, headers, &about), &file.body))
}

fn with_bytes(app: &App, reply: Reply, bytes: &Bytes) -> Response {
    let Reply { mut response, span } = reply;
    if let Some((first, count)) = span {
        let index = |at: u64| usize::try_from(at).expect("within bytes in memory");
        let part = bytes.slice(index(first)..index(first + count));
        app.cache.metrics.served_bytes.inc_by(count);
        *response.body_mut() = Body::from(part);
    }
    response
}

async fn hashes(
    app: &Arc<App>,
    kind: &RepositoryFile,
    root: &Digest,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Refused> {
    let blob = app.cache.artifact(root).await?;
    let bytes: Bytes = blob.hashes.to_bytes().into();
    let (etag, length) = (format!("\"{root}.units\""), bytes.len() as u64);
    let about = About { etag: &etag, length, kind };
    Ok(with_bytes(app, reply(method, headers, &about), &bytes))
}

async fn artifact(
    app: &Arc<App>,
    kind: &RepositoryFile,
    root: &Digest,
    method: &Method,
    headers: &HeaderMap,
    place: OwnedSemaphorePermit,
) -> Result<Response, Refused> {
    let blob = app.cache.artifact(root).await?;
    let (etag, length) = (format!("\"{root}\""), blob.hashes.length());
    let about = About { etag: &etag, length, kind };
    let Reply { mut response, span } = reply(method, headers, &about);
    let Some((first, count)) = span else { return Ok(response) };
    let unit = |at: u64| u32::try_from(at / u64::from(UNIT_BYTES)).expect("within the artifact");
    let units = unit(first)..unit(first + count - 1) + 1;
    // The head is sent with the first unit: until then an error can still be the response.
    let (sender, mut receiver) = mpsc::channel(1);
    let reader = Reader { app: Arc::clone(app), blob, bytes: first..first + count, _place: place };
    tokio::spawn(reader.run(units, sender));
    let lost = || Refused::Failed("internal error".to_owned());
    let begin = receiver.recv().await.ok_or_else(lost)??;
    let rest = stream::unfold((Some(begin), receiver), async |(begin, mut receiver)| {
        let next = match begin {
            Some(begin) => Ok(begin),
            None => receiver.recv().await?.map_err(|refused| {
                // The head is sent: all we can do is close the connection.
                std::io::Error::other(format!("no origin delivers the rest: {refused:?}"))
            }),
        };
        Some((next, (None, receiver)))
    });
    *response.body_mut() = Body::from_stream(rest);
    Ok(response)
}

/// Sends an artifact to one reader, as fast as it reads. At most two units are in memory: one in
/// transit to the socket, one behind it.
struct Reader {
    app: Arc<App>,
    blob: Arc<Blob>,
    bytes: Range<u64>,
    _place: OwnedSemaphorePermit,
}

impl Reader {
    async fn run(self, units: Range<u32>, to: mpsc::Sender<Result<Bytes, Refused>>) {
        let patience = self.app.cache.limits.reader_max;
        for index in units.clone() {
            // A reader that leaves frees its slot; the unit is still fetched.
            let unit = tokio::select! {
                unit = self.blob.unit(index, units.end) => unit,
                () = to.closed() => return,
            };
            let ended = unit.is_err();
            let part = unit.map(|unit| self.part(index, &unit));
            let count = part.as_ref().map_or(0, |part| part.len() as u64);
            // A reader that barely reads loses its slot, and its connection, because the head
            // promised more.
            let sent = tokio::time::timeout(patience, to.send(part)).await;
            if !matches!(sent, Ok(Ok(()))) || ended {
                return;
            }
            self.app.cache.metrics.served_bytes.inc_by(count);
        }
    }

    /// The requested part of a unit.
    fn part(&self, index: u32, unit: &Bytes) -> Bytes {
        let start = u64::from(index) * u64::from(UNIT_BYTES);
        let within = |at: u64| {
            let at = at.saturating_sub(start).min(unit.len() as u64);
            usize::try_from(at).expect("within a unit")
        };
        unit.slice(within(self.bytes.start)..within(self.bytes.end))
    }
}
