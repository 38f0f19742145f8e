//! The repository as plain static files: what any mirror does as well.
//!
//! `GET` and `HEAD`, one byte range, `If-None-Match`, `If-Range`, correct `Content-Length`. Only
//! regular files below `metadata/`, `targets/` and `blobs/` are served, wherever symbolic links
//! lead: a key that was put into the folder by mistake stays there.

use std::io::SeekFrom;
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    IF_RANGE, RANGE,
};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::request::{Wanted, parse_range, relative_path, same_tag};

/// The folders of a repository that are anyone's to read.
const SERVED: [&str; 3] = ["metadata", "targets", "blobs"];
/// How much is read at once: one unit of an artifact.
const CHUNK_BYTES: usize = 64 * 1024;

/// Serves a repository's folder at the root of the URL.
///
/// The folder need not exist yet.
#[must_use]
pub fn static_files(repository_dir: &Path) -> Router {
    let dir: Arc<Path> = repository_dir.into();
    let mut router = Router::new();
    for folder in SERVED {
        router = router.route(&format!("/{folder}/{{*path}}"), get(serve));
    }
    router.with_state(dir)
}

async fn serve(
    State(dir): State<Arc<Path>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let Some(relative) = relative_path(uri.path()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let opened = match open(&dir, &relative).await {
        Ok(Some(opened)) => opened,
        Ok(None) => return StatusCode::NOT_FOUND.into_response(),
        Err(error) => {
            tracing::error!(file = %relative.display(), %error, "repository file cannot be read");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    answer(opened, &method, &relative, &headers).await
}

/// A file that may be served.
struct Opened {
    file: File,
    length: u64,
    etag: String,
}

async fn open(dir: &Path, relative: &Path) -> std::io::Result<Option<Opened>> {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    let found: std::io::Result<Option<Opened>> = async {
        let dir = tokio::fs::canonicalize(dir).await?;
        let path = tokio::fs::canonicalize(dir.join(relative)).await?;
        // A link may lead to another served folder, and nowhere else.
        let inside = SERVED.iter().any(|folder| path.starts_with(dir.join(folder)));
        if !inside {
            return Ok(None);
        }
        let file = File::open(&path).await?;
        let about = file.metadata().await?;
        if !about.is_file() {
            return Ok(None);
        }
        let changed = about.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let etag = format!("\"{:x}-{:x}\"", about.len(), changed.as_nanos());
        Ok(Some(Opened { file, length: about.len(), etag }))
    }
    .await;
    match found {
        Err(error) if matches!(error.kind(), NotFound | NotADirectory | PermissionDenied) => {
            Ok(None)
        }
        result => result,
    }
}

async fn answer(
    mut opened: Opened,
    method: &Method,
    relative: &Path,
    headers: &HeaderMap,
) -> Response {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let length = opened.length;
    // What is versioned or named by its hash never changes; the timestamp is asked for every time.
    let fixed = relative.file_name().is_none_or(|name| name != "timestamp.json");
    let cache = if fixed { "public, max-age=86400" } else { "no-cache" };
    let kind = match relative.extension() {
        Some(extension) if extension == "json" => "application/json",
        _ => "application/octet-stream",
    };
    let common = [
        (ETAG, opened.etag.clone()),
        (ACCEPT_RANGES, "bytes".to_owned()),
        (CACHE_CONTROL, cache.to_owned()),
        (CONTENT_TYPE, kind.to_owned()),
    ];
    let known = text(IF_NONE_MATCH)
        .is_some_and(|tags| tags.split(',').any(|tag| same_tag(tag, &opened.etag)));
    if known {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    let range_is_for_this = text(IF_RANGE).is_none_or(|tag| tag.trim() == opened.etag);
    let wanted = text(RANGE).filter(|_| range_is_for_this && *method == Method::GET);
    let range = match wanted.map(|wanted| parse_range(wanted, length)) {
        None | Some(Wanted::Whole) => None,
        Some(Wanted::Part { first, last }) => Some((first, last)),
        Some(Wanted::Outside) => {
            let whole = [(CONTENT_RANGE, format!("bytes */{length}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, whole).into_response();
        }
    };
    let (status, first, bytes) = match range {
        Some((first, last)) => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        None => (StatusCode::OK, 0, length),
    };
    let mut response = (status, common, [(CONTENT_LENGTH, bytes.to_string())]).into_response();
    if let Some((first, last)) = range {
        let value = format!("bytes {first}-{last}/{length}");
        let value = value.parse().expect("numbers are visible ASCII");
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    if *method == Method::HEAD {
        return response;
    }
    if first > 0 && opened.file.seek(SeekFrom::Start(first)).await.is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    // A file that grows while it is read is not served beyond what was promised; one that shrinks
    // ends the connection, which the reader notices.
    let stream = ReaderStream::with_capacity(opened.file.take(bytes), CHUNK_BYTES);
    *response.body_mut() = Body::from_stream(stream);
    response
}
