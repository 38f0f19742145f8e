//! The production store on a real disk, and on a disk that fails at every single access.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::*;
use crate::{
    Configuration, Disk, Entry, EntryKind, FaultyStore, HardState, Index, RaftId, Snapshot, Term,
};

impl RedbStore {
    /// A store over any redb backend. An empty backend gets a new store; a damaged one is not moved
    /// aside.
    fn open_backend(
        backend: impl redb::StorageBackend,
        identity: &Identity,
    ) -> Result<Self, StoreError> {
        let path = PathBuf::from("backend");
        let open_error = |source| StoreError::Open { path: path.clone(), source };
        let fresh = backend.len().map_err(open_error)? == 0;
        let database = builder().create_with_backend(backend).map_err(other).map_err(open_error)?;
        if fresh {
            write_identity(&database, identity).map_err(open_error)?;
        }
        match load(&database) {
            Ok((_, image)) => Ok(RedbStore { database, path, image, poisoned: false }),
            Err(Fault::Damaged(source)) => {
                Err(StoreError::Damaged { moved_to: path.clone(), path, source })
            }
            Err(fault) => Err(fault.into_error(path)),
        }
    }
}

fn identity() -> Identity {
    Identity { group: "web".to_owned(), incarnation: 3, raft_id: RaftId(2) }
}

fn entry(index: u64, term: u64) -> Entry {
    let data = format!("command-{index}-in-{term}").repeat(4).into_bytes();
    Entry { index: Index(index), term: Term(term), kind: EntryKind::Data, data }
}

/// Entries of one term, written at commit position `commit`.
fn append(range: std::ops::RangeInclusive<u64>, term: u64, commit: u64) -> Batch {
    let commit = Index(commit);
    Batch {
        entries: range.map(|index| entry(index, term)).collect(),
        hard_state: Some(HardState { term: Term(term), vote: Some(RaftId(1)), commit }),
        ..Batch::default()
    }
}

fn snapshot(index: u64, term: u64) -> Snapshot {
    Snapshot {
        index: Index(index),
        term: Term(term),
        configuration: Configuration::of([RaftId(1), RaftId(2)], [RaftId(3)]),
        data: vec![7; 5000],
    }
}

/// A member's lifetime: founding, entries, a diverged tail, a snapshot with compaction, a snapshot
/// from the leader.
fn life() -> Vec<Batch> {
    let founding = Batch {
        snapshot: Some(snapshot(1, 1)),
        replace_log: true,
        hard_state: Some(HardState { term: Term(1), vote: None, commit: Index(1) }),
        ..Batch::default()
    };
    let compaction = Batch {
        snapshot: Some(snapshot(6, 3)),
        hard_state: Some(HardState { term: Term(3), vote: None, commit: Index(6) }),
        cut: Some(Index(4)),
        ..Batch::default()
    };
    let install = Batch {
        snapshot: Some(snapshot(20, 5)),
        replace_log: true,
        entries: vec![entry(21, 5)],
        hard_state: Some(HardState { term: Term(5), vote: None, commit: Index(20) }),
        ..Batch::default()
    };
    vec![
        founding,
        append(2..=5, 2, 1),
        append(6..=9, 2, 1),
        append(5..=7, 3, 1),
        compaction,
        append(8..=12, 3, 7),
        install,
        append(22..=23, 5, 21),
    ]
}

/// The image after each of the first batches, in a store without faults.
fn images() -> Vec<Image> {
    let mut store = FaultyStore::open(&Disk::new()).unwrap();
    let mut images = vec![store.image().clone()];
    for batch in life() {
        store.write(&batch).unwrap();
        images.push(store.image().clone());
    }
    images
}

fn reopened(folder: &Path) -> RedbStore {
    RedbStore::open(folder, &identity()).unwrap()
}

#[test]
fn every_batch_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    drop(RedbStore::create(folder.path(), &identity()).unwrap());
    let images = images();
    for (batch, image) in life().iter().zip(&images[1..]) {
        let mut store = reopened(folder.path());
        store.write(batch).unwrap();
        assert_eq!(store.image(), image);
        drop(store);
        assert_eq!(reopened(folder.path()).image(), image);
    }
}

#[test]
fn a_process_that_dies_loses_nothing_that_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = RedbStore::create(folder.path(), &identity()).unwrap();
    for batch in life() {
        store.write(&batch).unwrap();
    }
    let image = store.image().clone();
    // A killed process leaves the file as it is, never closed.
    let other = tempfile::tempdir().unwrap();
    fs::copy(&store.path, other.path().join(STORE_FILE)).unwrap();
    assert_eq!(*reopened(other.path()).image(), image);
}

#[test]
fn creating_opening_and_identities() {
    let folder = tempfile::tempdir().unwrap();
    let missing = RedbStore::open(folder.path(), &identity());
    assert!(matches!(missing, Err(StoreError::Missing { .. })));
    assert_eq!(RedbStore::identity_in(folder.path()).unwrap(), None);
    // An interrupted creation leaves nothing to open, and can be repeated.
    fs::write(folder.path().join(".unfinished-abc"), b"half").unwrap();
    assert_eq!(RedbStore::identity_in(folder.path()).unwrap(), None);
    let store = RedbStore::create(folder.path(), &identity()).unwrap();
    assert_eq!(fs::metadata(&store.path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(RedbStore::open(folder.path(), &identity()), Err(StoreError::InUse { .. })));
    drop(store);
    assert!(matches!(
        RedbStore::create(folder.path(), &identity()),
        Err(StoreError::Exists { .. })
    ));
    assert_eq!(RedbStore::identity_in(folder.path()).unwrap(), Some(identity()));
    for stranger in [
        Identity { group: "db".to_owned(), ..identity() },
        Identity { incarnation: 4, ..identity() },
        Identity { raft_id: RaftId(9), ..identity() },
    ] {
        let refused = RedbStore::open(folder.path(), &stranger);
        let Err(StoreError::WrongIdentity { found, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(*found, identity());
        assert!(folder.path().join(STORE_FILE).exists(), "the file is not moved");
    }
    reopened(folder.path());
}

#[test]
fn a_flipped_bit_in_an_entry_is_reported_and_the_file_moved_aside() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = RedbStore::create(folder.path(), &identity()).unwrap();
    store.write(&life()[0]).unwrap();
    store.write(&append(2..=5, 2, 1)).unwrap();
    drop(store);
    let path = folder.path().join(STORE_FILE);
    let mut bytes = fs::read(&path).unwrap();
    let needle = b"command-4-in-2";
    let places: Vec<usize> =
        (0..bytes.len() - needle.len()).filter(|at| bytes[*at..].starts_with(needle)).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at + 8] ^= 1;
    }
    fs::write(&path, &bytes).unwrap();
    let error = RedbStore::open(folder.path(), &identity()).unwrap_err();
    let StoreError::Damaged { moved_to, source, .. } = error else { panic!("{error}") };
    assert!(source.to_string().contains("entry 4"), "{source}");
    let kept = fs::read(moved_to).unwrap();
    assert!(kept.windows(needle.len()).any(|window| window == b"command-5-in-2"), "unchanged");
    assert!(!kept.windows(needle.len()).any(|window| window == needle));
    assert!(matches!(RedbStore::open(folder.path(), &identity()), Err(StoreError::Missing { .. })));
}

#[test]
fn a_file_that_is_cut_or_is_something_else_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(STORE_FILE);
    let mut store = RedbStore::create(folder.path(), &identity()).unwrap();
    for batch in life() {
        store.write(&batch).unwrap();
    }
    drop(store);
    let whole = fs::read(&path).unwrap();
    let cut = [0, 1, 100, 4096, whole.len() / 2, whole.len() - 4096];
    let cut = cut.iter().map(|end| whole[..*end].to_vec());
    for bytes in cut.chain([vec![b'x'; 100_000]]) {
        fs::write(&path, &bytes).unwrap();
        let error = RedbStore::open(folder.path(), &identity()).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{} bytes: {error:?}", bytes.len());
        assert!(!path.exists());
    }
}

/// After any single page is overwritten, the store either opens with exactly what was written, or
/// reports the damage.
#[test]
fn no_damaged_page_is_taken_for_the_truth() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(STORE_FILE);
    let mut store = RedbStore::create(folder.path(), &identity()).unwrap();
    for batch in &life()[..4] {
        store.write(batch).unwrap();
    }
    drop(store);
    let image = images()[4].clone();
    let whole = fs::read(&path).unwrap();
    let mut found = 0;
    for page in 0..whole.len() / 4096 {
        for pattern in [0u8, 0xff] {
            let mut bytes = whole.clone();
            bytes[page * 4096..(page + 1) * 4096].fill(pattern);
            if bytes == whole {
                continue;
            }
            fs::write(&path, &bytes).unwrap();
            match RedbStore::open(folder.path(), &identity()) {
                Ok(store) => assert_eq!(*store.image(), image, "page {page}"),
                Err(StoreError::Damaged { .. }) => found += 1,
                Err(error) => panic!("page {page}: {error:?}"),
            }
        }
    }
    assert!(found > 0);
}

#[test]
fn a_store_of_a_later_schema_is_refused_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = RedbStore::create(folder.path(), &identity()).unwrap();
    let txn = store.database.begin_write().unwrap();
    txn.open_table(RECORDS).unwrap().insert(KEY_SCHEMA, [SCHEMA + 1].as_slice()).unwrap();
    txn.commit().unwrap();
    drop(store);
    let refused = RedbStore::open(folder.path(), &identity()).unwrap_err();
    let StoreError::NewerSchema { path, found, supported } = refused else { panic!("{refused}") };
    assert_eq!((found, supported), (SCHEMA + 1, SCHEMA));
    assert!(path.exists(), "it is not moved aside, as a damaged one is");
}

/// A disk that fails at its n-th write or sync. It then keeps what was synced, and a random part of
/// the rest.
#[derive(Clone, Debug, Default)]
struct CrashDisk {
    inner: Arc<Mutex<CrashState>>,
}

#[derive(Debug, Default)]
struct CrashState {
    current: Vec<u8>,
    /// Writes since the last sync, with the bytes that they replaced.
    unsynced: Vec<Change>,
    accesses_left: Option<u64>,
    accesses: u64,
}

#[derive(Debug)]
enum Change {
    Write { at: usize, before: Vec<u8>, after: Vec<u8> },
    Resize { before: Vec<u8>, after: usize },
}

impl CrashDisk {
    fn access(&self) -> io::Result<MutexGuard<'_, CrashState>> {
        let mut state = self.inner.lock();
        state.accesses += 1;
        match &mut state.accesses_left {
            Some(0) => return Err(io::Error::other("the disk is gone")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }

    /// The disk after a power failure: each unsynced write is kept, lost, or torn in the middle, as
    /// `die` decides.
    fn after_crash(&self, die: u64) -> CrashDisk {
        let state = self.inner.lock();
        let mut bytes = state.current.clone();
        for change in state.unsynced.iter().rev() {
            match change {
                Change::Write { at, before, .. } => {
                    bytes[*at..*at + before.len()].copy_from_slice(before);
                }
                Change::Resize { before, .. } => bytes = before.clone(),
            }
        }
        let mut roll = die;
        for change in &state.unsynced {
            roll = roll
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            match change {
                Change::Write { at, after, .. } => {
                    let kept = match (roll >> 33) % 3 {
                        0 => 0,
                        1 => after.len(),
                        _ => after.len() / 512 / 2 * 512,
                    };
                    if bytes.len() < at + kept {
                        bytes.resize(at + kept, 0);
                    }
                    bytes[*at..*at + kept].copy_from_slice(&after[..kept]);
                }
                Change::Resize { after, .. } => {
                    if !(roll >> 33).is_multiple_of(3) {
                        bytes.resize(*after, 0);
                    }
                }
            }
        }
        let inner = CrashState { current: bytes, ..CrashState::default() };
        CrashDisk { inner: Arc::new(Mutex::new(inner)) }
    }
}

impl redb::StorageBackend for CrashDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner.lock().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.inner.lock();
        let at = offset as usize;
        let bytes = state.current.get(at..at + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.access()?;
        let (before, after) = (state.current.clone(), len as usize);
        state.current.resize(after, 0);
        state.unsynced.push(Change::Resize { before, after });
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.access()?.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.access()?;
        let at = offset as usize;
        let end = at + data.len();
        if state.current.len() < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = state.current[at..end].to_vec();
        state.current[at..end].copy_from_slice(data);
        state.unsynced.push(Change::Write { at, before, after: data.to_vec() });
        Ok(())
    }
}

/// Power fails at every single access in a member's lifetime: afterwards the store holds exactly
/// the acknowledged batches, or one more (the one being written); never part of a batch.
#[test]
fn a_crash_at_any_access_leaves_whole_batches() {
    let images = images();
    let batches = life();
    let mut crashes = 0;
    for at in 0.. {
        let disk = CrashDisk::default();
        let mut store = RedbStore::open_backend(disk.clone(), &identity()).unwrap();
        disk.inner.lock().accesses_left = Some(at);
        let mut acknowledged = 0;
        for batch in &batches {
            match store.write(batch) {
                Ok(()) => acknowledged += 1,
                Err(StoreError::Write { .. }) => {
                    let again = store.write(batch);
                    assert!(matches!(again, Err(StoreError::Poisoned { .. })), "{again:?}");
                    break;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        // The process is gone: nothing that redb does on drop reaches the disk.
        disk.inner.lock().accesses_left = Some(0);
        drop(store);
        for die in 0..4 {
            let found = RedbStore::open_backend(disk.after_crash(at * 31 + die), &identity());
            let found = found.unwrap_or_else(|error| panic!("access {at}: {error:?}"));
            let whole = found.image() == &images[acknowledged]
                || images.get(acknowledged + 1) == Some(found.image());
            assert!(whole, "access {at}, die {die}: {:?}", found.image());
        }
        if acknowledged == batches.len() {
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 20, "only {crashes} accesses");
}
