//! Uploads into the repository, file by file, without trusting who uploads.
//!
//! The repository itself checks every file against its name and the root's keys; the publisher
//! sends artifacts and targets first, then the versioned metadata, and `timestamp.json` last, so
//! that readers see the repository before a publishing or after it, whatever dies in between.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{Method, StatusCode};
use cohort_artifact::{ARTIFACT_BYTES_MAX, Repository, RepositoryError};
use cohort_wire::http::{ApiError, Call, CallError, Caller, Client, Target};
use cohort_wire::hub::upload_path;
use futures_util::StreamExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use crate::app::App;
use crate::auth::{Need, require};
use crate::bucket;
use crate::metrics::Metrics;
use crate::upkeep::chain;

/// How large a body may be on the route of uploads; the name of the file says the real limit.
pub(crate) const UPLOAD_BYTES_MAX: u64 = ARTIFACT_BYTES_MAX;
/// How long an upload may take at least, however small it is.
const UPLOAD_DEADLINE_MIN: Duration = Duration::from_secs(60);
/// The slowest line that an upload is waited for, in bytes per second: 1 Mbit/s.
const UPLOAD_BYTES_PER_S_MIN: u64 = 128 * 1024;
/// How much is read at once.
const CHUNK_BYTES: usize = 64 * 1024;

pub(crate) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    UrlPath(name): UrlPath<String>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let by = require(Some(&caller.0), Need::Publish)?.clone();
    let Some(bytes_max) = Repository::upload_bytes_max(&name) else {
        let name: String = name.chars().take(80).collect();
        return Err(ApiError::bad_request(format!("`{name}` is no file that a publisher uploads"))
            .hint(
                "files lie below metadata/, targets/ and blobs/, and are named by what they are",
            ));
    };
    let repository = Repository::open(&app.config.repository_dir()).map_err(|error| {
        ApiError::conflict(format!("the hub has no repository: {}", chain(&error)))
            .hint("on the hub's machine: cohort init")
    })?;
    let file = repository.incoming().map_err(|error| explain(&name, &error))?;
    let reopened = file.reopen().map_err(|error| write_failed(&name, &error))?;
    receive(tokio::fs::File::from_std(reopened), body, bytes_max, &name).await?;
    // The renewal of the timestamp would make the publisher's own timestamp look outdated.
    let publishing = app.publishing.lock().await;
    repository.receive(&name, file).await.map_err(|error| explain(&name, &error))?;
    drop(publishing);
    if let Some(bucket) = &app.bucket {
        bucket.send(&app, &name).await.map_err(|error| bucket::explain(&error))?;
    }
    Metrics::add(&app.metrics.uploads);
    tracing::info!(%by, file = name, "uploaded");
    Ok(StatusCode::CREATED)
}

async fn receive(
    mut file: tokio::fs::File,
    body: Body,
    bytes_max: u64,
    name: &str,
) -> Result<(), ApiError> {
    let mut stream = body.into_data_stream();
    let mut bytes = 0u64;
    while let Some(chunk) = stream.next().await {
        let chunk =
            chunk.map_err(|error| ApiError::bad_request(format!("upload broke: {error}")))?;
        bytes += chunk.len() as u64;
        if bytes > bytes_max {
            return Err(ApiError::too_large(bytes_max));
        }
        file.write_all(&chunk).await.map_err(|error| write_failed(name, &error))?;
    }
    // Whoever puts the file in place syncs it.
    file.flush().await.map_err(|error| write_failed(name, &error))
}

fn explain(name: &str, error: &RepositoryError) -> ApiError {
    match error {
        RepositoryError::Refused { .. } => {
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", error.to_string())
        }
        RepositoryError::Outdated => ApiError::conflict(error.to_string())
            .hint("somebody else has published meanwhile: run cohort publish again"),
        RepositoryError::Stopped => ApiError::unavailable("stopping", error.to_string()),
        RepositoryError::Io { source, .. } => write_failed(name, source),
        _ => {
            let reason = chain(error);
            tracing::error!(file = name, reason, "upload cannot be taken");
            ApiError::internal(reason)
        }
    }
}

fn write_failed(name: &str, error: &io::Error) -> ApiError {
    tracing::error!(file = name, %error, "repository file cannot be written");
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ApiError::unavailable("full", "the hub's disk is full")
        }
        _ => ApiError::internal(format!("`{name}` cannot be written: {error}")),
    }
}

/// Why a publisher's upload failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// The file cannot be read here.
    #[error("file {} cannot be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The hub did not take it.
    #[error("file {file} was not taken by the hub")]
    Send {
        /// Which, relative to the repository.
        file: String,
        /// What the hub said, or how it could not be reached.
        #[source]
        source: CallError,
    },
}

/// The publisher's side: uploads files of a repository's folder, in the order given (that of
/// `WorkingCopy::new_files`). Uploading again what is there is harmless, so after any failure it
/// may simply be called again.
///
/// # Errors
/// The first file that failed; those before it have arrived.
pub async fn upload(
    client: &Client,
    hub: &Target,
    repository_dir: &Path,
    files: &[PathBuf],
    mut on_sent: impl FnMut(&Path),
) -> Result<(), UploadError> {
    for relative in files {
        let path = repository_dir.join(relative);
        let read = |source| UploadError::Read { path: path.clone(), source };
        let file = tokio::fs::File::open(&path).await.map_err(read)?;
        let length = file.metadata().await.map_err(read)?.len();
        let name = relative.to_string_lossy().into_owned();
        let seconds = length / UPLOAD_BYTES_PER_S_MIN;
        let call = Call::new(Method::PUT, upload_path(&name))
            .deadline(UPLOAD_DEADLINE_MIN + Duration::from_secs(seconds));
        let stream = ReaderStream::with_capacity(file, CHUNK_BYTES);
        let sent = client.upload(hub, call, Some(length), stream).await;
        sent.map_err(|source| UploadError::Send { file: name, source })?;
        on_sent(relative);
    }
    Ok(())
}
