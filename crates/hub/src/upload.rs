//! Uploads into the repository, file by file.
//!
//! Readers must see the repository before a publishing or after it, whatever dies in between. The
//! publisher sends artifacts and targets, then the versioned metadata, and `timestamp.json` last.
//! Files other than the timestamp never change once they are there; the timestamp is taken only if
//! it is newer than the one there and everything it refers to has arrived. The signatures are not
//! the hub's to judge: who reads verifies them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use cohort_artifact::ARTIFACT_BYTES_MAX;
use cohort_wire::http::{ApiError, Caller};
use futures_util::StreamExt as _;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;

use crate::app::App;
use crate::auth::{Need, require};
use crate::metrics::Metrics;
use crate::static_files::relative_path;

/// The largest file of metadata or targets, in bytes. The list of a hundred thousand targets is
/// about 30 MB.
const METADATA_BYTES_MAX: u64 = 64 * 1024 * 1024;
const TIMESTAMP: &str = "metadata/timestamp.json";

/// How large a body may be on the route of uploads.
pub(crate) const UPLOAD_BYTES_MAX: u64 = ARTIFACT_BYTES_MAX;

pub(crate) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    UrlPath(path): UrlPath<String>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let by = require(Some(&caller.0), Need::Publish)?.clone();
    let served = relative_path(&format!("/{path}")).filter(|path| {
        ["metadata", "targets", "blobs"].iter().any(|folder| path.starts_with(folder))
            && path.components().count() > 1
    });
    let Some(relative) = served else {
        return Err(ApiError::bad_request(format!("`{path}` is no file of a repository"))
            .hint("files lie below metadata/, targets/ and blobs/"));
    };
    let dir = app.config.repository_dir();
    let target = dir.join(&relative);
    let folder = target.parent().unwrap_or(&dir).to_owned();
    tokio::fs::create_dir_all(&folder).await.map_err(|error| io_error(&relative, &error))?;
    let bytes_max =
        if relative.starts_with("blobs") { ARTIFACT_BYTES_MAX } else { METADATA_BYTES_MAX };
    let aside = receive(&folder, body, bytes_max).await?;
    let outcome = if relative == Path::new(TIMESTAMP) {
        let _publishing = app.publishing.lock().await;
        let new = read(aside.path()).await?;
        check_timestamp(&dir, &new).await?;
        keep(aside, &target).await.map_err(|error| io_error(&relative, &error))?;
        StatusCode::CREATED
    } else {
        keep_fixed(aside, &target, &relative).await?
    };
    Metrics::add(&app.metrics.uploads);
    tracing::info!(%by, file = %relative.display(), "uploaded");
    Ok(outcome)
}

/// A file beside its place, with a name that is never served; removed unless it is kept.
struct Aside {
    path: Option<PathBuf>,
}

impl Aside {
    fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Writes the body beside its place, synced.
async fn receive(folder: &Path, body: Body, bytes_max: u64) -> Result<Aside, ApiError> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!(".upload-{}-{number}", std::process::id()));
    let mut file = tokio::fs::File::create(&path).await.map_err(|error| io_error(&path, &error))?;
    let aside = Aside { path: Some(path) };
    let mut stream = body.into_data_stream();
    let mut bytes = 0u64;
    while let Some(chunk) = stream.next().await {
        let chunk =
            chunk.map_err(|error| ApiError::bad_request(format!("upload broke: {error}")))?;
        bytes += chunk.len() as u64;
        if bytes > bytes_max {
            return Err(ApiError::too_large(bytes_max));
        }
        file.write_all(&chunk).await.map_err(|error| io_error(aside.path(), &error))?;
    }
    file.flush().await.map_err(|error| io_error(aside.path(), &error))?;
    file.sync_all().await.map_err(|error| io_error(aside.path(), &error))?;
    Ok(aside)
}

/// Puts the file into its place; durable when it returns.
async fn keep(mut aside: Aside, target: &Path) -> std::io::Result<()> {
    tokio::fs::rename(aside.path(), target).await?;
    aside.path = None;
    let folder = target.parent().unwrap_or(Path::new("/")).to_owned();
    tokio::fs::File::open(folder).await?.sync_all().await
}

/// Puts a file into its place that never changes: the same again is welcome, another is not.
async fn keep_fixed(aside: Aside, target: &Path, relative: &Path) -> Result<StatusCode, ApiError> {
    if !tokio::fs::try_exists(target).await.map_err(|error| io_error(relative, &error))? {
        keep(aside, target).await.map_err(|error| io_error(relative, &error))?;
        return Ok(StatusCode::CREATED);
    }
    let (old, new) = (target.to_owned(), aside.path().to_owned());
    let same = crate::app::blocking(move || same_content(&old, &new)).await?;
    if same.map_err(|error| io_error(relative, &error))? {
        return Ok(StatusCode::OK);
    }
    Err(ApiError::conflict(format!("`{}` is there with another content", relative.display()))
        .hint("somebody else has published: fetch the repository, then publish again"))
}

fn same_content(old: &Path, new: &Path) -> std::io::Result<bool> {
    use std::io::Read as _;
    let (mut old, mut new) = (std::fs::File::open(old)?, std::fs::File::open(new)?);
    if old.metadata()?.len() != new.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let read = old.read(&mut a)?;
        if read == 0 {
            return Ok(true);
        }
        new.read_exact(&mut b[..read])?;
        if a[..read] != b[..read] {
            return Ok(false);
        }
    }
}

#[derive(Deserialize)]
struct Signed {
    signed: Listing,
}

/// As much of a timestamp or snapshot as is needed to see what it refers to.
#[derive(Deserialize)]
struct Listing {
    version: u64,
    #[serde(default)]
    meta: BTreeMap<String, Reference>,
}

#[derive(Deserialize)]
struct Reference {
    version: u64,
}

/// The new timestamp is newer than the one there, and all that it leads to has arrived.
async fn check_timestamp(dir: &Path, new: &[u8]) -> Result<(), ApiError> {
    let new = listing(new, "timestamp.json")?;
    if let Ok(old) = tokio::fs::read(dir.join(TIMESTAMP)).await {
        let old = listing(&old, "timestamp.json")?;
        if new.version <= old.version {
            let (new, old) = (new.version, old.version);
            return Err(ApiError::conflict(format!(
                "timestamp {new} is not newer than {old}, which is there"
            ))
            .hint("somebody else has published: fetch the repository, then publish again"));
        }
    }
    let snapshot = follow(dir, &new, "snapshot.json").await?;
    let snapshot = listing(&snapshot, "snapshot.json")?;
    follow(dir, &snapshot, "targets.json").await?;
    Ok(())
}

async fn follow(dir: &Path, listing: &Listing, name: &str) -> Result<Vec<u8>, ApiError> {
    let reference = listing
        .meta
        .get(name)
        .ok_or_else(|| ApiError::bad_request(format!("the metadata refers to no {name}")))?;
    let file = format!("metadata/{}.{name}", reference.version);
    tokio::fs::read(dir.join(&file)).await.map_err(|_| {
        ApiError::conflict(format!("`{file}` has not arrived yet"))
            .hint("upload artifacts, targets and metadata first, the timestamp last")
    })
}

fn listing(bytes: &[u8], name: &str) -> Result<Listing, ApiError> {
    serde_json::from_slice::<Signed>(bytes)
        .map(|signed| signed.signed)
        .map_err(|error| ApiError::bad_request(format!("{name} cannot be read: {error}")))
}

async fn read(path: &Path) -> Result<Vec<u8>, ApiError> {
    tokio::fs::read(path).await.map_err(|error| io_error(path, &error))
}

fn io_error(path: &Path, error: &std::io::Error) -> ApiError {
    tracing::error!(file = %path.display(), %error, "repository file cannot be written");
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match error.kind() {
        std::io::ErrorKind::StorageFull => ApiError::unavailable("full", "the hub's disk is full"),
        _ => ApiError::internal(format!("`{name}` cannot be written: {error}")),
    }
}
