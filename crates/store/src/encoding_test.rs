//! Records survive a round trip, and every flipped bit is detected.

use crate::encoding::*;
use crate::*;

fn entry() -> Entry {
    Entry { index: Index(7), term: Term(3), kind: EntryKind::Membership, data: b"data".to_vec() }
}

#[test]
fn an_entry_is_laid_out_as_drawn() {
    let bytes = seal(&entry());
    let mut drawn = vec![1];
    drawn.extend(7u64.to_le_bytes());
    drawn.extend(3u64.to_le_bytes());
    drawn.push(1);
    drawn.extend(4u32.to_le_bytes());
    drawn.extend(b"data");
    drawn.extend(crc32fast::hash(&drawn).to_le_bytes());
    assert_eq!(bytes, drawn);
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
    assert!(matches!(unseal::<Entry>(&bytes), Err(DecodeError::Version(2))));
}

#[test]
fn what_no_member_writes_is_refused() {
    let counts: [&[u8]; 2] = [&[1, 255, 255, 255, 255], &[1, 255, 255, 255, 255, 0]];
    for bytes in counts {
        assert!(matches!(decode::<Configuration>(1, bytes), Err(DecodeError::Fields(_))));
        assert!(matches!(decode::<Vec<u8>>(1, bytes), Err(DecodeError::Fields(_))));
    }
    let nobody = encode(1, &HardState { vote: Some(RaftId(0)), ..HardState::default() });
    assert!(matches!(decode::<HardState>(1, &nobody), Err(DecodeError::Fields(_))));
    let mut longer = encode(1, &entry());
    longer.push(0);
    assert!(matches!(decode::<Entry>(1, &longer), Err(DecodeError::Fields(_))));
}
