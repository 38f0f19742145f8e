//! The production store: one redb file.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use cohort_base::{Cause, durable};
use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase as _, ReadableTable as _,
    StorageError, TableDefinition, TableError,
};

use crate::durable_file::move_aside;
use crate::encoding::{DecodeError, seal, unseal};
use crate::error::StoreError;
use crate::image::{Batch, Damage, Image, LogStore};
use crate::types::Identity;

/// The store's file in the member's directory.
pub const STORE_FILE: &str = "member.redb";

/// Incremented when the layout of tables or keys changes.
const SCHEMA: u8 = 1;

/// From position to sealed entry.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// From name to sealed record; `schema` is one plain byte.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");

const KEY_SCHEMA: &str = "schema";
const KEY_IDENTITY: &str = "identity";

/// Bytes of redb's cache: the pages of one transaction. The log is in memory as an [`Image`]
/// anyway.
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
///   written     sealed count of batches
///   marks       sealed marks
/// ```
///
/// redb syncs at every commit. Its checksums protect its pages in a crash; opening the store
/// verifies ours on every record.
#[derive(Debug)]
pub struct RedbStore {
    database: Database,
    path: PathBuf,
    image: Image,
    poisoned: bool,
}

impl RedbStore {
    /// Creates the store of a new member in `folder`, which must exist. The file gets its name only
    /// once it is complete and durable; a crash before that leaves nothing to open.
    ///
    /// # Errors
    /// [`StoreError::Exists`] if there is a store already.
    pub fn create(folder: &Path, identity: &Identity) -> Result<Self, StoreError> {
        let path = folder.join(STORE_FILE);
        let open_error = |source| StoreError::Open { path: path.clone(), source };
        if path.try_exists().map_err(open_error)? {
            return Err(StoreError::Exists { path });
        }
        let create = || {
            durable::sweep(folder)?;
            let aside = durable::unfinished(folder)?;
            let database = builder().create_file(aside.reopen()?).map_err(other)?;
            write_identity(&database, identity)?;
            drop(database);
            durable::put_in_place(aside, &path, durable::SECRET)
        };
        create().map_err(open_error)?;
        Self::open(folder, identity)
    }

    /// Opens the store of a member in `folder`, and verifies every record.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::InUse`], [`StoreError::WrongIdentity`],
    /// [`StoreError::NewerSchema`], [`StoreError::Open`]: the file is unchanged.
    /// [`StoreError::Damaged`]: the file is now `member.redb.damaged-<n>`.
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
                Ok(RedbStore { database, path, image, poisoned: false })
            }
            Err(fault) => Err(fault.into_error(path)),
        }
    }

    /// Whether there is a store in `folder`, usable or not.
    #[must_use]
    pub fn exists_in(folder: &Path) -> bool {
        folder.join(STORE_FILE).exists()
    }

    /// The owner of the store in `folder`, if there is one: a starting process learns its identity
    /// from it. The store does not stay open.
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

    fn commit(&self, batch: &Batch) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut log = transaction.open_table(LOG)?;
            let mut records = transaction.open_table(RECORDS)?;
            let changes = self.image.changes(batch);
            for index in changes.removed {
                log.remove(index.0)?;
            }
            for (index, entry) in changes.added {
                log.insert(index.0, entry.as_slice())?;
            }
            for (name, record) in changes.records {
                records.insert(name, record.as_slice())?;
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
            // Never retry: after a failed sync, the next one may succeed although the pages are
            // gone.
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
            records.insert(KEY_IDENTITY, seal(identity).as_slice())?;
        }
        transaction.commit()?;
        Ok(())
    };
    write().map_err(other)
}

/// Why a file is not a usable store.
enum Fault {
    Missing,
    InUse,
    NewerSchema(u8),
    Io(io::Error),
    Damaged(Cause),
}

impl Fault {
    /// The caller's error. Moves a damaged file aside first.
    fn into_error(self, path: PathBuf) -> StoreError {
        match self {
            Fault::Missing => StoreError::Missing { path },
            Fault::InUse => StoreError::InUse { path },
            Fault::NewerSchema(found) => StoreError::NewerSchema { path, found, supported: SCHEMA },
            Fault::Io(source) => StoreError::Open { path, source },
            Fault::Damaged(cause) => match move_aside(&path) {
                Ok(moved_to) => StoreError::Damaged { path, moved_to, source: cause },
                Err(source) => StoreError::Open { path, source },
            },
        }
    }
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Io(error) => match error.kind() {
                // `UnexpectedEof`: shorter than its header says.
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
                    Fault::Damaged(error.into())
                }
                _ => Fault::Io(error),
            },
            StorageError::Corrupted(what) => Fault::Damaged(what.into()),
            error => Fault::Io(io::Error::other(error)),
        }
    }
}

impl From<TableError> for Fault {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Storage(error) => error.into(),
            error => Fault::Damaged(error.into()),
        }
    }
}

impl From<Damage> for Fault {
    fn from(damage: Damage) -> Self {
        match damage {
            // A record of a version to come is no damage: the file stays where it is.
            Damage::Record { source: DecodeError::Version(found), .. } => Fault::NewerSchema(found),
            damage => Fault::Damaged(damage.into()),
        }
    }
}

fn load_file(path: &Path) -> Result<(Database, Identity, Image), Fault> {
    if !path.try_exists().map_err(Fault::Io)? {
        return Err(Fault::Missing);
    }
    // redb may panic on unexpected damage in its pages. We do not use the database after that.
    catch_unwind(AssertUnwindSafe(|| {
        let database = builder().open(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => Fault::InUse,
            DatabaseError::Storage(error) => error.into(),
            error => Fault::Damaged(error.into()),
        })?;
        let (identity, image) = load(&database)?;
        Ok((database, identity, image))
    }))
    .unwrap_or_else(|panic| Err(Fault::Damaged(panic_text(panic.as_ref()).into())))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("its pages are unreadable: {}", text.unwrap_or_default())
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
        _ => return Err(Fault::Damaged("its schema is unreadable".into())),
    }
    let identity =
        record(KEY_IDENTITY)?.ok_or_else(|| Damage::Inconsistent("no identity".into()))?;
    let identity =
        unseal(&identity).map_err(|source| Damage::Record { name: KEY_IDENTITY.into(), source })?;
    let log = transaction.open_table(LOG)?;
    let entries = log.iter()?.map(|item| {
        let (key, value) = item?;
        Ok((key.value(), value.value().to_vec()))
    });
    Ok((identity, Image::restore(record, entries)?))
}

#[cfg(test)]
#[path = "redb_store_test.rs"]
mod redb_store_test;
