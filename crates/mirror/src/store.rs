//! The artifacts of a cache: which are on disk, and which are open.
//!
//! ```text
//! <cache>/lock           held by the one process that uses the cache
//! <cache>/blobs/<root>   units in their places, the rest claimed and empty; then the unit hashes
//! <cache>/files/…        signed metadata and targets (`files.rs`)
//! ```
//!
//! Nothing is synced: a file torn by a crash is detected by its hashes and fetched again. An
//! artifact counts with its full length from its first unit on. An artifact's file needs no
//! version: one in another format does not have its hashes in the right place, and is fetched
//! again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cohort_artifact::{UNIT_BYTES, UnitHashes};
use cohort_base::disk;
use cohort_core::ids::Digest;
use parking_lot::Mutex;

use crate::blob::Blob;
use crate::bounded::{Bounded, Usage};
use crate::cache::Shared;
use crate::metrics::Metrics;

/// Idle artifacts that stay open: each has a file descriptor and up to 8 MiB of hashes in memory.
const IDLE_OPEN_MAX: usize = 8;

/// An artifact opened while the disk was full is opened again after this long: there may be room
/// now.
const UNKEPT_FOR: Duration = Duration::from_secs(10);

const HASH_BYTES: u64 = blake3::OUT_LEN as u64;

/// The artifacts of a cache.
pub(crate) struct Store {
    disk: Bounded,
    metrics: Arc<Metrics>,
    /// Locked after the lock of `disk`, never before it.
    open: Mutex<Open>,
}

/// Open artifacts, with the time of their last use by `clock`.
#[derive(Default)]
struct Open {
    blobs: HashMap<Digest, (Arc<Blob>, u64)>,
    clock: u64,
}

impl Open {
    /// Closes an artifact unless it has readers; false if it has.
    fn close_if_idle(&mut self, digest: &Digest) -> bool {
        // Clones are made under the lock, or from an existing clone.
        let in_use = |(blob, _): &(Arc<Blob>, u64)| Arc::strong_count(blob) > 1;
        if self.blobs.get(digest).is_some_and(in_use) {
            return false;
        }
        self.blobs.remove(digest);
        true
    }
}

impl Store {
    /// Takes over the directory `blobs` of a cache. Blocking.
    pub(crate) fn open(
        dir: PathBuf,
        bytes_max: u64,
        free_bytes_min: u64,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let max = Usage { files: u64::MAX, bytes: bytes_max };
        let disk = Bounded::open(dir, max, free_bytes_min)?;
        Ok(Self { disk, metrics, open: Mutex::default() })
    }

    /// An artifact, if it is open.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Arc<Blob>> {
        let mut open = self.open.lock();
        open.clock += 1;
        let clock = open.clock;
        let (blob, used) = open.blobs.get_mut(digest)?;
        // Its readers keep using it; a new one may find room.
        if !blob.is_kept() && blob.opened.elapsed() > UNKEPT_FOR {
            open.blobs.remove(digest);
            return None;
        }
        *used = clock;
        let blob = Arc::clone(blob);
        drop(open);
        self.note_use(&blob);
        Some(blob)
    }

    /// Opens an artifact on disk; `None` if it is not there or corrupt. Blocking.
    pub(crate) fn load(&self, digest: &Digest, cache: &Arc<Shared>) -> Option<Arc<Blob>> {
        match read(&self.disk.path(digest.as_str()), digest) {
            Ok((hashes, file)) => {
                Some(self.put(Blob::new(hashes, Some(file), true, Arc::clone(cache))))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(artifact = %digest, %error, "removing corrupt cached artifact");
                self.disk.remove(digest.as_str());
                None
            }
        }
    }

    /// Makes room for an artifact and starts it with its last unit. It is not stored if there is no
    /// room. Blocking.
    pub(crate) fn create(
        &self,
        hashes: UnitHashes,
        last_unit: &[u8],
        cache: &Arc<Shared>,
    ) -> Arc<Blob> {
        let digest = hashes.root().clone();
        let file = match self.make_file(&hashes) {
            Ok(Some(file)) => Some(file),
            Ok(None) => {
                let bytes = hashes.length();
                tracing::warn!(artifact = %digest, bytes, "no room, serving without caching");
                None
            }
            Err(error) => {
                tracing::error!(artifact = %digest, %error, "cannot store artifact");
                None
            }
        };
        let (kept, last) = (file.is_some(), hashes.count() - 1);
        let blob = Blob::new(hashes, file, false, Arc::clone(cache));
        if kept && blob.write(last, last_unit).is_ok() {
            blob.is_here(last);
        }
        self.put(blob)
    }

    /// Removes an artifact in use from disk: its readers keep it open.
    pub(crate) fn forget(&self, blob: &Arc<Blob>) {
        let digest = blob.hashes.root();
        self.disk.remove_if(digest.as_str(), || {
            let open = self.open.lock();
            open.blobs.get(digest).is_some_and(|(ours, _)| Arc::ptr_eq(ours, blob))
        });
    }

    /// Records that an artifact is used now. One that lost its place on disk while being opened is
    /// served, and opened again soon.
    fn note_use(&self, blob: &Blob) {
        if blob.is_kept() && !self.disk.note_use(blob.hashes.root().as_str()) {
            blob.keep_no_more();
        }
    }

    /// Most disk space for artifacts, in bytes.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.disk.max().bytes
    }

    /// Artifacts on disk, and the bytes they count for.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let Usage { files, bytes } = self.disk.usage();
        (files, bytes)
    }

    /// Closes everything, at shutdown.
    pub(crate) fn close(&self) {
        self.open.lock().blobs.clear();
    }

    /// A file with the hashes in place; `None` if there is no room for it.
    fn make_file(&self, hashes: &UnitHashes) -> io::Result<Option<File>> {
        let (name, units) = (hashes.root().as_str(), hashes.to_bytes());
        let length = hashes.length() + units.len() as u64;
        // An existing one was corrupt, or it would be open.
        self.disk.remove(name);
        if !self.disk.reserve(name, length, |name| self.evict(name))? {
            return Ok(None);
        }
        let make = || {
            let mut options = OpenOptions::new();
            let path = self.disk.path(name);
            let file = options.read(true).write(true).create(true).truncate(true).open(path)?;
            disk::preallocate(&file, 0, length)?;
            file.set_len(length)?;
            file.write_all_at(&units, hashes.length())?;
            Ok(file)
        };
        make().map(Some).inspect_err(|_| self.disk.remove(name))
    }

    /// Whether an artifact may be removed to make room.
    fn evict(&self, name: &str) -> bool {
        let idle = name.parse().is_ok_and(|digest| self.open.lock().close_if_idle(&digest));
        if idle {
            tracing::info!(artifact = name, "evicting artifact");
            self.metrics.evictions.inc();
        }
        idle
    }

    /// Publishes an artifact, and closes the idle ones unused for longest.
    fn put(&self, blob: Blob) -> Arc<Blob> {
        let (digest, blob) = (blob.hashes.root().clone(), Arc::new(blob));
        let mut open = self.open.lock();
        open.clock += 1;
        let clock = open.clock;
        open.blobs.insert(digest, (Arc::clone(&blob), clock));
        let idle = open.blobs.iter().filter(|(_, (blob, _))| Arc::strong_count(blob) == 1);
        let mut idle: Vec<_> = idle.map(|(digest, (_, used))| (*used, digest.clone())).collect();
        idle.sort_unstable_by(|a, b| b.cmp(a));
        for (_, digest) in idle.into_iter().skip(IDLE_OPEN_MAX) {
            open.blobs.remove(&digest);
        }
        drop(open);
        self.note_use(&blob);
        blob
    }
}

/// Reads the hashes at the end of a file, whose length gives their number.
fn read(path: &Path, digest: &Digest) -> io::Result<(UnitHashes, File)> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let all = file.metadata()?.len();
    let hashes_length = all.div_ceil(u64::from(UNIT_BYTES) + HASH_BYTES) * HASH_BYTES;
    let length = all.saturating_sub(hashes_length);
    let mut bytes = vec![0; usize::try_from(hashes_length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, length)?;
    let hashes = UnitHashes::parse_for(&bytes, digest, length).map_err(io::Error::other)?;
    Ok((hashes, file))
}

#[cfg(test)]
#[path = "store_test.rs"]
mod store_test;
