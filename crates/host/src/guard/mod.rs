//! The guard: a tiny process that owns the services, so that they live on while the agent restarts.
//!
//! It starts each service as a process group of its own, starts it again when it ends, keeps its
//! output, and writes down what it did. It knows nothing of releases, groups or orders.
//!
//! Everything lies in one folder:
//!
//! ```text
//! guard.sock      requests, see `protocol`
//! guard.lock      held by the one guard of this folder; its process number
//! services.json   what is to run, and which processes do (durable)
//! events.log      starts and ends, one JSON object per line, with boot-time stamps
//! guard.log       what the guard itself has to say
//! logs/NAME.log   a service's output, NAME.log.1 what was before it
//! pipes/NAME      the named pipe between a service and its log
//! ```
//!
//! A service writes into a *named* pipe that it holds open for reading as well, so that a guard
//! that was killed leaves no broken pipe: the service blocks at the most, when the pipe is full,
//! until the next guard reads on. That guard finds the services by what `services.json` says of
//! their processes (number and start time), verifies it, and watches them as if they were its own.

mod client;
mod events;
mod log;
mod protocol;
mod server;
mod state;
mod supervise;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

pub use client::{GuardClient, GuardLaunch};
pub use events::{EVENTS_FILE, Event, EventKind};

use server::Server;

const SOCKET: &str = "guard.sock";
const LOCK: &str = "guard.lock";

/// What a guard needs to know.
#[derive(Debug, Clone)]
pub struct GuardConfig {
    /// Its folder; made when there is none.
    pub folder: PathBuf,
    /// Leave the session of whoever started it, so that it outlives it.
    pub detach: bool,
}

/// Why a guard ended.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Another guard of the same folder runs.
    #[error("a guard already runs for {}", folder.display())]
    AlreadyRuns {
        /// The folder.
        folder: PathBuf,
    },
    /// A file, the socket, a signal.
    #[error("{what} in {}", folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// What is to run cannot be read or written.
    #[error(transparent)]
    Record(#[from] cohort_store::DurableFileError),
}

/// Runs a guard until it is told to shut down or gets SIGTERM. Blocking; one thread.
///
/// On SIGTERM (or SIGKILL) the services live on, for the next guard to take over; the request
/// `shutdown` stops them.
///
/// # Errors
/// When its folder cannot be used, or another guard uses it.
pub fn run(config: &GuardConfig) -> Result<(), GuardError> {
    if config.detach {
        // Fails only for the leader of a group, who needs no detaching from one.
        let _already = rustix::process::setsid();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| GuardError::Io {
        folder: config.folder.clone(),
        what: "the guard cannot start its runtime",
        source,
    })?;
    runtime.block_on(serve(config))
}

/// As [`run`], inside a runtime.
///
/// # Errors
/// As [`run`].
pub async fn serve(config: &GuardConfig) -> Result<(), GuardError> {
    let folder = &config.folder;
    let fail = |what| {
        let folder = folder.clone();
        move |source| GuardError::Io { folder, what, source }
    };
    fs::create_dir_all(folder)
        .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o700)))
        .map_err(fail("the guard's folder cannot be made"))?;
    let mut lock = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(folder.join(LOCK))
        .map_err(fail("the guard's lock cannot be made"))?;
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(GuardError::AlreadyRuns { folder: folder.clone() });
    }
    lock.set_len(0)
        .and_then(|()| lock.write_all(format!("{}\n", std::process::id()).as_bytes()))
        .map_err(fail("the guard's number cannot be written down"))?;
    let listener = listen(config).map_err(fail("the guard cannot listen"))?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(fail("the guard cannot watch for SIGTERM"))?;
    let server = Server::open(folder).await?;
    tokio::select! {
        () = server.serve(listener) => {}
        _ = terminate.recv() => tracing::info!("terminated; the services live on"),
    }
    drop(lock);
    Ok(())
}

/// Binds the socket; a dead one is removed first, which the lock makes safe.
fn listen(config: &GuardConfig) -> io::Result<UnixListener> {
    let path = config.folder.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let folder = File::open(&config.folder)?;
    let listener = UnixListener::bind(client::short_path(&folder, &path))?;
    // The folder is ours alone (0700), so that nobody gets in between these two.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
