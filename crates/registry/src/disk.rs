//! The embedded registry on disk: one redb file with three tables.
//!
//! ```text
//! meta    name            -> text          schema, store, file, revision, compacted, restored,
//!                                          asked
//! pairs   key             -> modification revision u64 | value…       (little endian)
//! events  (revision, nth) -> 1 u8 | key length u16 | key | value…     put
//!                            0 u8 | key…                              deleted
//! ```
//! A transaction of the registry is one synced commit of redb over all three tables. Events that
//! the state in memory has dropped are removed by the next commit; until then the file has a few
//! more than needed, and reading skips them.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use cohort_base::{Cause, chain, durable};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::api::{Event, KeyValue};
use crate::state::State;

const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
const PAIRS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("pairs");
const EVENTS: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("events");

/// The schema of the file; a higher one is from a later version.
const SCHEMA: u64 = 1;

/// Why a registry file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot open registry file {}", path.display())]
    Open { path: PathBuf, source: Cause },
    /// Another process has it.
    #[error("a hub runs with registry file {}: stop it first", path.display())]
    InUse { path: PathBuf },
    /// The file's content is inconsistent.
    #[error(
        "registry file {} is damaged: {reason}; restore it from a backup, or move it away: then \
         the groups write their records again, until you confirm the loss with `cohort hub \
         --config hub.toml --confirm-restored`", path.display()
    )]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "registry file {} has schema {found}, this version supports {SCHEMA}; \
         run the version that wrote it", path.display()
    )]
    NewerSchema { path: PathBuf, found: u64 },
}

pub(crate) struct Disk {
    db: Database,
    path: PathBuf,
}

pub(crate) struct Loaded {
    pub(crate) disk: Disk,
    pub(crate) state: State,
    /// The registry's random name, given at creation.
    pub(crate) store: String,
    /// Whether the file may come from a backup, unconfirmed.
    pub(crate) restored: bool,
    /// The highest revision that a client had seen by then.
    pub(crate) asked: u64,
    /// Whether that was not known before it was opened.
    pub(crate) detected: bool,
}

/// How to create a registry if there is no file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewStore<'a> {
    /// Random text.
    pub(crate) name: &'a str,
    /// There was one, and it is lost: the new one counts as restored.
    pub(crate) replaces_lost: bool,
}

impl Disk {
    /// Opens the file, or creates an empty registry named `new_store`. `identity` distinguishes the
    /// file from its copies.
    pub(crate) fn open(
        path: &Path,
        identity: impl Fn(&Path) -> std::io::Result<String>,
        new_store: NewStore<'_>,
    ) -> Result<Loaded, OpenError> {
        let open_error =
            |source: io::Error| OpenError::Open { path: path.to_owned(), source: source.into() };
        // Policies may name what others should not know: for its owner only.
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(durable::SECRET);
        let file = options.open(path).map_err(open_error)?;
        // redb may panic on unexpected damage in its pages. The file is not used after that.
        catch_unwind(AssertUnwindSafe(|| {
            let db = Database::builder().create_file(file);
            let db = db.map_err(|error| fault(path, error.into()))?;
            let identity = identity(path).map_err(open_error)?;
            Self::open_database(db, path, &identity, new_store)
        }))
        .unwrap_or_else(|_| {
            let (path, reason) = (path.to_owned(), "its pages are unreadable".to_owned());
            Err(OpenError::Damaged { path, reason })
        })
    }

    /// Reads an open database, or initialises an empty one.
    pub(crate) fn open_database(
        db: Database,
        path: &Path,
        identity: &str,
        new_store: NewStore<'_>,
    ) -> Result<Loaded, OpenError> {
        let open_error = |source| OpenError::Open { path: path.to_owned(), source };
        let damaged = |reason| OpenError::Damaged { path: path.to_owned(), reason };
        let disk = Disk { db, path: path.to_owned() };
        let meta = disk.read_meta().map_err(|error| fault(path, error))?;
        let number = |name: &str| -> Result<Option<u64>, OpenError> {
            let Some(text) = meta_text(&meta, name) else { return Ok(None) };
            text.parse().map(Some).map_err(|_| damaged(format!("`{name}` is `{text}`")))
        };
        let Some(schema) = number("schema")? else {
            disk.initialise(identity, new_store).map_err(open_error)?;
            let NewStore { name, replaces_lost } = new_store;
            let (store, state) = (name.to_owned(), State::new());
            let (restored, detected) = (replaces_lost, replaces_lost);
            return Ok(Loaded { disk, state, store, restored, asked: 0, detected });
        };
        if schema > SCHEMA {
            return Err(OpenError::NewerSchema { path: path.to_owned(), found: schema });
        }
        let missing = |name: &str| damaged(format!("`{name}` is missing"));
        let revision = number("revision")?.ok_or_else(|| missing("revision"))?;
        let compacted = number("compacted")?.ok_or_else(|| missing("compacted"))?;
        let asked = number("asked")?.ok_or_else(|| missing("asked"))?;
        let store = meta_text(&meta, "store").ok_or_else(|| missing("store"))?.to_owned();
        let known = meta_text(&meta, "restored") == Some("yes");
        let detected = !known && meta_text(&meta, "file") != Some(identity);
        if detected {
            disk.mark_restored(0).map_err(open_error)?;
        }
        let restored = known || detected;
        let contents = disk.read_all().map_err(|error| fault(path, error))?;
        let (pairs, events) = contents.map_err(damaged)?;
        let state = State::from_parts(revision, compacted, pairs, events).map_err(damaged)?;
        Ok(Loaded { disk, state, store, restored, asked, detected })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one revision's changes; they are synced when this returns.
    pub(crate) fn commit(&self, changes: &[Event], compacted: u64) -> Result<(), Cause> {
        let Some(revision) = changes.first().map(Event::revision) else { return Ok(()) };
        let txn = self.db.begin_write()?;
        {
            let mut pairs = txn.open_table(PAIRS)?;
            let mut events = txn.open_table(EVENTS)?;
            let mut meta = txn.open_table(META)?;
            for (nth, event) in (0u32..).zip(changes) {
                match event {
                    Event::Put(pair) => {
                        pairs.insert(pair.key.as_str(), encode_pair(pair).as_slice())?;
                    }
                    Event::Deleted { key, .. } => {
                        pairs.remove(key.as_str())?;
                    }
                }
                events.insert((revision, nth), encode_event(event).as_slice())?;
            }
            events.retain_in(..=(compacted, u32::MAX), |_, _| false)?;
            meta.insert("revision", revision.to_string().as_str())?;
            meta.insert("compacted", compacted.to_string().as_str())?;
        }
        txn.commit()?;
        Ok(())
    }

    /// Makes this file the registry from now on, at a new revision.
    pub(crate) fn confirm(&self, identity: &str, revision: u64) -> Result<(), Cause> {
        let txn = self.db.begin_write()?;
        {
            let mut meta = txn.open_table(META)?;
            meta.insert("revision", revision.to_string().as_str())?;
            meta.insert("compacted", revision.to_string().as_str())?;
            meta.insert("file", identity)?;
            meta.insert("restored", "no")?;
            meta.insert("asked", "0")?;
            txn.open_table(EVENTS)?.retain(|_, _| false)?;
        }
        txn.commit()?;
        Ok(())
    }

    /// Marks the file as possibly restored from a backup; a client had seen revision `asked`.
    pub(crate) fn mark_restored(&self, asked: u64) -> Result<(), Cause> {
        let txn = self.db.begin_write()?;
        {
            let mut meta = txn.open_table(META)?;
            meta.insert("restored", "yes")?;
            meta.insert("asked", asked.to_string().as_str())?;
        }
        txn.commit()?;
        Ok(())
    }

    fn initialise(&self, identity: &str, store: NewStore<'_>) -> Result<(), Cause> {
        let txn = self.db.begin_write()?;
        {
            let state = State::new();
            let mut meta = txn.open_table(META)?;
            meta.insert("schema", SCHEMA.to_string().as_str())?;
            meta.insert("store", store.name)?;
            meta.insert("file", identity)?;
            meta.insert("revision", state.revision().to_string().as_str())?;
            meta.insert("compacted", state.compacted().to_string().as_str())?;
            meta.insert("restored", if store.replaces_lost { "yes" } else { "no" })?;
            meta.insert("asked", "0")?;
            txn.open_table(PAIRS)?;
            txn.open_table(EVENTS)?;
        }
        txn.commit()?;
        Ok(())
    }

    fn read_meta(&self) -> Result<Vec<(String, String)>, redb::Error> {
        let txn = self.db.begin_read()?;
        let table = match txn.open_table(META) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut meta = Vec::new();
        for entry in table.iter()? {
            let (name, text) = entry?;
            meta.push((name.value().to_owned(), text.value().to_owned()));
        }
        Ok(meta)
    }

    fn read_all(&self) -> Result<Result<Contents, String>, redb::Error> {
        let txn = self.db.begin_read()?;
        let mut pairs = Vec::new();
        for entry in txn.open_table(PAIRS)?.iter()? {
            let (key, bytes) = entry?;
            match decode_pair(key.value(), bytes.value()) {
                Some(pair) => pairs.push(pair),
                None => return Ok(Err(format!("key `{}` is unreadable", key.value()))),
            }
        }
        let mut events = Vec::new();
        for entry in txn.open_table(EVENTS)?.iter()? {
            let (place, bytes) = entry?;
            let revision = place.value().0;
            match decode_event(revision, bytes.value()) {
                Some(event) => events.push(event),
                None => return Ok(Err(format!("an event of revision {revision} is unreadable"))),
            }
        }
        Ok(Ok((pairs, events)))
    }
}

/// Why a file cannot be read: it is another hub's, damaged, or the disk is at fault.
fn fault(path: &Path, error: redb::Error) -> OpenError {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    let path = path.to_owned();
    match error {
        redb::Error::DatabaseAlreadyOpen => OpenError::InUse { path },
        // `UnexpectedEof`: shorter than its header says.
        redb::Error::Io(error) if !matches!(error.kind(), InvalidData | UnexpectedEof) => {
            OpenError::Open { path, source: error.into() }
        }
        error @ (redb::Error::Io(_)
        | redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TableTypeMismatch { .. }) => {
            OpenError::Damaged { path, reason: chain(&error) }
        }
        error => OpenError::Open { path, source: error.into() },
    }
}

type Contents = (Vec<KeyValue>, Vec<Event>);

fn meta_text<'a>(meta: &'a [(String, String)], name: &str) -> Option<&'a str> {
    meta.iter().find(|(key, _)| key == name).map(|(_, text)| text.as_str())
}

pub(crate) fn encode_pair(pair: &KeyValue) -> Vec<u8> {
    [&pair.mod_revision.to_le_bytes(), pair.value.as_bytes()].concat()
}

pub(crate) fn decode_pair(key: &str, bytes: &[u8]) -> Option<KeyValue> {
    let (revision, value) = bytes.split_first_chunk::<8>()?;
    let mod_revision = u64::from_le_bytes(*revision);
    Some(KeyValue { key: key.to_owned(), value: text(value)?, mod_revision })
}

pub(crate) fn encode_event(event: &Event) -> Vec<u8> {
    match event {
        Event::Put(pair) => {
            let length = u16::try_from(pair.key.len()).expect("a key is at most KEY_BYTES_MAX");
            [&[1], &length.to_le_bytes()[..], pair.key.as_bytes(), pair.value.as_bytes()].concat()
        }
        Event::Deleted { key, .. } => [&[0], key.as_bytes()].concat(),
    }
}

pub(crate) fn decode_event(revision: u64, bytes: &[u8]) -> Option<Event> {
    let (kind, bytes) = bytes.split_first()?;
    match kind {
        0 => Some(Event::Deleted { key: text(bytes)?, revision }),
        1 => {
            let (length, bytes) = bytes.split_first_chunk::<2>()?;
            let (key, value) = bytes.split_at_checked(u16::from_le_bytes(*length).into())?;
            let (key, value) = (text(key)?, text(value)?);
            Some(Event::Put(KeyValue { key, value, mod_revision: revision }))
        }
        _ => None,
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}
