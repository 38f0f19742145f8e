//! The repository's copy in an object-store bucket.
//!
//! An upload is copied file by file, the timestamp last, and only then acknowledged. Other changes
//! in the repository's directory (a renewed timestamp, a release published on this machine) are
//! copied within seconds; so is everything that failed while the store was unreachable.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cohort_base::metrics::Gauge;
use cohort_base::retry::Schedule;
use cohort_base::{FileError, chain};
use cohort_mirror::{Bucket, BucketError, BucketSettings, push, push_file};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Where readers start; written last.
const TIMESTAMP: &str = "metadata/timestamp.json";

/// How often the timestamp is compared: it is one small file.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Pauses after failures. Each try has already asked the store several times.
const RETRY: Schedule = Schedule::new(Duration::from_secs(4), Duration::from_secs(60));

/// The bucket, and what it contains.
pub(crate) struct BucketCopy {
    bucket: Bucket,
    repository: PathBuf,
    failing: Gauge,
    /// The bucket's timestamp, as far as known. Held while it is written.
    pushed: Mutex<Option<Vec<u8>>>,
}

impl BucketCopy {
    /// Opens the bucket with credentials from the environment. Sends no request yet. `failing` is 1
    /// after a failed write.
    pub(crate) fn open(
        url: &str,
        repository: PathBuf,
        failing: Gauge,
    ) -> Result<Self, BucketError> {
        let bucket = Bucket::open(url, &BucketSettings::from_env())?;
        Ok(Self { bucket, repository, failing, pushed: Mutex::default() })
    }

    /// Copies one file of the repository.
    pub(crate) async fn send(&self, name: &str) -> Result<(), BucketError> {
        if name == TIMESTAMP {
            return self.push().await;
        }
        push_file(&self.repository, &self.bucket, name).await
    }

    /// Copies whatever is missing, if the timestamp has changed since the last time.
    async fn push(&self) -> Result<(), BucketError> {
        let mut pushed = self.pushed.lock().await;
        let Some(timestamp) = read_timestamp(&self.repository).await? else { return Ok(()) };
        if pushed.as_ref() == Some(&timestamp) {
            return Ok(());
        }
        let result = push(&self.repository, &self.bucket, false, &|_| ()).await;
        self.failing.set(result.is_err().into());
        let done = result?;
        *pushed = Some(timestamp);
        let (bucket, files, bytes) = (self.bucket.name(), done.files, done.bytes);
        tracing::info!(bucket, files, bytes, "repository copied to the bucket");
        Ok(())
    }
}

/// The published timestamp; `None` if there is no repository yet.
async fn read_timestamp(dir: &Path) -> Result<Option<Vec<u8>>, BucketError> {
    let path = dir.join(TIMESTAMP);
    match tokio::fs::read(&path).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError { doing: "read", path, source }.into()),
    }
}

/// Copies changes of the repository until the hub stops.
pub(crate) async fn run(copy: Arc<BucketCopy>, stopping: CancellationToken) {
    let mut pauses = RETRY.pauses();
    loop {
        let result = tokio::select! {
            result = copy.push() => result,
            () = stopping.cancelled() => return,
        };
        let pause = match result {
            Ok(()) => {
                pauses.reset();
                LOOK_INTERVAL
            }
            Err(error) => {
                let (bucket, reason, hints) = (copy.bucket.name(), chain(&error), error.hints());
                tracing::error!(bucket, reason, ?hints, "cannot copy the repository to the bucket");
                pauses.next_pause()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stopping.cancelled() => return,
        }
    }
}
