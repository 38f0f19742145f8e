//! The artifacts on a server's disk.
//!
//! ```text
//! <state_dir>/artifacts/<root>          whole: every unit verified; synced before the rename
//! <state_dir>/artifacts/<root>.units    its unit hashes, 32 bytes each, checked against the root
//! <state_dir>/artifacts/<root>.part     incomplete: verified units in place
//! <state_dir>/artifacts/.unfinished-*   a file not yet renamed to its place; swept at startup
//! ```
//!
//! A crash at any instruction is harmless: unit hashes are durable before a `.part` exists, the
//! bytes are synced before the rename, the directory is synced before the artifact counts as whole,
//! and `.units` are removed only after the artifact.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cohort_artifact::{ARTIFACT_BYTES_MAX, UNIT_BYTES, UnitHashes, hash_file};
use cohort_base::{OnPath as _, disk, durable};
use cohort_core::ids::Digest;
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::part::Part;
use crate::store_error::StoreError;

#[path = "delta.rs"]
pub(crate) mod delta;

const UNITS_SUFFIX: &str = ".units";
const PART_SUFFIX: &str = ".part";

/// 32 bytes per unit.
const HASH_BYTES: u64 = 32;

/// Bytes that this user may still write to a directory's file system.
pub(crate) type FreeSpace = Arc<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>;

/// The result of a collection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Artifacts with removed files.
    pub digests: BTreeSet<Digest>,
    pub bytes: u64,
}

/// The artifacts on a server's disk. All calls block, briefly; [`Claim::begin`] and
/// [`Claim::finish`] may take as long as the disk needs for an artifact.
pub struct ArtifactStore {
    folder: PathBuf,
    free_space: FreeSpace,
    inner: Mutex<Inner>,
    /// Changes whenever an artifact starts to arrive, is whole, or is released.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    whole: BTreeMap<Digest, u64>,
    claimed: BTreeMap<Digest, Option<Arc<Part>>>,
    /// Ordered artifacts, whether arriving or already whole.
    ordered: BTreeSet<Digest>,
    /// Verified unit hashes of artifacts in flight.
    hashes: BTreeMap<Digest, Arc<UnitHashes>>,
}

impl fmt::Debug for ArtifactStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArtifactStore").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl ArtifactStore {
    /// Opens the directory of artifacts, `<state_dir>/artifacts`, and creates it if missing.
    ///
    /// A whole file whose unit hashes are missing or do not match is hashed, and demoted to `.part`
    /// if its bytes do not match its name.
    ///
    /// # Errors
    /// If the directory cannot be read or written.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_on(folder.into(), Arc::new(disk::free_bytes))
    }

    /// The same with a given function for the disk's free space.
    pub(crate) fn open_on(folder: PathBuf, free_space: FreeSpace) -> Result<Self, StoreError> {
        fs::create_dir_all(&folder).on_path("make", &folder)?;
        durable::sweep(&folder).on_path("sweep", &folder)?;
        let changes = watch::Sender::default();
        let store = Self { folder, free_space, inner: Mutex::default(), changes };
        for name in store.names()? {
            let Ok(digest) = Digest::new(name) else { continue };
            if let Some(length) = store.examine(&digest)? {
                store.inner.lock().whole.insert(digest, length);
            }
        }
        Ok(store)
    }

    /// Digests of the whole artifacts.
    #[must_use]
    pub fn held(&self) -> Vec<Digest> {
        self.inner.lock().whole.keys().cloned().collect()
    }

    /// Whether an artifact is whole here.
    #[must_use]
    pub fn is_whole(&self, digest: &Digest) -> bool {
        self.inner.lock().whole.contains_key(digest)
    }

    /// The file of a whole artifact. It stays as long as [`ArtifactStore::collect`] is asked to
    /// keep it.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> Option<PathBuf> {
        self.is_whole(digest).then(|| self.whole_path(digest))
    }

    /// The verified unit hashes of an artifact that is whole or being fetched.
    ///
    /// # Errors
    /// If there are none, or they cannot be read.
    pub fn unit_hashes(&self, digest: &Digest) -> Result<Arc<UnitHashes>, StoreError> {
        let (hashes, length) = {
            let inner = self.inner.lock();
            (inner.hashes.get(digest).cloned(), inner.whole.get(digest).copied())
        };
        if let Some(hashes) = hashes {
            return Ok(hashes);
        }
        let absent = || StoreError::Absent { digest: digest.clone() };
        let length = length.ok_or_else(absent)?;
        self.read_hashes(digest, length)?.map(Arc::new).ok_or_else(absent)
    }

    /// Claims an artifact for fetching: until the claim is dropped, no one else fetches it, and
    /// nothing of it is collected.
    ///
    /// # Errors
    /// If it is already claimed, or no artifact can have that length.
    pub fn claim(self: &Arc<Self>, digest: &Digest, length: u64) -> Result<Claim, StoreError> {
        if length == 0 || length > ARTIFACT_BYTES_MAX {
            return Err(StoreError::Length { digest: digest.clone(), length });
        }
        let mut inner = self.inner.lock();
        if inner.claimed.contains_key(digest) {
            return Err(StoreError::InFlight { digest: digest.clone() });
        }
        inner.claimed.insert(digest.clone(), None);
        Ok(Claim { store: Arc::clone(self), digest: digest.clone(), length })
    }

    /// Sets which artifacts are ordered. None of them is collected from now on, even by a
    /// collection already in progress.
    pub(crate) fn set_ordered(&self, ordered: BTreeSet<Digest>) {
        self.inner.lock().ordered = ordered;
    }

    /// Removes every artifact, or part of one, that is neither in `keep`, nor ordered, nor being
    /// fetched. `keep` must name what runs and what a rollback may need.
    ///
    /// # Errors
    /// If a file cannot be removed. Earlier removals stand.
    pub fn collect(&self, keep: &BTreeSet<Digest>) -> Result<Collected, StoreError> {
        // Listed and removed without holding the lock, which serving other servers needs too.
        let mut names: BTreeMap<Digest, BTreeSet<String>> = BTreeMap::new();
        for name in self.names()? {
            let root = name.split('.').next().unwrap_or_default();
            if let Ok(digest) = Digest::new(root) {
                names.entry(digest).or_default().insert(name);
            }
        }
        let doomed = self.take_unwanted(&names, keep);
        let mut collected = Collected::default();
        let removed = doomed.iter().try_for_each(|digest| {
            let listed = names.remove(digest).unwrap_or_default();
            self.remove(digest, listed, &mut collected)
        });
        let mut inner = self.inner.lock();
        inner.claimed.retain(|digest, _| !doomed.contains(digest));
        drop(inner);
        self.changed();
        removed?;
        if !collected.digests.is_empty() {
            durable::sync_folder(&self.folder).on_path("sync", &self.folder)?;
            info!(artifacts = collected.digests.len(), bytes = collected.bytes, "collected");
        }
        Ok(collected)
    }

    /// Claims unwanted artifacts, so that a fetch that starts meanwhile finds them in flight.
    fn take_unwanted(
        &self,
        names: &BTreeMap<Digest, BTreeSet<String>>,
        keep: &BTreeSet<Digest>,
    ) -> BTreeSet<Digest> {
        let mut inner = self.inner.lock();
        let unwanted = names.keys().filter(|digest| {
            let wanted = keep.contains(*digest) || inner.ordered.contains(*digest);
            !wanted && !inner.claimed.contains_key(*digest)
        });
        let doomed: BTreeSet<Digest> = unwanted.cloned().collect();
        for digest in &doomed {
            inner.whole.remove(digest);
            inner.claimed.insert(digest.clone(), None);
        }
        doomed
    }

    /// Removes the files of an artifact: the listed ones, and their new names if renamed since.
    fn remove(
        &self,
        digest: &Digest,
        mut names: BTreeSet<String>,
        collected: &mut Collected,
    ) -> Result<(), StoreError> {
        names.insert(digest.to_string());
        names.insert(format!("{digest}{UNITS_SUFFIX}"));
        // "<root>" sorts before "<root>.units": hashes go last, so that a crash leaves no artifact
        // without them.
        for name in names {
            let path = self.folder.join(name);
            let bytes = fs::metadata(&path).map_or(0, |data| data.blocks() * 512);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result.on_path("remove", &path)?,
            }
            collected.bytes += bytes;
            collected.digests.insert(digest.clone());
        }
        Ok(())
    }

    /// Changes whenever an artifact starts to arrive, is whole, or is released.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// The part of an artifact that is being fetched.
    pub(crate) fn part(&self, digest: &Digest) -> Option<Arc<Part>> {
        self.inner.lock().claimed.get(digest).cloned().flatten()
    }

    /// Whether the unit hashes of an artifact can be served to others.
    pub(crate) fn has_hashes(&self, digest: &Digest) -> bool {
        let inner = self.inner.lock();
        inner.hashes.contains_key(digest) || inner.whole.contains_key(digest)
    }

    /// A whole artifact, open for reading, and its length in bytes.
    pub(crate) fn open_whole(&self, digest: &Digest) -> Result<Option<(File, u64)>, StoreError> {
        let Some(length) = self.inner.lock().whole.get(digest).copied() else { return Ok(None) };
        let path = self.whole_path(digest);
        match File::open(&path) {
            Ok(file) => Ok(Some((file, length))),
            // Collected meanwhile, or removed by somebody else: the group hears of that.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.inner.lock().whole.remove(digest);
                self.changed();
                Ok(None)
            }
            Err(error) => Ok(Err(error).on_path("open", &path)?),
        }
    }

    /// The length of a whole artifact, if its unit hashes match.
    fn examine(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.whole_path(digest);
        let data = fs::symlink_metadata(&path).on_path("examine", &path)?;
        let length = data.len();
        let possible = data.is_file() && (1..=ARTIFACT_BYTES_MAX).contains(&length);
        if possible && self.read_hashes(digest, length)?.is_some() {
            return Ok(Some(length));
        }
        if possible {
            let found = hash_file(&path).on_path("hash", &path)?;
            if found.root() == digest {
                let units = self.units_path(digest);
                let bytes = found.to_bytes();
                durable::write(&units, &bytes, durable::READABLE).on_path("write", &units)?;
                return Ok(Some(length));
            }
        }
        warn!(artifact = %digest, "corrupt artifact: demoted until it is ordered again");
        let part = self.part_path(digest);
        if data.is_file() {
            durable::rename(&path, &part).on_path("rename", &path)?;
        }
        Ok(None)
    }

    fn read_hashes(&self, digest: &Digest, length: u64) -> Result<Option<UnitHashes>, StoreError> {
        let path = self.units_path(digest);
        let expected = hashes_length(length);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            data => {
                let data = data.on_path("read", &path)?;
                if !data.is_file() || data.len() != expected {
                    return Ok(None);
                }
            }
        }
        let bytes = fs::read(&path).on_path("read", &path)?;
        Ok(UnitHashes::parse_for(&bytes, digest, length).ok())
    }

    fn names(&self) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).on_path("read", &self.folder)? {
            let entry = entry.on_path("read", &self.folder)?;
            names.extend(entry.file_name().into_string());
        }
        Ok(names)
    }

    fn whole_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.as_str())
    }

    fn units_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}{UNITS_SUFFIX}"))
    }

    fn part_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}{PART_SUFFIX}"))
    }
}

/// The right to fetch one artifact; see [`ArtifactStore::claim`].
#[derive(Debug)]
pub struct Claim {
    store: Arc<ArtifactStore>,
    digest: Digest,
    length: u64,
}

impl Claim {
    /// Checks that the missing bytes fit on the disk and leave `reserve` bytes free.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] if they do not.
    pub fn check_space(&self, reserve: u64) -> Result<(), StoreError> {
        let path = &self.store.folder;
        // Space preallocated by an interrupted fetch is ours already.
        let part = fs::metadata(self.store.part_path(&self.digest));
        let claimed = part.map_or(0, |data| data.blocks() * 512);
        let needed = (self.length + hashes_length(self.length)).saturating_sub(claimed) + reserve;
        let free = (self.store.free_space)(path).on_path("get the free space of", path)?;
        if free < needed {
            return Err(StoreError::NoSpace { path: path.clone(), needed, reserve, free });
        }
        Ok(())
    }

    /// Whether the artifact is already whole, with the claimed length.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.store.inner.lock().whole.get(&self.digest) == Some(&self.length)
    }

    /// The unit hashes left by an earlier try.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn hashes(&self) -> Result<Option<Arc<UnitHashes>>, StoreError> {
        let hashes = self.store.read_hashes(&self.digest, self.length)?.map(Arc::new);
        if let Some(hashes) = &hashes {
            self.show(hashes);
        }
        Ok(hashes)
    }

    /// Makes the hashes available to other servers. They were verified against the root, and every
    /// server down the chain is waiting for them.
    fn show(&self, hashes: &Arc<UnitHashes>) {
        self.store.inner.lock().hashes.insert(self.digest.clone(), Arc::clone(hashes));
        self.store.changed();
    }

    /// Verifies a file of unit hashes against root and length, and persists it.
    ///
    /// # Errors
    /// [`StoreError::Bytes`] if they are not this artifact's, or if the disk fails.
    pub fn put_hashes(&self, bytes: &[u8]) -> Result<Arc<UnitHashes>, StoreError> {
        let hashes = UnitHashes::parse_for(bytes, &self.digest, self.length)
            .map_err(|source| StoreError::Bytes { digest: self.digest.clone(), source })?;
        let hashes = Arc::new(hashes);
        self.show(&hashes);
        let path = self.store.units_path(&self.digest);
        durable::write(&path, bytes, durable::READABLE).on_path("write", &path)?;
        Ok(hashes)
    }

    /// Opens the `.part` and hashes what an earlier try left in it. Its space is checked here, and
    /// claimed by the fetch while units arrive.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub fn begin(&self, hashes: Arc<UnitHashes>, reserve: u64) -> Result<Arc<Part>, StoreError> {
        self.check_space(reserve)?;
        let part = Arc::new(Part::open(self.store.part_path(&self.digest), hashes)?);
        self.store.inner.lock().claimed.insert(self.digest.clone(), Some(Arc::clone(&part)));
        self.store.changed();
        Ok(part)
    }

    /// Turns a complete part into the whole artifact: sync, rename, directory sync. Only then is it
    /// held.
    ///
    /// # Errors
    /// [`StoreError::NotWhole`] if units are missing, or if the disk fails.
    pub fn finish(&self, part: &Part) -> Result<(), StoreError> {
        let have = part.have();
        if !have.is_full() {
            let (held, count) = (have.held(), have.count());
            return Err(StoreError::NotWhole { digest: self.digest.clone(), held, count });
        }
        part.sync()?;
        let path = self.store.whole_path(&self.digest);
        durable::rename(part.path(), &path).on_path("rename", part.path())?;
        self.store.inner.lock().whole.insert(self.digest.clone(), self.length);
        self.store.changed();
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut inner = self.store.inner.lock();
        inner.claimed.remove(&self.digest);
        inner.hashes.remove(&self.digest);
        drop(inner);
        self.store.changed();
    }
}

/// Length of an artifact's file of unit hashes, in bytes.
pub(crate) fn hashes_length(length: u64) -> u64 {
    length.div_ceil(u64::from(UNIT_BYTES)) * HASH_BYTES
}
