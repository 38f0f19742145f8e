//! The bytes of records, on disk and in messages.
//!
//! ```text
//! 0          version
//! 1 .. n     the record's fields in order, in Borsh (<https://borsh.io>): numbers little-endian
//!            at full width, a u32 count before bytes and lists, a u8 before the fields of an
//!            enum or option
//! n .. n+4   if stored on its own (*sealed*): crc32 (IEEE) of the bytes 0 .. n
//! ```

use std::io;

use borsh::{BorshDeserialize, BorshSerialize};

/// The first byte of every sealed record; incremented when a field of any of them changes.
const SEALED_VERSION: u8 = 1;

/// Why bytes are not a valid record.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("too short: {0} bytes")]
    Short(usize),
    #[error("checksum is {found:08x}, computed {computed:08x}")]
    Checksum { found: u32, computed: u32 },
    #[error("unsupported version {0}")]
    Version(u8),
    #[error("the fields are malformed")]
    Fields(#[source] io::Error),
}

/// Encodes a record after its version.
///
/// # Panics
/// If a list has 4 Gi elements or more.
#[must_use]
pub fn encode<T: BorshSerialize>(version: u8, record: &T) -> Vec<u8> {
    let mut bytes = vec![version];
    borsh::to_writer(&mut bytes, record).expect("lists have fewer than 4 Gi elements");
    bytes
}

/// Decodes a record and its version. Never allocates much more than the input's length.
///
/// # Errors
/// Another version, or bytes that are not exactly one such record.
pub fn decode<T: BorshDeserialize>(version: u8, bytes: &[u8]) -> Result<T, DecodeError> {
    match bytes.split_first() {
        Some((found, fields)) if *found == version => {
            borsh::from_slice(fields).map_err(DecodeError::Fields)
        }
        Some((found, _)) => Err(DecodeError::Version(*found)),
        None => Err(DecodeError::Short(0)),
    }
}

/// Seals a record for storage.
#[must_use]
pub fn seal<T: BorshSerialize>(record: &T) -> Vec<u8> {
    let mut bytes = encode(SEALED_VERSION, record);
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// Verifies and decodes a sealed record.
///
/// # Errors
/// [`DecodeError`]: detects any flipped bit or missing byte.
pub fn unseal<T: BorshDeserialize>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (sealed, crc) = bytes.split_last_chunk::<4>().ok_or(DecodeError::Short(bytes.len()))?;
    let (found, computed) = (u32::from_le_bytes(*crc), crc32fast::hash(sealed));
    if found != computed {
        return Err(DecodeError::Checksum { found, computed });
    }
    decode(SEALED_VERSION, sealed)
}
