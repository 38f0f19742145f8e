//! What an archive has put into its folder so far, in memory: the judge of every further entry.
//!
//! Only this program writes into the folder, which was empty before, so that this tree and the
//! disk are alike; nothing is ever looked up through a link that the archive made.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Longest path in an artifact, in bytes; the kernel takes 4096 with the folder before it.
const PATH_BYTES_MAX: usize = 1024;

/// Longest name, in bytes: what file systems take.
const NAME_BYTES_MAX: usize = 255;

/// Deepest folder, as at publishing.
const DEPTH_MAX: usize = 64;

/// Most links on the way to one file; the kernel follows 40.
const LINK_HOPS_MAX: u32 = 40;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Folder,
    File,
    Link(PathBuf),
}

/// What an entry of an archive does wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("its path is absolute")]
    Absolute,
    #[error("its path leaves the folder by `..`")]
    Parent,
    #[error("its path names nothing")]
    Empty,
    #[error("its path holds a zero byte")]
    ZeroByte,
    #[error("its path is longer than {PATH_BYTES_MAX} bytes")]
    LongPath,
    #[error("a name in its path is longer than {NAME_BYTES_MAX} bytes")]
    LongName,
    #[error("it is nested deeper than {DEPTH_MAX} folders")]
    Deep,
    #[error("an earlier entry has the same path")]
    Twice,
    #[error("its path goes through something that is no folder")]
    ThroughNoFolder,
    #[error("the link's target is absolute")]
    LinkAbsolute,
    #[error("the link points out of the folder")]
    LinkOut,
    #[error("the link goes through more than {LINK_HOPS_MAX} links")]
    LinkLoop,
    #[error("the hard link's target is no earlier file of the archive")]
    HardLink,
    #[error("its name is reserved")]
    Reserved,
}

/// The entries so far, by path relative to the folder.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<PathBuf, Node>,
}

/// A path as it stands in an archive, made plain, or refused.
pub(crate) fn plain(bytes: &[u8]) -> Result<PathBuf, TreeError> {
    use std::os::unix::ffi::OsStrExt as _;
    if bytes.contains(&0) {
        return Err(TreeError::ZeroByte);
    }
    if bytes.len() > PATH_BYTES_MAX {
        return Err(TreeError::LongPath);
    }
    let mut path = PathBuf::new();
    let mut depth = 0;
    for component in Path::new(std::ffi::OsStr::from_bytes(bytes)).components() {
        match component {
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return Err(TreeError::Absolute),
            Component::ParentDir => return Err(TreeError::Parent),
            Component::Normal(name) if name.len() > NAME_BYTES_MAX => {
                return Err(TreeError::LongName);
            }
            Component::Normal(name) => {
                depth += 1;
                path.push(name);
            }
        }
    }
    if depth > DEPTH_MAX { Err(TreeError::Deep) } else { Ok(path) }
}

impl Tree {
    /// Folders above `path` that do not exist yet, outermost first; they are added.
    pub(crate) fn missing_parents(&mut self, path: &Path) -> Result<Vec<PathBuf>, TreeError> {
        let mut parents: Vec<&Path> =
            path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()).collect();
        parents.reverse();
        let mut missing = Vec::new();
        for parent in parents {
            match self.nodes.get(parent) {
                Some(Node::Folder) => {}
                Some(Node::File | Node::Link(_)) => return Err(TreeError::ThroughNoFolder),
                None => {
                    self.nodes.insert(parent.to_owned(), Node::Folder);
                    missing.push(parent.to_owned());
                }
            }
        }
        Ok(missing)
    }

    /// Adds an entry; false when it is a folder that exists already.
    ///
    /// Only a folder may come twice: anything else would replace what was judged before.
    pub(crate) fn add(&mut self, path: &Path, node: Node) -> Result<bool, TreeError> {
        match (self.nodes.get(path), &node) {
            (Some(Node::Folder), Node::Folder) => return Ok(false),
            (Some(_), _) => return Err(TreeError::Twice),
            (None, Node::Link(target)) if target.is_absolute() => {
                return Err(TreeError::LinkAbsolute);
            }
            (None, _) => {}
        }
        self.nodes.insert(path.to_owned(), node);
        Ok(true)
    }

    /// Whether a hard link may point to `target`: an earlier file of the same archive.
    pub(crate) fn check_hard_link(&self, target: &Path) -> Result<(), TreeError> {
        match self.nodes.get(target) {
            Some(Node::File) => Ok(()),
            Some(Node::Folder | Node::Link(_)) | None => Err(TreeError::HardLink),
        }
    }

    /// Follows every link to its end, through other links, once the whole archive is known.
    ///
    /// Looking at the text alone is not enough: `a/b -> ../..` may stay inside by its text while
    /// `a` is a link itself.
    pub(crate) fn check_links(&self) -> Result<(), (PathBuf, TreeError)> {
        for (path, node) in &self.nodes {
            if let Node::Link(target) = node {
                let mut hops = 0;
                let from = path.parent().unwrap_or(Path::new("")).to_owned();
                self.follow(from, target, &mut hops).map_err(|error| (path.clone(), error))?;
            }
        }
        Ok(())
    }

    /// Where `target` leads from the folder `at`.
    fn follow(&self, at: PathBuf, target: &Path, hops: &mut u32) -> Result<PathBuf, TreeError> {
        *hops += 1;
        if *hops > LINK_HOPS_MAX {
            return Err(TreeError::LinkLoop);
        }
        let mut at = at;
        for component in target.components() {
            match component {
                Component::CurDir => {}
                Component::RootDir | Component::Prefix(_) => return Err(TreeError::LinkAbsolute),
                Component::ParentDir => {
                    if !at.pop() {
                        return Err(TreeError::LinkOut);
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
