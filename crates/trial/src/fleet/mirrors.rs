//! A fleet's mirrors: directories with copies of the repository, served over HTTP.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::Fleet;
use crate::process::Process;
use crate::release::copy_folder;

impl Fleet {
    /// Serves the directory of mirror `index`, and waits until it listens.
    pub fn start_mirror(&mut self, index: usize) -> Result<()> {
        let (folder, address) = (self.mirrors[index].0.clone(), self.mirrors[index].1);
        let (dir, listen) = (folder.display().to_string(), address.to_string());
        let mut command = self.command(&["mirror", "--repository-dir", &dir, "--listen", &listen]);
        let name = format!("mirror-{}", index + 1);
        let log = self.log_file(&name);
        let mut process = Process::start(&name, &mut command, &log)?;
        process.until_it_listens(address, &log)?;
        self.mirrors[index].2 = Some(process);
        Ok(())
    }

    /// Where a mirror listens.
    pub fn mirror_address(&self, index: usize) -> SocketAddr {
        self.mirrors[index].1
    }

    /// Kills a mirror (SIGKILL).
    pub fn kill_mirror(&mut self, index: usize) {
        if let Some(mut process) = self.mirrors[index].2.take() {
            process.kill();
        }
    }

    /// The directory that a mirror serves.
    pub fn mirror_dir(&self, index: usize) -> &Path {
        &self.mirrors[index].0
    }

    /// The number of mirrors.
    pub fn mirrors(&self) -> usize {
        self.mirrors.len()
    }

    /// Copies the hub's repository to a mirror.
    pub fn sync_mirror(&self, index: usize) -> Result<()> {
        let folder = &self.mirrors[index].0;
        fs::create_dir_all(folder)?;
        self.run(&["repository", "push", &format!("file://{}", folder.display())]).map(drop)
    }

    /// Copies the hub's repository to all mirrors.
    pub fn sync_mirrors(&self) -> Result<()> {
        (0..self.mirrors.len()).try_for_each(|index| self.sync_mirror(index))
    }
}

/// Replaces the content of a mirror with that of another directory.
pub fn replace_mirror(folder: &Path, by: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    copy_folder(by, folder)
}
