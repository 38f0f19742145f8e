//! The files of a repository, by path.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use cohort_base::{FileError, OnPath as _};
use cohort_core::ids::Digest;

use crate::layout::{BLOBS_DIR, METADATA_DIR, TARGETS_DIR};
use crate::manifest::{ARTIFACT_BYTES_MAX, MANIFEST_BYTES_MAX, UNIT_BYTES};
use crate::metadata::METADATA_BYTES_MAX;
use crate::metadata_transport::SMALL_METADATA_BYTES_MAX;

/// Longest path of a file, in bytes.
const PATH_BYTES_MAX: usize = 1024;

/// A file that readers of a repository may request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepositoryFile {
    /// An artifact or delta, named by its root.
    Blob(Digest),
    /// The unit hashes of a blob, named by its root.
    Units(Digest),
    /// A manifest, channel or list of removals; its SHA-256 is in its name.
    Target(Digest),
    /// The keys of all roles; without a version, a copy of the first one for operators.
    Root(Option<u64>),
    /// One version of the list of targets.
    Targets(u64),
    /// Names the current list of targets.
    Snapshot(u64),
    /// Names the current snapshot. Readers start here; the only file that changes.
    Timestamp,
}

impl RepositoryFile {
    /// The file at a path relative to the repository, such as `blobs/<root>`; `None` for anything
    /// that readers do not use, and for every path that could mean another file.
    ///
    /// Names need no escapes, so a percent sign is never interpreted; no part starts with a dot, as
    /// unfinished files do.
    #[must_use]
    pub fn of(path: &str) -> Option<Self> {
        if path.len() > PATH_BYTES_MAX || !path.split('/').all(is_plain_name) {
            return None;
        }
        let (folder, rest) = path.split_once('/')?;
        match folder {
            BLOBS_DIR => match rest.strip_suffix(".units") {
                Some(root) => root.parse().ok().map(Self::Units),
                None => rest.parse().ok().map(Self::Blob),
            },
            TARGETS_DIR => {
                let (_, name) = rest.rsplit_once('/')?;
                name.split_once('.')?.0.parse().ok().map(Self::Target)
            }
            METADATA_DIR => match rest {
                "timestamp.json" => Some(Self::Timestamp),
                "root.json" => Some(Self::Root(None)),
                versioned => {
                    let (version, role) = versioned.split_once('.')?;
                    let version = version.parse().ok()?;
                    match role {
                        "root.json" => Some(Self::Root(Some(version))),
                        "targets.json" => Some(Self::Targets(version)),
                        "snapshot.json" => Some(Self::Snapshot(version)),
                        _ => None,
                    }
                }
            },
            _ => None,
        }
    }

    /// Size limit of such a file.
    #[must_use]
    pub fn bytes_max(&self) -> u64 {
        match self {
            Self::Blob(_) => ARTIFACT_BYTES_MAX,
            Self::Units(_) => ARTIFACT_BYTES_MAX / u64::from(UNIT_BYTES) * blake3::OUT_LEN as u64,
            Self::Target(_) => MANIFEST_BYTES_MAX,
            Self::Targets(_) => METADATA_BYTES_MAX,
            Self::Root(_) | Self::Snapshot(_) | Self::Timestamp => SMALL_METADATA_BYTES_MAX,
        }
    }

    /// The file's `Content-Type`: JSON for metadata, bytes for the rest.
    #[must_use]
    pub fn content_type(&self) -> &'static str {
        match self {
            Self::Blob(_) | Self::Units(_) => "application/octet-stream",
            _ => "application/json",
        }
    }

    /// The `Cache-Control` for intermediate caches. The bytes behind a name with a hash never
    /// change; those behind a version do, after a repository was restored from a backup.
    #[must_use]
    pub fn cache_control(&self) -> &'static str {
        match self {
            Self::Blob(_) | Self::Units(_) | Self::Target(_) => {
                "public, max-age=31536000, immutable"
            }
            Self::Root(_) | Self::Targets(_) | Self::Snapshot(_) | Self::Timestamp => "no-cache",
        }
    }
}

/// The files in the repository's directory `dir` that readers may request, with their lengths in
/// bytes. Links are not followed. Blocking.
///
/// # Errors
/// If a directory cannot be read: which, and why.
pub fn repository_files(dir: &Path) -> Result<BTreeMap<String, u64>, FileError> {
    let mut found = BTreeMap::new();
    let mut folders: Vec<PathBuf> =
        [BLOBS_DIR, TARGETS_DIR, METADATA_DIR].map(|folder| dir.join(folder)).into();
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.on_path("read folder", &folder)?,
        };
        for entry in entries {
            let entry = entry.on_path("read folder", &folder)?;
            let path = entry.path();
            let about = entry.metadata().on_path("read", &path)?;
            let relative = path.strip_prefix(dir).ok().and_then(Path::to_str);
            if about.is_dir() {
                folders.push(path);
            } else if let Some(relative) = relative
                && about.is_file()
                && RepositoryFile::of(relative).is_some()
            {
                found.insert(relative.to_owned(), about.len());
            }
        }
    }
    Ok(found)
}

/// Whether a text is usable as one part of a path in a repository.
#[must_use]
pub fn is_plain_name(part: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+~".contains(&byte);
    !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed)
}

#[cfg(test)]
#[path = "repository_file_test.rs"]
mod repository_file_test;
