//! Hashes of an artifact's units, verified against its BLAKE3 root.
//!
//! A unit of 64 KiB is a complete subtree of BLAKE3's tree (64 chunks of 1 KiB), so its *chaining
//! value* can be computed from the unit alone and its position in the file, and the values of all
//! units merge into the root. A list of chaining values that merges into the root therefore needs
//! no signature of its own. The file contains only these values, 32 bytes each, in order. An
//! artifact of a single unit has no inner node: its one value is the root itself.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use blake3::hazmat::{
    ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use cohort_core::ids::Digest;

use crate::digest::digest_of;
use crate::manifest::{ARTIFACT_BYTES_MAX, UNIT_BYTES, unit_count};

const HASH_BYTES: usize = blake3::OUT_LEN;

/// Why bytes are not the artifact's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The file of unit hashes does not have the length that the artifact's length requires.
    #[error("unit hashes are {found} bytes, not {expected}")]
    HashesLength { expected: u64, found: u64 },
    /// The unit hashes do not merge into the artifact's root.
    #[error("unit hashes do not belong to the artifact {root}")]
    HashesWrong { root: Digest },
    #[error("unit {index} does not exist: the artifact has {count}")]
    NoSuchUnit { index: u32, count: u32 },
    /// A unit does not have the required length.
    #[error("unit {index} is {found} bytes long, not {expected}")]
    UnitLength { index: u32, expected: usize, found: usize },
    #[error("unit {index} has the wrong bytes")]
    UnitWrong { index: u32 },
}

/// The unit hashes of one artifact, verified against its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitHashes {
    length: u64,
    root: Digest,
    values: Vec<ChainingValue>,
}

impl UnitHashes {
    /// Parses a file of unit hashes and verifies it against a root and a length in bytes (at least
    /// 1) that are already trusted, such as those in a manifest or in the group's log.
    ///
    /// # Errors
    /// If its length is wrong or its hashes do not merge into the root.
    pub fn parse_for(bytes: &[u8], root: &Digest, length: u64) -> Result<Self, UnitError> {
        let expected = length.div_ceil(u64::from(UNIT_BYTES)) * HASH_BYTES as u64;
        if bytes.is_empty() || bytes.len() as u64 != expected || length > ARTIFACT_BYTES_MAX {
            return Err(UnitError::HashesLength { expected, found: bytes.len() as u64 });
        }
        let (values, rest) = bytes.as_chunks::<HASH_BYTES>();
        assert!(rest.is_empty(), "the length was checked to be a multiple of a hash");
        let values = values.to_vec();
        if digest_of(&root_of(&values)) != *root {
            return Err(UnitError::HashesWrong { root: root.clone() });
        }
        Ok(Self { length, root: root.clone(), values })
    }

    /// The content of the file: 32 bytes per unit.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.values.concat()
    }

    /// Number of units, at least 1.
    #[must_use]
    pub fn count(&self) -> u32 {
        unit_count(self.length)
    }

    /// Length of the artifact in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The artifact's root, into which the hashes merge.
    #[must_use]
    pub fn root(&self) -> &Digest {
        &self.root
    }

    /// A unit's position in the artifact: its first byte and its length in bytes.
    ///
    /// # Errors
    /// If there is no such unit.
    pub fn span(&self, index: u32) -> Result<(u64, usize), UnitError> {
        let count = self.count();
        if index >= count {
            return Err(UnitError::NoSuchUnit { index, count });
        }
        let start = u64::from(index) * u64::from(UNIT_BYTES);
        let length = (self.length - start).min(u64::from(UNIT_BYTES));
        Ok((start, usize::try_from(length).expect("a unit is at most 64 KiB")))
    }

    /// Checks that `bytes` are exactly unit `index`: length and hash.
    ///
    /// # Errors
    /// If there is no such unit, or the length or the hash differs.
    pub fn verify_unit(&self, index: u32, bytes: &[u8]) -> Result<(), UnitError> {
        let (start, expected) = self.span(index)?;
        if bytes.len() != expected {
            return Err(UnitError::UnitLength { index, expected, found: bytes.len() });
        }
        let value = if self.values.len() == 1 {
            *blake3::hash(bytes).as_bytes()
        } else {
            chaining_value(start, bytes)
        };
        // Hash's comparison takes constant time, which public data does not need; plain `==` does.
        if value == self.values[index as usize] {
            Ok(())
        } else {
            Err(UnitError::UnitWrong { index })
        }
    }

    /// Which units of a file are correct, one entry per unit. Missing units are wrong; bytes beyond
    /// the artifact's end are ignored. Blocking.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn verified_units(&self, file: &mut impl Read) -> io::Result<Vec<bool>> {
        let mut buffer = vec![0; UNIT_BYTES as usize];
        let mut right = Vec::with_capacity(self.values.len());
        for index in 0..self.count() {
            let (_, length) = self.span(index).map_err(io::Error::other)?;
            let unit = &mut buffer[..length];
            let read = read_full(file, unit)?;
            right.push(self.verify_unit(index, &unit[..read]).is_ok());
        }
        Ok(right)
    }
}

/// Computes unit hashes and root over bytes that arrive in pieces of any size.
#[derive(Debug)]
pub struct UnitHasher {
    values: Vec<ChainingValue>,
    unit: Vec<u8>,
    length: u64,
}

impl Default for UnitHasher {
    fn default() -> Self {
        Self { values: Vec::new(), unit: Vec::with_capacity(UNIT_BYTES as usize), length: 0 }
    }
}

impl UnitHasher {
    /// Adds the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            // Held back until more follows: `finish` needs the last unit.
            if self.unit.len() == UNIT_BYTES as usize {
                self.close_unit();
            }
            let room = UNIT_BYTES as usize - self.unit.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.unit.extend_from_slice(now);
            self.length += now.len() as u64;
            bytes = later;
        }
    }

    /// The hashes of all units; `None` if there were no bytes or more than [`ARTIFACT_BYTES_MAX`].
    #[must_use]
    pub fn finish(mut self) -> Option<UnitHashes> {
        if self.length == 0 || self.length > ARTIFACT_BYTES_MAX {
            return None;
        }
        if self.values.is_empty() {
            self.values.push(*blake3::hash(&self.unit).as_bytes());
        } else {
            self.close_unit();
        }
        let root = digest_of(&root_of(&self.values));
        Some(UnitHashes { length: self.length, root, values: self.values })
    }

    fn close_unit(&mut self) {
        let start = self.length - self.unit.len() as u64;
        self.values.push(chaining_value(start, &self.unit));
        self.unit.clear();
    }
}

/// Hashes a file in one pass. Blocking.
///
/// # Errors
/// If the file cannot be read, is empty, or is longer than [`ARTIFACT_BYTES_MAX`].
pub fn hash_file(path: &Path) -> io::Result<UnitHashes> {
    hash_reader(&mut File::open(path)?)
}

/// Hashes everything up to the end of a reader.
pub(crate) fn hash_reader(reader: &mut impl Read) -> io::Result<UnitHashes> {
    let mut hasher = UnitHasher::default();
    let mut buffer = vec![0; 4 * UNIT_BYTES as usize];
    loop {
        let read = read_full(reader, &mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        if hasher.length > ARTIFACT_BYTES_MAX {
            break;
        }
    }
    hasher.finish().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("an artifact must have 1 to {ARTIFACT_BYTES_MAX} bytes"),
        )
    })
}

/// The root that a file of unit hashes merges into; `None` if it is not a list of hashes.
#[must_use]
pub fn root_of_units(bytes: &[u8]) -> Option<Digest> {
    match bytes.as_chunks::<HASH_BYTES>() {
        (values @ [_, ..], []) => Some(digest_of(&root_of(values))),
        _ => None,
    }
}

fn chaining_value(start: u64, unit: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(start);
    hasher.update(unit);
    hasher.finalize_non_root()
}

/// Merges the values of all units into the root.
///
/// The left subtree gets the largest power of two of chunks that leaves something for the right.
/// Units are complete subtrees of 2^6 chunks, so the same rule over units gives the same tree.
fn root_of(values: &[ChainingValue]) -> blake3::Hash {
    match values {
        [] => blake3::hash(&[]),
        [only] => blake3::Hash::from_bytes(*only),
        _ => {
            let (left, right) = values.split_at(left_units(values.len()));
            merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

fn subtree(values: &[ChainingValue]) -> ChainingValue {
    if let [only] = values {
        return *only;
    }
    let (left, right) = values.split_at(left_units(values.len()));
    merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// The largest power of two below `count`, for `count` ≥ 2.
fn left_units(count: usize) -> usize {
    count.next_power_of_two() / 2
}

/// Fills `buffer` unless the end comes first; returns the number of bytes read.
fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
