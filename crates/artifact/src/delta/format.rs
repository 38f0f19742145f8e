//! Header and records; [`super`] shows them byte by byte.

use std::io::{self, Read, Write};

use super::DeltaError;
use super::layout::{SEGMENT_BYTES_MAX, WINDOW_BYTES_MAX};
use super::segment::{Packed, STREAMS_BYTES_MAX};
use crate::manifest::{ENTRIES_MAX, UNPACKED_BYTES_MAX};

const MAGIC: &[u8; 8] = b"COHDELT1";

const COPY: u8 = 0;
const PATCH: u8 = 1;

/// Longest archive, in bytes: the most an artifact may unpack to, plus headers and padding.
pub(super) const ARCHIVE_BYTES_MAX: u64 = UNPACKED_BYTES_MAX + ENTRIES_MAX as u64 * 4096;

/// Longest frame, in bytes: incompressible data grows by less than 1 %.
const FRAME_BYTES_MAX: u32 = (STREAMS_BYTES_MAX + (STREAMS_BYTES_MAX >> 6)) as u32;

/// The first 24 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) old_length: u64,
    pub(super) new_length: u64,
}

/// A record, with the frame of a patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body {
    Copy { from: u64, length: u64 },
    Patch { from: u64, window: u32, length: u32, packed: Packed },
}

impl Body {
    /// Number of bytes it produces.
    pub(super) fn length(&self) -> u64 {
        match self {
            Self::Copy { length, .. } => *length,
            Self::Patch { length, .. } => u64::from(*length),
        }
    }
}

pub(super) fn write_header(out: &mut dyn Write, header: Header) -> io::Result<()> {
    out.write_all(MAGIC)?;
    out.write_all(&header.old_length.to_le_bytes())?;
    out.write_all(&header.new_length.to_le_bytes())
}

pub(super) fn write_body(out: &mut dyn Write, body: &Body) -> io::Result<()> {
    match body {
        Body::Copy { from, length } => {
            out.write_all(&[COPY])?;
            out.write_all(&from.to_le_bytes())?;
            out.write_all(&length.to_le_bytes())
        }
        Body::Patch { from, window, length, packed } => {
            let frame = u32::try_from(packed.bytes.len())
                .map_err(|_| io::Error::other("a frame of 4 GiB"))?;
            out.write_all(&[PATCH])?;
            out.write_all(&from.to_le_bytes())?;
            for number in [*window, *length].into_iter().chain(packed.lengths).chain([frame]) {
                out.write_all(&number.to_le_bytes())?;
            }
            out.write_all(&packed.bytes)
        }
    }
}

pub(super) fn read_header(reader: &mut impl Read) -> Result<Header, DeltaError> {
    let magic: [u8; 8] = read(reader)?;
    if magic != *MAGIC {
        return Err(DeltaError::Malformed { what: "another file than a delta" });
    }
    let old_length = u64::from_le_bytes(read(reader)?);
    let new_length = u64::from_le_bytes(read(reader)?);
    if old_length.max(new_length) > ARCHIVE_BYTES_MAX {
        let (what, limit_bytes) = ("an archive of the delta", ARCHIVE_BYTES_MAX);
        return Err(DeltaError::TooLong { what, limit_bytes });
    }
    Ok(Header { old_length, new_length })
}

/// Reads the next record and checks that its lengths respect the limits and the archives.
pub(super) fn read_body(
    reader: &mut impl Read,
    old_length: u64,
    left: u64,
) -> Result<Body, DeltaError> {
    let malformed = |what| DeltaError::Malformed { what };
    let [kind] = read(reader)?;
    let from = u64::from_le_bytes(read(reader)?);
    let within = |length: u64| from.checked_add(length).is_some_and(|end| end <= old_length);
    let body = match kind {
        COPY => {
            let length = u64::from_le_bytes(read(reader)?);
            if !within(length) {
                return Err(malformed("a copy from beyond the end"));
            }
            Body::Copy { from, length }
        }
        PATCH => {
            let mut numbers = [0; 7];
            for number in &mut numbers {
                *number = u32::from_le_bytes(read(reader)?);
            }
            let [window, length, lengths @ .., frame] = numbers;
            if !within(u64::from(window)) || u64::from(window) > WINDOW_BYTES_MAX {
                return Err(malformed("a window beyond the end, or longer than 32 MiB"));
            }
            if u64::from(length) > SEGMENT_BYTES_MAX || frame > FRAME_BYTES_MAX {
                return Err(malformed("a segment that is longer than it may be"));
            }
            let mut bytes = Vec::new();
            // Allocates as bytes arrive, not by the announced length.
            reader.by_ref().take(u64::from(frame)).read_to_end(&mut bytes).map_err(failed)?;
            if bytes.len() != frame as usize {
                return Err(malformed("an end in the middle of a record"));
            }
            Body::Patch { from, window, length, packed: Packed { lengths, bytes } }
        }
        _ => return Err(malformed("a record of an unknown kind")),
    };
    if body.length() == 0 || body.length() > left {
        return Err(malformed("a record of no possible length"));
    }
    Ok(body)
}

fn read<const N: usize>(reader: &mut impl Read) -> Result<[u8; N], DeltaError> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn failed(error: io::Error) -> DeltaError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            DeltaError::Malformed { what: "an end in the middle of a record" }
        }
        _ => DeltaError::Delta(error),
    }
}
