//! The store of production: one redb file.

use std::any::Any;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase as _, ReadableTable as _,
    StorageBackend, StorageError, TableDefinition, TableError,
};

use crate::durable_file::{move_aside, sync_folder_of};
use crate::{Batch, Identity, Image, LogStore, StoreError, encoding};

/// The store's file in the member's folder.
pub const STORE_FILE: &str = "member.redb";

/// The layout of tables and keys; raised when they change.
const SCHEMA: u8 = 1;

/// Entries: position to sealed entry.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Everything else: name to sealed record. `schema` is one plain byte.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");

const KEY_SCHEMA: &str = "schema";
const KEY_IDENTITY: &str = "identity";
const KEY_HARD_STATE: &str = "hard-state";
const KEY_SNAPSHOT: &str = "snapshot";
const KEY_BASE: &str = "base";

/// Memory for redb's own cache. The log is in memory as an [`Image`] already, so that redb needs
/// room only for the pages of one transaction.
const CACHE_BYTES: usize = 4 * 1024 * 1024;

/// A [`LogStore`] in one redb file, `member.redb`.
///
/// ```text
/// table "records"                         table "log"
///   schema      1 byte                      u64 position → sealed entry
///   identity    sealed identity
///   hard-state  sealed hard state
///   snapshot    sealed snapshot
///   base        sealed base
/// ```
///
/// redb syncs at every commit. Its own checksums protect its pages after a crash; ours protect
/// every record whenever the store is opened.
#[derive(Debug)]
pub struct RedbStore {
    database: Database,
    path: PathBuf,
    identity: Identity,
    image: Image,
    poisoned: bool,
}

impl RedbStore {
    /// Makes the store of a new member in `folder`, which must exist. The file gets its name only
    /// when it is complete and durable; a crash before that leaves nothing to open.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when there is one already.
    pub fn create(folder: &Path, identity: &Identity) -> Result<Self, StoreError> {
        let path = folder.join(STORE_FILE);
        let open_error = |source| StoreError::Open { path: path.clone(), source };
        if path.try_exists().map_err(open_error)? {
            return Err(StoreError::Exists { path });
        }
        let aside = folder.join(format!("{STORE_FILE}.new"));
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(open_error(error)),
            _ => {}
        }
        let database = builder().create(&aside).map_err(other).map_err(open_error)?;
        write_identity(&database, identity).map_err(open_error)?;
        drop(database);
        File::open(&aside).and_then(|file| file.sync_all()).map_err(open_error)?;
        fs::rename(&aside, &path).map_err(open_error)?;
        sync_folder_of(&path).map_err(open_error)?;
        Self::open(folder, identity)
    }

    /// Opens the store of an existing member in `folder`. Every record is read and checked.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::InUse`], [`StoreError::WrongIdentity`],
    /// [`StoreError::NewerSchema`], [`StoreError::Open`]; the file stays as it is. When it is
    /// damaged it is renamed to `member.redb.damaged-<n>` and [`StoreError::Damaged`] says so.
    pub fn open(folder: &Path, identity: &Identity) -> Result<Self, StoreError> {
        let path = folder.join(STORE_FILE);
        match load_file(&path) {
            Ok((database, found, image)) => {
                if found != *identity {
                    return Err(StoreError::WrongIdentity {
                        path,
                        found: Box::new(found),
                        expected: Box::new(identity.clone()),
                    });
                }
                Ok(RedbStore { database, path, identity: found, image, poisoned: false })
            }
            Err(fault) => Err(fault.into_error(path)),
        }
    }

    /// Whose store is in `folder`, if there is one. For a process that starts and has to learn who
    /// it is; the store itself is not held open.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn identity_in(folder: &Path) -> Result<Option<Identity>, StoreError> {
        let path = folder.join(STORE_FILE);
        match load_file(&path) {
            Ok((_, identity, _)) => Ok(Some(identity)),
            Err(Fault::Missing) => Ok(None),
            Err(fault) => Err(fault.into_error(path)),
        }
    }

    /// A store over any backend of redb, for tests of the disk's faults. An empty backend gets a
    /// new store.
    ///
    /// # Errors
    /// As [`open`](Self::open), but nothing is moved.
    pub fn open_backend(
        backend: impl StorageBackend,
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
            Ok((found, image)) => {
                Ok(RedbStore { database, path, identity: found, image, poisoned: false })
            }
            Err(Fault::Damaged(what)) => {
                Err(StoreError::Damaged { moved_to: path.clone(), path, what })
            }
            Err(fault) => Err(fault.into_error(path)),
        }
    }

    /// Whose store it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn commit(&self, batch: &Batch) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut log = transaction.open_table(LOG)?;
            let mut records = transaction.open_table(RECORDS)?;
            if let Some(snapshot) = &batch.snapshot {
                records.insert(KEY_SNAPSHOT, encoding::seal_snapshot(snapshot).as_slice())?;
            }
            if let Some(hard_state) = batch.hard_state {
                records.insert(KEY_HARD_STATE, encoding::seal_hard_state(hard_state).as_slice())?;
            }
            // What the image no longer holds is removed, at both ends; then the new entries.
            let (base, last) = self.image.bounds_after(batch);
            let kept = base.0.0 + 1..=last.0;
            for entry in self.image.entries.iter().take_while(|e| e.index.0 < *kept.start()) {
                log.remove(entry.index.0)?;
            }
            for entry in self.image.entries.iter().rev().take_while(|e| e.index.0 > *kept.end()) {
                log.remove(entry.index.0)?;
            }
            for entry in batch.entries.iter().filter(|e| kept.contains(&e.index.0)) {
                log.insert(entry.index.0, encoding::seal_entry(entry).as_slice())?;
            }
            if base != self.image.base {
                records.insert(KEY_BASE, encoding::seal_base(base).as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

impl LogStore for RedbStore {
    fn image(&self) -> &Image {
        &self.image
    }

    fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.poisoned {
            return Err(StoreError::Poisoned { path: self.path.clone() });
        }
        self.image.check(batch)?;
        if batch.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.commit(batch) {
            // Never tried again: a sync that failed may report success the next time although the
            // pages are gone.
            self.poisoned = true;
            return Err(StoreError::Write { path: self.path.clone(), source: other(error) });
        }
        self.image.apply(batch);
        Ok(())
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn other(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

fn write_identity(database: &Database, identity: &Identity) -> io::Result<()> {
    let write = || -> Result<(), redb::Error> {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.open_table(LOG)?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            records.insert(KEY_SCHEMA, [SCHEMA].as_slice())?;
            records.insert(KEY_IDENTITY, encoding::seal_identity(identity).as_slice())?;
        }
        transaction.commit()?;
        Ok(())
    };
    write().map_err(other)
}

/// Why a file is not a store that can be used.
enum Fault {
    Missing,
    InUse,
    NewerSchema(u8),
    Io(io::Error),
    Damaged(String),
}

impl Fault {
    /// The caller's error; a damaged file is moved aside first.
    fn into_error(self, path: PathBuf) -> StoreError {
        match self {
            Fault::Missing => StoreError::Missing { path },
            Fault::InUse => StoreError::InUse { path },
            Fault::NewerSchema(found) => StoreError::NewerSchema { path, found, supported: SCHEMA },
            Fault::Io(source) => StoreError::Open { path, source },
            Fault::Damaged(what) => match move_aside(&path) {
                Ok(moved_to) => StoreError::Damaged { path, moved_to, what },
                Err(source) => StoreError::Open { path, source },
            },
        }
    }
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        match error {
            // Shorter than its header says: the end is missing.
            StorageError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Fault::Damaged(error.to_string())
            }
            StorageError::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                Fault::Damaged(error.to_string())
            }
            StorageError::Io(error) => Fault::Io(error),
            StorageError::Corrupted(what) => Fault::Damaged(what),
            error => Fault::Io(io::Error::other(error)),
        }
    }
}

impl From<TableError> for Fault {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Storage(error) => error.into(),
            error => Fault::Damaged(error.to_string()),
        }
    }
}

fn load_file(path: &Path) -> Result<(Database, Identity, Image), Fault> {
    if !path.try_exists().map_err(Fault::Io)? {
        return Err(Fault::Missing);
    }
    // redb may panic on pages that are damaged in ways it does not expect; nothing of the
    // database is used after that.
    catch_unwind(AssertUnwindSafe(|| {
        let database = builder().open(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => Fault::InUse,
            DatabaseError::Storage(error) => error.into(),
            error => Fault::Damaged(error.to_string()),
        })?;
        let (identity, image) = load(&database)?;
        Ok((database, identity, image))
    }))
    .unwrap_or_else(|panic| Err(Fault::Damaged(panic_text(panic.as_ref()))))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("its pages cannot be read: {}", text.unwrap_or_default())
}

fn load(database: &Database) -> Result<(Identity, Image), Fault> {
    let transaction = database.begin_read().map_err(|error| match error {
        redb::TransactionError::Storage(error) => Fault::from(error),
        error => Fault::Io(io::Error::other(error)),
    })?;
    let records = transaction.open_table(RECORDS)?;
    let record = |key: &str| -> Result<Option<Vec<u8>>, Fault> {
        Ok(records.get(key)?.map(|guard| guard.value().to_vec()))
    };
    match record(KEY_SCHEMA)?.as_deref() {
        Some(&[SCHEMA]) => {}
        Some(&[newer]) if newer > SCHEMA => return Err(Fault::NewerSchema(newer)),
        _ => return Err(Fault::Damaged("its schema is unreadable".to_owned())),
    }
    let named = |key: &str| {
        let key = key.to_owned();
        move |error: encoding::DecodeError| Fault::Damaged(format!("{key}: {error}"))
    };
    let identity = record(KEY_IDENTITY)?
        .ok_or_else(|| Fault::Damaged("its identity is missing".to_owned()))?;
    let identity = encoding::unseal_identity(&identity).map_err(named(KEY_IDENTITY))?;

    let mut image = Image::default();
    if let Some(bytes) = record(KEY_HARD_STATE)? {
        image.hard_state = encoding::unseal_hard_state(&bytes).map_err(named(KEY_HARD_STATE))?;
    }
    if let Some(bytes) = record(KEY_SNAPSHOT)? {
        image.snapshot = Some(encoding::unseal_snapshot(&bytes).map_err(named(KEY_SNAPSHOT))?);
    }
    if let Some(bytes) = record(KEY_BASE)? {
        image.base = encoding::unseal_base(&bytes).map_err(named(KEY_BASE))?;
    }
    let log = transaction.open_table(LOG)?;
    for item in log.iter()? {
        let (key, value) = item?;
        let entry = encoding::unseal_entry(value.value())
            .map_err(named(&format!("entry {}", key.value())))?;
        if entry.index.0 != key.value() {
            return Err(Fault::Damaged(format!("entry {} is at {}", entry.index, key.value())));
        }
        image.entries_bytes += entry.data.len();
        image.entries.push_back(entry);
    }
    image.check_whole().map_err(Fault::Damaged)?;
    Ok((identity, image))
}
