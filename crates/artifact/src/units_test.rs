use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};

use crate::{UNIT_BYTES, UnitError, UnitHasher, UnitHashes, digest_of, hash_file, root_of_units};

/// Bytes without repetition, so that swapped units differ.
fn bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(b"test").finalize_xof().fill(&mut bytes);
    bytes
}

fn hashes(bytes: &[u8]) -> UnitHashes {
    let mut hasher = UnitHasher::default();
    bytes.chunks(10_007).for_each(|piece| hasher.update(piece));
    hasher.finish().unwrap()
}

/// Lengths around every edge: one byte, a chunk, a unit, and trees of each shape up to 17 units.
fn lengths() -> impl Iterator<Item = usize> {
    let unit = UNIT_BYTES as usize;
    let around = (1..=17).flat_map(move |n| [n * unit - 1, n * unit, n * unit + 1]);
    [1, 1023, 1024, 1025].into_iter().chain(around).chain([5 * unit + 1024, 9 * unit + 12_345])
}

#[test]
fn the_merge_of_all_unit_hashes_is_the_root_of_the_whole() {
    for length in lengths() {
        let bytes = bytes(length);
        let units = hashes(&bytes);
        assert_eq!(units.root(), &digest_of(&blake3::hash(&bytes)), "length {length}");
        let file = units.to_bytes();
        let parsed = UnitHashes::parse_for(&file, units.root(), length as u64);
        assert_eq!(parsed.as_ref(), Ok(&units));
        assert_eq!(root_of_units(&file).as_ref(), Some(units.root()));
        for (index, unit) in bytes.chunks(UNIT_BYTES as usize).enumerate() {
            assert_eq!(units.verify_unit(index as u32, unit), Ok(()), "{length}, unit {index}");
        }
    }
}

#[test]
fn a_bit_flipped_anywhere_in_any_unit_is_refused() {
    let mut bytes = bytes(4 * UNIT_BYTES as usize + 777);
    let units = hashes(&bytes);
    for index in 0..units.count() {
        let (start, length) = units.span(index).unwrap();
        for at in [0, 1, length / 3, length / 2, length - 1] {
            for bit in 0..8 {
                let place = start as usize + at;
                bytes[place] ^= 1 << bit;
                let unit = &bytes[start as usize..start as usize + length];
                assert_eq!(units.verify_unit(index, unit), Err(UnitError::UnitWrong { index }));
                bytes[place] ^= 1 << bit;
            }
        }
    }
}

#[test]
fn a_bit_flipped_in_any_unit_hash_is_refused() {
    for length in [10, 3 * UNIT_BYTES as usize + 1] {
        let bytes = bytes(length);
        let units = hashes(&bytes);
        let mut file = units.to_bytes();
        for at in 0..file.len() {
            file[at] ^= 1;
            let error = UnitHashes::parse_for(&file, units.root(), length as u64).unwrap_err();
            assert_eq!(error, UnitError::HashesWrong { root: units.root().clone() });
            file[at] ^= 1;
        }
    }
}

#[test]
fn units_of_wrong_length_or_place_are_refused() {
    let bytes = bytes(2 * UNIT_BYTES as usize + 5);
    let units = hashes(&bytes);
    let unit = UNIT_BYTES as usize;
    assert_eq!(
        units.verify_unit(0, &bytes[..unit - 1]),
        Err(UnitError::UnitLength { index: 0, expected: unit, found: unit - 1 })
    );
    assert_eq!(
        units.verify_unit(2, &bytes[..unit]),
        Err(UnitError::UnitLength { index: 2, expected: 5, found: unit })
    );
    assert_eq!(units.verify_unit(1, &bytes[..unit]), Err(UnitError::UnitWrong { index: 1 }));
    assert_eq!(units.verify_unit(3, &[]), Err(UnitError::NoSuchUnit { index: 3, count: 3 }));
    let file = units.to_bytes();
    let error = UnitHashes::parse_for(&file[..64], units.root(), units.length()).unwrap_err();
    assert_eq!(error, UnitError::HashesLength { expected: 96, found: 64 });
    // The chaining value of a single unit is not its root: neither may stand for the other.
    let single = hashes(&bytes[..unit]);
    assert_ne!(single.to_bytes()[..32], file[..32]);
}

#[test]
fn a_part_of_a_file_tells_which_units_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("artifact");
    let mut bytes = bytes(5 * UNIT_BYTES as usize + 9);
    std::fs::write(&path, &bytes).unwrap();
    let whole = hash_file(&path).unwrap();
    assert_eq!(whole, hashes(&bytes));
    bytes[UNIT_BYTES as usize + 3] ^= 4;
    bytes.truncate(4 * UNIT_BYTES as usize + 1);
    let right = whole.verified_units(&mut bytes.as_slice()).unwrap();
    assert_eq!(right, [true, false, true, true, false, false]);
    std::fs::write(&path, []).unwrap();
    assert!(hash_file(&path).is_err(), "an empty artifact has no hashes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn pieces_of_any_size_give_the_same_hashes(
        length in 1_usize..400_000, piece in 1_usize..200_000,
    ) {
        let bytes = bytes(length);
        let mut hasher = UnitHasher::default();
        bytes.chunks(piece).for_each(|piece| hasher.update(piece));
        let found = hasher.finish().unwrap();
        prop_assert_eq!(found.root(), &digest_of(&blake3::hash(&bytes)));
        prop_assert_eq!(found, hashes(&bytes));
    }
}
