//! Records survive the way there and back, and every changed bit is found.

use crate::encoding::*;
use crate::*;

fn entry() -> Entry {
    Entry { index: Index(7), term: Term(3), kind: EntryKind::Membership, data: b"data".to_vec() }
}

fn snapshot() -> Snapshot {
    let mut configuration = Configuration::of([RaftId(1), RaftId(2)], [RaftId(9)]);
    configuration.outgoing.insert(RaftId(1));
    configuration.standbys_next.insert(RaftId(1));
    Snapshot { index: Index(5), term: Term(2), configuration, data: vec![0; 300] }
}

#[test]
fn an_entry_is_laid_out_as_drawn() {
    let bytes = seal(&entry());
    let mut drawn = vec![1, 1];
    drawn.extend(7u64.to_le_bytes());
    drawn.extend(3u64.to_le_bytes());
    drawn.extend(4u32.to_le_bytes());
    drawn.extend(b"data");
    drawn.extend(crc32fast::hash(&drawn).to_le_bytes());
    assert_eq!(bytes, drawn);
}

#[test]
fn every_record_survives() {
    assert_eq!(unseal(&seal(&entry())), Ok(entry()));
    assert_eq!(unseal(&seal(&snapshot())), Ok(snapshot()));
    let hard_state = HardState { term: Term(4), vote: Some(RaftId(2)), commit: Index(6) };
    assert_eq!(unseal(&seal(&hard_state)), Ok(hard_state));
    let without = HardState { vote: None, ..hard_state };
    assert_eq!(unseal(&seal(&without)), Ok(without));
    let base = (Index(4), Term(1));
    assert_eq!(unseal(&seal(&base)), Ok(base));
    let identity = Identity { group: "wéb".to_owned(), incarnation: 3, raft_id: RaftId(5) };
    assert_eq!(unseal(&seal(&identity)), Ok(identity));
}

#[test]
fn every_flipped_bit_and_every_missing_byte_is_found() {
    let bytes = seal(&entry());
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(unseal::<Entry>(&flipped).is_err(), "bit {bit}");
    }
    for end in 0..bytes.len() {
        assert!(unseal::<Entry>(&bytes[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn later_versions_are_told_apart_from_damage() {
    let mut bytes = seal(&entry());
    let end = bytes.len() - 4;
    bytes[0] = 2;
    let crc = crc32fast::hash(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(unseal::<Entry>(&bytes), Err(DecodeError::Version(2)));
}

#[test]
fn a_count_that_promises_too_much_asks_for_no_memory() {
    let mut w = Writer::default();
    w.u16(u16::MAX);
    let bytes = w.finish();
    assert_eq!(
        Configuration::read(&mut Reader::new(&bytes)),
        Err(DecodeError::Value("number of ids"))
    );
    let mut w = Writer::default();
    w.u32(u32::MAX);
    let bytes = w.finish();
    assert!(matches!(Reader::new(&bytes).bytes(), Err(DecodeError::Short { .. })));
}
