//! What a release's archive may hold, judged entry by entry: by the publisher before it signs an
//! artifact, and by every server before an entry touches its disk. Both refuse the same.
//!
//! The directory was created empty, and nothing else can write into it, so the [`Tree`] mirrors the
//! disk. No path is ever resolved through a link from the archive.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use tar::{Entry, EntryType, PaxExtensions};

/// The file in every unpacked release that says which release it is. Its presence means that the
/// directory is complete, so no archive may contain one.
pub const MARKER: &str = ".cohort-release.json";

/// The file in an artifact that describes its service.
pub const SERVICE_FILE: &str = "cohort.toml";

/// Longest such file, in bytes. One with every key has a few kilobytes.
pub const SERVICE_FILE_BYTES_MAX: u64 = 256 << 10;

/// Longest extension header, such as a long name, in bytes. Paths end at 1 KiB; a header holds a
/// few.
const EXTENSION_BYTES_MAX: u64 = 64 * 1024;

/// Longest path in an artifact, in bytes; the kernel allows 4096, including the directory above it.
const PATH_BYTES_MAX: usize = 1024;

/// Longest name, in bytes: the limit of file systems.
const NAME_BYTES_MAX: usize = 255;

/// Deepest directory, as at publishing.
const DEPTH_MAX: usize = 64;

/// Most links to follow on the way to one file; the kernel follows 40.
const LINK_HOPS_MAX: u32 = 40;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Folder,
    File,
    Link(PathBuf),
}

/// Why an entry of an archive is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("its path is absolute")]
    Absolute,
    #[error("its path leaves the directory by `..`")]
    Parent,
    #[error("its path is empty")]
    Empty,
    #[error("its path contains a zero byte")]
    ZeroByte,
    #[error("its path is longer than {PATH_BYTES_MAX} bytes")]
    LongPath,
    #[error("a name in its path is longer than {NAME_BYTES_MAX} bytes")]
    LongName,
    #[error("it is nested deeper than {DEPTH_MAX} directories")]
    Deep,
    #[error("an earlier entry has the same path")]
    Twice,
    #[error("its path leads through a file or a link")]
    NotThroughFolders,
    #[error("the link's target is absolute")]
    LinkAbsolute,
    #[error("the link leads out of the directory")]
    LinkOut,
    #[error("the link goes through more than {LINK_HOPS_MAX} links")]
    LinkLoop,
    #[error("the hard link's target is not an earlier file of the archive")]
    HardLink,
    #[error("its name is reserved")]
    Reserved,
    #[error("it must be a file of at most 256 KiB")]
    ServiceFile,
    #[error("the link's target is empty or too long")]
    LinkTarget,
    #[error("it is neither a file, a directory nor a link")]
    Kind,
    #[error("its extension header is longer than 64 KiB")]
    LongExtension,
    #[error("an extension header repeats its size")]
    SizeTwice,
    #[error("it is a sparse file")]
    Sparse,
}

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It ends early, or is no archive.
    #[error("not a tar archive")]
    Unreadable(#[source] io::Error),
    #[error("the entry `{entry}` is refused")]
    Entry {
        /// Its path in the archive, truncated to 200 characters.
        entry: String,
        source: EntryError,
    },
    #[error("its files have more than {0} bytes")]
    TooManyBytes(u64),
    #[error("it has more than {0} files, directories and links")]
    TooManyEntries(u32),
}

/// What an archive may unpack to.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveLimits {
    /// Total size of its files, in bytes.
    pub bytes_max: u64,
    /// Files, directories and links.
    pub entries_max: u32,
}

/// What an entry puts into the directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Judged {
    /// Directories above it that are not there yet, outermost first.
    pub parents: Vec<PathBuf>,
    pub path: PathBuf,
    pub kind: Kind,
    /// What the entry has, and its file will not.
    pub lost: Option<Lost>,
}

/// What files of a release never have: nothing in it gets rights by its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// It is setuid or setgid.
    SetId,
    /// It has capabilities.
    Capabilities,
    /// It has an access control list, or other extended attributes.
    Attributes,
}

impl Lost {
    /// What is lost with an extended attribute of this name.
    #[must_use]
    pub fn with_attribute(name: &[u8]) -> Self {
        match name {
            b"security.capability" => Lost::Capabilities,
            _ => Lost::Attributes,
        }
    }
}

/// How an entry appears in the directory.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    Folder,
    /// With these permissions: never setuid, setgid or sticky, and never writable by others.
    File {
        mode: u32,
        /// How many follow, by its header.
        bytes: u64,
    },
    Symlink(PathBuf),
    /// To an earlier file of the archive.
    HardLink(PathBuf),
}

/// What an archive holds, by path, as far as its programs can be judged by it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    entries: BTreeMap<PathBuf, Content>,
    /// Files that lose something, the first of them.
    lost: Vec<(PathBuf, Lost)>,
}

/// One entry of [`Contents`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Folder,
    Link(PathBuf),
    File,
    /// A file that may be executed, and how it begins.
    Program {
        head: Vec<u8>,
    },
}

/// How much of a program is kept, in bytes: a `#!` line, or where ELF names the machine.
const HEAD_BYTES: u64 = 128;

/// Files of which is kept what they lose.
const LOST_MAX: usize = 8;

/// Most links that a path is followed through.
const LINKS_MAX: u32 = 40;

impl Contents {
    /// Adds an entry, which [`Judge::next`] has let pass; `bytes` are its content.
    ///
    /// # Errors
    /// If the archive cannot be read.
    pub fn add(&mut self, judged: &Judged, bytes: &mut impl Read) -> io::Result<()> {
        if let Some(lost) = judged.lost {
            self.loses(judged.path.clone(), lost);
        }
        self.entries.extend(judged.parents.iter().map(|parent| (parent.clone(), Content::Folder)));
        let content = match &judged.kind {
            Kind::Folder => Content::Folder,
            Kind::Symlink(target) => Content::Link(target.clone()),
            Kind::HardLink(target) => self.entries.get(target).cloned().unwrap_or(Content::File),
            Kind::File { mode, .. } if mode & 0o111 == 0 => Content::File,
            Kind::File { .. } => {
                let mut head = Vec::new();
                bytes.take(HEAD_BYTES).read_to_end(&mut head)?;
                Content::Program { head }
            }
        };
        self.entries.insert(judged.path.clone(), content);
        Ok(())
    }

    /// Notes that a file loses something.
    pub fn loses(&mut self, path: PathBuf, lost: Lost) {
        if self.lost.len() < LOST_MAX {
            self.lost.push((path, lost));
        }
    }

    /// Files that lose something; the first few.
    #[must_use]
    pub fn lost(&self) -> &[(PathBuf, Lost)] {
        &self.lost
    }

    /// What is at a path, after all links.
    #[must_use]
    pub fn at(&self, path: &Path) -> Option<&Content> {
        let mut links = 0;
        let mut at = PathBuf::new();
        let mut rest: Vec<PathBuf> = reversed(path);
        while let Some(part) = rest.pop() {
            if part == Path::new("..") {
                at.pop();
                continue;
            }
            let next = at.join(part);
            match self.entries.get(&next)? {
                Content::Link(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return None;
                    }
                    rest.extend(reversed(target));
                }
                _ => at = next,
            }
        }
        self.entries.get(&at)
    }

    /// The names in a directory, which is not reached by links.
    pub fn in_folder(&self, folder: &Path) -> impl Iterator<Item = (PathBuf, &Content)> {
        self.entries.iter().filter_map(move |(path, content)| {
            let name = path.strip_prefix(folder).ok()?;
            (name.components().count() == 1).then(|| (name.to_owned(), content))
        })
    }
}

/// The parts of a path, the last one first; `.` is none.
fn reversed(path: &Path) -> Vec<PathBuf> {
    let parts = path.components().filter(|part| !matches!(part, Component::CurDir));
    parts.rev().map(|part| PathBuf::from(part.as_os_str())).collect()
}

/// Judges the raw entries of one archive in their order.
///
/// Raw, because the library reads extension headers into memory whole, however long they are.
#[derive(Debug)]
pub struct Judge {
    limits: ArchiveLimits,
    tree: Tree,
    extension: Extension,
    entries: u32,
    bytes: u64,
}

/// What extension headers said about the next entry.
#[derive(Debug, Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    lost: Option<Lost>,
}

impl Judge {
    /// A judge of an archive's first entry.
    #[must_use]
    pub fn new(limits: ArchiveLimits) -> Self {
        let (tree, extension) = (Tree::default(), Extension::default());
        Judge { limits, tree, extension, entries: 0, bytes: 0 }
    }

    /// Files, directories and links so far.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Bytes of all files so far, as their headers claim.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the next entry puts into the directory; `None` if nothing.
    ///
    /// # Errors
    /// If it may not be in an artifact, or exceeds a limit.
    pub fn next<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<Option<Judged>, Refused> {
        match entry.header().entry_type() {
            EntryType::XGlobalHeader => {}
            EntryType::GNULongName => self.extension.path = Some(long_name(entry)?),
            EntryType::GNULongLink => self.extension.link = Some(long_name(entry)?),
            EntryType::XHeader => read_pax(entry, &mut self.extension)?,
            _ => return self.one(entry),
        }
        Ok(None)
    }

    /// Follows every link, once all entries are known.
    ///
    /// # Errors
    /// If one leads out of the directory or through too many others, or there are no entries.
    pub fn finish(&self) -> Result<(), Refused> {
        if self.entries == 0 {
            return Err(Refused::Unreadable(io::Error::other("no entries")));
        }
        let checked = self.tree.check_links();
        checked.map_err(|(path, error)| refused(path.as_os_str().as_bytes(), error))
    }

    fn one<R: Read>(&mut self, entry: &Entry<'_, R>) -> Result<Option<Judged>, Refused> {
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            return Err(Refused::TooManyEntries(self.limits.entries_max));
        }
        let extension = std::mem::take(&mut self.extension);
        let header = entry.header();
        let name = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let refuse = |error: EntryError| refused(&name, error);
        let path = plain(&name).map_err(refuse)?;
        let kind = header.entry_type();
        if path.as_os_str().is_empty() {
            // `./`: the directory itself.
            return if kind.is_dir() { Ok(None) } else { Err(refuse(EntryError::Empty)) };
        }
        let is_within = |own| path.starts_with(own) && path != Path::new(own);
        if path.starts_with(MARKER) || is_within(SERVICE_FILE) {
            return Err(refuse(EntryError::Reserved));
        }
        let is_file = matches!(kind, EntryType::Regular | EntryType::Continuous);
        if path == Path::new(SERVICE_FILE) && (!is_file || entry.size() > SERVICE_FILE_BYTES_MAX) {
            return Err(refuse(EntryError::ServiceFile));
        }
        let parents = self.tree.missing_parents(&path).map_err(refuse)?;
        let link = extension.link.or_else(|| header.link_name_bytes().map(Cow::into_owned));
        let set_id = header.mode().is_ok_and(|mode| mode & 0o6000 != 0) && is_file;
        let lost = extension.lost.or(set_id.then_some(Lost::SetId));
        let mode = header.mode().unwrap_or(0o644) & 0o755 | 0o600;
        let file = Kind::File { mode, bytes: entry.size() };
        let kind = self.judge(kind, &path, &link.unwrap_or_default(), file).map_err(refuse)?;
        if let Some(Kind::File { bytes, .. }) = kind {
            // Its claimed size is checked first, so that a bomb does not even start to fill a disk.
            self.bytes = self.bytes.saturating_add(bytes);
            if self.bytes > self.limits.bytes_max {
                return Err(Refused::TooManyBytes(self.limits.bytes_max));
            }
        }
        Ok(kind.map(|kind| Judged { parents, path, kind, lost }))
    }

    /// Adds an entry to the tree, or refuses it. `None` for a directory that is there.
    fn judge(
        &mut self,
        kind: EntryType,
        path: &Path,
        link: &[u8],
        file: Kind,
    ) -> Result<Option<Kind>, EntryError> {
        let tree = &mut self.tree;
        Ok(match kind {
            EntryType::Directory => tree.add(path, Node::Folder)?.then_some(Kind::Folder),
            EntryType::Regular | EntryType::Continuous => {
                tree.add(path, Node::File)?;
                Some(file)
            }
            EntryType::Symlink => {
                if link.is_empty() || link.contains(&0) || link.len() > PATH_BYTES_MAX {
                    return Err(EntryError::LinkTarget);
                }
                let target = PathBuf::from(OsStr::from_bytes(link));
                tree.add(path, Node::Link(target.clone()))?;
                Some(Kind::Symlink(target))
            }
            EntryType::Link => {
                let target = plain(link)?;
                tree.check_hard_link(&target)?;
                tree.add(path, Node::File)?;
                Some(Kind::HardLink(target))
            }
            _ => return Err(EntryError::Kind),
        })
    }
}

fn refused(entry: &[u8], source: EntryError) -> Refused {
    let entry = String::from_utf8_lossy(entry).chars().take(200).collect();
    Refused::Entry { entry, source }
}

fn extension_bytes<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>, Refused> {
    if entry.size() > EXTENSION_BYTES_MAX {
        return Err(refused(&entry.header().path_bytes(), EntryError::LongExtension));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(Refused::Unreadable)?;
    Ok(bytes)
}

fn long_name<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>, Refused> {
    let mut bytes = extension_bytes(entry)?;
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

fn read_pax<R: Read>(entry: &mut Entry<'_, R>, extension: &mut Extension) -> Result<(), Refused> {
    let bytes = extension_bytes(entry)?;
    for record in PaxExtensions::new(&bytes) {
        let record = record.map_err(Refused::Unreadable)?;
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
            key => {
                let attribute = key.strip_prefix(b"SCHILY.xattr.");
                let lost = attribute.map(Lost::with_attribute);
                extension.lost = extension.lost.or(lost);
            }
        }
    }
    Ok(())
}

/// The entries so far, by path relative to the directory.
#[derive(Debug, Default)]
struct Tree {
    nodes: BTreeMap<PathBuf, Node>,
}

/// The normal form of a path from an archive, or the reason for refusing it.
fn plain(bytes: &[u8]) -> Result<PathBuf, EntryError> {
    if bytes.contains(&0) {
        return Err(EntryError::ZeroByte);
    }
    if bytes.len() > PATH_BYTES_MAX {
        return Err(EntryError::LongPath);
    }
    let mut path = PathBuf::new();
    let mut depth = 0;
    for component in Path::new(OsStr::from_bytes(bytes)).components() {
        match component {
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return Err(EntryError::Absolute),
            Component::ParentDir => return Err(EntryError::Parent),
            Component::Normal(name) if name.len() > NAME_BYTES_MAX => {
                return Err(EntryError::LongName);
            }
            Component::Normal(name) => {
                depth += 1;
                path.push(name);
            }
        }
    }
    if depth > DEPTH_MAX { Err(EntryError::Deep) } else { Ok(path) }
}

impl Tree {
    /// Adds the missing directories above `path` and returns them, outermost first.
    fn missing_parents(&mut self, path: &Path) -> Result<Vec<PathBuf>, EntryError> {
        let mut parents: Vec<&Path> =
            path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()).collect();
        parents.reverse();
        let mut missing = Vec::new();
        for parent in parents {
            match self.nodes.get(parent) {
                Some(Node::Folder) => {}
                Some(Node::File | Node::Link(_)) => return Err(EntryError::NotThroughFolders),
                None => {
                    self.nodes.insert(parent.to_owned(), Node::Folder);
                    missing.push(parent.to_owned());
                }
            }
        }
        Ok(missing)
    }

    /// Adds an entry; false if it is a directory that exists already. Only directories may repeat:
    /// anything else would replace what was judged before.
    fn add(&mut self, path: &Path, node: Node) -> Result<bool, EntryError> {
        match (self.nodes.get(path), &node) {
            (Some(Node::Folder), Node::Folder) => return Ok(false),
            (Some(_), _) => return Err(EntryError::Twice),
            (None, Node::Link(target)) if target.is_absolute() => {
                return Err(EntryError::LinkAbsolute);
            }
            (None, _) => {}
        }
        self.nodes.insert(path.to_owned(), node);
        Ok(true)
    }

    /// A hard link may only point to an earlier file of the same archive.
    fn check_hard_link(&self, target: &Path) -> Result<(), EntryError> {
        match self.nodes.get(target) {
            Some(Node::File) => Ok(()),
            Some(Node::Folder | Node::Link(_)) | None => Err(EntryError::HardLink),
        }
    }

    /// Follows every link to its end, through other links, once the whole archive is known.
    ///
    /// The text alone is not enough: `a/b -> ../..` may stay inside by its text while `a` is itself
    /// a link.
    fn check_links(&self) -> Result<(), (PathBuf, EntryError)> {
        for (path, node) in &self.nodes {
            if let Node::Link(target) = node {
                let mut hops = 0;
                let from = path.parent().unwrap_or(Path::new("")).to_owned();
                self.follow(from, target, &mut hops).map_err(|error| (path.clone(), error))?;
            }
        }
        Ok(())
    }

    /// Where `target` leads, starting in the directory `at`.
    fn follow(&self, at: PathBuf, target: &Path, hops: &mut u32) -> Result<PathBuf, EntryError> {
        *hops += 1;
        if *hops > LINK_HOPS_MAX {
            return Err(EntryError::LinkLoop);
        }
        let mut at = at;
        for component in target.components() {
            match component {
                Component::CurDir => {}
                Component::RootDir | Component::Prefix(_) => return Err(EntryError::LinkAbsolute),
                Component::ParentDir => {
                    if !at.pop() {
                        return Err(EntryError::LinkOut);
                    }
                }
                Component::Normal(name) => {
                    at.push(name);
                    if let Some(Node::Link(next)) = self.nodes.get(&at) {
                        at.pop();
                        at = self.follow(at, next, hops)?;
                    }
                }
            }
        }
        Ok(at)
    }
}
