//! Servers that an operator removed, one small file each.
//!
//! A certificate outlives the removal of its holder, and proves the holder's group to a hub that
//! has lost its registry. Therefore removals are not in the registry: a registry that is lost, or
//! restored from a backup, would forget them, and the server would return.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cohort_base::{FileError, OnPath as _, durable};
use cohort_core::ids::ServerId;
use cohort_identity::{LIFETIME, UnixTime};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The version of the files.
const VERSION: u32 = 1;
/// Most bytes that are read of a file; ours have about a hundred.
const FILE_BYTES_MAX: u64 = 4096;
/// Most removals that are kept. 100,000: ten thousand servers, replaced every six weeks.
const REMOVED_MAX: usize = 100_000;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    /// Unix seconds.
    removed_at: u64,
}

/// The servers that were removed, and when: certificates issued by then do not count, also after
/// the name has joined again.
#[derive(Debug)]
pub(crate) struct Removed {
    dir: PathBuf,
    servers: Mutex<BTreeMap<ServerId, u64>>,
}

impl Removed {
    /// Opens the directory; creates it if missing. Forgets removals older than any certificate. The
    /// name of a file counts: a damaged one means that the server was removed just now.
    pub(crate) fn open(dir: &Path, now: UnixTime) -> Result<Self, FileError> {
        durable::private_folder(dir).on_path("create directory", dir)?;
        durable::sweep(dir).on_path("clean up", dir)?;
        let mut servers = BTreeMap::new();
        for entry in fs::read_dir(dir).on_path("read directory", dir)? {
            let path = entry.on_path("read directory", dir)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.and_then(|name| name.strip_suffix(".json"));
            let Some(server) = name.and_then(|name| ServerId::new(name).ok()) else { continue };
            let removed_at = read(&path).map_or(now.as_secs(), |record| record.removed_at);
            if now.as_secs().saturating_sub(removed_at) < LIFETIME.as_secs() {
                servers.insert(server, removed_at);
            } else {
                fs::remove_file(&path).on_path("remove", &path)?;
            }
        }
        Ok(Removed { dir: dir.to_owned(), servers: Mutex::new(servers) })
    }

    /// When this server was last removed, in Unix seconds.
    pub(crate) fn removed_at(&self, server: &ServerId) -> Option<u64> {
        self.servers.lock().get(server).copied()
    }

    /// Records that a server was removed. Durable on return.
    pub(crate) fn add(&self, server: &ServerId, now: UnixTime) -> Result<(), RemovedError> {
        let mut servers = self.servers.lock();
        if servers.len() >= REMOVED_MAX && !servers.contains_key(server) {
            return Err(RemovedError::TooMany { dir: self.dir.clone() });
        }
        let path = self.path(server);
        // After an earlier one, as what was issued since is.
        let removed_at = servers.get(server).map_or(0, |at| at + 1).max(now.as_secs());
        let record = Record { version: VERSION, removed_at };
        let text = serde_json::to_vec(&record).expect("numbers always become JSON");
        durable::write(&path, &text, durable::SECRET).on_path("write", &path)?;
        servers.insert(server.clone(), removed_at);
        Ok(())
    }

    fn path(&self, server: &ServerId) -> PathBuf {
        self.dir.join(format!("{server}.json"))
    }
}

/// The content of a file; `None` if it is damaged, or of another version.
fn read(path: &Path) -> Option<Record> {
    use std::io::Read as _;
    let mut text = String::new();
    fs::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok().filter(|record: &Record| record.version == VERSION)
}

/// Why a removal was not recorded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemovedError {
    #[error("{} names {REMOVED_MAX} removed servers, the limit", dir.display())]
    TooMany { dir: PathBuf },
    #[error(transparent)]
    File(#[from] FileError),
}

#[cfg(test)]
#[path = "removed_test.rs"]
mod removed_test;
