//! The publisher's side: makes a delta, and verifies it by applying it.

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
use crate::units::{UnitHashes, hash_reader};

/// Most worker threads: each needs about 300 MiB.
const WORKERS_MAX: usize = 4;

/// Longest delta, in percent of the artifact: the saving must be worth the work of a whole fleet.
const SHARE_MAX: u64 = 60;

/// Makes deltas to one artifact.
#[derive(Debug)]
pub struct DeltaMaker {
    method: Method,
    root: Digest,
    length: u64,
    archive: Unpacked,
    members: Vec<Member>,
    scratch: PathBuf,
}

impl DeltaMaker {
    /// Unpacks and indexes the target artifact. `scratch` is a directory with room for its unpacked
    /// archive. Blocking.
    ///
    /// Returns `None` if servers cannot reproduce its compression.
    ///
    /// # Errors
    /// If a file cannot be read or written.
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

    /// How the deltas are applied.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// Writes the delta from `base` to the empty file `out`, verifies it, and returns its hashes.
    /// Blocking.
    ///
    /// Returns `None` if it would be longer than three fifths of the artifact.
    ///
    /// # Errors
    /// If a file cannot be read or written; [`DeltaError::Stopped`] once `stopped` says so.
    pub fn delta_from(
        &self,
        base: &Path,
        out: &File,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<UnitHashes>, DeltaError> {
        let most = self.length * SHARE_MAX / 100;
        if !self.write_delta(base, out, most, stopped)? {
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
            stopped,
        };
        apply_delta(&input, &mut io::sink())?;
        reader.seek(SeekFrom::Start(0)).map_err(DeltaError::Delta)?;
        hash_reader(&mut reader).map(Some).map_err(DeltaError::Delta)
    }

    /// Writes the delta; false if it exceeds `most` bytes.
    fn write_delta(
        &self,
        base: &Path,
        out: &File,
        most: u64,
        stopped: &(dyn Fn() -> bool + Sync),
    ) -> Result<bool, DeltaError> {
        let old = unpack(base, &self.scratch, ARCHIVE_BYTES_MAX, stopped)?;
        let old_members = members(&old.file, old.length).map_err(DeltaError::Base)?;
        let records = records(&old_members, &self.members);
        let mut out = BufWriter::new(out);
        let header = Header { old_length: old.length, new_length: self.archive.length };
        write_header(&mut out, header).map_err(DeltaError::Delta)?;
        let workers = thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
        for batch in records.chunks(workers) {
            if stopped() {
                return Err(DeltaError::Stopped);
            }
            let bodies = thread::scope(|scope| {
                let bodies: Vec<_> =
                    batch.iter().map(|record| scope.spawn(|| self.body(&old, record))).collect();
                let joined = bodies.into_iter().map(|body| {
                    body.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked")))
                });
                joined.collect::<io::Result<Vec<Body>>>()
            });
            for body in bodies.map_err(DeltaError::Base)? {
                write_body(&mut out, &body).map_err(DeltaError::Delta)?;
            }
            if out.stream_position().map_err(DeltaError::Delta)? > most {
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
