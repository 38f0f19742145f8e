//! Uploads into the repository, file by file, without trusting the publisher.
//!
//! The repository itself checks every file against its name and the root's keys. The publisher
//! sends artifacts and targets first, then the versioned metadata, and `timestamp.json` last, so
//! readers see the repository either before or after a publish, whatever fails in between.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{Method, StatusCode};
use cohort_artifact::{ARTIFACT_BYTES_MAX, Repository};
use cohort_base::{FileError, OnPath as _, chain};
use cohort_wire::http::{ApiError, Call, CallError, Caller, Client, Target};
use cohort_wire::hub::upload_path;
use futures_util::StreamExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use crate::app::App;
use crate::audit;
use crate::quota::Taken;
use crate::refusal::{self, Refusal};

/// The file that ends a publish: only the repository's keys sign it.
const TIMESTAMP: &str = "metadata/timestamp.json";
/// Largest body on the upload route; the actual limit depends on the file's name.
pub(crate) const UPLOAD_BYTES_MAX: u64 = ARTIFACT_BYTES_MAX;
/// Deadline for the smallest upload.
const UPLOAD_DEADLINE_MIN: Duration = Duration::from_secs(60);
/// The slowest connection that an upload may use, in bytes per second: 1 Mbit/s.
const UPLOAD_BYTES_PER_S_MIN: u64 = 128 * 1024;
/// Bytes per read of an upload's body.
const CHUNK_BYTES: usize = 64 * 1024;

pub(crate) async fn put(
    State(app): State<Arc<App>>,
    Caller(by): Caller,
    UrlPath(name): UrlPath<String>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let Some(bytes_max) = Repository::upload_bytes_max(&name) else {
        let name: String = name.chars().take(80).collect();
        return Err(ApiError::bad_request(format!("publishers do not upload `{name}`"))
            .hint("files are below metadata/, targets/ and blobs/, named by their content")
            .into());
    };
    let repository = Repository::open(&app.config.repository_dir()).map_err(|error| {
        ApiError::conflict(format!("the hub has no repository: {}", chain(&error)))
            .hint("on the hub's machine: cohort init --dir DIR")
    })?;
    let file = repository.incoming()?;
    let reopened = file.reopen().map_err(|error| write_failed(&name, &error))?;
    let mut taken = app.unpublished.upload(&by);
    let file_of = tokio::fs::File::from_std(reopened);
    receive(file_of, body, bytes_max, &mut taken, &name).await?;
    // A renewal in between would make the publisher's own timestamp look outdated.
    let publishing = app.publishing.lock().await;
    let ends = name == TIMESTAMP || name == Repository::KEY_CHANGE;
    if ends {
        let what = if name == TIMESTAMP { "published" } else { "keys of the repository changed" };
        audit::record(what).await?;
    }
    let is_new = repository.receive(&name, file).await?;
    drop(publishing);
    // A publisher repeats files after a failure: those that were here take no more space, and a
    // timestamp that was here proves nothing.
    if is_new {
        taken.keep();
    }
    if is_new && ends {
        app.unpublished.published(&by);
    }
    if let Some(bucket) = &app.bucket {
        // A change of keys has a timestamp, after which everything that is new is sent.
        bucket.send(if ends { TIMESTAMP } else { &name }).await?;
    }
    app.metrics.uploads.inc();
    tracing::info!(%by, file = name, "uploaded");
    Ok(StatusCode::CREATED)
}

async fn receive(
    mut file: tokio::fs::File,
    body: Body,
    bytes_max: u64,
    taken: &mut Taken,
    name: &str,
) -> Result<(), Refusal> {
    let mut stream = body.into_data_stream();
    let mut bytes = 0u64;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| {
            ApiError::bad_request(format!("upload broke off: {}", chain(&error)))
        })?;
        bytes += chunk.len() as u64;
        if bytes > bytes_max {
            return Err(ApiError::too_large(bytes_max).into());
        }
        taken.more(chunk.len() as u64)?;
        file.write_all(&chunk).await.map_err(|error| write_failed(name, &error))?;
    }
    // It is synced when it is put in place.
    file.flush().await.map_err(|error| write_failed(name, &error))
}

fn write_failed(name: &str, error: &io::Error) -> Refusal {
    refusal::write_failed(error, format!("`{name}` cannot be written: {error}")).into()
}

/// Why a publisher's upload failed.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// A file cannot be read here.
    #[error(transparent)]
    Read(#[from] FileError),
    #[error("the hub did not accept {file}")]
    Send { file: String, source: CallError },
}

/// The publisher's side: uploads files of a repository's directory in the given order (that of
/// `WorkingCopy::new_files`). After a failure, call it again: it may repeat files.
///
/// # Errors
/// If a file failed: the error of the first one; those before it have arrived.
pub async fn upload(
    client: &Client,
    hub: &Target,
    repository_dir: &Path,
    files: &[PathBuf],
    mut on_sent: impl FnMut(&Path),
) -> Result<(), UploadError> {
    for relative in files {
        let path = repository_dir.join(relative);
        let file = tokio::fs::File::open(&path).await.on_path("read", &path)?;
        let length = file.metadata().await.on_path("read", &path)?.len();
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
