//! The repository as plain static files: any HTTP server could do this.
//!
//! `GET` and `HEAD`, one byte range, `If-None-Match`, `If-Range`, correct `Content-Length`. Only
//! names that a repository has are served, so a key put into the directory by mistake is not
//! exposed.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use cohort_artifact::RepositoryFile;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::request::{About, Reply, reply};

/// Bytes per read: one unit of an artifact.
const CHUNK_BYTES: usize = 64 * 1024;

/// The directories that a repository has.
const SERVED: [&str; 3] = ["metadata", "targets", "blobs"];

/// Serves a repository's directory at the root of the URL.
///
/// The directory need not exist yet.
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
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    let relative = uri.path().trim_start_matches('/');
    let Some(kind) = RepositoryFile::of(relative) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    match answer(&dir, relative, &kind, &method, &headers).await {
        Ok(response) => response,
        Err(error) if matches!(error.kind(), NotFound | NotADirectory | PermissionDenied) => {
            StatusCode::NOT_FOUND.into_response()
        }
        Err(error) => {
            tracing::error!(file = relative, %error, "cannot read repository file");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// A file's real path. A link may lead to another served directory, but nowhere else: a directory
/// copied from elsewhere may contain links.
async fn inside(dir: &Path, relative: &str) -> std::io::Result<PathBuf> {
    let dir = tokio::fs::canonicalize(dir).await?;
    let path = tokio::fs::canonicalize(dir.join(relative)).await?;
    if SERVED.iter().any(|folder| path.starts_with(dir.join(folder))) {
        return Ok(path);
    }
    Err(std::io::ErrorKind::NotFound.into())
}

async fn answer(
    dir: &Path,
    relative: &str,
    kind: &RepositoryFile,
    method: &Method,
    headers: &HeaderMap,
) -> std::io::Result<Response> {
    let mut file = File::open(inside(dir, relative).await?).await?;
    let metadata = file.metadata().await?;
    if !metadata.is_file() {
        return Ok(StatusCode::NOT_FOUND.into_response());
    }
    let changed = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let etag = format!("\"{:x}-{:x}\"", metadata.len(), changed.as_nanos());
    let about = About { etag: &etag, length: metadata.len(), kind };
    let Reply { mut response, span } = reply(method, headers, &about);
    let Some((first, bytes)) = span else { return Ok(response) };
    file.seek(SeekFrom::Start(first)).await?;
    // A file that grows meanwhile is served up to the promised length; one that shrinks closes the
    // connection, which the reader detects.
    let stream = ReaderStream::with_capacity(file.take(bytes), CHUNK_BYTES);
    *response.body_mut() = Body::from_stream(stream);
    Ok(response)
}
