//! A directory of bounded size that evicts the least recently used file first.
//!
//! Its content is counted in memory, under one lock; the directory is listed once, at start. A
//! file's mtime is its last use, so it survives a restart. A file that is not counted is not kept:
//! [`Bounded::note_use`] removes one that lost its place while it was being written.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cohort_base::disk;
use cohort_base::durable::{self, UNFINISHED_PREFIX};
use parking_lot::Mutex;

/// A directory's usage, or its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// A bounded directory. Every method blocks.
pub(crate) struct Bounded {
    dir: PathBuf,
    max: Usage,
    /// Disk space to leave to others, in bytes.
    free_bytes_min: u64,
    held: Mutex<Held>,
}

/// The files that have a place, by name: those on disk, and those being written.
#[derive(Default)]
struct Held {
    files: HashMap<String, Place>,
    bytes: u64,
    /// Files removed so far; makes the names of files awaiting removal unique.
    removed: u64,
}

struct Place {
    used: SystemTime,
    length: u64,
}

impl Held {
    fn usage(&self) -> Usage {
        Usage { files: self.files.len() as u64, bytes: self.bytes }
    }

    fn put(&mut self, name: String, place: Place) {
        self.take(&name);
        self.bytes += place.length;
        self.files.insert(name, place);
    }

    /// Frees a place; returns its length in bytes.
    fn take(&mut self, name: &str) -> u64 {
        let length = self.files.remove(name).map_or(0, |place| place.length);
        self.bytes -= length;
        length
    }
}

impl Bounded {
    /// Takes over a directory and removes what exceeds the limit.
    pub(crate) fn open(dir: PathBuf, max: Usage, free_bytes_min: u64) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        durable::sweep(&dir)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let about = entry.metadata()?;
            if let (Ok(name), true) = (entry.file_name().into_string(), about.is_file()) {
                found.push((about.modified()?, name, about.len()));
            }
        }
        found.sort_unstable();
        let mut held = Held::default();
        for (used, name, length) in found.into_iter().rev() {
            let Usage { files, bytes } = held.usage();
            if files < max.files && bytes.saturating_add(length) <= max.bytes {
                held.put(name, Place { used, length });
            } else {
                unlink(&dir.join(name));
            }
        }
        Ok(Self { dir, max, free_bytes_min, held: Mutex::new(held) })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn max(&self) -> Usage {
        self.max
    }

    pub(crate) fn usage(&self) -> Usage {
        self.held.lock().usage()
    }

    /// Reserves a place for a new file, evicting files that may go. False if there is no room.
    pub(crate) fn reserve(
        &self,
        name: &str,
        length: u64,
        mut may_go: impl FnMut(&str) -> bool,
    ) -> io::Result<bool> {
        if length > self.max.bytes {
            return Ok(false);
        }
        let mut going = Vec::new();
        let mut held = self.held.lock();
        // Bytes of files about to be unlinked, which the disk still counts.
        let mut leaving = 0;
        let mut fits = self.has_room(&held, length, leaving);
        if !fits {
            let others = held.files.iter().filter(|(other, _)| *other != name);
            let mut others: Vec<_> = others.map(|(name, at)| (at.used, name.clone())).collect();
            others.sort_unstable();
            for (_, other) in others {
                if !may_go(&other) {
                    continue;
                }
                if let Some((length, aside)) = self.set_aside(&mut held, &other) {
                    leaving += length;
                    going.push(aside);
                }
                fits = self.has_room(&held, length, leaving);
                if fits {
                    break;
                }
            }
        }
        if fits {
            held.put(name.to_owned(), Place { used: SystemTime::now(), length });
        }
        drop(held);
        going.iter().for_each(|path| unlink(path));
        Ok(fits)
    }

    /// Writes or replaces a whole small file, if there is room for it.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if self.reserve(name, bytes.len() as u64, |_| true)? {
            let path = self.path(name);
            let written = durable::write(&path, bytes, durable::READABLE);
            if written.is_err() {
                self.count_again(name);
            }
            // Another writer may have taken the place in the meantime.
            self.note_use(name);
            written?;
        }
        Ok(())
    }

    /// Counts the file under this name again: a write that failed left the old file, if any.
    fn count_again(&self, name: &str) {
        let mut held = self.held.lock();
        match fs::metadata(self.path(name)) {
            Ok(about) => {
                held.put(name.to_owned(), Place { used: SystemTime::now(), length: about.len() });
            }
            Err(_) => {
                held.take(name);
            }
        }
    }

    /// Records that a file is used now, for the order of eviction. If it has no place, removes the
    /// file and returns false.
    pub(crate) fn note_use(&self, name: &str) -> bool {
        let (now, path) = (SystemTime::now(), self.path(name));
        let mut held = self.held.lock();
        let Some(place) = held.files.get_mut(name) else {
            let stray = self.set_aside(&mut held, name);
            drop(held);
            stray.iter().for_each(|(_, path)| unlink(path));
            return false;
        };
        place.used = now;
        drop(held);
        if let Err(error) = File::open(&path).and_then(|file| file.set_modified(now)) {
            tracing::debug!(file = %path.display(), %error, "cannot record time of use");
        }
        true
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, name: &str) {
        self.remove_if(name, || true);
    }

    /// Removes a file if `may_go` still agrees once places can no longer change.
    pub(crate) fn remove_if(&self, name: &str, may_go: impl FnOnce() -> bool) {
        let mut held = self.held.lock();
        if may_go() {
            let going = self.set_aside(&mut held, name);
            drop(held);
            going.iter().for_each(|(_, path)| unlink(path));
        }
    }

    /// Frees a file's place, and renames it to one that the next start sweeps: unlinking a long
    /// file takes seconds and must not happen under the lock, while the name has to be free
    /// immediately. Returns its length in bytes and its new path; a file that cannot be renamed
    /// keeps its place.
    fn set_aside(&self, held: &mut Held, name: &str) -> Option<(u64, PathBuf)> {
        held.removed += 1;
        let (path, aside) =
            (self.path(name), self.path(&format!("{UNFINISHED_PREFIX}removed-{}", held.removed)));
        match fs::rename(&path, &aside) {
            Ok(()) => return Some((held.take(name), aside)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                held.take(name);
            }
            Err(error) => tracing::error!(file = %path.display(), %error, "cannot remove file"),
        }
        None
    }

    fn has_room(&self, held: &Held, length: u64, leaving: u64) -> bool {
        let Usage { files, bytes } = held.usage();
        let fits = files < self.max.files && bytes.saturating_add(length) <= self.max.bytes;
        // The disk may be fuller than our count says: others write too.
        fits && self.disk_has_room(length, leaving)
    }

    fn disk_has_room(&self, length: u64, leaving: u64) -> bool {
        match disk::free_bytes(&self.dir) {
            Ok(free) => free.saturating_add(leaving) >= length.saturating_add(self.free_bytes_min),
            Err(error) => {
                tracing::warn!(%error, "cannot read free space of the cache's disk");
                true
            }
        }
    }
}

fn unlink(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::error!(file = %path.display(), %error, "cannot remove file");
    }
}

#[cfg(test)]
#[path = "bounded_test.rs"]
mod bounded_test;
