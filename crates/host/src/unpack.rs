//! Unpacking an artifact into a folder of its own, which nothing in the archive can leave.
//!
//! The bytes are verified before the first of them is parsed. Every entry is judged by the
//! [`crate::tree::Tree`] before it touches the disk; whoever wrote the archive holds a signing key,
//! and still gets nothing outside the folder.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use cohort_core::release::Release;
use cohort_core::report::Blame;
use tar::{Archive, Entry, EntryType, PaxExtensions};

use crate::program::RunAs;
use crate::releases::MARKER;
use crate::tree::{Node, Tree, TreeError, plain};

/// What an artifact may unpack to at the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Bytes of all its files.
    pub bytes_max: u64,
    /// Files, folders and links.
    pub entries_max: u32,
}

impl Default for UnpackLimits {
    /// What is refused at publishing as well: 64 GiB, 250 000 entries.
    fn default() -> Self {
        UnpackLimits { bytes_max: 64 << 30, entries_max: 250_000 }
    }
}

/// Longest extension header (long names). Paths end at 1 KiB; records hold a few of them.
const EXTENSION_BYTES_MAX: u64 = 64 * 1024;

/// Files up to which each is synced by itself; with more, the file system is synced once.
const SYNC_EACH_FILES_MAX: u32 = 256;

/// Largest window of zstd: 128 MiB, its own default for streams, so that memory is bounded.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

const COPY_BYTES: usize = 64 * 1024;

/// Why an artifact was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// This server's disk.
    #[error("{} cannot be {what}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The bytes on this server's disk are not those that were signed.
    #[error("artifact {} on disk is damaged: its digest is {found}", path.display())]
    Damaged {
        /// The artifact's file.
        path: PathBuf,
        /// The digest of what is there.
        found: String,
    },
    /// Not an archive, though it is what was signed.
    #[error("the artifact is not a tar archive (plain, gzip or zstd)")]
    NotAnArchive(#[source] io::Error),
    /// An entry that must not be.
    #[error("the artifact's entry `{entry}` is refused: {reason}")]
    Refused {
        /// Its path as it stands in the archive, cut to 200 characters.
        entry: String,
        /// What it does.
        reason: String,
    },
    /// Too much.
    #[error("the artifact is refused: it unpacks to more than {most} {what}")]
    TooMuch {
        /// The limit.
        most: u64,
        /// Of what.
        what: &'static str,
    },
}

impl UnpackError {
    /// Whose fault it is.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            UnpackError::Io { .. } | UnpackError::Damaged { .. } => Blame::Surroundings,
            UnpackError::NotAnArchive(_)
            | UnpackError::Refused { .. }
            | UnpackError::TooMuch { .. } => Blame::Release,
        }
    }
}

fn disk<'a>(path: &'a Path, what: &'static str) -> impl FnOnce(io::Error) -> UnpackError + 'a {
    move |source| UnpackError::Io { path: path.to_owned(), what, source }
}

#[expect(clippy::needless_pass_by_value, reason = "given to `map_err`")]
fn refused(entry: &[u8], reason: impl ToString) -> UnpackError {
    let entry = String::from_utf8_lossy(entry).chars().take(200).collect();
    UnpackError::Refused { entry, reason: reason.to_string() }
}

/// Verifies the artifact and unpacks it into `part`, which must not exist. Blocking.
///
/// When it returns, everything in `part` is on the disk; the folder above is not synced.
pub(crate) fn unpack(
    artifact: &Path,
    release: &Release,
    part: &Path,
    limits: UnpackLimits,
    owner: Option<RunAs>,
) -> Result<(), UnpackError> {
    let mut file = File::open(artifact).map_err(disk(artifact, "opened"))?;
    verify(&mut file, artifact, release)?;
    let reader = decompressed(file, artifact)?;
    fs::create_dir(part).map_err(disk(part, "created"))?;
    let mut unpacker = Unpacker {
        part,
        tree: Tree::default(),
        limits,
        owner,
        entries: 0,
        bytes: 0,
        folders: vec![part.to_owned()],
    };
    unpacker.own(part)?;
    unpacker.all(reader)?;
    unpacker.tree.check_links().map_err(|(path, error)| {
        use std::os::unix::ffi::OsStrExt as _;
        refused(path.as_os_str().as_bytes(), error)
    })?;
    unpacker.sync()
}

/// Compares length and digest with what was signed.
fn verify(file: &mut File, path: &Path, release: &Release) -> Result<(), UnpackError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&*file).map_err(disk(path, "read"))?;
    let found = hasher.finalize().to_hex();
    if found.as_str() != release.artifact.as_str() || hasher.count() != release.length {
        let found = format!("{found} ({} bytes)", hasher.count());
        return Err(UnpackError::Damaged { path: path.to_owned(), found });
    }
    file.seek(SeekFrom::Start(0)).map_err(disk(path, "read"))?;
    Ok(())
}

/// The archive's bytes; how they are packed shows in the first four.
fn decompressed(mut file: File, path: &Path) -> Result<Box<dyn Read>, UnpackError> {
    let mut magic = [0; 4];
    let mut filled = 0;
    while filled < magic.len() {
        match file.read(&mut magic[filled..]).map_err(disk(path, "read"))? {
            0 => break,
            count => filled += count,
        }
    }
    file.seek(SeekFrom::Start(0)).map_err(disk(path, "read"))?;
    let file = BufReader::with_capacity(COPY_BYTES, file);
    Ok(match magic {
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

struct Unpacker<'a> {
    part: &'a Path,
    tree: Tree,
    limits: UnpackLimits,
    owner: Option<RunAs>,
    entries: u32,
    bytes: u64,
    folders: Vec<PathBuf>,
}

/// What extension headers said about the next entry.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Unpacker<'_> {
    fn all(&mut self, reader: Box<dyn Read>) -> Result<(), UnpackError> {
        // Also what lies between entries is bounded: a bomb of zeros is still read.
        let headers = u64::from(self.limits.entries_max).saturating_mul(4096);
        let mut archive = Archive::new(reader.take(self.limits.bytes_max.saturating_add(headers)));
        // Raw: the library reads extension headers whole into memory, however long they are.
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
            return Err(UnpackError::NotAnArchive(io::Error::other("it holds no entry")));
        }
        Ok(())
    }

    fn one(&mut self, entry: &mut Raw<'_>, extension: Extension) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            let most = u64::from(self.limits.entries_max);
            return Err(UnpackError::TooMuch { most, what: "files" });
        }
        let header = entry.header().clone();
        let name = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let refuse = |error: TreeError| refused(&name, error);
        let path = plain(&name).map_err(refuse)?;
        let kind = header.entry_type();
        if path.as_os_str().is_empty() {
            // `./`: the folder itself.
            return if kind.is_dir() { Ok(()) } else { Err(refuse(TreeError::Empty)) };
        }
        if path == Path::new(MARKER) {
            return Err(refuse(TreeError::Reserved));
        }
        for parent in self.tree.missing_parents(&path).map_err(refuse)? {
            self.folder(&parent)?;
        }
        let link = || {
            extension
                .link
                .clone()
                .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
                .unwrap_or_default()
        };
        let on_disk = self.part.join(&path);
        match kind {
            EntryType::Directory => {
                if self.tree.add(&path, Node::Folder).map_err(refuse)? {
                    self.folder(&path)?;
                }
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous => {
                self.tree.add(&path, Node::File).map_err(refuse)?;
                // Never setuid, setgid or sticky, and never writable by others.
                let mode = header.mode().unwrap_or(0o644) & 0o755 | 0o600;
                self.file(entry, &on_disk, mode)
            }
            EntryType::Symlink => {
                use std::os::unix::ffi::OsStrExt as _;
                let target = link();
                if target.is_empty() || target.contains(&0) || target.len() > 1024 {
                    return Err(refused(&name, "the link's target is empty or too long"));
                }
                let target = PathBuf::from(std::ffi::OsStr::from_bytes(&target));
                self.tree.add(&path, Node::Link(target.clone())).map_err(refuse)?;
                symlink(&target, &on_disk).map_err(disk(&on_disk, "created"))?;
                self.own(&on_disk)
            }
            EntryType::Link => {
                let target = plain(&link()).map_err(refuse)?;
                self.tree.check_hard_link(&target).map_err(refuse)?;
                self.tree.add(&path, Node::File).map_err(refuse)?;
                fs::hard_link(self.part.join(target), &on_disk).map_err(disk(&on_disk, "linked"))
            }
            _ => Err(refused(&name, "it is neither file, folder nor link")),
        }
    }

    fn folder(&mut self, path: &Path) -> Result<(), UnpackError> {
        let on_disk = self.part.join(path);
        fs::create_dir(&on_disk).map_err(disk(&on_disk, "created"))?;
        fs::set_permissions(&on_disk, Permissions::from_mode(0o755))
            .map_err(disk(&on_disk, "made readable"))?;
        self.own(&on_disk)?;
        self.folders.push(on_disk);
        Ok(())
    }

    fn file(&mut self, entry: &mut Raw<'_>, on_disk: &Path, mode: u32) -> Result<(), UnpackError> {
        let most = self.limits.bytes_max;
        let too_much = UnpackError::TooMuch { most, what: "bytes" };
        // What it claims is believed first, so that a bomb does not even begin to fill the disk.
        if self.bytes.saturating_add(entry.size()) > most {
            return Err(too_much);
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(on_disk)
            .map_err(disk(on_disk, "created"))?;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let count = entry.read(&mut buffer).map_err(UnpackError::NotAnArchive)?;
            if count == 0 {
                break;
            }
            self.bytes = self.bytes.saturating_add(count as u64);
            if self.bytes > most {
                return Err(too_much);
            }
            file.write_all(&buffer[..count]).map_err(disk(on_disk, "written"))?;
        }
        self.own(on_disk)?;
        file.set_permissions(Permissions::from_mode(mode))
            .map_err(disk(on_disk, "given its permissions"))?;
        if self.entries <= SYNC_EACH_FILES_MAX {
            file.sync_all().map_err(disk(on_disk, "synced"))?;
        }
        Ok(())
    }

    fn own(&self, path: &Path) -> Result<(), UnpackError> {
        match self.owner {
            Some(RunAs { uid, gid }) => {
                lchown(path, Some(uid), Some(gid)).map_err(disk(path, "given to its user"))
            }
            None => Ok(()),
        }
    }

    fn sync(&self) -> Result<(), UnpackError> {
        let part = File::open(self.part).map_err(disk(self.part, "opened"))?;
        if self.entries > SYNC_EACH_FILES_MAX {
            return rustix::fs::syncfs(&part).map_err(|e| disk(self.part, "synced")(e.into()));
        }
        for folder in self.folders.iter().rev() {
            let synced = File::open(folder).and_then(|folder| folder.sync_all());
            synced.map_err(disk(folder, "synced"))?;
        }
        Ok(())
    }
}

type Raw<'a> = Entry<'a, io::Take<Box<dyn Read>>>;

fn extension_bytes(entry: &mut Raw<'_>) -> Result<Vec<u8>, UnpackError> {
    if entry.size() > EXTENSION_BYTES_MAX {
        let name = entry.header().path_bytes().into_owned();
        return Err(refused(&name, "its extension header is longer than 64 KiB"));
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
            // The header's size counts here; a second opinion would make two readers see two
            // different archives. Sparse files are another.
            b"size" => return Err(refused(&value, "it gives its size in an extension header")),
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(refused(key, "it is a sparse file"));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "unpack_test.rs"]
mod unpack_test;
