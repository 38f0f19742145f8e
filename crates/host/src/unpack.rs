//! Unpacks an artifact into its own directory, which nothing in the archive can escape.
//!
//! The bytes are verified before any of them is parsed, the [`crate::tree::Tree`] judges every
//! entry before it touches the disk, and [`Inside`] lets the kernel resolve every path below the
//! directory. The archive's author holds a signing key, and still cannot write outside.
//!
//! Everything belongs to the agent's user: the service may read its release, and never change it.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use cohort_base::{FileError, OnPath as _};
use cohort_core::release::Release;
use cohort_core::report::Blame;
use tar::{Archive, Entry, EntryType, PaxExtensions};

use crate::inside::Inside;
use crate::program::RunAs;
use crate::service_file::{SERVICE_FILE, SERVICE_FILE_BYTES_MAX};
use crate::tree::{EntryError, MARKER, Node, PATH_BYTES_MAX, Tree, plain};

/// What an artifact may unpack to, by its signed manifest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnpackLimits {
    /// Total size of its files, in bytes.
    pub(crate) bytes_max: u64,
    /// Files, directories and links.
    pub(crate) entries_max: u32,
}

impl UnpackLimits {
    fn of(release: &Release) -> Self {
        UnpackLimits {
            bytes_max: release.unpacked_bytes.min(BYTES_MAX),
            entries_max: release.entries.min(ENTRIES_MAX),
        }
    }
}

/// What any artifact may unpack to, as at publishing: 64 GiB, 250 000 entries.
const BYTES_MAX: u64 = 64 << 30;
const ENTRIES_MAX: u32 = 250_000;

/// Longest extension header, such as a long name, in bytes. Paths end at 1 KiB; a header holds a
/// few.
const EXTENSION_BYTES_MAX: u64 = 64 * 1024;

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
    /// Not an archive, though these are the signed bytes.
    #[error("the artifact is not a tar archive (plain, gzip or zstd)")]
    NotAnArchive(#[source] io::Error),
    #[error("the artifact's entry `{entry}` is refused")]
    Refused {
        /// Its path in the archive, truncated to 200 characters.
        entry: String,
        source: EntryError,
    },
    #[error("the artifact is refused: it unpacks to more than the {0} bytes that are signed")]
    TooManyBytes(u64),
    #[error("the artifact is refused: it unpacks to more than the {0} files that are signed")]
    TooManyEntries(u32),
    #[error("the artifact is refused: its {SERVICE_FILE} is not text")]
    NotText(#[source] std::string::FromUtf8Error),
}

impl UnpackError {
    pub(crate) fn blame(&self) -> Blame {
        match self {
            UnpackError::Disk(_) | UnpackError::Damaged { .. } => Blame::Surroundings,
            UnpackError::NotAnArchive(_)
            | UnpackError::Refused { .. }
            | UnpackError::TooManyBytes(_)
            | UnpackError::TooManyEntries(_)
            | UnpackError::NotText(_) => Blame::Release,
        }
    }
}

fn refused(entry: &[u8], source: EntryError) -> UnpackError {
    let entry = String::from_utf8_lossy(entry).chars().take(200).collect();
    UnpackError::Refused { entry, source }
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
        tree: Tree::default(),
        limits: UnpackLimits::of(release),
        readers: reader.map(|reader| reader.gid),
        entries: 0,
        bytes: 0,
        service_file: None,
        to_sync: Vec::new(),
    };
    unpacker.all(bytes)?;
    unpacker
        .tree
        .check_links()
        .map_err(|(path, error)| refused(path.as_os_str().as_bytes(), error))?;
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
            let mut decoder = zstd::stream::read::Decoder::with_buffer(file)
                .map_err(UnpackError::NotAnArchive)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(UnpackError::NotAnArchive)?;
            Box::new(decoder)
        }
        [0x1f, 0x8b, _, _] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        _ => Box::new(file),
    })
}

struct Unpacker {
    inside: Inside,
    tree: Tree,
    limits: UnpackLimits,
    /// The group that may read what is not for everybody.
    readers: Option<u32>,
    entries: u32,
    bytes: u64,
    /// The bytes of its `cohort.toml`: read here, where they are the signed ones, and nowhere else.
    service_file: Option<Vec<u8>>,
    /// Files and directories, each after the directory that contains it.
    to_sync: Vec<PathBuf>,
}

/// What extension headers said about the next entry.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Unpacker {
    fn all(&mut self, reader: Box<dyn Read>) -> Result<(), UnpackError> {
        // Data between entries is bounded too: a bomb of zeros is still read.
        let headers = u64::from(ENTRIES_MAX).saturating_mul(4096);
        let mut archive = Archive::new(reader.take(self.limits.bytes_max.saturating_add(headers)));
        // Raw: the library reads extension headers into memory whole, however long they are.
        let entries = archive.entries().map_err(UnpackError::NotAnArchive)?.raw(true);
        let mut extension = Extension::default();
        for entry in entries {
            let mut entry = entry.map_err(UnpackError::NotAnArchive)?;
            match entry.header().entry_type() {
                EntryType::XGlobalHeader => {}
                EntryType::GNULongName => extension.path = Some(long_name(&mut entry)?),
                EntryType::GNULongLink => extension.link = Some(long_name(&mut entry)?),
                EntryType::XHeader => read_pax(&mut entry, &mut extension)?,
                _ => {
                    let extension = std::mem::take(&mut extension);
                    self.one(&mut entry, extension)?;
                }
            }
        }
        if self.entries == 0 {
            return Err(UnpackError::NotAnArchive(io::Error::other("no entries")));
        }
        Ok(())
    }

    fn one(&mut self, entry: &mut Raw<'_>, extension: Extension) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            return Err(UnpackError::TooManyEntries(self.limits.entries_max));
        }
        let header = entry.header().clone();
        let name = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let refuse = |error: EntryError| refused(&name, error);
        let path = plain(&name).map_err(refuse)?;
        if path.as_os_str().is_empty() {
            // `./`: the directory itself.
            let is_folder = header.entry_type().is_dir();
            return if is_folder { Ok(()) } else { Err(refuse(EntryError::Empty)) };
        }
        let is_within = |own| path.starts_with(own) && path != Path::new(own);
        if path.starts_with(MARKER) || is_within(SERVICE_FILE) {
            return Err(refuse(EntryError::Reserved));
        }
        for parent in self.tree.missing_parents(&path).map_err(refuse)? {
            self.folder(&parent)?;
        }
        let link = extension.link.or_else(|| header.link_name_bytes().map(Cow::into_owned));
        let kind = header.entry_type();
        if path == Path::new(SERVICE_FILE) {
            let is_file = matches!(kind, EntryType::Regular | EntryType::Continuous);
            if !is_file || entry.size() > SERVICE_FILE_BYTES_MAX {
                return Err(refuse(EntryError::ServiceFile));
            }
        }
        let node = self.judge(kind, &path, &link.unwrap_or_default());
        match node.map_err(refuse)? {
            Judged::Known => Ok(()),
            Judged::Folder => self.folder(&path),
            Judged::File => {
                // Never setuid, setgid or sticky, and never writable by others.
                let mode = header.mode().unwrap_or(0o644) & 0o755 | 0o600;
                // What its author kept from everybody but the owner, the service may read.
                let owners = if self.readers.is_some() { (mode & 0o500) >> 3 } else { 0 };
                self.file(entry, path, mode | owners)
            }
            Judged::Symlink(target) => Ok(self.inside.symlink(&target, &path)?),
            Judged::HardLink(target) => Ok(self.inside.hard_link(&target, &path)?),
        }
    }

    /// Adds an entry to the tree, or refuses it.
    fn judge(&mut self, kind: EntryType, path: &Path, link: &[u8]) -> Result<Judged, EntryError> {
        match kind {
            EntryType::Directory => {
                let added = self.tree.add(path, Node::Folder)?;
                Ok(if added { Judged::Folder } else { Judged::Known })
            }
            EntryType::Regular | EntryType::Continuous => {
                self.tree.add(path, Node::File)?;
                Ok(Judged::File)
            }
            EntryType::Symlink => {
                if link.is_empty() || link.contains(&0) || link.len() > PATH_BYTES_MAX {
                    return Err(EntryError::LinkTarget);
                }
                let target = PathBuf::from(OsStr::from_bytes(link));
                self.tree.add(path, Node::Link(target.clone()))?;
                Ok(Judged::Symlink(target))
            }
            EntryType::Link => {
                let target = plain(link)?;
                self.tree.check_hard_link(&target)?;
                self.tree.add(path, Node::File)?;
                Ok(Judged::HardLink(target))
            }
            _ => Err(EntryError::Kind),
        }
    }

    fn folder(&mut self, path: &Path) -> Result<(), UnpackError> {
        self.inside.folder(path)?;
        self.to_sync.push(path.to_owned());
        Ok(())
    }

    fn file(&mut self, entry: &mut Raw<'_>, path: PathBuf, mode: u32) -> Result<(), UnpackError> {
        let most = self.limits.bytes_max;
        // Its claimed size is checked first, so that a bomb does not even start to fill the disk.
        if self.bytes.saturating_add(entry.size()) > most {
            return Err(UnpackError::TooManyBytes(most));
        }
        let mut file = self.inside.file(&path)?;
        let mut kept = (path == Path::new(SERVICE_FILE)).then(Vec::new);
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let count = entry.read(&mut buffer).map_err(UnpackError::NotAnArchive)?;
            if count == 0 {
                break;
            }
            self.bytes = self.bytes.saturating_add(count as u64);
            if self.bytes > most {
                return Err(UnpackError::TooManyBytes(most));
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
        if self.entries <= SYNC_EACH_FILES_MAX {
            self.to_sync.push(path);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), FileError> {
        if self.entries > SYNC_EACH_FILES_MAX {
            return self.inside.sync_everything();
        }
        // A file is synced by its path, like a directory.
        let mut to_sync = self.to_sync.iter().rev();
        to_sync.try_for_each(|path| self.inside.sync(path))
    }
}

/// What to put on disk for an entry.
enum Judged {
    /// Nothing: the directory exists already.
    Known,
    Folder,
    File,
    Symlink(PathBuf),
    /// To an earlier file of the archive.
    HardLink(PathBuf),
}

type Raw<'a> = Entry<'a, io::Take<Box<dyn Read>>>;

fn extension_bytes(entry: &mut Raw<'_>) -> Result<Vec<u8>, UnpackError> {
    if entry.size() > EXTENSION_BYTES_MAX {
        let name = entry.header().path_bytes().into_owned();
        return Err(refused(&name, EntryError::LongExtension));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(UnpackError::NotAnArchive)?;
    Ok(bytes)
}

fn long_name(entry: &mut Raw<'_>) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = extension_bytes(entry)?;
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

fn read_pax(entry: &mut Raw<'_>, extension: &mut Extension) -> Result<(), UnpackError> {
    let bytes = extension_bytes(entry)?;
    for record in PaxExtensions::new(&bytes) {
        let record = record.map_err(UnpackError::NotAnArchive)?;
        let value = record.value_bytes().to_vec();
        match record.key_bytes() {
            b"path" => extension.path = Some(value),
            b"linkpath" => extension.link = Some(value),
            // The header's size counts here. With a second one, two readers could see two different
            // archives; the same goes for sparse files.
            b"size" => return Err(refused(&value, EntryError::SizeTwice)),
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(refused(key, EntryError::Sparse));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "unpack_test.rs"]
mod unpack_test;
