//! The releases on this server's disk: directories, the current one, and which may be removed.
//!
//! ```text
//! <install_dir>/current -> releases/2.0.0-0123456789ab
//! <install_dir>/releases/2.0.0-0123456789ab/               complete; never changed again
//! <install_dir>/releases/.unfinished-2.0.0-0123456789ab/   being unpacked or removed
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cohort_base::durable::{self, READABLE, UNFINISHED_PREFIX, sync_folder};
use cohort_base::{FileError, OnPath as _};
use cohort_core::ids::Digest;
use cohort_core::release::Release;
use serde::{Deserialize, Serialize};

use crate::program::RunAs;
use crate::tree::MARKER;
use crate::unpack::{UnpackError, UnpackLimits, unpack};

const MARKER_SCHEMA: u32 = 1;
const CURRENT: &str = "current";
const RELEASES: &str = "releases";

/// Digits of the digest in a directory's name. 48 bits distinguish the releases of one app, and the
/// marker contains the whole digest.
const DIGEST_DIGITS: usize = 12;

/// The directories of one app's releases.
#[derive(Debug, Clone)]
pub(crate) struct Releases {
    install_dir: PathBuf,
}

impl Releases {
    /// Opens the app's directory, creating it if needed, and removes unfinished releases.
    pub(crate) fn open(install_dir: &Path) -> Result<Self, FileError> {
        let folder = install_dir.join(RELEASES);
        fs::create_dir_all(&folder).on_path("create", &folder)?;
        // A service may have created files there that we cannot remove; the name is never reused.
        if let Err(error) = durable::sweep(&folder) {
            let folder = folder.display();
            tracing::warn!(%folder, %error, "cannot remove unfinished releases");
        }
        // Absolute, because programs start in their own directories.
        let install_dir = fs::canonicalize(install_dir).on_path("find", install_dir)?;
        Ok(Releases { install_dir })
    }

    fn folder(&self) -> PathBuf {
        self.install_dir.join(RELEASES)
    }

    fn name_of(release: &Release) -> String {
        format!("{}-{}", release.version, &release.artifact.as_str()[..DIGEST_DIGITS])
    }

    /// Where a release is, or would be.
    pub(crate) fn path_of(&self, release: &Release) -> PathBuf {
        self.folder().join(Self::name_of(release))
    }

    fn unfinished_of(&self, release: &Release) -> PathBuf {
        self.folder().join(format!("{UNFINISHED_PREFIX}{}", Self::name_of(release)))
    }

    fn current_link(&self) -> PathBuf {
        self.install_dir.join(CURRENT)
    }

    /// Whether the release is complete on disk.
    pub(crate) fn has(&self, release: &Release) -> bool {
        read_marker(&self.path_of(release)).is_some_and(|found| found.artifact == release.artifact)
    }

    /// Every release that is complete on disk.
    pub(crate) fn unpacked(&self) -> Vec<Release> {
        let Ok(entries) = fs::read_dir(self.folder()) else { return Vec::new() };
        entries
            .filter_map(|entry| read_marker(&entry.ok()?.path()))
            .filter(|release| self.has(release))
            .collect()
    }

    /// The release that `current` points to, if it is one of ours.
    pub(crate) fn current(&self) -> Option<Release> {
        let target = fs::read_link(self.current_link()).ok()?;
        let release = read_marker(&self.install_dir.join(&target))?;
        (target == Path::new(RELEASES).join(Self::name_of(&release))).then_some(release)
    }

    /// Verifies and unpacks an artifact next to the other releases. Idempotent. Blocking.
    ///
    /// # Errors
    /// See [`UnpackError`]; nothing is left behind.
    pub(crate) fn unpack(
        &self,
        artifact: &Path,
        release: &Release,
        owner: Option<RunAs>,
    ) -> Result<(), UnpackError> {
        if self.has(release) {
            return Ok(());
        }
        let (path, unfinished) = (self.path_of(release), self.unfinished_of(release));
        // Ours by its name, incomplete by its marker: removed, never repaired.
        remove(&path)?;
        remove(&unfinished)?;
        let unpacked = unpack(artifact, release, &unfinished, UnpackLimits::default(), owner)
            .and_then(|()| Ok(write_marker(&unfinished, release)?));
        if let Err(error) = unpacked {
            if let Err(error) = remove(&unfinished) {
                let reason = cohort_base::chain(&error);
                tracing::warn!(
                    reason,
                    "cannot remove a partly unpacked release before the restart"
                );
            }
            return Err(error);
        }
        Ok(durable::rename(&unfinished, &path).on_path("create", &path)?)
    }

    /// Points `current` to the release, or to nothing, atomically. Idempotent.
    pub(crate) fn switch(&self, release: Option<&Release>) -> Result<(), FileError> {
        let link = self.current_link();
        match release {
            Some(release) => {
                let next = self.install_dir.join(".current-new");
                remove(&next)?;
                let target = Path::new(RELEASES).join(Self::name_of(release));
                symlink(target, &next).on_path("create", &next)?;
                durable::rename(&next, &link).on_path("replace", &link)
            }
            None => {
                remove(&link)?;
                sync_folder(&self.install_dir).on_path("sync", &self.install_dir)
            }
        }
    }

    /// Removes the releases that are neither in `keep` nor current, and returns them. Blocking.
    ///
    /// # Errors
    /// If one cannot be removed; others may be gone already.
    pub(crate) fn collect(&self, keep: &[Digest]) -> Result<Vec<Release>, FileError> {
        let in_use = fs::canonicalize(self.current_link()).ok();
        let mut removed = Vec::new();
        for release in self.unpacked() {
            let path = self.path_of(&release);
            if keep.contains(&release.artifact) || in_use.as_deref() == Some(&*path) {
                continue;
            }
            // Renamed first: a partly removed release must not look complete.
            let unfinished = self.unfinished_of(&release);
            remove(&unfinished)?;
            durable::rename(&path, &unfinished).on_path("rename", &path)?;
            remove(&unfinished)?;
            removed.push(release);
        }
        Ok(removed)
    }
}

/// The content of [`MARKER`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    /// [`MARKER_SCHEMA`]; a directory with another schema is unpacked again.
    schema: u32,
    release: Release,
}

fn read_marker(folder: &Path) -> Option<Release> {
    let marker: Marker = serde_json::from_slice(&fs::read(folder.join(MARKER)).ok()?).ok()?;
    (marker.schema == MARKER_SCHEMA).then_some(marker.release)
}

fn write_marker(folder: &Path, release: &Release) -> Result<(), FileError> {
    let path = folder.join(MARKER);
    let marker = Marker { schema: MARKER_SCHEMA, release: release.clone() };
    let written = serde_json::to_vec(&marker).map_err(io::Error::from);
    written.and_then(|bytes| durable::write(&path, &bytes, READABLE)).on_path("write", &path)
}

/// Removes a directory with its content, a file, or a link itself. A missing path is not an error.
fn remove(path: &Path) -> Result<(), FileError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.on_path("remove", path),
    }
}

#[cfg(test)]
#[path = "releases_test.rs"]
mod releases_test;
