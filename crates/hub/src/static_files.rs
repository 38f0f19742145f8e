//! The repository as plain static files: what any mirror does as well.
//!
//! `GET` and `HEAD`, one byte range, `If-None-Match`, `If-Range`, correct `Content-Length`. Only
//! regular files below `metadata/`, `targets/` and `blobs/` are served, wherever symbolic links
//! lead: a key that was put into the folder by mistake stays there.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
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

/// The folders of a repository that are anyone's to read.
const SERVED: [&str; 3] = ["metadata", "targets", "blobs"];
/// The longest path that is looked at, in bytes.
const PATH_BYTES_MAX: usize = 1024;
/// How much is read at once: one unit of an artifact.
const CHUNK_BYTES: usize = 64 * 1024;

/// Serves a repository's folder at the root of the URL.
///
/// The folder need not exist yet.
pub(crate) fn router(repository_dir: &Path) -> Router {
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

/// The path below the repository, or nothing if it could mean anything else.
///
/// Names in a repository need no escapes, so that a percent sign never has to be understood, and no
/// part begins with a dot (unfinished files do).
fn relative_path(path: &str) -> Option<PathBuf> {
    let path = path.strip_prefix('/')?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+~".contains(&byte);
    let plain =
        |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed);
    (path.len() <= PATH_BYTES_MAX && path.split('/').all(plain)).then(|| PathBuf::from(path))
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

fn same_tag(given: &str, etag: &str) -> bool {
    let given = given.trim();
    given == "*" || given.strip_prefix("W/").unwrap_or(given) == etag
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// No range that we understand: the whole, as the standard says.
    Whole,
    /// From the first byte to the last, both included.
    Part { first: u64, last: u64 },
    /// Beyond the end.
    Outside,
}

/// Reads `bytes=FIRST-LAST`, `bytes=FIRST-` and `bytes=-LENGTH`. Several ranges are not served
/// apart: the whole answers them, as the standard allows.
fn parse_range(text: &str, length: u64) -> Wanted {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Wanted::Whole;
    };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), last_given) => {
            let last = match last_given {
                Ok(last) if last < first => return Wanted::Whole,
                Ok(last) => last.min(length.saturating_sub(1)),
                Err(_) if last.trim().is_empty() => length.saturating_sub(1),
                Err(_) => return Wanted::Whole,
            };
            if first >= length { Wanted::Outside } else { Wanted::Part { first, last } }
        }
        (Err(_), Ok(suffix)) if first.trim().is_empty() => {
            if suffix == 0 || length == 0 {
                return Wanted::Outside;
            }
            Wanted::Part { first: length.saturating_sub(suffix), last: length - 1 }
        }
        (Err(_), _) => Wanted::Whole,
    }
}

#[cfg(test)]
mod static_files_test {
    use super::{Wanted, parse_range, relative_path};

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let part = |first, last| Wanted::Part { first, last };
        for (text, wanted) in [
            ("bytes=0-0", part(0, 0)),
            ("bytes=2-", part(2, 9)),
            ("bytes=2-99", part(2, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-99", part(0, 9)),
            ("bytes=10-", Wanted::Outside),
            ("bytes=-0", Wanted::Outside),
            ("bytes=5-2", Wanted::Whole),
            ("bytes=0-1,4-5", Wanted::Whole),
            ("bytes=x-y", Wanted::Whole),
            ("units=0-1", Wanted::Whole),
            ("bytes=99999999999999999999-", Wanted::Whole),
        ] {
            assert_eq!(parse_range(text, 10), wanted, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Wanted::Outside);
    }

    #[test]
    fn only_plain_paths_are_looked_at() {
        for plain in
            ["/metadata/1.root.json", "/targets/apps/web/1.0.0+b/linux~amd64/ab.manifest.json"]
        {
            assert!(relative_path(plain).is_some(), "{plain}");
        }
        for odd in [
            "/metadata/../keys/a",
            "/metadata/%2e%2e/keys/a",
            "/metadata//a",
            "/metadata/.unfinished",
            "/metadata/a b",
            "/",
            "metadata/a",
        ] {
            assert!(relative_path(odd).is_none(), "{odd}");
        }
        assert!(relative_path(&format!("/blobs/{}", "a".repeat(2000))).is_none());
    }
}
