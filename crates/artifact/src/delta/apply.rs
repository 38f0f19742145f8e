//! The server's side: the new artifact out of the old one and a delta.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write};
use std::path::Path;

use cohort_core::ids::Digest;

use super::DeltaError;
use super::archive::{Compress, Unpacked, unpack};
use super::format::{Body, read_body, read_header};
use super::method::Method;
use super::segment::{self, Old};
use crate::units::{FileHashes, UnitHasher};

/// Copied at once, in bytes.
const PIECE_BYTES: usize = 256 << 10;

/// Everything that a delta is applied with.
pub struct DeltaInput<'a> {
    /// The artifact that the delta starts from, whole.
    pub base: &'a Path,
    /// The delta, at its beginning.
    pub delta: &'a File,
    /// How it is applied, as the manifest says.
    pub method: Method,
    /// Root of the artifact that comes of it.
    pub root: &'a Digest,
    /// Its length in bytes.
    pub length: u64,
    /// A folder with room for the old archive, unpacked, in a file without a name.
    pub scratch: &'a Path,
    /// Most bytes that this may take.
    pub scratch_bytes_max: u64,
    /// Asked again and again; true ends the work.
    pub stopped: &'a (dyn Fn() -> bool + Sync),
}

/// Writes the new artifact to `out`, and gives its hashes. Blocking.
///
/// What was written is the signed artifact only when this succeeds; never more than its length is
/// written. Needs memory for one segment (some 100 MiB at the very most, some 10 MiB usually) and,
/// where the old artifact is compressed, disk for its archive.
///
/// # Errors
/// When the delta is not for this base, is damaged, or what it makes is not the artifact.
pub fn apply_delta(input: &DeltaInput<'_>, out: &mut impl Write) -> Result<FileHashes, DeltaError> {
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
    let hashes = hashed
        .hasher
        .finish()
        .filter(|hashes| hashes.root == *input.root && hashes.length == input.length);
    hashes.ok_or(DeltaError::Wrong)
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

struct Window<'a> {
    old: &'a Unpacked,
    from: u64,
    length: u64,
}

impl Old for Window<'_> {
    fn read(&self, at: u64, piece: &mut [u8]) -> io::Result<()> {
        self.old.read_at(self.from + at, piece)
    }

    fn length(&self) -> u64 {
        self.length
    }
}

/// Hashes what goes through, and ends at the length that was signed.
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
            .ok_or_else(|| io::Error::other("it is longer than the artifact that was signed"))?;
        self.hasher.update(bytes);
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
