//! Packs a directory so that equal directories give equal bytes, and inspects tarballs.
//!
//! Deterministic means: entries sorted by path, no times, no owners, permissions reduced to
//! "executable or not" and "its owner's alone or not". Links stay links. What the host would refuse
//! to unpack is already refused here, where an operator sees it.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use cohort_base::archive::{ArchiveLimits, Contents, Judge, Lost, Refused};
use cohort_base::{FileError, OnPath as _};
use rustix::io::Errno;
use tar::{Archive, Builder, EntryType, Header};

use crate::manifest::{ENTRIES_MAX, Format, UNPACKED_BYTES_MAX};
use crate::package_file::PACKAGE_FILE;

/// Fast, and within 10 % of what higher levels achieve on binaries.
const ZSTD_LEVEL: i32 = 3;

/// Largest window of a foreign artifact: as much as the host allows (128 MiB).
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

const BUFFER_BYTES: usize = 256 << 10;

/// Deepest directory in an artifact; keeps the walk's recursion bounded.
const DEPTH_MAX: usize = 64;

/// Why an artifact cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is not a tar archive (plain, gzip or zstd)", path.display())]
    NotATarball {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{} is {kind}, not a tar archive: `{unpacks}`, and publish that directory",
        path.display()
    )]
    OtherArchive { path: PathBuf, kind: &'static str, unpacks: &'static str },
    /// Something that no host would unpack.
    #[error("{}: {reason}", path.display())]
    Entry { path: PathBuf, reason: String },
    #[error("the artifact has more than {ENTRIES_MAX} files")]
    TooManyEntries,
    #[error("the artifact unpacks to more than {UNPACKED_BYTES_MAX} bytes")]
    TooLarge,
    #[error("{} holds no file", path.display())]
    Empty { path: PathBuf },
}

/// The content of a tarball.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    pub format: Format,
    /// Total bytes of its files when unpacked.
    pub unpacked_bytes: u64,
    /// Its files, directories and links.
    pub entries: u32,
    /// The bytes of its `cohort.toml`, if it has one.
    pub package_file: Option<Vec<u8>>,
    pub contents: Contents,
}

/// Packs a directory as `tar.zst`, and returns what files of it lose. Blocking.
///
/// # Errors
/// If something in it is unreadable or not allowed in an artifact, or a limit is exceeded.
pub fn pack_folder(
    folder: &Path,
    output: &mut impl Write,
) -> Result<Vec<(PathBuf, Lost)>, PackError> {
    let encoder = zstd::stream::write::Encoder::new(output, ZSTD_LEVEL).on_path("pack", folder)?;
    let (tar, lost) = (Builder::new(encoder), Vec::new());
    let mut packer = Packer { tar, entries: 0, bytes: 0, lost };
    packer.add_folder(folder, Path::new(""), 0)?;
    if packer.entries == 0 {
        return Err(PackError::Empty { path: folder.to_owned() });
    }
    packer.tar.into_inner().and_then(|encoder| encoder.finish()).on_path("pack", folder)?;
    Ok(packer.lost)
}

struct Packer<W: Write> {
    tar: Builder<W>,
    entries: u32,
    bytes: u64,
    lost: Vec<(PathBuf, Lost)>,
}

impl<W: Write> Packer<W> {
    fn add_folder(&mut self, folder: &Path, inside: &Path, depth: usize) -> Result<(), PackError> {
        if depth > DEPTH_MAX {
            let reason = "is nested too deeply (64 directories)".to_owned();
            return Err(PackError::Entry { path: inside.to_owned(), reason });
        }
        let mut names = fs::read_dir(folder)
            .and_then(|entries| {
                entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()
            })
            .on_path("read folder", folder)?;
        names.sort();
        for name in names {
            self.add(&folder.join(&name), &inside.join(&name), depth)?;
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, inside: &Path, depth: usize) -> Result<(), PackError> {
        let refuse = |reason: &str| {
            Err(PackError::Entry { path: inside.to_owned(), reason: reason.to_owned() })
        };
        if inside.to_str().is_none() {
            return refuse("its name is not UTF-8 text");
        }
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(PackError::TooManyEntries);
        }
        let about = fs::symlink_metadata(path).on_path("read", path)?;
        let kind = about.file_type();
        if kind.is_dir() {
            let mut header = header(EntryType::Directory, 0o755, 0);
            self.tar.append_data(&mut header, inside, io::empty()).on_path("pack", path)?;
            self.add_folder(path, inside, depth + 1)
        } else if kind.is_symlink() {
            let target = fs::read_link(path).on_path("read", path)?;
            if target.to_str().is_none() {
                return refuse("the target of the link is not UTF-8 text");
            }
            check_link(inside, &target)?;
            let mut header = header(EntryType::Symlink, 0o777, 0);
            Ok(self.tar.append_link(&mut header, inside, &target).on_path("pack", path)?)
        } else if kind.is_file() {
            let mut file = File::open(path).on_path("read", path)?;
            // Length and bytes of the same open file, which may be replaced meanwhile.
            let about = file.metadata().on_path("read", path)?;
            self.bytes = self.bytes.saturating_add(about.len());
            if self.bytes > UNPACKED_BYTES_MAX {
                return Err(PackError::TooLarge);
            }
            let lost = lost_of(&file, about.permissions().mode()).on_path("read", path)?;
            self.lost.extend(lost.map(|lost| (inside.to_owned(), lost)));
            let mode = mode_of(about.permissions().mode());
            let mut header = header(EntryType::Regular, mode, about.len());
            let mut exact = Exact { from: &mut file, left: about.len() };
            Ok(self.tar.append_data(&mut header, inside, &mut exact).on_path("pack", path)?)
        } else {
            refuse("is neither file, directory nor symbolic link")
        }
    }
}

/// What a file has that no file of a release has.
fn lost_of(file: &File, mode: u32) -> io::Result<Option<Lost>> {
    if mode & 0o6000 != 0 {
        return Ok(Some(Lost::SetId));
    }
    // 1 byte is enough to tell that there is one.
    let mut value = [0; 1];
    for name in ["security.capability", "system.posix_acl_access"] {
        match rustix::fs::fgetxattr(file, name, &mut value) {
            Ok(_) | Err(Errno::RANGE) => return Ok(Some(Lost::with_attribute(name.as_bytes()))),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// The mode of a file in the archive. What only its owner could read stays private.
fn mode_of(mode: u32) -> u32 {
    let open = if mode & 0o111 != 0 { 0o755 } else { 0o644 };
    if mode & 0o077 == 0 { open & 0o700 } else { open }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Reads exactly as many bytes as the header says, or fails: a file that grows or shrinks while it
/// is packed would corrupt the archive.
struct Exact<'a> {
    from: &'a mut File,
    left: u64,
}

impl Read for Exact<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.from.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::Error::other("the file became shorter while it was packed"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Inspects a tarball: what is inside, and whether a host would accept it. Blocking.
///
/// # Errors
/// If it is damaged, contains something not allowed in an artifact, or exceeds a limit.
pub fn inspect_tarball(path: &Path) -> Result<Inspection, PackError> {
    let damaged = |source| damaged(path, source);
    let mut file = File::open(path).on_path("read", path)?;
    if let Some((kind, unpacks)) = other_archive(&mut file).on_path("read", path)? {
        return Err(PackError::OtherArchive { path: path.to_owned(), kind, unpacks });
    }
    let format = format_of(&mut file).on_path("read", path)?;
    let reader = unpacking(format, file).map_err(damaged)?;
    // The limit, plus headers and padding.
    let most = UNPACKED_BYTES_MAX + u64::from(ENTRIES_MAX) * 4096;
    let mut archive = Archive::new(reader.take(most));
    let limits = ArchiveLimits { bytes_max: UNPACKED_BYTES_MAX, entries_max: ENTRIES_MAX };
    let (mut judge, mut package_file) = (Judge::new(limits), None);
    let mut contents = Contents::default();
    for entry in archive.entries().map_err(damaged)?.raw(true) {
        let mut entry = entry.map_err(damaged)?;
        let judged = judge.next(&mut entry).map_err(|refused| refusal(path, refused))?;
        let Some(judged) = judged else { continue };
        if judged.path == Path::new(PACKAGE_FILE) {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(damaged)?;
            package_file = Some(bytes);
        }
        contents.add(&judged, &mut entry).map_err(damaged)?;
    }
    if judge.entries() == 0 {
        return Err(PackError::Empty { path: path.to_owned() });
    }
    judge.finish().map_err(|refused| refusal(path, refused))?;
    let (unpacked_bytes, entries) = (judge.bytes(), judge.entries());
    Ok(Inspection { format, unpacked_bytes, entries, package_file, contents })
}

/// What the library says of a header that is none quotes it: any bytes of any file.
fn damaged(path: &Path, source: io::Error) -> PackError {
    let source = match source.get_ref() {
        Some(said) => io::Error::new(source.kind(), first_words(&said.to_string())),
        None => source,
    };
    PackError::NotATarball { path: path.to_owned(), source }
}

/// A message up to what it quotes.
fn first_words(message: &str) -> String {
    message.split(':').next().unwrap_or_default().trim().to_owned()
}

/// Archives that people publish for what they are elsewhere: by their first bytes, what they are
/// and what unpacks them.
const OTHER_ARCHIVES: &[(&[u8], &str, &str)] = &[
    (b"PK\x03\x04", "a zip archive (as every wheel is)", "unzip FILE -d dist"),
    (b"!<arch>\ndebian-binary", "a Debian package", "dpkg-deb -x FILE dist"),
    (b"\xed\xab\xee\xdb", "an RPM package", "rpm2archive FILE, unpack its tarball into dist"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x FILE -odist"),
    (b"\xfd7zXZ\x00", "compressed with xz", "mkdir dist; tar -xJf FILE -C dist"),
    (b"BZh", "compressed with bzip2", "mkdir dist; tar -xjf FILE -C dist"),
];

/// Another kind of archive than a host unpacks. Rewinds the file.
fn other_archive(file: &mut File) -> io::Result<Option<(&'static str, &'static str)>> {
    let mut head = Vec::new();
    Read::by_ref(file).take(32).read_to_end(&mut head)?;
    file.rewind()?;
    let found = OTHER_ARCHIVES.iter().find(|(magic, ..)| head.starts_with(magic));
    Ok(found.map(|(_, kind, unpacks)| (*kind, *unpacks)))
}

fn refusal(path: &Path, refused: Refused) -> PackError {
    match refused {
        Refused::Unreadable(source) => damaged(path, source),
        Refused::Entry { entry, source } => {
            PackError::Entry { path: entry.into(), reason: source.to_string() }
        }
        Refused::TooManyBytes(_) => PackError::TooLarge,
        Refused::TooManyEntries(_) => PackError::TooManyEntries,
    }
}

/// How an artifact is packed, judging by its first bytes. Rewinds the file.
pub(crate) fn format_of(file: &mut File) -> io::Result<Format> {
    let mut magic = Vec::new();
    Read::by_ref(file).take(4).read_to_end(&mut magic)?;
    file.rewind()?;
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Format::TarGz,
        [0x28, 0xb5, 0x2f, 0xfd] => Format::TarZst,
        _ => Format::Tar,
    })
}

/// Reads the archive in an artifact.
pub(crate) fn unpacking(format: Format, file: File) -> io::Result<Box<dyn Read>> {
    let file = BufReader::with_capacity(BUFFER_BYTES, file);
    Ok(match format {
        Format::Tar => Box::new(file),
        Format::TarGz => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Format::TarZst => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
    })
}

/// The path without `.` components, as tar writes `./file`.
fn normal(path: &Path) -> PathBuf {
    path.components().filter(|component| !matches!(component, Component::CurDir)).collect()
}

/// A symbolic link must be relative and end inside the artifact.
fn check_link(inside: &Path, target: &Path) -> Result<(), PackError> {
    let refuse =
        |reason: &str| Err(PackError::Entry { path: inside.to_owned(), reason: reason.to_owned() });
    let mut depth = normal(inside).components().count().saturating_sub(1);
    for component in target.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(_) => depth += 1,
            Component::ParentDir if depth > 0 => depth -= 1,
            Component::ParentDir => return refuse("the link points out of the artifact"),
            Component::RootDir | Component::Prefix(_) => {
                return refuse("the link's target is absolute");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "pack_test.rs"]
mod pack_test;
