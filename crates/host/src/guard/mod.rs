//! The guard: a tiny process that owns the services, so that they survive agent restarts.
//!
//! It starts each service in its own process group, restarts it when it exits, stores its output,
//! and records what it did. It knows nothing of releases, groups or orders.
//!
//! All its files are in one directory:
//!
//! ```text
//! guard.sock      requests, see `protocol`
//! guard.lock      held by the one guard of this directory; contains its process number
//! services.json   services that should run, and their processes (durable)
//! events.log      starts and ends, one JSON object per line, with boot-time stamps
//! guard.log       the guard's own log
//! logs/NAME.log   a service's output; NAME.log.1 is the rotated one
//! pipes/NAME      the named pipe between a service and its log
//! ```
//!
//! A service writes into a *named* pipe that it also holds open for reading, so a killed guard does
//! not break the pipe: at worst the service blocks on a full pipe until the next guard reads from
//! it. That guard finds the service's process through `services.json` (number and start time),
//! verifies it, and watches it like its own child.

mod client;
mod events;
mod ground;
mod home;
mod leftover;
mod log;
mod notify;
mod pid_file;
mod protocol;
mod server;
mod sockets;
mod state;
mod supervise;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cohort_base::{FileError, OnPath as _, durable};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

pub use client::GuardClient;
pub use events::{EVENTS_FILE, Event, EventKind};

use ground::Ground;
use protocol::{SOCKET, short_path};
use server::Server;

use crate::cgroup::Cgroups;
use crate::confine::keep_descriptors;
use crate::launch::Launch;

/// Whatever decodes of the socket, the event log or the record, encodes to the same again.
#[cfg(feature = "testing")]
pub(crate) fn round_trips(bytes: &[u8]) {
    use cohort_base::golden::round_trip;
    round_trip::<protocol::Request>(bytes);
    round_trip::<protocol::Response>(bytes);
    round_trip::<Event>(bytes);
    round_trip::<state::Services>(bytes);
}

/// How often a guard checks that its directory is still there.
const GROUND_CHECK: Duration = Duration::from_secs(1);

/// How to run a guard.
#[derive(Debug, Clone)]
pub struct GuardConfig {
    /// Holds all its files; created if missing.
    pub folder: PathBuf,
    /// Leave the session of the parent process, to outlive it.
    pub detach: bool,
    /// How to start a service.
    pub confine: Launch,
}

/// Why a guard exited.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error("a guard is already running for {}", folder.display())]
    AlreadyRuns { folder: PathBuf },
    #[error(transparent)]
    Io(#[from] FileError),
    #[error(transparent)]
    Record(#[from] cohort_store::DurableFileError),
}

/// Runs a guard until SIGTERM, which leaves its services for the next guard to take over. Blocking;
/// one thread.
///
/// # Errors
/// If its directory cannot be used, or another guard uses it.
pub fn run(config: &GuardConfig) -> Result<(), GuardError> {
    keep_descriptors();
    if config.detach {
        // Fails only for a group leader, which is detached already.
        let _already = rustix::process::setsid();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.on_path("start the guard of", &config.folder)?.block_on(serve(config))
}

/// As [`run`], inside a runtime.
///
/// # Errors
/// As [`run`].
pub async fn serve(config: &GuardConfig) -> Result<(), GuardError> {
    let folder = &config.folder;
    durable::private_folder(folder).on_path("create", folder)?;
    let Some(ground) = Ground::take(folder)? else {
        return Err(GuardError::AlreadyRuns { folder: folder.clone() });
    };
    let ground = Arc::new(ground);
    let listener = listen(folder).on_path("listen in", folder)?;
    let mut terminate = signal(SignalKind::terminate()).on_path("await SIGTERM for", folder)?;
    let cgroups = Cgroups::of(folder).unwrap_or_else(|error| {
        // The agent says what follows from it.
        tracing::warn!(%error, "no cgroups");
        Cgroups::default()
    });
    let programs = (config.confine.clone(), cgroups);
    let server = Server::open(folder, Arc::clone(&ground), programs).await?;
    tokio::select! {
        () = server.serve(listener) => {}
        _ = terminate.recv() => tracing::info!("terminated; services keep running"),
        error = lost(&ground) => {
            let folder = folder.display();
            tracing::error!(%folder, %error, "directory is gone; services run until another guard");
        }
    }
    Ok(())
}

/// Waits until the directory is lost. Nobody can reach this guard then; its services are left to
/// the guard that takes its place, or that is asked to start them.
async fn lost(ground: &Ground) -> io::Error {
    loop {
        tokio::time::sleep(GROUND_CHECK).await;
        if let Err(error) = ground.check() {
            return error;
        }
    }
}

/// Binds the socket, after removing a stale one; the lock makes that safe.
fn listen(folder: &Path) -> io::Result<UnixListener> {
    let path = folder.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let folder = File::open(folder)?;
    let listener = UnixListener::bind(short_path(&folder, &path))?;
    // No other user can connect in between: only we can access the directory (0700).
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
