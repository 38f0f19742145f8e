//! How records are laid out as bytes, on the disk and inside messages.
//!
//! All numbers are little-endian. Every record that stands alone on the disk is *sealed*:
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

use crate::{Configuration, Entry, EntryKind, HardState, Identity, Index, RaftId, Snapshot, Term};

/// The version that every sealed record starts with.
pub const RECORD_VERSION: u8 = 1;

/// Members that one list may name. A group has at most 7 voters and a few dozen standbys; the
/// limit only keeps a broken count from asking for memory.
pub const IDS_MAX: usize = 1024;

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the record does.
    #[error("record ends early at byte {at}")]
    Short {
        /// Where the next field should have begun.
        at: usize,
    },
    /// There are bytes after the record.
    #[error("{extra} bytes follow the record")]
    Long {
        /// How many.
        extra: usize,
    },
    /// The checksum does not match.
    #[error("checksum is {found:08x}, the bytes give {computed:08x}")]
    Checksum {
        /// As stored.
        found: u32,
        /// As computed.
        computed: u32,
    },
    /// The version is not known.
    #[error("record version {0} is not known")]
    Version(u8),
    /// A field has a value that it cannot have.
    #[error("field {0} has an impossible value")]
    Value(&'static str),
}

/// Writes fields one after the other.
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

    /// Appends a 32-bit length and the bytes. Callers keep data far below 4 GiB.
    pub fn bytes(&mut self, value: &[u8]) {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.bytes.extend_from_slice(value);
    }

    /// Appends a 16-bit length and the text.
    pub fn text(&mut self, value: &str) {
        self.u16(u16::try_from(value.len()).unwrap_or(u16::MAX));
        self.bytes.extend_from_slice(value.as_bytes());
    }

    /// Appends a list of members.
    pub fn ids(&mut self, ids: &BTreeSet<RaftId>) {
        self.u16(u16::try_from(ids.len()).unwrap_or(u16::MAX));
        for id in ids {
            self.u64(id.0);
        }
    }

    /// Appends an entry's body.
    pub fn entry(&mut self, entry: &Entry) {
        self.u8(match entry.kind {
            EntryKind::Data => 0,
            EntryKind::Membership => 1,
        });
        self.u64(entry.index.0);
        self.u64(entry.term.0);
        self.bytes(&entry.data);
    }

    /// Appends a configuration's body.
    pub fn configuration(&mut self, configuration: &Configuration) {
        self.ids(&configuration.voters);
        self.ids(&configuration.outgoing);
        self.ids(&configuration.standbys);
        self.ids(&configuration.standbys_next);
    }

    /// Appends a snapshot's body.
    pub fn snapshot(&mut self, snapshot: &Snapshot) {
        self.u64(snapshot.index.0);
        self.u64(snapshot.term.0);
        self.configuration(&snapshot.configuration);
        self.bytes(&snapshot.data);
    }

    /// What was written.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads fields one after the other; never beyond the end, and never more memory than the input.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
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

    /// Reads a length and that many bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    /// Reads a length and that much text.
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

    /// Reads a list of members.
    pub fn ids(&mut self) -> Result<BTreeSet<RaftId>, DecodeError> {
        let count = usize::from(self.u16()?);
        if count > IDS_MAX {
            return Err(DecodeError::Value("number of ids"));
        }
        (0..count).map(|_| self.id()).collect()
    }

    /// Reads an entry's body.
    pub fn entry(&mut self) -> Result<Entry, DecodeError> {
        let kind = match self.u8()? {
            0 => EntryKind::Data,
            1 => EntryKind::Membership,
            _ => return Err(DecodeError::Value("entry kind")),
        };
        let index = Index(self.u64()?);
        let term = Term(self.u64()?);
        let data = self.bytes()?.to_vec();
        Ok(Entry { index, term, kind, data })
    }

    /// Reads a configuration's body.
    pub fn configuration(&mut self) -> Result<Configuration, DecodeError> {
        Ok(Configuration {
            voters: self.ids()?,
            outgoing: self.ids()?,
            standbys: self.ids()?,
            standbys_next: self.ids()?,
        })
    }

    /// Reads a snapshot's body.
    pub fn snapshot(&mut self) -> Result<Snapshot, DecodeError> {
        Ok(Snapshot {
            index: Index(self.u64()?),
            term: Term(self.u64()?),
            configuration: self.configuration()?,
            data: self.bytes()?.to_vec(),
        })
    }

    /// Everything must have been read.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            extra => Err(DecodeError::Long { extra }),
        }
    }
}

/// Seals a body with version and checksum.
fn seal(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.u8(RECORD_VERSION);
    write(&mut writer);
    let crc = crc32fast::hash(&writer.bytes);
    writer.u32(crc);
    writer.finish()
}

/// Checks version and checksum, and reads the body.
fn unseal<'a, T>(
    bytes: &'a [u8],
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let (sealed, crc) =
        bytes.split_last_chunk::<4>().ok_or(DecodeError::Short { at: bytes.len() })?;
    let (found, computed) = (u32::from_le_bytes(*crc), crc32fast::hash(sealed));
    if found != computed {
        return Err(DecodeError::Checksum { found, computed });
    }
    let mut reader = Reader::new(sealed);
    match reader.u8()? {
        RECORD_VERSION => {}
        version => return Err(DecodeError::Version(version)),
    }
    let value = read(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

/// An entry as it is stored.
#[must_use]
pub fn seal_entry(entry: &Entry) -> Vec<u8> {
    seal(|w| w.entry(entry))
}

/// Reads a stored entry.
pub fn unseal_entry(bytes: &[u8]) -> Result<Entry, DecodeError> {
    unseal(bytes, Reader::entry)
}

/// A hard state as it is stored.
#[must_use]
pub fn seal_hard_state(state: HardState) -> Vec<u8> {
    seal(|w| {
        w.u64(state.term.0);
        w.u64(state.vote.map_or(0, |id| id.0));
        w.u64(state.commit.0);
    })
}

/// Reads a stored hard state.
pub fn unseal_hard_state(bytes: &[u8]) -> Result<HardState, DecodeError> {
    unseal(bytes, |r| {
        let term = Term(r.u64()?);
        let vote = match r.u64()? {
            0 => None,
            id => Some(RaftId(id)),
        };
        Ok(HardState { term, vote, commit: Index(r.u64()?) })
    })
}

/// A snapshot as it is stored.
#[must_use]
pub fn seal_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    seal(|w| w.snapshot(snapshot))
}

/// Reads a stored snapshot.
pub fn unseal_snapshot(bytes: &[u8]) -> Result<Snapshot, DecodeError> {
    unseal(bytes, Reader::snapshot)
}

/// The last position that was cut off, as it is stored.
#[must_use]
pub fn seal_base(base: (Index, Term)) -> Vec<u8> {
    seal(|w| {
        w.u64(base.0.0);
        w.u64(base.1.0);
    })
}

/// Reads the stored last position that was cut off.
pub fn unseal_base(bytes: &[u8]) -> Result<(Index, Term), DecodeError> {
    unseal(bytes, |r| Ok((Index(r.u64()?), Term(r.u64()?))))
}

/// An identity as it is stored.
#[must_use]
pub fn seal_identity(identity: &Identity) -> Vec<u8> {
    seal(|w| {
        w.u64(identity.incarnation);
        w.u64(identity.raft_id.0);
        w.text(&identity.group);
    })
}

/// Reads a stored identity.
pub fn unseal_identity(bytes: &[u8]) -> Result<Identity, DecodeError> {
    unseal(bytes, |r| {
        let incarnation = r.u64()?;
        let raft_id = r.id()?;
        Ok(Identity { group: r.text()?.to_owned(), incarnation, raft_id })
    })
}
