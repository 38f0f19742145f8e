//! The mirrors of a fleet: folders served over HTTP, and copies of the repository in them.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::{Fleet, wait_for_port};
use crate::process::Process;
use crate::release::copy_folder;

impl Fleet {
    /// Starts a mirror.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_mirror(&mut self, index: usize) -> Result<()> {
        let (folder, address) = (self.mirrors[index].0.clone(), self.mirrors[index].1);
        let (dir, listen) = (folder.display().to_string(), address.to_string());
        let mut command = self.command(&["mirror", "--repository-dir", &dir, "--listen", &listen]);
        let name = format!("mirror-{}", index + 1);
        let log = self.log_file(&name);
        let mut process = Process::start(&name, &mut command, &log)?;
        wait_for_port(address, &mut process, &log)?;
        self.mirrors[index].2 = Some(process);
        Ok(())
    }

    /// Where a mirror listens.
    #[must_use]
    pub fn mirror_address(&self, index: usize) -> SocketAddr {
        self.mirrors[index].1
    }

    /// Kills a mirror (SIGKILL).
    pub fn kill_mirror(&mut self, index: usize) {
        if let Some(mut process) = self.mirrors[index].2.take() {
            process.kill();
        }
    }

    /// The folder that a mirror serves.
    #[must_use]
    pub fn mirror_dir(&self, index: usize) -> &Path {
        &self.mirrors[index].0
    }

    /// How many mirrors there are.
    #[must_use]
    pub fn mirrors(&self) -> usize {
        self.mirrors.len()
    }

    /// Copies the hub's repository to a mirror: blobs first, the timestamp last, as every copy of a
    /// repository must.
    ///
    /// # Errors
    /// When a file cannot be copied.
    pub fn sync_mirror(&self, index: usize) -> Result<()> {
        sync_repository(&self.context_dir().join("repository"), &self.mirrors[index].0)
    }

    /// Copies the hub's repository to all mirrors.
    ///
    /// # Errors
    /// When a file cannot be copied.
    pub fn sync_mirrors(&self) -> Result<()> {
        (0..self.mirrors.len()).try_for_each(|index| self.sync_mirror(index))
    }
}

/// Copies a repository file by file; the timestamp, which activates the rest, last.
///
/// # Errors
/// When a file cannot be copied.
fn sync_repository(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for folder in ["blobs", "targets", "metadata"] {
        if from.join(folder).exists() {
            sync_folder(&from.join(folder), &to.join(folder))?;
        }
    }
    let timestamp = "metadata/timestamp.json";
    if from.join(timestamp).exists() {
        let aside = to.join("metadata/.timestamp.json.new");
        fs::copy(from.join(timestamp), &aside)?;
        fs::rename(&aside, to.join(timestamp))?;
    }
    Ok(())
}

fn sync_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            sync_folder(&entry.path(), &target)?;
        } else if entry.file_name() != "timestamp.json" && !target.exists() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Replaces the content of a mirror with another folder's.
///
/// # Errors
/// When a file cannot be copied.
pub fn replace_mirror(folder: &Path, by: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    copy_folder(by, folder)
}
