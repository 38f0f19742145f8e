//! A folder that takes a bounded part of the disk: what was not used for longest goes first.
//!
//! When a file was last used is its time of change, so that nothing else has to be kept.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use cohort_base::durable;
use parking_lot::Mutex;
use rustix::fs::statvfs;

/// What a folder holds, or may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// A bounded folder. Everything but its counts blocks.
pub(crate) struct Bounded {
    dir: PathBuf,
    max: Usage,
    /// Space of the disk that is left to others, in bytes.
    free_bytes_min: u64,
    files: AtomicU64,
    bytes: AtomicU64,
    /// One at a time makes room.
    evicting: Mutex<()>,
}

impl Bounded {
    /// Takes over a folder and removes what is too much.
    pub(crate) fn open(dir: PathBuf, max: Usage, free_bytes_min: u64) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        durable::sweep(&dir)?;
        let (files, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let bounded = Self { dir, max, free_bytes_min, files, bytes, evicting: Mutex::new(()) };
        for (_, name, length) in bounded.list()?.into_iter().rev() {
            bounded.count(length);
            let Usage { files, bytes } = bounded.usage();
            if files > max.files || bytes > max.bytes {
                bounded.remove(&name);
            }
        }
        Ok(bounded)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn max(&self) -> Usage {
        self.max
    }

    pub(crate) fn usage(&self) -> Usage {
        let [files, bytes] = [&self.files, &self.bytes].map(|count| count.load(Ordering::Relaxed));
        Usage { files, bytes }
    }

    /// Counts a new file in, after making room by removing those that may go. False when there is
    /// no room.
    pub(crate) fn reserve(
        &self,
        length: u64,
        mut may_go: impl FnMut(&str) -> bool,
    ) -> io::Result<bool> {
        if length > self.max.bytes {
            return Ok(false);
        }
        let _alone = self.evicting.lock();
        if !self.has_room(length) {
            for (_, name, _) in self.list()? {
                if may_go(&name) {
                    self.remove(&name);
                    if self.has_room(length) {
                        break;
                    }
                }
            }
        }
        let fits = self.has_room(length);
        if fits {
            self.count(length);
        }
        Ok(fits)
    }

    /// Writes or replaces a whole small file, if there is room for it.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (path, length) = (self.path(name), bytes.len() as u64);
        let before = fs::metadata(&path).map(|about| about.len()).ok();
        if !self.reserve(length, |other| other != name)? {
            return Ok(());
        }
        durable::write(&path, bytes, durable::READABLE).inspect_err(|_| self.give_back(length))?;
        if let Some(before) = before {
            self.give_back(before);
        }
        Ok(())
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, name: &str) {
        let path = self.path(name);
        match fs::metadata(&path).and_then(|about| fs::remove_file(&path).map(|()| about.len())) {
            Ok(length) => self.give_back(length),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::error!(file = %path.display(), %error, "cannot remove file"),
        }
    }

    /// Takes a file out of the count that was reserved and could not be written.
    pub(crate) fn give_back(&self, length: u64) {
        let less = |count: &AtomicU64, by: u64| {
            let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                Some(count.saturating_sub(by))
            });
        };
        less(&self.files, 1);
        less(&self.bytes, length);
    }

    fn count(&self, length: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(length, Ordering::Relaxed);
    }

    fn has_room(&self, length: u64) -> bool {
        let Usage { files, bytes } = self.usage();
        let fits = files < self.max.files && bytes.saturating_add(length) <= self.max.bytes;
        // The disk may be fuller than our own count says: others write as well.
        fits && self.disk_has_room(length)
    }

    fn disk_has_room(&self, length: u64) -> bool {
        match statvfs(&self.dir) {
            Ok(about) => {
                let free = about.f_bavail.saturating_mul(about.f_frsize);
                free >= length.saturating_add(self.free_bytes_min)
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read free space of the cache's disk");
                true
            }
        }
    }

    /// All files with their lengths, the one that was not used for longest first.
    fn list(&self) -> io::Result<Vec<(SystemTime, String, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let about = entry.metadata()?;
            if let (Ok(name), true) = (entry.file_name().into_string(), about.is_file()) {
                found.push((about.modified()?, name, about.len()));
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}
