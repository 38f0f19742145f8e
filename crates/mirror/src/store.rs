//! The bounded disk: which artifacts are there, who goes when room is needed.
//!
//! ```text
//! <cache>/lock                one process only
//! <cache>/blobs/<root>        units in their places, the rest of it claimed and empty
//! <cache>/blobs/<root>.units  hashes of the units; its time of change: when it was last used
//! <cache>/blobs/.…            on its way in or out; swept at the start
//! <cache>/files/…             signed metadata and targets (`files.rs`)
//! ```
//!
//! Nothing is synced: a file that a crash has torn is found by its hashes and fetched again. An
//! artifact counts with its whole length from its first unit on.

use std::collections::HashMap;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use cohort_artifact::UnitHashes;
use cohort_core::ids::Digest;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use crate::blob::Blob;
use crate::metrics::{Metrics, add};
use crate::shared::Shared;

/// Artifacts that are open at once when nobody uses them: each has a file descriptor.
const IDLE_OPEN_MAX: usize = 128;
/// and its hashes in memory, in bytes: those of 128 GiB of artifacts.
const IDLE_MEMORY_MAX: u64 = 64 << 20;

/// How often the time of last use is written down. The order of eviction after a restart need not
/// be finer.
const USED_INTERVAL: Duration = Duration::from_secs(60);

/// An artifact that was opened when the disk was full is opened anew after this long: there may be
/// room now.
const UNKEPT_FOR: Duration = Duration::from_secs(10);

const UNITS_SUFFIX: &str = ".units";

/// The artifacts of a cache.
pub(crate) struct Store {
    dir: PathBuf,
    bytes_max: u64,
    free_bytes_min: u64,
    metrics: Arc<Metrics>,
    names: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<Digest, Entry>,
    bytes: u64,
    clock: u64,
}

struct Entry {
    /// What it counts of the disk; 0 when it is not kept.
    bytes: u64,
    used: u64,
    used_written: Option<Instant>,
    blob: Option<Arc<Blob>>,
    /// Being made or read just now: not to be evicted.
    opening: bool,
}

impl Entry {
    fn is_idle(&self) -> bool {
        // Clones are made under the lock, or from a clone that somebody holds.
        !self.opening && self.blob.as_ref().is_none_or(|blob| Arc::strong_count(blob) == 1)
    }
}

impl Store {
    /// Takes over the folder `blobs` of a cache. Blocking.
    pub(crate) fn open(
        dir: PathBuf,
        bytes_max: u64,
        free_bytes_min: u64,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let store = Self {
            dir,
            bytes_max,
            free_bytes_min,
            metrics,
            names: AtomicU64::new(0),
            inner: Mutex::default(),
        };
        store.scan()?;
        let removed = store.evict(&mut store.lock(), 0);
        store.remove(removed);
        Ok(store)
    }

    /// What is there: whole pairs of files, in the order of their last use.
    fn scan(&self) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let about = entry.metadata()?;
            if !about.is_file() {
                continue;
            }
            let other = match name.strip_suffix(UNITS_SUFFIX) {
                Some(root) => root.to_owned(),
                None => format!("{name}{UNITS_SUFFIX}"),
            };
            let digest = name.strip_suffix(UNITS_SUFFIX).unwrap_or(&name).parse::<Digest>();
            let (Ok(digest), Ok(pair)) = (digest, fs::metadata(self.dir.join(other))) else {
                // A half of a pair, or on its way in or out when the process ended.
                fs::remove_file(entry.path())?;
                continue;
            };
            if name.ends_with(UNITS_SUFFIX) {
                found.push((about.modified()?, digest, about.len() + pair.len()));
            }
        }
        found.sort_by_key(|(used, _, _)| *used);
        let mut inner = self.lock();
        for (_, digest, bytes) in found {
            inner.clock += 1;
            let used = inner.clock;
            inner.bytes += bytes;
            let entry = Entry { bytes, used, used_written: None, blob: None, opening: false };
            inner.entries.insert(digest, entry);
        }
        Ok(())
    }

    /// The artifact, when it is open; and whether it is on disk.
    pub(crate) fn get(&self, digest: &Digest) -> (Option<Arc<Blob>>, bool) {
        let mut inner = self.lock();
        inner.clock += 1;
        let clock = inner.clock;
        let Some(entry) = inner.entries.get_mut(digest) else { return (None, false) };
        entry.used = clock;
        let mut note = false;
        if entry.bytes > 0 && entry.used_written.is_none_or(|at| at.elapsed() > USED_INTERVAL) {
            entry.used_written = Some(Instant::now());
            note = true;
        }
        // Those who have it open go on with it; whoever comes now may find room.
        let unkept = |blob: &Arc<Blob>| !blob.is_kept() && blob.opened.elapsed() > UNKEPT_FOR;
        let stale = entry.bytes == 0 && !entry.opening && entry.blob.as_ref().is_some_and(unkept);
        let answer = if stale {
            inner.entries.remove(digest);
            (None, false)
        } else {
            (entry.blob.clone(), entry.bytes > 0)
        };
        drop(inner);
        if note {
            self.note_use(digest);
        }
        answer
    }

    /// Opens what is on disk; nothing when it is not right, and then it is gone. Blocking.
    pub(crate) fn load(&self, digest: &Digest, shared: &Arc<Shared>) -> Option<Arc<Blob>> {
        self.lock().entries.get_mut(digest)?.opening = true;
        let read = || -> io::Result<(UnitHashes, File)> {
            let path = self.dir.join(digest.as_str());
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            let length = file.metadata()?.len();
            let bytes = fs::read(self.units_path(digest))?;
            let hashes = UnitHashes::parse_for(&bytes, digest, length).map_err(io::Error::other)?;
            Ok((hashes, file))
        };
        match read() {
            Ok((hashes, file)) => {
                let blob = Arc::new(Blob::new(hashes, Some(file), true, Arc::clone(shared)));
                let mut inner = self.lock();
                if let Some(entry) = inner.entries.get_mut(digest) {
                    entry.blob = Some(Arc::clone(&blob));
                    entry.opening = false;
                }
                Self::close_idle(&mut inner);
                Some(blob)
            }
            Err(error) => {
                tracing::warn!(artifact = %digest, %error, "cached artifact is damaged, and goes");
                let removed = self.take(&mut self.lock(), digest);
                self.remove(removed);
                None
            }
        }
    }

    /// Makes room for an artifact and begins it with its last unit, which says how long it is. It
    /// is not kept when there is no room. Blocking.
    pub(crate) fn create(
        &self,
        hashes: UnitHashes,
        last_unit: &[u8],
        shared: &Arc<Shared>,
    ) -> Arc<Blob> {
        let digest = hashes.root().clone();
        let units = hashes.to_bytes();
        let bytes = hashes.length() + units.len() as u64;
        let reserved = self.reserve(&digest, bytes);
        let file = if reserved {
            match self.make_files(&hashes, &units) {
                Ok(file) => Some(file),
                Err(error) => {
                    tracing::error!(artifact = %digest, %error, "artifact cannot be kept");
                    let removed = self.take(&mut self.lock(), &digest);
                    self.remove(removed);
                    None
                }
            }
        } else {
            tracing::warn!(artifact = %digest, bytes, "no room: passed on without being kept");
            None
        };
        let kept = file.is_some();
        let last = hashes.count() - 1;
        let blob = Arc::new(Blob::new(hashes, file, false, Arc::clone(shared)));
        if kept && blob.write(last, last_unit).is_ok() {
            blob.is_here(last);
        }
        let mut inner = self.lock();
        inner.clock += 1;
        let used = inner.clock;
        let bytes = if kept { bytes } else { 0 };
        let used_written = kept.then(Instant::now);
        let entry =
            Entry { bytes, used, used_written, blob: Some(Arc::clone(&blob)), opening: false };
        inner.entries.insert(digest, entry);
        Self::close_idle(&mut inner);
        blob
    }

    /// Gives up what is on disk of an artifact that is in use: it stays readable for those who
    /// have it open.
    pub(crate) fn forget(&self, blob: &Arc<Blob>) {
        let digest = blob.hashes.root();
        let mut inner = self.lock();
        let ours = inner.entries.get(digest).and_then(|entry| entry.blob.as_ref());
        if !ours.is_some_and(|ours| Arc::ptr_eq(ours, blob)) {
            return;
        }
        let removed = self.take(&mut inner, digest);
        inner.clock += 1;
        let used = inner.clock;
        let blob = Some(Arc::clone(blob));
        let entry = Entry { bytes: 0, used, used_written: None, blob, opening: false };
        inner.entries.insert(digest.clone(), entry);
        drop(inner);
        self.remove(removed);
    }

    /// What artifacts may take of the disk, in bytes.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Artifacts on disk, and the bytes that they count.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let inner = self.lock();
        let kept = inner.entries.values().filter(|entry| entry.bytes > 0).count();
        (kept as u64, inner.bytes)
    }

    /// Closes everything, at the end.
    pub(crate) fn close(&self) {
        for entry in self.lock().entries.values_mut() {
            entry.blob = None;
        }
    }

    /// Makes room, and takes it.
    fn reserve(&self, digest: &Digest, bytes: u64) -> bool {
        if bytes > self.bytes_max {
            return false;
        }
        let mut inner = self.lock();
        let mut removed = self.take(&mut inner, digest);
        removed.extend(self.evict(&mut inner, bytes));
        let fits = inner.bytes + bytes <= self.bytes_max;
        if fits {
            inner.bytes += bytes;
            let used = inner.clock;
            let entry = Entry { bytes, used, used_written: None, blob: None, opening: true };
            inner.entries.insert(digest.clone(), entry);
        }
        drop(inner);
        self.remove(removed);
        if !fits {
            return false;
        }
        // The disk may be fuller than our own count says: others write as well.
        while !self.has_free(bytes) {
            let mut inner = self.lock();
            let removed = match Self::oldest(&inner) {
                Some(oldest) => {
                    add(&self.metrics.evictions, 1);
                    self.take(&mut inner, &oldest)
                }
                None => {
                    inner.entries.remove(digest);
                    inner.bytes -= bytes;
                    return false;
                }
            };
            drop(inner);
            self.remove(removed);
        }
        true
    }

    fn has_free(&self, bytes: u64) -> bool {
        match statvfs(&self.dir) {
            Ok(about) => {
                let free = about.f_bavail.saturating_mul(about.f_frsize);
                free >= bytes.saturating_add(self.free_bytes_min)
            }
            Err(error) => {
                tracing::warn!(%error, "free space of the cache's disk is not known");
                true
            }
        }
    }

    fn make_files(&self, hashes: &UnitHashes, units: &[u8]) -> io::Result<File> {
        let path = self.dir.join(hashes.root().as_str());
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path)?;
        file.set_len(hashes.length())?;
        preallocate(&file, hashes.length())?;
        let aside = self.aside();
        fs::write(&aside, units)?;
        fs::rename(&aside, self.units_path(hashes.root()))?;
        Ok(file)
    }

    /// Takes the least recently used out until `bytes` more fit, as far as nobody uses them.
    fn evict(&self, inner: &mut Inner, bytes: u64) -> Vec<PathBuf> {
        let mut removed = Vec::new();
        while inner.bytes.saturating_add(bytes) > self.bytes_max {
            let Some(oldest) = Self::oldest(inner) else { break };
            tracing::info!(artifact = %oldest, "evicted");
            add(&self.metrics.evictions, 1);
            removed.extend(self.take(inner, &oldest));
        }
        removed
    }

    fn oldest(inner: &Inner) -> Option<Digest> {
        let idle = inner.entries.iter().filter(|(_, entry)| entry.bytes > 0 && entry.is_idle());
        idle.min_by_key(|(_, entry)| entry.used).map(|(digest, _)| digest.clone())
    }

    /// Takes an artifact out of the count and moves its files aside, so that the same artifact can
    /// come back before they are removed, which takes a while for large ones.
    fn take(&self, inner: &mut Inner, digest: &Digest) -> Vec<PathBuf> {
        let Some(entry) = inner.entries.remove(digest) else { return Vec::new() };
        inner.bytes -= entry.bytes;
        let mut removed = Vec::new();
        if entry.bytes > 0 {
            for path in [self.dir.join(digest.as_str()), self.units_path(digest)] {
                let aside = self.aside();
                match fs::rename(&path, &aside) {
                    Ok(()) => removed.push(aside),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => {
                        tracing::error!(file = %path.display(), %error, "file cannot be removed");
                    }
                }
            }
        }
        removed
    }

    fn remove(&self, paths: Vec<PathBuf>) {
        for path in paths {
            if let Err(error) = fs::remove_file(&path) {
                tracing::error!(file = %path.display(), %error, "file cannot be removed");
            }
        }
    }

    /// Closes artifacts that nobody uses, the least recently used first.
    fn close_idle(inner: &mut Inner) {
        let mut idle: Vec<_> = inner
            .entries
            .iter()
            .filter(|(_, entry)| entry.is_idle())
            .filter_map(|(digest, entry)| {
                let memory = entry.blob.as_ref()?.memory();
                Some((entry.used, memory, digest.clone()))
            })
            .collect();
        idle.sort_unstable();
        let mut memory: u64 = idle.iter().map(|(_, memory, _)| memory).sum();
        let mut count = idle.len();
        for (_, its, digest) in idle {
            if count <= IDLE_OPEN_MAX && memory <= IDLE_MEMORY_MAX {
                break;
            }
            if let Some(entry) = inner.entries.get_mut(&digest) {
                entry.blob = None;
                if entry.bytes == 0 {
                    inner.entries.remove(&digest);
                }
            }
            memory -= its;
            count -= 1;
        }
    }

    fn note_use(&self, digest: &Digest) {
        let times = FileTimes::new().set_modified(SystemTime::now());
        let noted = File::open(self.units_path(digest)).and_then(|file| file.set_times(times));
        if let Err(error) = noted {
            tracing::debug!(artifact = %digest, %error, "time of use cannot be noted");
        }
    }

    fn units_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{digest}{UNITS_SUFFIX}"))
    }

    fn aside(&self) -> PathBuf {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!(".{}-{number}", std::process::id()))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The count and the entries change together, by code that does not panic in between.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Claims the space, where the file system can. Elsewhere the check of free space must do.
fn preallocate(file: &File, length: u64) -> io::Result<()> {
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, length) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
            result => return result.map_err(io::Error::from),
        }
    }
}

/// Sees to it that no other process uses the folder. Holds as long as the file is open.
pub(crate) fn lock_folder(dir: &Path) -> io::Result<Option<File>> {
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).open(dir.join("lock"))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
