//! The simulated disk injects the faults that it promises.

use super::*;
use crate::{Entry, EntryKind, Term};

impl Disk {
    /// Flips one bit of the entry at `index`. Returns whether there was such an entry.
    fn flip_bit(&self, index: Index, bit: usize) -> bool {
        let mut state = self.inner.lock();
        let Some(record) = state.written.entries.get_mut(&index) else { return false };
        let at = (bit / 8) % record.len();
        record[at] ^= 1 << (bit % 8);
        true
    }
}

fn append(index: u64) -> Batch {
    let data = vec![index as u8; 20];
    let entry = Entry { index: Index(index), term: Term(1), kind: EntryKind::Data, data };
    Batch { entries: vec![entry], ..Batch::default() }
}

fn last(disk: &Disk) -> u64 {
    FaultyStore::open(disk).unwrap().image().last_index().0
}

#[test]
fn what_was_synced_survives_a_crash() {
    let disk = Disk::new();
    let mut store = FaultyStore::open(&disk).unwrap();
    store.write(&append(1)).unwrap();
    disk.crash();
    assert_eq!(last(&disk), 1);
}

#[test]
fn a_failed_sync_poisons_and_what_it_wrote_may_be_there_or_not() {
    for (fault, expected) in [(WriteFault::FailLost, 1), (WriteFault::FailKept, 2)] {
        let disk = Disk::new();
        let mut store = FaultyStore::open(&disk).unwrap();
        store.write(&append(1)).unwrap();
        disk.set_fault(fault);
        assert!(matches!(store.write(&append(2)), Err(StoreError::Write { .. })));
        assert!(matches!(store.write(&append(2)), Err(StoreError::Poisoned { .. })));
        disk.crash();
        assert_eq!(last(&disk), expected, "{fault:?}");
    }
}

#[test]
fn a_lying_disk_loses_what_it_acknowledged() {
    let disk = Disk::new();
    let mut store = FaultyStore::open(&disk).unwrap();
    store.write(&append(1)).unwrap();
    disk.set_fault(WriteFault::Lie);
    store.write(&append(2)).unwrap();
    store.write(&append(3)).unwrap();
    assert_eq!(store.image().last_index(), Index(3));
    disk.crash();
    assert_eq!(last(&disk), 1);
}

#[test]
fn torn_and_flipped_entries_are_reported() {
    let disk = Disk::new();
    let mut store = FaultyStore::open(&disk).unwrap();
    store.write(&append(1)).unwrap();
    store.write(&append(2)).unwrap();
    assert!(disk.flip_bit(Index(1), 99));
    assert!(matches!(FaultyStore::open(&disk), Err(StoreError::Damaged { .. })));
    assert!(disk.flip_bit(Index(1), 99));
    assert_eq!(last(&disk), 2);
    assert!(disk.tear_last_entry());
    assert!(matches!(FaultyStore::open(&disk), Err(StoreError::Damaged { .. })));
}
