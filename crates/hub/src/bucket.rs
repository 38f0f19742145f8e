//! The repository's copy in a bucket of an object store.
//!
//! What a publisher uploads is brought there file by file, the timestamp last, and only then
//! acknowledged. What changes in the repository's folder otherwise (a renewed timestamp, a release
//! that was published on this machine) is noticed within seconds and brought there as well; so is
//! everything that did not get there because the store was away.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cohort_mirror::{Bucket, BucketError, BucketSettings, push, push_file};
use cohort_wire::http::ApiError;
use tokio::sync::Mutex;

use crate::HubError;
use crate::app::App;
use crate::upkeep::chain;

/// Where readers begin; written last.
const TIMESTAMP: &str = "metadata/timestamp.json";

/// How often it is looked whether the timestamp is another: reading one small file.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// The longest pause after failures in a row. The store has been asked several times within each.
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Where else the repository is brought.
pub(crate) struct BucketCopy {
    bucket: Bucket,
    /// The timestamp that the bucket has, as far as is known. Held while it is written.
    pushed: Mutex<Option<Vec<u8>>>,
}

impl BucketCopy {
    /// Opens it, with what the environment says of the store. The store is not asked yet.
    pub(crate) fn open(url: &str) -> Result<Self, HubError> {
        let bucket = Bucket::open(url, &BucketSettings::from_env());
        let bucket = bucket.map_err(|error| HubError::Config {
            reason: format!("repository_bucket: {}", chain(&error)),
        })?;
        Ok(Self { bucket, pushed: Mutex::default() })
    }

    /// Brings a file there that was put into the repository.
    pub(crate) async fn send(&self, app: &App, name: &str) -> Result<(), BucketError> {
        if name == TIMESTAMP {
            return self.push(app).await;
        }
        push_file(&app.config.repository_dir(), &self.bucket, name).await
    }

    /// Brings everything there, if the timestamp is another than that of the last time.
    async fn push(&self, app: &App) -> Result<(), BucketError> {
        let dir = app.config.repository_dir();
        let mut pushed = self.pushed.lock().await;
        let Some(timestamp) = read_timestamp(&dir).await? else { return Ok(()) };
        if pushed.as_ref() == Some(&timestamp) {
            return Ok(());
        }
        let result = push(&dir, &self.bucket, false, &|_| ()).await;
        app.metrics.bucket_failing.store(u64::from(result.is_err()), Ordering::Relaxed);
        let done = result?;
        *pushed = Some(timestamp);
        let (bucket, files, bytes) = (self.bucket.name(), done.files, done.bytes);
        tracing::info!(bucket, files, bytes, "bucket has the repository");
        Ok(())
    }
}

/// The timestamp that is published; nothing before there is a repository.
async fn read_timestamp(dir: &Path) -> Result<Option<Vec<u8>>, BucketError> {
    let path = dir.join(TIMESTAMP);
    match tokio::fs::read(&path).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BucketError::Read { path, source }),
    }
}

/// Runs until the hub stops.
pub(crate) async fn run(app: Arc<App>) {
    let Some(copy) = &app.bucket else { return app.stopping.cancelled().await };
    let mut pause = LOOK_INTERVAL;
    loop {
        let result = tokio::select! {
            result = copy.push(&app) => result,
            () = app.stopping.cancelled() => return,
        };
        pause = match result {
            Ok(()) => LOOK_INTERVAL,
            Err(error) => {
                let (bucket, reason, hints) = (copy.bucket.name(), chain(&error), error.hints());
                tracing::error!(bucket, reason, ?hints, "bucket has not got what is published");
                (pause * 2).min(RETRY_INTERVAL_MAX)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = app.stopping.cancelled() => return,
        }
    }
}

/// What a publisher is told.
pub(crate) fn explain(error: &BucketError) -> ApiError {
    let reason = chain(error);
    tracing::error!(reason, "upload is not in the bucket");
    let error = format!("the hub has it, but its bucket has not: {reason}");
    let answer = ApiError::unavailable("bucket", error);
    answer.hint("the hub tries again by itself; publish again to see whether it is there")
}
