//! Every record of a member's log, and the format of small records, byte by byte.

use std::collections::BTreeMap;
use std::path::Path;

use borsh::{BorshDeserialize, BorshSerialize};
use cohort_base::golden::hold;
use serde::{Deserialize, Serialize};

use crate::encoding::{seal, unseal};
use crate::{
    Configuration, DurableFile, Entry, EntryKind, HardState, Identity, Index, Mark, RaftId,
    Snapshot, Term,
};

/// A sealed record, in hexadecimal, starting with its version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Hex", into = "Hex")]
enum Stored {
    Entry(Entry),
    HardState(HardState),
    Snapshot(Snapshot),
    Base((Index, Term)),
    Identity(Identity),
    Written(u64),
    Marks(BTreeMap<RaftId, Mark>),
}

#[derive(Debug, Serialize, Deserialize)]
enum Hex {
    Entry(String),
    HardState(String),
    Snapshot(String),
    Base(String),
    Identity(String),
    Written(String),
    Marks(String),
}

fn text<T: BorshSerialize>(record: &T) -> String {
    hex::encode(seal(record))
}

fn read<T: BorshDeserialize>(text: &str) -> T {
    unseal(&hex::decode(text).unwrap()).unwrap()
}

impl From<Stored> for Hex {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Entry(record) => Hex::Entry(text(&record)),
            Stored::HardState(record) => Hex::HardState(text(&record)),
            Stored::Snapshot(record) => Hex::Snapshot(text(&record)),
            Stored::Base(record) => Hex::Base(text(&record)),
            Stored::Identity(record) => Hex::Identity(text(&record)),
            Stored::Written(record) => Hex::Written(text(&record)),
            Stored::Marks(record) => Hex::Marks(text(&record)),
        }
    }
}

impl From<Hex> for Stored {
    fn from(hex: Hex) -> Self {
        match hex {
            Hex::Entry(text) => Stored::Entry(read(&text)),
            Hex::HardState(text) => Stored::HardState(read(&text)),
            Hex::Snapshot(text) => Stored::Snapshot(read(&text)),
            Hex::Base(text) => Stored::Base(read(&text)),
            Hex::Identity(text) => Stored::Identity(read(&text)),
            Hex::Written(text) => Stored::Written(read(&text)),
            Hex::Marks(text) => Stored::Marks(read(&text)),
        }
    }
}

#[test]
fn sealed_records() {
    let entry = |kind, data: &[u8]| {
        Stored::Entry(Entry { index: Index(7), term: Term(3), kind, data: data.to_vec() })
    };
    let configuration = Configuration {
        voters: [RaftId(1), RaftId(2)].into(),
        outgoing: [RaftId(1), RaftId(3)].into(),
        standbys: [RaftId(4)].into(),
        standbys_next: [RaftId(3)].into(),
    };
    let hard_state = |vote| HardState { term: Term(4), vote, commit: Index(6) };
    let records = [
        entry(EntryKind::Data, b"command"),
        entry(EntryKind::Data, b""),
        entry(EntryKind::Membership, b"\x01\x00"),
        Stored::HardState(hard_state(None)),
        Stored::HardState(hard_state(Some(RaftId(2)))),
        Stored::Snapshot(Snapshot {
            index: Index(5),
            term: Term(2),
            configuration,
            data: b"state".to_vec(),
        }),
        Stored::Base((Index(4), Term(1))),
        Stored::Identity(Identity {
            group: "w\u{e9}b".to_owned(),
            incarnation: 3,
            raft_id: RaftId(5),
        }),
        Stored::Written(258),
        Stored::Marks([(RaftId(2), Mark { boot_epoch: 3, life: 4, written: 5 })].into()),
    ];
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sealed.jsonl");
    hold(&file, &records);
}

/// The bytes of a record's file. The first line names the version of the format.
#[test]
fn a_small_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record");
    let golden = "cohort-durable 1 version=1 crc32=64a7736d len=14\n{\"fence\":\"7\"}\n";
    let value = serde_json::json!({ "fence": "7" });
    let (mut file, nothing) = DurableFile::<serde_json::Value>::open(&path, 1).unwrap();
    assert_eq!(nothing, None);
    file.save(&value).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), golden);
    std::fs::write(&path, golden).unwrap();
    assert_eq!(DurableFile::open(&path, 1).unwrap().1, Some(value));
}
