//! The thread on which apps are worked on.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// A thread of its own for what is done to apps: their records are synced to the disk at every
/// step, and a disk that is slow must hold up neither what the group says to this server nor the
/// bytes that pass through it. What runs there ends at its next await when this is dropped, as in a
/// crash.
pub(crate) struct AppThread(Option<Runtime>);

impl AppThread {
    /// Starts it.
    ///
    /// # Errors
    /// When the machine gives no thread.
    pub(crate) fn start() -> io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("apps").enable_all().build().map(|r| Self(Some(r)))
    }

    /// For spawning on it.
    pub(crate) fn handle(&self) -> Handle {
        self.0.as_ref().expect("there until it is dropped").handle().clone()
    }
}

impl Drop for AppThread {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting for it is not allowed where this is dropped, and not needed.
            runtime.shutdown_background();
        }
    }
}
