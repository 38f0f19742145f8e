//! The registry: transactions, its file, and the trail of changes.

use std::fs;
use std::sync::OnceLock;

use cohort_base::golden::round_trip;
use cohort_registry::state::State;
use cohort_registry::{EmbeddedRegistry, KeyValue, RangeRequest, Txn, WatchRequest, keys, records};
use cohort_wire::audit::{AuditEntry, ChainEnd};
use redb::{Database, TableDefinition};

use crate::script::{Script, lines, scratch};

/// Transactions, ranges and watches, one per line, as clients send them: no invariant breaks.
pub(crate) fn transactions(bytes: &[u8]) {
    let mut state = State::new();
    for line in lines(bytes) {
        if let Some(txn) = round_trip::<Txn>(line)
            && let Ok(decision) = state.decide(&txn)
        {
            state.accept(decision.changes);
            state.check().expect("a decided transaction breaks no invariant");
        }
        if let Some(range) = round_trip::<RangeRequest>(line) {
            let _ = state.range(&range);
        }
        round_trip::<WatchRequest>(line);
        if let Ok(text) = std::str::from_utf8(line) {
            let _ = keys::parse(text);
            let pair = KeyValue { key: "/k".to_owned(), value: text.to_owned(), mod_revision: 2 };
            decode(&pair);
        }
    }
}

/// Whatever decodes of a record encodes to the same again.
fn decode(pair: &KeyValue) {
    fn one<T>(pair: &KeyValue)
    where
        T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        let Ok(record) = records::decode::<T>(pair) else { return };
        let again = KeyValue { value: records::encode(&record), ..pair.clone() };
        assert_eq!(records::decode::<T>(&again).expect("what was written is read"), record);
    }
    one::<records::ServerRecord>(pair);
    one::<records::GroupInfo>(pair);
    one::<records::BootstrapRecord>(pair);
    one::<records::MembersRecord>(pair);
    one::<records::GroupRecord>(pair);
    one::<records::VerdictRecord>(pair);
    one::<records::IntentRecord>(pair);
}

const FILE: &str = "registry.redb";

/// The registry's file with altered pages, or with rows that say something else: what opens is
/// whole.
pub(crate) fn file(bytes: &[u8]) {
    static BASE: OnceLock<Vec<u8>> = OnceLock::new();
    let base = BASE.get_or_init(|| {
        let folder = scratch();
        let path = folder.path().join(FILE);
        drop(EmbeddedRegistry::open(&path, "store").expect("a writable directory"));
        fs::read(path).expect("a file")
    });
    let folder = scratch();
    let path = folder.path().join(FILE);
    let mut script = Script::new(bytes);
    if script.is_set() {
        fs::write(&path, script.patch(base)).expect("a writable directory");
    } else {
        fs::write(&path, base).expect("a writable directory");
        put_rows(&path, &mut script).expect("a whole database");
    }
    if let Ok(registry) = EmbeddedRegistry::open(&path, "store") {
        registry.read(|state| state.check()).expect("what opens is whole");
    }
}

fn put_rows(path: &std::path::Path, script: &mut Script<'_>) -> Result<(), redb::Error> {
    const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
    const PAIRS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("pairs");
    const EVENTS: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("events");
    const NAMES: [&str; 6] = ["schema", "store", "revision", "compacted", "restored", "asked"];
    let database = Database::open(path)?;
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        let mut pairs = transaction.open_table(PAIRS)?;
        let mut events = transaction.open_table(EVENTS)?;
        while !script.is_over() {
            let kind = usize::from(script.below(16));
            let length = usize::from(script.byte());
            match NAMES.get(kind) {
                Some(name) if script.is_set() => {
                    meta.insert(*name, script.near(7).to_string().as_str())?;
                }
                Some(name) => {
                    let text = String::from_utf8_lossy(script.take(length)).into_owned();
                    meta.insert(*name, text.as_str())?;
                }
                None if script.is_set() => {
                    let key = String::from_utf8_lossy(script.take(4)).into_owned();
                    let revision = script.near(7).to_le_bytes();
                    let bytes = [&revision[..], script.take(length)].concat();
                    pairs.insert(key.as_str(), bytes.as_slice())?;
                }
                None => {
                    let place = (script.near(7), u32::from(script.byte()));
                    events.insert(place, script.take(length))?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Lines of the audit trail: each that is accepted as the next one names the one before.
pub(crate) fn audit(bytes: &[u8]) {
    let mut end = ChainEnd::default();
    for line in lines(bytes) {
        round_trip::<AuditEntry>(line);
        let Ok(line) = std::str::from_utf8(line) else { continue };
        // With the hash made right, the chain goes on.
        let hash = end.hash.as_str();
        let linked = line.replace("BEFORE", hash);
        if let Ok((next, entry)) = end.follow(&linked) {
            assert_eq!((entry.seq, entry.before.as_str()), (end.seq + 1, hash));
            end = next;
        }
    }
}
