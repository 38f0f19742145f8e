//! Ensures that only one process writes a repository at a time.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_base::disk;

/// How long a writer waits for another one: publishing holds the lock for seconds.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(30);
const LOCK_POLL: Duration = Duration::from_millis(25);

/// Held while a repository is written; the kernel releases it if the process dies.
///
/// Work on other threads holds a clone, so that a cancelled caller does not release it too early.
#[derive(Debug, Clone)]
pub(crate) struct RepositoryLock {
    _file: Arc<File>,
}

impl RepositoryLock {
    /// Takes the lock, waiting for up to [`LOCK_WAIT_MAX`].
    ///
    /// # Errors
    /// `WouldBlock` if it is still held; others if the file cannot be opened.
    pub(crate) async fn take(repository: &Path) -> io::Result<Self> {
        let path = repository.join(".lock");
        let deadline = Instant::now() + LOCK_WAIT_MAX;
        loop {
            match disk::lock(&path)? {
                Some(file) => return Ok(Self { _file: Arc::new(file) }),
                None if Instant::now() < deadline => tokio::time::sleep(LOCK_POLL).await,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::WouldBlock,
                        "another publisher holds the repository's lock",
                    ));
                }
            }
        }
    }
}
