//! What a member and others store on disk.

use std::fs;

use cohort_store::{
    Configuration, DurableFile, DurableFileError, Entry, HardState, Identity, Image, LogStore as _,
    Mark, RaftId, RedbStore, STORE_FILE, Snapshot, encoding,
};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::OnceLock;

use redb::{Database, TableDefinition};

use crate::script::{Script, scratch};

/// Sealed records: with their checksum made right, whatever decodes has one encoding.
pub(crate) fn records(bytes: &[u8]) {
    one_encoding::<Entry>(bytes);
    one_encoding::<HardState>(bytes);
    one_encoding::<Snapshot>(bytes);
    one_encoding::<Configuration>(bytes);
    one_encoding::<Identity>(bytes);
    one_encoding::<Mark>(bytes);
    one_encoding::<BTreeMap<RaftId, Mark>>(bytes);
}

fn one_encoding<T>(bytes: &[u8])
where
    T: borsh::BorshSerialize + borsh::BorshDeserialize + PartialEq + Debug,
{
    let mut sealed = bytes.to_vec();
    sealed.extend(crc32fast::hash(bytes).to_le_bytes());
    let Ok(value) = encoding::unseal::<T>(&sealed) else { return };
    assert_eq!(encoding::seal(&value), sealed, "{value:?}");
}

fn identity() -> Identity {
    Identity { group: "web".to_owned(), incarnation: 1, raft_id: RaftId(1) }
}

/// A store's file with altered pages, or with records that say something else: it opens as it is,
/// twice with the same content, or is put aside.
pub(crate) fn file(bytes: &[u8]) {
    static BASE: OnceLock<Vec<u8>> = OnceLock::new();
    let folder = scratch();
    let path = folder.path().join(STORE_FILE);
    let base = BASE.get_or_init(|| {
        let folder = scratch();
        drop(RedbStore::create(folder.path(), &identity()).expect("an empty directory"));
        fs::read(folder.path().join(STORE_FILE)).expect("a store")
    });
    let mut script = Script::new(bytes);
    if script.is_set() {
        fs::write(&path, script.patch(base)).expect("a writable directory");
    } else {
        fs::write(&path, base).expect("a writable directory");
        put_records(&path, &mut script);
    }
    let image = |store: RedbStore| -> Image { store.image().clone() };
    match RedbStore::open(folder.path(), &identity()).map(image) {
        Ok(first) => {
            let second = RedbStore::open(folder.path(), &identity()).map(image);
            assert_eq!(second.expect("it opened before"), first);
        }
        Err(error) => assert!(!cohort_base::chain(&error).is_empty()),
    }
}

/// Writes the script's records and entries, each with a checksum that is right.
fn put_records(path: &std::path::Path, script: &mut Script<'_>) {
    const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
    const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
    const NAMES: [&str; 7] =
        ["schema", "identity", "hard-state", "snapshot", "base", "written", "marks"];
    let written = || -> Result<(), redb::Error> {
        let database = Database::open(path)?;
        let transaction = database.begin_write()?;
        {
            let mut log = transaction.open_table(LOG)?;
            let mut records = transaction.open_table(RECORDS)?;
            while !script.is_over() {
                let kind = usize::from(script.below(14));
                let length = usize::from(script.byte());
                let mut bytes = script.take(length).to_vec();
                if kind > 0 {
                    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
                }
                match NAMES.get(kind) {
                    Some(name) => records.insert(*name, bytes.as_slice())?,
                    None => log.insert(u64::from(script.below(16)), bytes.as_slice())?,
                };
            }
        }
        transaction.commit()?;
        Ok(())
    };
    let mut written = written;
    written().expect("a whole database");
}

/// A small durable record: a value, which is saved and read again, or moved aside as it is.
pub(crate) fn durable_file(bytes: &[u8]) {
    type Record = DurableFile<cohort_core::steps::AppRecord>;
    let folder = scratch();
    let path = folder.path().join("record");
    // As written: the first line follows from the content.
    let body = bytes.strip_prefix(b"=").map(|body| {
        let mut hash = crc32fast::Hasher::new();
        hash.update(b"version=1\n");
        hash.update(body);
        let (crc, len) = (hash.finalize(), body.len());
        let line = format!("cohort-durable 1 version=1 crc32={crc:08x} len={len}\n");
        [line.as_bytes(), body].concat()
    });
    let bytes = body.unwrap_or_else(|| bytes.to_vec());
    fs::write(&path, &bytes).expect("a writable directory");
    match Record::open(&path, 1) {
        Ok((mut file, Some(value))) => {
            file.save(&value).expect("a writable directory");
            let (_, again) = Record::open(&path, 1).expect("what was saved opens");
            assert_eq!(again, Some(value));
        }
        Ok((_, None)) => panic!("the record was lost"),
        Err(DurableFileError::Damaged { moved_to, .. }) => {
            assert!(!path.exists());
            assert_eq!(fs::read(moved_to).expect("it was moved"), bytes);
        }
        Err(DurableFileError::Version { .. }) => {
            assert_eq!(fs::read(&path).expect("it stays"), bytes);
        }
        Err(error) => panic!("{}", cohort_base::chain(&error)),
    }
}
