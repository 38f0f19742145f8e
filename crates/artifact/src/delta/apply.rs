//! The server's side: builds the new artifact from the old one and a delta.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write};
use std::path::Path;

use cohort_core::ids::Digest;

use super::DeltaError;
use super::archive::{Compress, Unpacked, Window, unpack};
use super::format::{Body, read_body, read_header};
use super::method::Method;
use super::segment;
use crate::units::{UnitHasher, UnitHashes};

/// Bytes copied at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Inputs of [`apply_delta`]: files, the signed root and length, and limits.
pub struct DeltaInput<'a> {
    /// The artifact that the delta starts from, whole.
    pub base: &'a Path,
    /// The delta; read from its current position, which must be its start.
    pub delta: &'a File,
    /// How to apply it, according to the manifest.
    pub method: Method,
    pub root: &'a Digest,
    pub length: u64,
    /// A directory with room for the unpacked old archive, which goes into an unnamed file.
    pub scratch: &'a Path,
    pub scratch_bytes_max: u64,
    /// Polled while working; returning true aborts.
    pub stopped: &'a (dyn Fn() -> bool + Sync),
}

/// Writes the new artifact to `out` and returns its hashes. Blocks.
///
/// Only on success is the output the signed artifact; never writes more than its length. Needs
/// memory for one segment (typically 10 MiB, at most 100 MiB) and, if the old artifact is
/// compressed, disk space for its archive.
///
/// # Errors
/// If the delta is not for this base, is damaged, or does not produce the artifact.
pub fn apply_delta(input: &DeltaInput<'_>, out: &mut impl Write) -> Result<UnitHashes, DeltaError> {
    let mut reader = BufReader::with_capacity(PIECE_BYTES, input.delta);
    let header = read_header(&mut reader)?;
    if header.old_length > input.scratch_bytes_max {
        let limit_bytes = input.scratch_bytes_max;
        return Err(DeltaError::TooLong { what: "the unpacked archive", limit_bytes });
    }
    let old = unpack(input.base, input.scratch, header.old_length, input.stopped);
    let old = match old {
        Err(DeltaError::TooLong { .. }) => return Err(DeltaError::OtherBase),
        old => old?,
    };
    if old.length != header.old_length {
        return Err(DeltaError::OtherBase);
    }
    let mut hashed = Hashed {
        out: BufWriter::with_capacity(PIECE_BYTES, out),
        hasher: UnitHasher::default(),
        left: input.length,
    };
    let compressing = Compress::new(&mut hashed, input.method.zstd);
    let mut compressing = compressing.map_err(DeltaError::Result)?;
    let mut left = header.new_length;
    while left > 0 {
        if (input.stopped)() {
            return Err(DeltaError::Stopped);
        }
        let body = read_body(&mut reader, header.old_length, left)?;
        left -= body.length();
        match body {
            Body::Copy { from, length } => {
                copy(&old, from, length, &mut compressing, input.stopped)?;
            }
            Body::Patch { from, window, length, packed } => {
                let window = Window { old: &old, from, length: u64::from(window) };
                segment::unpack(&window, &packed, u64::from(length), &mut compressing)?;
            }
        }
    }
    if reader.read(&mut [0]).map_err(DeltaError::Delta)? > 0 {
        return Err(DeltaError::Malformed { what: "more than the archive needs" });
    }
    compressing.finish().map_err(DeltaError::Result)?;
    hashed.out.flush().map_err(DeltaError::Result)?;
    let right =
        |hashes: &UnitHashes| hashes.root() == input.root && hashes.length() == input.length;
    hashed.hasher.finish().filter(right).ok_or(DeltaError::Wrong)
}

fn copy(
    old: &Unpacked,
    from: u64,
    length: u64,
    out: &mut dyn Write,
    stopped: &dyn Fn() -> bool,
) -> Result<(), DeltaError> {
    let mut piece = vec![0; PIECE_BYTES];
    let (mut at, end) = (from, from + length);
    while at < end {
        if stopped() {
            return Err(DeltaError::Stopped);
        }
        let count = usize::try_from(end - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let piece = &mut piece[..count];
        old.read_at(at, piece).map_err(DeltaError::Base)?;
        out.write_all(piece).map_err(DeltaError::Result)?;
        at += count as u64;
    }
    Ok(())
}

/// Hashes the bytes it forwards, and fails beyond the signed length.
struct Hashed<W: Write> {
    out: BufWriter<W>,
    hasher: UnitHasher,
    left: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other("longer than the signed artifact"))?;
        self.hasher.update(bytes);
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
