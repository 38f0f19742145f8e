//! The artifacts on a server's disk.
//!
//! ```text
//! <state_dir>/artifacts/<root>          whole: every unit was verified, and synced before the rename
//! <state_dir>/artifacts/<root>.units    its unit hashes, 32 bytes each, checked against the root
//! <state_dir>/artifacts/<root>.part     on its way: verified units in place
//! <state_dir>/artifacts/.unfinished-*   a file being written aside; swept at the start
//! ```
//!
//! The order of things makes a crash at any instruction harmless: unit hashes are durable before a
//! `.part` exists, the bytes are synced before the rename, the folder is synced before anybody is
//! told that the artifact is whole, and the `.units` are removed only after the artifact.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cohort_artifact::{ARTIFACT_BYTES_MAX, UNIT_BYTES, UnitHashes, hash_file};
use cohort_core::ids::Digest;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::durable::{sweep_unfinished, sync_folder, write_atomic};
use crate::part::Part;
use crate::store_error::StoreError;

#[path = "delta.rs"]
pub(crate) mod delta;

const UNITS_SUFFIX: &str = ".units";
const PART_SUFFIX: &str = ".part";

/// 32 bytes per unit.
const HASH_BYTES: u64 = 32;

/// Tells how many bytes are free for us in the file system of a folder.
pub type FreeSpace = Arc<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>;

/// How a store is opened.
#[derive(Clone, Default)]
pub struct StoreOptions {
    /// Hash whole files again instead of trusting name and length. They were verified and synced
    /// before they got their names, so this is for disks that are under suspicion.
    pub rehash: bool,
    /// Asked for the free space instead of the operating system.
    pub free_space: Option<FreeSpace>,
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions").field("rehash", &self.rehash).finish_non_exhaustive()
    }
}

/// What a collection removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Artifacts of which something was removed.
    pub digests: BTreeSet<Digest>,
    /// Bytes on disk that were given back.
    pub bytes: u64,
}

/// The artifacts on a server's disk. Everything here blocks, shortly; [`Claim::begin`],
/// [`Claim::finish`] and opening with `rehash` may take as long as the disk needs for an artifact.
pub struct ArtifactStore {
    folder: PathBuf,
    free_space: FreeSpace,
    inner: Mutex<Inner>,
    /// Changes whenever an artifact begins to come, is whole, or is let go of.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    whole: BTreeMap<Digest, u64>,
    claimed: BTreeMap<Digest, Option<Arc<Part>>>,
    /// What is ordered now, whether it is on its way or has just come.
    ordered: BTreeSet<Digest>,
    /// The verified unit hashes of what is being fetched.
    hashes: BTreeMap<Digest, Arc<UnitHashes>>,
}

impl fmt::Debug for ArtifactStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArtifactStore").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl ArtifactStore {
    /// Opens the folder of artifacts, `<state_dir>/artifacts`; makes it when it is missing.
    ///
    /// A whole file whose unit hashes are missing or do not fit is hashed, and put back to `.part`
    /// when its bytes are not what its name says.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub fn open(folder: impl Into<PathBuf>, options: StoreOptions) -> Result<Self, StoreError> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(StoreError::file("making", &folder))?;
        sweep_unfinished(&folder).map_err(StoreError::file("sweeping", &folder))?;
        let free_space = options.free_space.unwrap_or_else(|| Arc::new(free_bytes));
        let changes = watch::Sender::default();
        let store = Self { folder, free_space, inner: Mutex::default(), changes };
        for name in store.names()? {
            let Ok(digest) = Digest::new(name) else { continue };
            if let Some(length) = store.examine(&digest, options.rehash)? {
                store.lock().whole.insert(digest, length);
            }
        }
        Ok(store)
    }

    /// The artifacts that are whole.
    #[must_use]
    pub fn held(&self) -> Vec<Digest> {
        self.lock().whole.keys().cloned().collect()
    }

    /// Whether an artifact is whole here.
    #[must_use]
    pub fn is_whole(&self, digest: &Digest) -> bool {
        self.lock().whole.contains_key(digest)
    }

    /// Where a whole artifact lies. It stays there as long as [`ArtifactStore::collect`] is told to
    /// keep it.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> Option<PathBuf> {
        self.is_whole(digest).then(|| self.whole_path(digest))
    }

    /// The verified unit hashes of an artifact that is here whole or in part.
    ///
    /// # Errors
    /// When there are none, or they cannot be read.
    pub fn unit_hashes(&self, digest: &Digest) -> Result<Arc<UnitHashes>, StoreError> {
        let (hashes, length) = {
            let inner = self.lock();
            (inner.hashes.get(digest).cloned(), inner.whole.get(digest).copied())
        };
        if let Some(hashes) = hashes {
            return Ok(hashes);
        }
        let absent = || StoreError::Absent { digest: digest.clone() };
        let length = length.ok_or_else(absent)?;
        self.read_hashes(digest, length)?.map(Arc::new).ok_or_else(absent)
    }

    /// Takes an artifact for fetching: nobody else fetches it, and nothing of it is collected,
    /// until the claim is dropped.
    ///
    /// # Errors
    /// When somebody has it, or the length cannot be that of an artifact.
    pub fn claim(self: &Arc<Self>, digest: &Digest, length: u64) -> Result<Claim, StoreError> {
        if length == 0 || length > ARTIFACT_BYTES_MAX {
            return Err(StoreError::Length { digest: digest.clone(), length });
        }
        let mut inner = self.lock();
        if inner.claimed.contains_key(digest) {
            return Err(StoreError::InFlight { digest: digest.clone() });
        }
        inner.claimed.insert(digest.clone(), None);
        Ok(Claim { store: Arc::clone(self), digest: digest.clone(), length })
    }

    /// Says what is ordered to be on this disk: none of it is collected from now on, whatever a
    /// collection that was begun before believes.
    pub(crate) fn set_ordered(&self, ordered: BTreeSet<Digest>) {
        self.lock().ordered = ordered;
    }

    /// Removes every artifact, or part of one, that is neither in `keep`, nor ordered, nor being
    /// fetched.
    ///
    /// `keep` must name what runs and what may be rolled back to.
    ///
    /// # Errors
    /// When a file cannot be removed; what was removed before stays removed.
    pub fn collect(&self, keep: &BTreeSet<Digest>) -> Result<Collected, StoreError> {
        // Listed and removed without the lock, which servers that are fed from here take as well.
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
        let mut inner = self.lock();
        inner.claimed.retain(|digest, _| !doomed.contains(digest));
        drop(inner);
        self.changed();
        removed?;
        if !collected.digests.is_empty() {
            sync_folder(&self.folder).map_err(StoreError::file("syncing", &self.folder))?;
            info!(artifacts = collected.digests.len(), bytes = collected.bytes, "collected");
        }
        Ok(collected)
    }

    /// Takes what nobody wants, as if it were fetched: who does fetch it now finds it in flight.
    fn take_unwanted(
        &self,
        names: &BTreeMap<Digest, BTreeSet<String>>,
        keep: &BTreeSet<Digest>,
    ) -> BTreeSet<Digest> {
        let mut inner = self.lock();
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

    /// Removes the files of an artifact: those that were listed, and what they have become since.
    fn remove(
        &self,
        digest: &Digest,
        mut names: BTreeSet<String>,
        collected: &mut Collected,
    ) -> Result<(), StoreError> {
        names.insert(digest.to_string());
        names.insert(format!("{digest}{UNITS_SUFFIX}"));
        // "<root>" sorts before "<root>.units": hashes go last, so that none is missing after a
        // crash.
        for name in names {
            let path = self.folder.join(name);
            let bytes = fs::metadata(&path).map_or(0, |data| data.blocks() * 512);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result.map_err(StoreError::file("removing", &path))?,
            }
            collected.bytes += bytes;
            collected.digests.insert(digest.clone());
        }
        Ok(())
    }

    /// Changes whenever an artifact begins to come, is whole, or is let go of.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// The part of an artifact that is being fetched now.
    pub(crate) fn part(&self, digest: &Digest) -> Option<Arc<Part>> {
        self.lock().claimed.get(digest).cloned().flatten()
    }

    /// Whether the unit hashes of an artifact can be given to others.
    pub(crate) fn has_hashes(&self, digest: &Digest) -> bool {
        let inner = self.lock();
        inner.hashes.contains_key(digest) || inner.whole.contains_key(digest)
    }

    /// A whole artifact, open for reading, and its length in bytes.
    pub(crate) fn open_whole(&self, digest: &Digest) -> Result<Option<(File, u64)>, StoreError> {
        let Some(length) = self.lock().whole.get(digest).copied() else { return Ok(None) };
        let path = self.whole_path(digest);
        match File::open(&path) {
            Ok(file) => Ok(Some((file, length))),
            // Collected since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::file("opening", &path)(error)),
        }
    }

    /// The length of a whole artifact whose hashes are in order.
    fn examine(&self, digest: &Digest, rehash: bool) -> Result<Option<u64>, StoreError> {
        let path = self.whole_path(digest);
        let data = fs::symlink_metadata(&path).map_err(StoreError::file("examining", &path))?;
        let length = data.len();
        let possible = data.is_file() && (1..=ARTIFACT_BYTES_MAX).contains(&length);
        if possible && !rehash && self.read_hashes(digest, length)?.is_some() {
            return Ok(Some(length));
        }
        if possible {
            let found = hash_file(&path).map_err(StoreError::file("hashing", &path))?;
            if found.root == *digest {
                let units = self.units_path(digest);
                write_atomic(&units, &found.units.to_bytes())
                    .map_err(StoreError::file("writing", &units))?;
                return Ok(Some(length));
            }
        }
        warn!(artifact = %digest, "not what its name says: to be repaired when it is ordered");
        let part = self.part_path(digest);
        if data.is_file() {
            fs::rename(&path, &part).map_err(StoreError::file("renaming", &path))?;
            sync_folder(&self.folder).map_err(StoreError::file("syncing", &self.folder))?;
        }
        Ok(None)
    }

    fn read_hashes(&self, digest: &Digest, length: u64) -> Result<Option<UnitHashes>, StoreError> {
        let path = self.units_path(digest);
        let failed = StoreError::file("reading", &path);
        let expected = hashes_length(length);
        match fs::metadata(&path) {
            Ok(data) if data.is_file() && data.len() == expected => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        }
        let bytes = fs::read(&path).map_err(failed)?;
        Ok(UnitHashes::parse_for(&bytes, digest, length).ok())
    }

    fn names(&self) -> Result<Vec<String>, StoreError> {
        let failed = || StoreError::file("reading", &self.folder);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed())? {
            let entry = entry.map_err(failed())?;
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

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under this lock leaves the maps half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Checks that there is room for what is still missing, and `reserve` bytes beside it.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] when there is not.
    pub fn check_space(&self, reserve: u64) -> Result<(), StoreError> {
        let path = &self.store.folder;
        // What an interrupted fetch preallocated is ours already.
        let part = fs::metadata(self.store.part_path(&self.digest));
        let claimed = part.map_or(0, |data| data.blocks() * 512);
        let needed = (self.length + hashes_length(self.length)).saturating_sub(claimed) + reserve;
        let free = (self.store.free_space)(path)
            .map_err(StoreError::file("asking for the free space of", path))?;
        if free < needed {
            return Err(StoreError::NoSpace { path: path.clone(), needed, reserve, free });
        }
        Ok(())
    }

    /// Whether the artifact is whole here, with the length that is wanted.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.store.lock().whole.get(&self.digest) == Some(&self.length)
    }

    /// The unit hashes, when an earlier attempt has left them.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn hashes(&self) -> Result<Option<Arc<UnitHashes>>, StoreError> {
        let hashes = self.store.read_hashes(&self.digest, self.length)?.map(Arc::new);
        if let Some(hashes) = &hashes {
            self.show(hashes);
        }
        Ok(hashes)
    }

    /// Others may have the hashes from now on: they were verified against the root, and in a chain
    /// everybody waits for them.
    fn show(&self, hashes: &Arc<UnitHashes>) {
        self.store.lock().hashes.insert(self.digest.clone(), Arc::clone(hashes));
        self.store.changed();
    }

    /// Verifies a file of unit hashes against root and length, and keeps it durably.
    ///
    /// # Errors
    /// [`StoreError::Bytes`] when they are not this artifact's; or the disk's.
    pub fn put_hashes(&self, bytes: &[u8]) -> Result<Arc<UnitHashes>, StoreError> {
        let hashes = UnitHashes::parse_for(bytes, &self.digest, self.length)
            .map_err(|source| StoreError::Bytes { digest: self.digest.clone(), source })?;
        let hashes = Arc::new(hashes);
        self.show(&hashes);
        let path = self.store.units_path(&self.digest);
        write_atomic(&path, bytes).map_err(StoreError::file("writing", &path))?;
        Ok(hashes)
    }

    /// Opens the `.part` and hashes what an earlier attempt left in it. Its space is checked here, and
    /// claimed by the fetch while units come.
    ///
    /// # Errors
    /// The disk's.
    pub fn begin(&self, hashes: Arc<UnitHashes>, reserve: u64) -> Result<Arc<Part>, StoreError> {
        self.check_space(reserve)?;
        let part = Arc::new(Part::open(self.store.part_path(&self.digest), hashes)?);
        self.store.lock().claimed.insert(self.digest.clone(), Some(Arc::clone(&part)));
        self.store.changed();
        Ok(part)
    }

    /// Makes a full part the whole artifact: sync, rename, sync of the folder. Only after that is
    /// it held.
    ///
    /// # Errors
    /// [`StoreError::NotWhole`] when units are missing; or the disk's.
    pub fn finish(&self, part: &Part) -> Result<(), StoreError> {
        let have = part.have();
        if !have.is_full() {
            let (held, count) = (have.held(), have.count());
            return Err(StoreError::NotWhole { digest: self.digest.clone(), held, count });
        }
        part.sync()?;
        let path = self.store.whole_path(&self.digest);
        fs::rename(part.path(), &path).map_err(StoreError::file("renaming", part.path()))?;
        sync_folder(&self.store.folder).map_err(StoreError::file("syncing", &self.store.folder))?;
        self.store.lock().whole.insert(self.digest.clone(), self.length);
        self.store.changed();
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut inner = self.store.lock();
        inner.claimed.remove(&self.digest);
        inner.hashes.remove(&self.digest);
        drop(inner);
        self.store.changed();
    }
}

/// Length of the file of unit hashes of an artifact, in bytes.
pub(crate) fn hashes_length(length: u64) -> u64 {
    length.div_ceil(u64::from(UNIT_BYTES)) * HASH_BYTES
}

/// What the operating system lets an ordinary user write.
fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
