//! A disk that dies at any operation: what was acknowledged is there afterwards, and all of it.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use redb::{Database, StorageBackend};

use crate::api::{Op, RangeRequest, Registry as _, RegistryError, Selector, Txn};
use crate::embedded::EmbeddedRegistry;

/// A seeded source of choices (splitmix64): the same run every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// A disk in memory that knows what was synced.
#[derive(Debug, Clone)]
struct CrashDisk(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    synced: Vec<u8>,
    written: Vec<u8>,
    /// Writes since the last sync; after a crash any of them may be on the disk.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// How many more operations succeed.
    operations_left: u64,
}

impl CrashDisk {
    fn new(synced: Vec<u8>, operations_left: u64) -> Self {
        let written = synced.clone();
        let disk = Disk { synced, written, unsynced: Vec::new(), operations_left };
        CrashDisk(Arc::new(Mutex::new(disk)))
    }

    fn operate<T>(&self, change: impl FnOnce(&mut Disk) -> T) -> io::Result<T> {
        let mut disk = self.0.lock();
        if disk.operations_left == 0 {
            return Err(io::Error::other("the disk is dead"));
        }
        disk.operations_left -= 1;
        Ok(change(&mut disk))
    }

    /// What a restart finds: all that was synced, and any of what was not.
    fn after_crash(&self, random: &mut Random) -> Vec<u8> {
        let disk = self.0.lock();
        let mut bytes = disk.synced.clone();
        bytes.resize(bytes.len().max(disk.written.len()), 0);
        for (offset, data) in &disk.unsynced {
            if random.next().is_multiple_of(2) && offset + data.len() <= bytes.len() {
                bytes[*offset..offset + data.len()].copy_from_slice(data);
            }
        }
        bytes
    }
}

impl StorageBackend for CrashDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().written.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock();
        let start = usize::try_from(offset).expect("small");
        let bytes = disk.written.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or_else(|| io::Error::other("beyond the end"))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).expect("small");
        self.operate(|disk| disk.written.resize(len, 0))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operate(|disk| {
            disk.synced = disk.written.clone();
            disk.unsynced.clear();
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).expect("small");
        self.operate(|disk| {
            disk.written[start..start + data.len()].copy_from_slice(data);
            disk.unsynced.push((start, data.to_vec()));
        })
    }
}

fn open(disk: &CrashDisk) -> Option<EmbeddedRegistry> {
    // Small regions keep a thousand copies of the disk cheap.
    let db: Database = Database::builder().create_with_backend(disk.clone()).ok()?;
    EmbeddedRegistry::open_database(db).ok()
}

/// Both keys of a transaction carry the same number, and the next transaction a higher one.
fn txn(number: u64) -> Txn {
    let value = number.to_string();
    Txn { then: vec![Op::put("/a", value.as_str()), Op::put("/b", value)], ..Txn::default() }
}

async fn numbers(registry: &EmbeddedRegistry) -> Vec<u64> {
    let select = Selector::Prefix("/".into());
    let all = registry.range(RangeRequest { select, after: None, limit: 0 }).await.expect("range");
    all.items.iter().map(|pair| pair.value.parse().expect("a number")).collect()
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_disk_that_dies_at_any_operation() {
    let mut random = Random(0x5eed);
    let mut image = Vec::new();
    let (mut acknowledged, mut next) = (0, 1);
    let mut deaths_while_open = 0;
    for round in 0..150 {
        let disk = CrashDisk::new(image.clone(), random.next() % 60);
        if let Some(registry) = open(&disk) {
            let found = numbers(&registry).await;
            let (low, high) = (acknowledged, next - 1);
            match found.as_slice() {
                [] => assert_eq!(acknowledged, 0, "round {round}: all is gone"),
                [a, b] => {
                    assert_eq!(a, b, "round {round}: half a transaction");
                    assert!((low..=high).contains(a), "round {round}: {a} not in {low}..={high}");
                    acknowledged = *a;
                }
                other => panic!("round {round}: {other:?}"),
            }
            loop {
                match registry.txn(txn(next)).await {
                    Ok(_) => {
                        acknowledged = next;
                        next += 1;
                    }
                    Err(RegistryError::Storage { .. }) => {
                        next += 1;
                        break;
                    }
                    Err(error) => panic!("round {round}: {error}"),
                }
            }
            deaths_while_open += 1;
            assert!(registry.failed());
            let refused = registry.txn(txn(next)).await;
            assert!(matches!(refused, Err(RegistryError::Storage { .. })), "no change after that");
            assert!(numbers(&registry).await.iter().all(|there| *there == acknowledged));
        }
        image = disk.after_crash(&mut random);
    }
    assert!(deaths_while_open > 20 && acknowledged > 20, "{deaths_while_open} {acknowledged}");
}
