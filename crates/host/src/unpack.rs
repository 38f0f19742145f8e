//! Unpacks an artifact into its own directory, which nothing in the archive can escape.
//!
//! The bytes are verified before any of them is parsed, [`cohort_base::archive`] judges every entry
//! before it touches the disk, and [`Inside`] lets the kernel resolve every path below the
//! directory. The archive's author holds a signing key, and still cannot write outside.
//!
//! Everything belongs to the agent's user: the service may read its release, and never change it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use cohort_base::archive::{ArchiveLimits, Judge, Judged, Kind, Refused, SERVICE_FILE};
use cohort_base::{FileError, OnPath as _};
use cohort_core::release::Release;
use cohort_core::report::Blame;
use tar::Archive;

use crate::inside::Inside;
use crate::program::RunAs;

/// What an artifact may unpack to, by its signed manifest.
fn limits_of(release: &Release) -> ArchiveLimits {
    ArchiveLimits {
        bytes_max: release.unpacked_bytes.min(BYTES_MAX),
        entries_max: release.entries.min(ENTRIES_MAX),
    }
}

/// What any artifact may unpack to, as at publishing: 64 GiB, 250 000 entries.
const BYTES_MAX: u64 = 64 << 30;
const ENTRIES_MAX: u32 = 250_000;

/// Up to this many files are synced one by one; beyond that, the whole file system is synced once.
const SYNC_EACH_FILES_MAX: u32 = 256;

/// Largest zstd window: 128 MiB, its default for streams, to bound memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

const COPY_BYTES: usize = 64 * 1024;

/// Why an artifact was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error(transparent)]
    Disk(#[from] FileError),
    /// The bytes on this server's disk are not the signed ones.
    #[error("artifact {} on disk is damaged: its digest is {found}", path.display())]
    Damaged { path: PathBuf, found: String },
    /// These are the signed bytes, and nothing that a publisher of ours would sign.
    #[error("the artifact is refused")]
    Refused(#[from] Refused),
    #[error("the artifact is refused: its {SERVICE_FILE} is not text")]
    NotText(#[source] std::string::FromUtf8Error),
}

impl UnpackError {
    pub(crate) fn blame(&self) -> Blame {
        match self {
            UnpackError::Disk(_) | UnpackError::Damaged { .. } => Blame::Surroundings,
            UnpackError::Refused(_) | UnpackError::NotText(_) => Blame::Release,
        }
    }
}

fn unreadable(error: io::Error) -> UnpackError {
    UnpackError::Refused(Refused::Unreadable(error))
}

/// Verifies the artifact and unpacks it into `part`, which must not exist; returns the text of its
/// `cohort.toml`. The group of `reader` may read what is not for everybody. Blocking.
///
/// No more is written than the release's manifest says, whatever the archive holds.
///
/// On return, everything in `part` is durable; the directory above is not synced.
pub(crate) fn unpack(
    artifact: &Path,
    release: &Release,
    part: &Path,
    reader: Option<RunAs>,
) -> Result<Option<String>, UnpackError> {
    let mut file = File::open(artifact).on_path("open", artifact)?;
    verify(&mut file, artifact, release)?;
    let bytes = decompressed(file, artifact)?;
    let mut unpacker = Unpacker {
        inside: Inside::create(part)?,
        judge: Judge::new(limits_of(release)),
        readers: reader.map(|reader| reader.gid),
        service_file: None,
        to_sync: Vec::new(),
    };
    unpacker.all(bytes, limits_of(release).bytes_max)?;
    unpacker.judge.finish()?;
    // Inaccessible until every file is on disk.
    unpacker.sync()?;
    unpacker.inside.open_up()?;
    unpacker.inside.sync(Path::new("."))?;
    let service_file = unpacker.service_file.map(String::from_utf8);
    service_file.transpose().map_err(UnpackError::NotText)
}

/// Compares length and digest with the signed ones.
fn verify(file: &mut File, path: &Path, release: &Release) -> Result<(), UnpackError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&*file).on_path("read", path)?;
    let found = hasher.finalize().to_hex();
    if found.as_str() != release.artifact.as_str() || hasher.count() != release.length {
        let found = format!("{found} ({} bytes)", hasher.count());
        return Err(UnpackError::Damaged { path: path.to_owned(), found });
    }
    file.seek(SeekFrom::Start(0)).on_path("read", path)?;
    Ok(())
}

/// The archive's bytes; the first four identify the compression.
fn decompressed(mut file: File, path: &Path) -> Result<Box<dyn Read>, UnpackError> {
    let mut magic = Vec::new();
    (&file).take(4).read_to_end(&mut magic).on_path("read", path)?;
    file.seek(SeekFrom::Start(0)).on_path("read", path)?;
    let file = BufReader::with_capacity(COPY_BYTES, file);
    Ok(match magic[..] {
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(file).map_err(unreadable)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(unreadable)?;
            Box::new(decoder)
        }
        [0x1f, 0x8b, _, _] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        _ => Box::new(file),
    })
}

struct Unpacker {
    inside: Inside,
    judge: Judge,
    /// The group that may read what is not for everybody.
    readers: Option<u32>,
    /// The bytes of its `cohort.toml`: read here, where they are the signed ones, and nowhere else.
    service_file: Option<Vec<u8>>,
    /// Files and directories, each after the directory that contains it.
    to_sync: Vec<PathBuf>,
}

impl Unpacker {
    fn all(&mut self, reader: Box<dyn Read>, bytes_max: u64) -> Result<(), UnpackError> {
        // Data between entries is bounded too: a bomb of zeros is still read.
        let headers = u64::from(ENTRIES_MAX).saturating_mul(4096);
        let mut archive = Archive::new(reader.take(bytes_max.saturating_add(headers)));
        for entry in archive.entries().map_err(unreadable)?.raw(true) {
            let mut entry = entry.map_err(unreadable)?;
            if let Some(judged) = self.judge.next(&mut entry)? {
                self.one(&mut entry, judged)?;
            }
        }
        Ok(())
    }

    fn one(&mut self, entry: &mut impl Read, judged: Judged) -> Result<(), UnpackError> {
        let Judged { parents, path, kind, lost: _ } = judged;
        for parent in parents {
            self.folder(&parent)?;
        }
        match kind {
            Kind::Folder => self.folder(&path),
            Kind::File { mode, bytes } => {
                // What its author kept from everybody but the owner, the service may read.
                let owners = if self.readers.is_some() { (mode & 0o500) >> 3 } else { 0 };
                self.file(&mut entry.take(bytes), path, mode | owners)
            }
            Kind::Symlink(target) => Ok(self.inside.symlink(&target, &path)?),
            Kind::HardLink(target) => Ok(self.inside.hard_link(&target, &path)?),
        }
    }

    fn folder(&mut self, path: &Path) -> Result<(), UnpackError> {
        self.inside.folder(path)?;
        self.to_sync.push(path.to_owned());
        Ok(())
    }

    fn file(&mut self, entry: &mut impl Read, path: PathBuf, mode: u32) -> Result<(), UnpackError> {
        let mut file = self.inside.file(&path)?;
        let mut kept = (path == Path::new(SERVICE_FILE)).then(Vec::new);
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let count = entry.read(&mut buffer).map_err(unreadable)?;
            if count == 0 {
                break;
            }
            file.write_all(&buffer[..count]).on_path("write", &path)?;
            if let Some(kept) = &mut kept {
                kept.extend_from_slice(&buffer[..count]);
            }
        }
        if kept.is_some() {
            self.service_file = kept;
        }
        self.inside.finish_file(&file, &path, mode, self.readers)?;
        if self.judge.entries() <= SYNC_EACH_FILES_MAX {
            self.to_sync.push(path);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), FileError> {
        if self.judge.entries() > SYNC_EACH_FILES_MAX {
            return self.inside.sync_everything();
        }
        // A file is synced by its path, like a directory.
        let mut to_sync = self.to_sync.iter().rev();
        to_sync.try_for_each(|path| self.inside.sync(path))
    }
}

#[cfg(test)]
#[path = "unpack_test.rs"]
mod unpack_test;
