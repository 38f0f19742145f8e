//! The releases on this server's disk: folders, the one in use, and what may go.
//!
//! ```text
//! <install_dir>/current -> releases/2.0.0-0123456789ab
//! <install_dir>/releases/2.0.0-0123456789ab/          unpacked, whole, never changed by us again
//! <install_dir>/releases/.part-2.0.0-0123456789ab/    being unpacked; swept at the next try
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cohort_core::ids::Digest;
use cohort_core::release::Release;

use crate::program::RunAs;
use crate::unpack::{UnpackError, UnpackLimits, unpack};

/// In every unpacked release: which release it is. Its presence says that it is whole.
pub(crate) const MARKER: &str = ".cohort-release.json";

const CURRENT: &str = "current";
const RELEASES: &str = "releases";
const PART_PREFIX: &str = ".part-";

/// Digits of the digest in a folder's name: 48 bits tell releases of one app apart, and the marker
/// holds the whole digest.
const DIGEST_DIGITS: usize = 12;

/// The folders of one app's releases.
#[derive(Debug, Clone)]
pub struct Releases {
    install_dir: PathBuf,
}

/// Why the releases on disk could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be {what}", path.display())]
pub struct ReleasesError {
    /// Which file or folder.
    pub path: PathBuf,
    /// What was tried.
    pub what: &'static str,
    /// Why not.
    #[source]
    pub source: io::Error,
}

fn failed<'a>(path: &'a Path, what: &'static str) -> impl FnOnce(io::Error) -> ReleasesError + 'a {
    move |source| ReleasesError { path: path.to_owned(), what, source }
}

impl Releases {
    /// Opens the app's folder, made when there is none; what an interrupted unpacking left behind
    /// is removed.
    ///
    /// # Errors
    /// When it cannot be made or swept.
    pub fn open(install_dir: impl Into<PathBuf>) -> Result<Self, ReleasesError> {
        let install_dir = install_dir.into();
        let folder = install_dir.join(RELEASES);
        fs::create_dir_all(&folder).map_err(failed(&folder, "created"))?;
        // Absolute, because programs start in folders of their own.
        let install_dir = fs::canonicalize(&install_dir).map_err(failed(&install_dir, "found"))?;
        let releases = Releases { install_dir };
        releases.sweep()?;
        Ok(releases)
    }

    fn folder(&self) -> PathBuf {
        self.install_dir.join(RELEASES)
    }

    fn name_of(release: &Release) -> String {
        format!("{}-{}", release.version, &release.artifact.as_str()[..DIGEST_DIGITS])
    }

    /// Where a release is, or would be.
    #[must_use]
    pub fn path_of(&self, release: &Release) -> PathBuf {
        self.folder().join(Self::name_of(release))
    }

    /// The link that names the release in use.
    #[must_use]
    pub fn current_link(&self) -> PathBuf {
        self.install_dir.join(CURRENT)
    }

    /// Whether the release is whole on disk.
    #[must_use]
    pub fn has(&self, release: &Release) -> bool {
        read_marker(&self.path_of(release)).is_some_and(|found| found.artifact == release.artifact)
    }

    /// Every release that is whole on disk.
    #[must_use]
    pub fn unpacked(&self) -> Vec<Release> {
        let Ok(entries) = fs::read_dir(self.folder()) else { return Vec::new() };
        entries
            .filter_map(|entry| read_marker(&entry.ok()?.path()))
            .filter(|release| self.has(release))
            .collect()
    }

    /// The release that `current` points to, if it is one of ours.
    #[must_use]
    pub fn current(&self) -> Option<Release> {
        let target = fs::read_link(self.current_link()).ok()?;
        let release = read_marker(&self.install_dir.join(&target))?;
        (target == Path::new(RELEASES).join(Self::name_of(&release))).then_some(release)
    }

    /// Verifies and unpacks an artifact beside the others. Harmless to repeat. Blocking.
    ///
    /// # Errors
    /// See [`UnpackError`]; nothing is left behind.
    pub fn unpack(
        &self,
        artifact: &Path,
        release: &Release,
        limits: UnpackLimits,
        owner: Option<RunAs>,
    ) -> Result<PathBuf, UnpackError> {
        let path = self.path_of(release);
        if self.has(release) {
            return Ok(path);
        }
        let disk = |path: &Path, what| {
            let path = path.to_owned();
            move |source| UnpackError::Io { path, what, source }
        };
        if path.symlink_metadata().is_ok() {
            // Ours by its name, not whole by its marker: removed, never repaired.
            remove(&path).map_err(disk(&path, "removed"))?;
        }
        let part = self.folder().join(format!("{PART_PREFIX}{}", Self::name_of(release)));
        remove(&part).map_err(disk(&part, "removed"))?;
        let unpacked = unpack(artifact, release, &part, limits, owner)
            .and_then(|()| write_marker(&part, release).map_err(disk(&part, "marked")));
        if let Err(error) = unpacked {
            if let Err(error) = remove(&part) {
                tracing::warn!(path = %part.display(), %error, "half a release is left on disk");
            }
            return Err(error);
        }
        let renamed = fs::rename(&part, &path).and_then(|()| sync(&self.folder()));
        renamed.map_err(disk(&path, "put in place"))?;
        Ok(path)
    }

    /// Points `current` to the release, or to nothing, in one step. Harmless to repeat.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn switch(&self, release: Option<&Release>) -> Result<(), ReleasesError> {
        let link = self.current_link();
        match release {
            Some(release) => {
                let aside = self.install_dir.join(".current-new");
                remove(&aside).map_err(failed(&aside, "removed"))?;
                let target = Path::new(RELEASES).join(Self::name_of(release));
                symlink(target, &aside).map_err(failed(&aside, "created"))?;
                fs::rename(&aside, &link).map_err(failed(&link, "replaced"))?;
            }
            None => match fs::remove_file(&link) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(failed(&link, "removed"))?,
            },
        }
        sync(&self.install_dir).map_err(failed(&self.install_dir, "synced"))
    }

    /// Removes the releases that are not in `keep`, nor in use. Blocking.
    ///
    /// # Errors
    /// When one cannot be removed; the others may be gone already.
    pub fn collect(&self, keep: &[Digest]) -> Result<Vec<Release>, ReleasesError> {
        let in_use = fs::canonicalize(self.current_link()).ok();
        let mut removed = Vec::new();
        for release in self.unpacked() {
            let path = self.path_of(&release);
            if keep.contains(&release.artifact) || in_use.as_deref() == Some(&*path) {
                continue;
            }
            // Aside first: a release that is half removed must not look whole.
            let aside = self.folder().join(format!("{PART_PREFIX}{}", Self::name_of(&release)));
            remove(&aside).map_err(failed(&aside, "removed"))?;
            fs::rename(&path, &aside).map_err(failed(&path, "moved aside"))?;
            sync(&self.folder()).map_err(failed(&path, "moved aside"))?;
            remove(&aside).map_err(failed(&aside, "removed"))?;
            removed.push(release);
        }
        Ok(removed)
    }

    fn sweep(&self) -> Result<(), ReleasesError> {
        let folder = self.folder();
        for entry in fs::read_dir(&folder).map_err(failed(&folder, "read"))? {
            let entry = entry.map_err(failed(&folder, "read"))?;
            if entry.file_name().as_encoded_bytes().starts_with(PART_PREFIX.as_bytes()) {
                remove(&entry.path()).map_err(failed(&entry.path(), "removed"))?;
            }
        }
        Ok(())
    }
}

fn read_marker(folder: &Path) -> Option<Release> {
    serde_json::from_slice(&fs::read(folder.join(MARKER)).ok()?).ok()
}

fn write_marker(folder: &Path, release: &Release) -> io::Result<()> {
    use io::Write as _;
    let mut file = File::create_new(folder.join(MARKER))?;
    file.write_all(&serde_json::to_vec(release)?)?;
    file.sync_all()?;
    sync(folder)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a folder, file or link; one that is not there is no error.
fn remove(path: &Path) -> io::Result<()> {
    let about = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        about => about?,
    };
    if about.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}
