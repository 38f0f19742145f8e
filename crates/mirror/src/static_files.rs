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
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::request::{About, Reply, relative_path, reply};

/// The folders of a repository that are anyone's to read.
const SERVED: [&str; 3] = ["metadata", "targets", "blobs"];
/// How much is read at once: one unit of an artifact.
const CHUNK_BYTES: usize = 64 * 1024;

/// Serves a repository's folder at the root of the URL.
///
/// The folder need not exist yet.
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
    // What is versioned or named by its hash never changes; the timestamp is asked for every time.
    let fixed = relative.file_name().is_none_or(|name| name != "timestamp.json");
    let kind = match relative.extension() {
        Some(extension) if extension == "json" => "application/json",
        _ => "application/octet-stream",
    };
    let cache = if fixed { "public, max-age=86400" } else { "no-cache" };
    let about = About { etag: &opened.etag, length: opened.length, cache, kind };
    let Reply { mut response, span } = reply(method, headers, &about);
    let Some((first, bytes)) = span else { return response };
    if first > 0 && opened.file.seek(SeekFrom::Start(first)).await.is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    // A file that grows while it is read is not served beyond what was promised; one that shrinks
    // ends the connection, which the reader notices.
    let stream = ReaderStream::with_capacity(opened.file.take(bytes), CHUNK_BYTES);
    *response.body_mut() = Body::from_stream(stream);
    response
}
