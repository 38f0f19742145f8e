//! The publisher's side: a delta, proven before it is given out.

use std::fs::File;
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;

use cohort_core::ids::Digest;

use super::DeltaError;
use super::apply::{DeltaInput, apply_delta};
use super::archive::{Unpacked, method_of, unpack};
use super::format::{ARCHIVE_BYTES_MAX, Body, Header, write_body, write_header};
use super::layout::{Member, Record, members, records};
use super::matching::steps;
use super::method::Method;
use super::segment::pack;
use crate::units::{FileHashes, hash_reader};

/// Processors that take part: each needs some 300 MiB.
const WORKERS_MAX: usize = 4;

/// A delta must be shorter than this share of the artifact, in hundredths: what it saves must be
/// worth the work of a whole fleet.
const SHARE_MAX: u64 = 60;

/// Makes deltas towards one artifact.
#[derive(Debug)]
pub struct DeltaMaker {
    method: Method,
    root: Digest,
    length: u64,
    archive: Unpacked,
    members: Vec<Member>,
    scratch: PathBuf,
}

/// A delta that was made and proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeDelta {
    /// How it is applied, for the manifest.
    pub method: String,
    /// Its hashes.
    pub hashes: FileHashes,
}

impl DeltaMaker {
    /// Looks into the artifact that deltas are to lead to. `scratch` is a folder with room for its
    /// archive, unpacked. Blocking.
    ///
    /// Nothing when it is compressed in a way that servers could not repeat.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn new(
        artifact: &Path,
        root: &Digest,
        length: u64,
        scratch: &Path,
    ) -> Result<Option<Self>, DeltaError> {
        let archive = unpack(artifact, scratch, ARCHIVE_BYTES_MAX, &|| false)?;
        let Some(method) = method_of(artifact, &archive).map_err(DeltaError::Scratch)? else {
            return Ok(None);
        };
        let members = members(&archive.file, archive.length).map_err(DeltaError::Scratch)?;
        let (root, scratch) = (root.clone(), scratch.to_owned());
        Ok(Some(Self { method, root, length, archive, members, scratch }))
    }

    /// Writes the delta from `base` into the empty file `out`, and proves it. Blocking.
    ///
    /// Nothing when it would be longer than three fifths of the artifact.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn delta_from(&self, base: &Path, out: &File) -> Result<Option<MadeDelta>, DeltaError> {
        let most = self.length * SHARE_MAX / 100;
        if !self.write_delta(base, out, most)? {
            return Ok(None);
        }
        let mut reader = out;
        reader.seek(SeekFrom::Start(0)).map_err(DeltaError::Delta)?;
        let input = DeltaInput {
            base,
            delta: out,
            method: self.method,
            root: &self.root,
            length: self.length,
            scratch: &self.scratch,
            scratch_bytes_max: ARCHIVE_BYTES_MAX,
            stopped: &|| false,
        };
        apply_delta(&input, &mut io::sink())?;
        reader.seek(SeekFrom::Start(0)).map_err(DeltaError::Delta)?;
        let hashes = hash_reader(&mut reader).map_err(DeltaError::Delta)?;
        Ok(Some(MadeDelta { method: self.method.to_string(), hashes }))
    }

    /// False when it came to more than `most` bytes.
    fn write_delta(&self, base: &Path, out: &File, most: u64) -> Result<bool, DeltaError> {
        let old = unpack(base, &self.scratch, ARCHIVE_BYTES_MAX, &|| false)?;
        let old_members = members(&old.file, old.length).map_err(DeltaError::Base)?;
        let records = records(&old_members, &self.members);
        let mut out = Counted { out: BufWriter::new(out), count: 0 };
        let header = Header { old_length: old.length, new_length: self.archive.length };
        write_header(&mut out, header).map_err(DeltaError::Delta)?;
        let workers = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
        for batch in records.chunks(workers) {
            let bodies = thread::scope(|scope| {
                let bodies: Vec<_> =
                    batch.iter().map(|record| scope.spawn(|| self.body(&old, record))).collect();
                let joined = bodies.into_iter().map(|body| {
                    body.join().unwrap_or_else(|_| Err(io::Error::other("a worker broke down")))
                });
                joined.collect::<io::Result<Vec<Body>>>()
            });
            for body in bodies.map_err(DeltaError::Base)? {
                write_body(&mut out, &body).map_err(DeltaError::Delta)?;
            }
            if out.count > most {
                return Ok(false);
            }
        }
        out.flush().map_err(DeltaError::Delta)?;
        Ok(true)
    }

    fn body(&self, old: &Unpacked, record: &Record) -> io::Result<Body> {
        match record {
            Record::Copy { from, length } => Ok(Body::Copy { from: *from, length: *length }),
            Record::Patch { window, new } => {
                let read = |archive: &Unpacked, at: u64, end: u64| -> io::Result<Vec<u8>> {
                    let length = usize::try_from(end - at).map_err(io::Error::other)?;
                    let mut bytes = vec![0; length];
                    archive.read_at(at, &mut bytes)?;
                    Ok(bytes)
                };
                let old = read(old, window.start, window.end)?;
                let new = read(&self.archive, new.start, new.end)?;
                let packed = pack(&old, &new, &steps(&old, &new))?;
                let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(io::Error::other);
                let (window_length, length) = (length(&old)?, length(&new)?);
                Ok(Body::Patch { from: window.start, window: window_length, length, packed })
            }
        }
    }
}

/// Counts what goes through.
struct Counted<W> {
    out: W,
    count: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
