//! The data directory: that it is still the agent's, and the space left in it, with the ballast
//! that the agent gives up first.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cohort_base::OnPath as _;
use cohort_base::chain::{causes, chain};
use cohort_base::disk::{free_bytes, is_read_only, lock, names, preallocate};
use cohort_core::ids::ServerId;
use cohort_core::machine::DiskSpace;
use cohort_server::member::Input;
use cohort_server::space::{BALLAST_BYTES, Ballast, Look, judge};
use tokio_util::sync::CancellationToken;

use crate::error::AgentError;
use crate::shared::Shared;

/// The lock's file in the data directory.
const LOCK: &str = "agent.lock";
/// The ballast's file in the data directory.
const BALLAST: &str = "ballast";
/// Pause between two looks at the disk. A service that logs 10 MB/s fills less than the ballast
/// meanwhile.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Without this much space, in bytes, an agent does not even try to start: it could not count its
/// starts. Services should come up on a disk that is merely low.
const START_BYTES: u64 = 1 << 20;

/// Held by the one agent of a data directory.
#[derive(Debug)]
pub(crate) struct Held {
    dir: PathBuf,
    lock: File,
}

impl Held {
    /// Takes the directory.
    pub(crate) fn take(dir: &Path) -> Result<Held, AgentError> {
        let path = dir.join(LOCK);
        let dir = dir.to_owned();
        match lock(&path).on_path("lock", &path)? {
            Some(lock) => Ok(Held { dir, lock }),
            None => Err(AgentError::InUse { dir }),
        }
    }

    /// Checks that it is still there: an agent whose files are gone looks like one that waits.
    fn check(&self, server: &ServerId) -> Result<(), AgentError> {
        match names(&self.dir.join(LOCK), &self.lock) {
            Ok(false) => {
                let (dir, server) = (self.dir.clone(), server.clone());
                Err(AgentError::Emptied { dir, server })
            }
            // A disk that cannot be looked at now is no proof.
            Ok(true) | Err(_) => Ok(()),
        }
    }
}

/// Looks at the disk, gives up the ballast or takes it back, and tells the member. Ends only with
/// an error.
pub(crate) async fn watch(shared: Arc<Shared>, held: Held) -> Result<(), AgentError> {
    let mut told = None;
    loop {
        held.check(shared.server())?;
        let space = look(&shared.config.data_dir).await;
        if shared.disk.send_replace(space) != space {
            let folder = shared.config.data_dir.display();
            match space {
                DiskSpace::Enough => tracing::info!(%folder, "enough disk space again"),
                DiskSpace::Low => tracing::warn!(%folder, "little disk space left, ballast gone"),
                DiskSpace::Exhausted => tracing::error!(%folder, "no disk space left"),
                DiskSpace::ReadOnly => tracing::error!(%folder, "the disk is read-only"),
            }
        }
        let handle = shared.handle();
        let now = handle.as_ref().map(|handle| (handle.member, space));
        if now != told
            && let Some(handle) = handle
            && handle.inputs.put(Input::Disk(space)).await
        {
            told = now;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Gives up the ballast if need be, and waits until an agent has space to start. False if it was
/// asked to stop.
pub(crate) async fn wait(folder: &Path, shutdown: &CancellationToken) -> bool {
    let mut said = None;
    loop {
        let space = look(folder).await;
        if space.may_write() || !is_starved(folder) {
            return true;
        }
        if said.replace(space) != Some(space) {
            let folder = folder.display();
            match space {
                DiskSpace::ReadOnly => tracing::error!(
                    %folder,
                    "the data directory is on a read-only file system: remount it, then the agent \
                     starts"
                ),
                _ => tracing::error!(
                    %folder,
                    "no space left for the data directory: free space, then the agent starts"
                ),
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return false,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Whether an agent ended because it could not write.
pub(crate) fn is_exhausted(error: &(dyn Error + 'static)) -> bool {
    let kinds = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::ReadOnlyFilesystem];
    let of_file = |cause: &(dyn Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| kinds.contains(&error.kind()))
    };
    causes(error).any(of_file)
}

/// Whether next to nothing can be written. A directory that does not exist yet is not starved.
fn is_starved(folder: &Path) -> bool {
    is_read_only(folder).unwrap_or(false)
        || free_bytes(folder).is_ok_and(|free_bytes| free_bytes < START_BYTES)
}

/// What can be written; if that cannot be found out, enough.
async fn look(folder: &Path) -> DiskSpace {
    let folder = folder.to_owned();
    let looked = tokio::task::spawn_blocking(move || look_at(&folder)).await;
    match looked.unwrap_or(Ok(DiskSpace::Enough)) {
        Ok(space) => space,
        Err(error) => {
            tracing::debug!(error = chain(&error), "cannot look at the disk");
            DiskSpace::Enough
        }
    }
}

fn look_at(folder: &Path) -> io::Result<DiskSpace> {
    let path = folder.join(BALLAST);
    let (free_bytes, read_only) = (free_bytes(folder)?, is_read_only(folder)?);
    let (ballast, space) = judge(Look { free_bytes, ballast: holds_space(&path), read_only });
    match ballast {
        Ballast::Leave => {}
        Ballast::GiveUp => std::fs::remove_file(&path)?,
        Ballast::Take => take(&path)?,
    }
    Ok(space)
}

/// Whether the ballast is there, with blocks of the disk: a file of holes would free nothing.
fn holds_space(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.blocks() * 512 >= BALLAST_BYTES)
}

/// Takes the ballast; a file system that cannot allocate has none.
fn take(path: &Path) -> io::Result<()> {
    let file: File = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    if !preallocate(&file, 0, BALLAST_BYTES)? {
        tracing::debug!(path = %path.display(), "no ballast on this file system");
    }
    Ok(())
}

#[cfg(test)]
mod space_test {
    use super::*;

    #[test]
    fn a_disk_with_space_gets_a_ballast() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(look_at(folder.path()).unwrap(), DiskSpace::Enough);
        let ballast = folder.path().join(BALLAST);
        assert!(holds_space(&ballast));
        std::fs::remove_file(&ballast).unwrap();
        File::create(&ballast).unwrap().set_len(BALLAST_BYTES).unwrap();
        assert!(!holds_space(&ballast), "a hole is no ballast");
        assert_eq!(look_at(folder.path()).unwrap(), DiskSpace::Enough);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_whose_directory_is_emptied_or_replaced_ends_and_names_it() {
        let lab = crate::testing::Lab::new().await;
        let shared = lab.agent("s1", None).await;
        let dir = shared.config.data_dir.clone();
        let held = Held::take(&dir).unwrap();
        assert!(matches!(Held::take(&dir), Err(AgentError::InUse { .. })));
        held.check(shared.server()).unwrap();
        let watching = tokio::spawn(watch(Arc::clone(&shared), held));
        std::fs::remove_dir_all(&dir).unwrap();
        let ended = watching.await.unwrap();
        assert!(matches!(&ended, Err(AgentError::Emptied { dir: it, .. }) if *it == dir));
        std::fs::create_dir(&dir).unwrap();
        let held = Held::take(&dir).unwrap();
        std::fs::remove_file(dir.join(LOCK)).unwrap();
        let _other = Held::take(&dir).unwrap();
        assert!(held.check(shared.server()).is_err(), "another agent's");
    }

    #[test]
    fn a_full_disk_is_found_behind_other_errors() {
        let full = || io::Error::from(ErrorKind::StorageFull);
        let kept = crate::error::AgentError::kept("boot epoch")(full());
        assert!(is_exhausted(&kept) && is_exhausted(&full()));
        let other = io::Error::from(ErrorKind::NotFound);
        assert!(!is_exhausted(&crate::error::AgentError::kept("boot epoch")(other)));
    }
}
