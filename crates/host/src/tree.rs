//! What an archive has put into its directory so far, in memory: used to judge every further entry.
//!
//! The directory was created empty, and nothing else can write into it, so this tree mirrors the
//! disk. No path is ever resolved through a link from the archive.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// The file in every unpacked release that says which release it is. Its presence means that the
/// directory is complete, so no archive may contain one.
pub(crate) const MARKER: &str = ".cohort-release.json";

/// Longest path in an artifact, in bytes; the kernel allows 4096, including the directory above it.
pub(crate) const PATH_BYTES_MAX: usize = 1024;

/// Longest name, in bytes: the limit of file systems.
const NAME_BYTES_MAX: usize = 255;

/// Deepest directory, as at publishing.
const DEPTH_MAX: usize = 64;

/// Most links to follow on the way to one file; the kernel follows 40.
const LINK_HOPS_MAX: u32 = 40;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Folder,
    File,
    Link(PathBuf),
}

/// Why an entry of an archive is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EntryError {
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

/// The entries so far, by path relative to the directory.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<PathBuf, Node>,
}

/// The normal form of a path from an archive, or the reason for refusing it.
pub(crate) fn plain(bytes: &[u8]) -> Result<PathBuf, EntryError> {
    use std::os::unix::ffi::OsStrExt as _;
    if bytes.contains(&0) {
        return Err(EntryError::ZeroByte);
    }
    if bytes.len() > PATH_BYTES_MAX {
        return Err(EntryError::LongPath);
    }
    let mut path = PathBuf::new();
    let mut depth = 0;
    for component in Path::new(std::ffi::OsStr::from_bytes(bytes)).components() {
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
    pub(crate) fn missing_parents(&mut self, path: &Path) -> Result<Vec<PathBuf>, EntryError> {
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
    pub(crate) fn add(&mut self, path: &Path, node: Node) -> Result<bool, EntryError> {
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
    pub(crate) fn check_hard_link(&self, target: &Path) -> Result<(), EntryError> {
        match self.nodes.get(target) {
            Some(Node::File) => Ok(()),
            Some(Node::Folder | Node::Link(_)) | None => Err(EntryError::HardLink),
        }
    }

    /// Follows every link to its end, through other links, once the whole archive is known.
    ///
    /// The text alone is not enough: `a/b -> ../..` may stay inside by its text while `a` is itself
    /// a link.
    pub(crate) fn check_links(&self) -> Result<(), (PathBuf, EntryError)> {
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
