//! The byte layout of records, on disk and inside messages.
//!
//! All numbers are little-endian. A record that is stored by itself is *sealed*:
//!
//! ```text
//! 0          version (1)
//! 1 .. n     body
//! n .. n+4   crc32 (IEEE) of the bytes 0 .. n
//! ```
//!
//! Bodies:
//!
//! ```text
//! entry                                  hard state
//!  0  u8   kind (0 data, 1 membership)    0  u64  term
//!  1  u64  index                          8  u64  vote (0 = none)
//!  9  u64  term                          16  u64  commit
//! 17  u32  length of data
//! 21       data
//!
//! configuration                          snapshot
//!  0  ids  voters                         0  u64  index
//!     ids  outgoing                       8  u64  term
//!     ids  standbys                      16       configuration
//!     ids  standbys-next                     u32  length of data
//! ids = u16 count, then count × u64          data
//!
//! base (the last position cut off)       identity
//!  0  u64  index                          0  u64  incarnation
//!  8  u64  term                           8  u64  raft id
//!                                        16  u16  length of group
//!                                        18       group (UTF-8)
//! ```

use std::collections::BTreeSet;

use crate::types::{
    Configuration, Entry, EntryKind, HardState, Identity, Index, RaftId, Snapshot, Term,
};

/// The first byte of every sealed record.
pub const RECORD_VERSION: u8 = 1;

/// The most members in one list. A group has at most 7 voters and a few dozen standbys; the limit
/// keeps a corrupt count from allocating memory.
pub const IDS_MAX: usize = 1024;

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("record ends early at byte {at}")]
    Short { at: usize },
    #[error("{extra} bytes follow the record")]
    Long { extra: usize },
    #[error("checksum is {found:08x}, the bytes give {computed:08x}")]
    Checksum { found: u32, computed: u32 },
    #[error("unsupported record version {0}")]
    Version(u8),
    #[error("field {0} has an impossible value")]
    Value(&'static str),
}

/// A value with a layout of its own (drawn above).
pub trait Record: Sized {
    /// Appends the body.
    fn write(&self, w: &mut Writer);

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are not such a body.
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

/// Seals a record for storage.
#[must_use]
pub fn seal<T: Record>(record: &T) -> Vec<u8> {
    let mut w = Writer::default();
    w.u8(RECORD_VERSION);
    record.write(&mut w);
    let crc = crc32fast::hash(&w.bytes);
    w.u32(crc);
    w.finish()
}

/// Checks a sealed record and reads it.
///
/// # Errors
/// [`DecodeError`]: any flipped bit or missing byte is found.
pub fn unseal<T: Record>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (sealed, crc) =
        bytes.split_last_chunk::<4>().ok_or(DecodeError::Short { at: bytes.len() })?;
    let (found, computed) = (u32::from_le_bytes(*crc), crc32fast::hash(sealed));
    if found != computed {
        return Err(DecodeError::Checksum { found, computed });
    }
    let mut r = Reader::new(sealed);
    match r.u8()? {
        RECORD_VERSION => {}
        version => return Err(DecodeError::Version(version)),
    }
    let record = T::read(&mut r)?;
    r.finish()?;
    Ok(record)
}

impl Record for Entry {
    fn write(&self, w: &mut Writer) {
        w.u8(match self.kind {
            EntryKind::Data => 0,
            EntryKind::Membership => 1,
        });
        w.u64(self.index.0);
        w.u64(self.term.0);
        w.bytes(&self.data);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let kind = match r.u8()? {
            0 => EntryKind::Data,
            1 => EntryKind::Membership,
            _ => return Err(DecodeError::Value("entry kind")),
        };
        let (index, term) = (Index(r.u64()?), Term(r.u64()?));
        Ok(Entry { index, term, kind, data: r.bytes()?.to_vec() })
    }
}

impl Record for HardState {
    fn write(&self, w: &mut Writer) {
        w.u64(self.term.0);
        w.u64(self.vote.map_or(0, |id| id.0));
        w.u64(self.commit.0);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (term, vote, commit) = (Term(r.u64()?), r.u64()?, Index(r.u64()?));
        Ok(HardState { term, vote: (vote != 0).then_some(RaftId(vote)), commit })
    }
}

impl Record for Configuration {
    fn write(&self, w: &mut Writer) {
        for ids in [&self.voters, &self.outgoing, &self.standbys, &self.standbys_next] {
            w.u16(u16::try_from(ids.len()).unwrap_or(u16::MAX));
            for id in ids {
                w.u64(id.0);
            }
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Configuration {
            voters: r.ids()?,
            outgoing: r.ids()?,
            standbys: r.ids()?,
            standbys_next: r.ids()?,
        })
    }
}

impl Record for Snapshot {
    fn write(&self, w: &mut Writer) {
        w.u64(self.index.0);
        w.u64(self.term.0);
        self.configuration.write(w);
        w.bytes(&self.data);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Snapshot {
            index: Index(r.u64()?),
            term: Term(r.u64()?),
            configuration: Configuration::read(r)?,
            data: r.bytes()?.to_vec(),
        })
    }
}

/// The base: the last position that was cut off.
impl Record for (Index, Term) {
    fn write(&self, w: &mut Writer) {
        w.u64(self.0.0);
        w.u64(self.1.0);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok((Index(r.u64()?), Term(r.u64()?)))
    }
}

impl Record for Identity {
    fn write(&self, w: &mut Writer) {
        w.u64(self.incarnation);
        w.u64(self.raft_id.0);
        w.text(&self.group);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (incarnation, raft_id) = (r.u64()?, r.id()?);
        Ok(Identity { group: r.text()?.to_owned(), incarnation, raft_id })
    }
}

/// Appends fields to a buffer.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Appends one byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Appends a 16-bit number.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends a 32-bit number.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends a 64-bit number.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends a 32-bit length and the bytes, far fewer than 4 GiB.
    pub fn bytes(&mut self, value: &[u8]) {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.bytes.extend_from_slice(value);
    }

    /// Appends a 16-bit length and the text, less than 64 KiB.
    pub fn text(&mut self, value: &str) {
        self.u16(u16::try_from(value.len()).unwrap_or(u16::MAX));
        self.bytes.extend_from_slice(value.as_bytes());
    }

    /// The buffer.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads fields from a buffer. It never reads past the end and never allocates more than the input.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let short = DecodeError::Short { at: self.at };
        let end = self.at.checked_add(count).ok_or(short.clone())?;
        let taken = self.bytes.get(self.at..end).ok_or(short)?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// Reads one byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Reads a 16-bit number.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Reads a 32-bit number.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Reads a 64-bit number.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reads a flag: 0 or 1.
    pub fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Value(field)),
        }
    }

    /// Reads a 32-bit length and that many bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    /// Reads a 16-bit length and that much UTF-8.
    pub fn text(&mut self) -> Result<&'a str, DecodeError> {
        let length = usize::from(self.u16()?);
        std::str::from_utf8(self.take(length)?).map_err(|_| DecodeError::Value("text"))
    }

    /// Reads a member's number, which is never 0.
    pub fn id(&mut self) -> Result<RaftId, DecodeError> {
        match self.u64()? {
            0 => Err(DecodeError::Value("raft id")),
            id => Ok(RaftId(id)),
        }
    }

    fn ids(&mut self) -> Result<BTreeSet<RaftId>, DecodeError> {
        let count = usize::from(self.u16()?);
        if count > IDS_MAX {
            return Err(DecodeError::Value("number of ids"));
        }
        (0..count).map(|_| self.id()).collect()
    }

    /// Checks that everything was read.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            extra => Err(DecodeError::Long { extra }),
        }
    }
}
