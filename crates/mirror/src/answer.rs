//! Answering readers of a cache: artifacts unit by unit as they come, small files whole.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use cohort_artifact::UNIT_BYTES;
use cohort_core::ids::Digest;
use cohort_wire::http::ApiError;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::blob::Blob;
use crate::cache::App;
use crate::fill::Direct;
use crate::metrics::{Kind, add};
use crate::origins::Refused;
use crate::request::{About, Reply, relative_path, reply};

/// What is named by its own hash never changes.
const FOR_EVER: &str = "public, max-age=31536000, immutable";

const BYTES: &str = "application/octet-stream";

/// The longest time a reader is told to stay away, in seconds: origins come back sooner, and a
/// reader has other mirrors anyway.
const RETRY_AFTER_S_MAX: u64 = 30;

/// Anything of the repository.
pub(crate) async fn serve(
    State(app): State<Arc<App>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let Ok(place) = Arc::clone(&app.places).try_acquire_owned() else {
        add(&app.shared.metrics.overloaded, 1);
        return ApiError::overloaded("too many requests at once").into_response();
    };
    let path = uri.path();
    let Some(plain) = relative_path(path).and_then(|path| path.to_str().map(str::to_owned)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let begun = Instant::now();
    let (kind, answered) = match plain.strip_prefix("blobs/") {
        Some(name) => ("artifact", artifact(&app, name, &method, &headers, place).await),
        None => ("file", small(&app, &plain, &method, &headers).await),
    };
    let seconds = app.shared.metrics.request_seconds.get_or_create(&Kind { kind });
    seconds.observe(begun.elapsed().as_secs_f64());
    answered.unwrap_or_else(|refused| refuse(&plain, &refused))
}

fn refuse(path: &str, refused: &Refused) -> Response {
    match refused {
        Refused::Absent => StatusCode::NOT_FOUND.into_response(),
        Refused::Later(after) => {
            let seconds = after.as_secs().saturating_add(1).min(RETRY_AFTER_S_MAX);
            let error = ApiError::unavailable("origin_away", "no origin can be asked just now");
            let mut response = error.into_response();
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            response
        }
        Refused::Failed(reason) => {
            tracing::warn!(path, %reason, "nothing to serve");
            let error = format!("no origin gave {path}: {reason}");
            ApiError::new(StatusCode::BAD_GATEWAY, "bad_gateway", error).into_response()
        }
    }
}

async fn small(
    app: &Arc<App>,
    path: &str,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Refused> {
    let named = path.starts_with("targets/");
    if !(named || path.starts_with("metadata/") && path.ends_with(".json")) {
        return Err(Refused::Absent);
    }
    let file = app.files.get(path).await?;
    let etag = file.etag();
    let kind = if path.ends_with(".json") { "application/json" } else { BYTES };
    let length = file.body.len() as u64;
    let about = About { etag: &etag, length, cache: "no-cache", kind };
    Ok(with_bytes(app, reply(method, headers, &about), &file.body))
}

fn with_bytes(app: &App, reply: Reply, bytes: &Bytes) -> Response {
    let Reply { mut response, span } = reply;
    if let Some((first, count)) = span {
        let index = |at: u64| usize::try_from(at).expect("within bytes in memory");
        let part = bytes.slice(index(first)..index(first + count));
        add(&app.shared.metrics.served_bytes, count);
        *response.body_mut() = Body::from(part);
    }
    response
}

async fn artifact(
    app: &Arc<App>,
    name: &str,
    method: &Method,
    headers: &HeaderMap,
    place: OwnedSemaphorePermit,
) -> Result<Response, Refused> {
    let root = name.strip_suffix(".units");
    let hashes = root.is_some();
    let digest: Digest = root.unwrap_or(name).parse().map_err(|_| Refused::Absent)?;
    let blob = app.artifacts.open(&digest).await?;
    if hashes {
        let bytes: Bytes = blob.hashes.to_bytes().into();
        let (etag, length) = (format!("\"{digest}.units\""), bytes.len() as u64);
        let about = About { etag: &etag, length, cache: FOR_EVER, kind: BYTES };
        return Ok(with_bytes(app, reply(method, headers, &about), &bytes));
    }
    let (etag, length) = (format!("\"{digest}\""), blob.hashes.length());
    let about = About { etag: &etag, length, cache: FOR_EVER, kind: BYTES };
    let Reply { mut response, span } = reply(method, headers, &about);
    let Some((first, count)) = span else { return Ok(response) };
    let unit = |at: u64| u32::try_from(at / u64::from(UNIT_BYTES)).expect("within the artifact");
    let units = unit(first)..unit(first + count - 1) + 1;
    // The head promises bytes, so that it waits for the first of them: until then another answer
    // is possible.
    let (sender, mut receiver) = mpsc::channel(1);
    let reader = Reader { app: Arc::clone(app), blob, bytes: first..first + count, _place: place };
    tokio::spawn(reader.run(units, sender));
    let lost = || Refused::Failed("reading it broke down".to_owned());
    let begin = receiver.recv().await.ok_or_else(lost)??;
    let rest = stream::unfold((Some(begin), receiver), async |(begin, mut receiver)| {
        let next = match begin {
            Some(begin) => Ok(begin),
            None => receiver.recv().await?.map_err(|refused| {
                // The head is out: all that is left is to end the connection before its time.
                std::io::Error::other(format!("the rest does not come: {refused:?}"))
            }),
        };
        Some((next, (None, receiver)))
    });
    *response.body_mut() = Body::from_stream(rest);
    Ok(response)
}

/// Gives the bytes of an artifact to one reader, as fast as it takes them. At most two units are
/// in memory: one on its way to the socket, one behind it.
struct Reader {
    app: Arc<App>,
    blob: Arc<Blob>,
    bytes: Range<u64>,
    _place: OwnedSemaphorePermit,
}

impl Reader {
    async fn run(self, units: Range<u32>, to: mpsc::Sender<Result<Bytes, Refused>>) {
        let mut direct: Option<Direct<'_>> = None;
        let patience = Duration::from_millis(self.app.shared.limits.reader_ms_max);
        for index in units.clone() {
            let unit = async {
                match self.blob.unit(index, units.end).await? {
                    Some(unit) => Ok(unit),
                    None => self.past_the_disk(&mut direct, index, units.end).await,
                }
            };
            // Who has gone while the unit was on its way needs no place; the unit comes all the same.
            let unit = tokio::select! {
                unit = unit => unit,
                () = to.closed() => return,
            };
            let ended = unit.is_err();
            let part = unit.map(|unit| self.part(index, &unit));
            let count = part.as_ref().map_or(0, |part| part.len() as u64);
            // A reader who takes next to nothing loses its place; the head promised more, so that
            // its connection ends as well.
            let sent = tokio::time::timeout(patience, to.send(part)).await;
            if !matches!(sent, Ok(Ok(()))) || ended {
                return;
            }
            add(&self.app.shared.metrics.served_bytes, count);
        }
    }

    async fn past_the_disk<'a>(
        &'a self,
        direct: &mut Option<Direct<'a>>,
        index: u32,
        end: u32,
    ) -> Result<Bytes, Refused> {
        let direct = match direct {
            Some(direct) => direct,
            none => none.insert(Direct::begin(&self.blob).await?),
        };
        direct.unit(&self.blob, index, end).await
    }

    /// What of a unit is wanted.
    fn part(&self, index: u32, unit: &Bytes) -> Bytes {
        let start = u64::from(index) * u64::from(UNIT_BYTES);
        let within = |at: u64| {
            let at = at.saturating_sub(start).min(unit.len() as u64);
            usize::try_from(at).expect("within a unit")
        };
        unit.slice(within(self.bytes.start)..within(self.bytes.end))
    }
}
