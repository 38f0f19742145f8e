//! The releases on this server's disk: directories, the current one, and which may be removed.
//!
//! ```text
//! <install_dir>/state/                                     the service's own; stays
//! <install_dir>/current -> releases/2.0.0-0123456789ab
//! <install_dir>/releases/2.0.0-0123456789ab/               complete; never changed again
//! <install_dir>/releases/.unfinished-2.0.0-0123456789ab/   being unpacked or removed
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink,
};
use std::path::{Path, PathBuf};

use cohort_base::archive::{MARKER, SERVICE_FILE_BYTES_MAX};
use cohort_base::durable::{self, READABLE, UNFINISHED_PREFIX, sync_folder};
use cohort_base::{FileError, OnPath as _};
use cohort_core::ids::Digest;
use cohort_core::release::Release;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::program::RunAs;
use crate::service_file::{ServiceFile, ServiceFileError};
use crate::trusted_folder::{UntrustedFolder, check_trusted, own_user};
use crate::unpack::{UnpackError, unpack};

const MARKER_SCHEMA: u32 = 2;
/// Longest marker, in bytes: a `cohort.toml` whose every byte is escaped, and a release.
const MARKER_BYTES_MAX: u64 = 6 * SERVICE_FILE_BYTES_MAX + 16 * 1024;
const CURRENT: &str = "current";
const RELEASES: &str = "releases";
const STATE: &str = "state";
const CACHE: &str = "cache";
const RUNTIME: &str = "run";
/// The socket where the service says that it is ready.
const NOTIFY: &str = "notify";
/// The link that is about to replace [`CURRENT`].
const NEXT: &str = ".current-new";

/// Digits of the digest in a directory's name. 48 bits distinguish the releases of one app, and the
/// marker contains the whole digest.
const DIGEST_DIGITS: usize = 12;

/// Gives the files below `folder` to a group that may read what their owner may: the marker, which
/// says that this is done, last.
fn open_files_to(folder: &Path, gid: u32) -> Result<(), FileError> {
    let mut marker = None;
    for entry in fs::read_dir(folder).on_path("read", folder)? {
        let path = entry.on_path("read", folder)?.path();
        let metadata = fs::symlink_metadata(&path).on_path("inspect", &path)?;
        if metadata.is_dir() {
            open_files_to(&path, gid)?;
        } else if path.ends_with(MARKER) {
            marker = Some(path);
        } else if metadata.is_file() {
            lchown(&path, None, Some(gid)).on_path("set group of", &path)?;
            let mode = metadata.mode() & 0o777;
            let open = fs::Permissions::from_mode(mode | (mode & 0o500) >> 3);
            fs::set_permissions(&path, open).on_path("set permissions of", &path)?;
        }
    }
    let marked =
        marker.map(|marker| lchown(&marker, None, Some(gid)).on_path("set group of", &marker));
    marked.unwrap_or(Ok(()))
}

/// The directories of one app's releases.
#[derive(Debug, Clone)]
pub(crate) struct Releases {
    install_dir: PathBuf,
}

impl Releases {
    /// Opens the app's directory, creating it if needed, and removes unfinished releases.
    ///
    /// # Errors
    /// If a disk operation fails, or another user could put something else in its place.
    pub(crate) fn open(install_dir: &Path) -> Result<Self, UntrustedFolder> {
        // Absolute, because programs start in their own directories.
        let install_dir = check_trusted(install_dir)?;
        let root = durable::folder_of(&install_dir);
        durable::create_folders(root).on_path("create", root)?;
        let folder = install_dir.join(RELEASES);
        for new in [&install_dir, &folder] {
            create_open(new)?;
        }
        check_trusted(&folder)?;
        if let Err(error) = durable::sweep(&folder) {
            let folder = folder.display();
            tracing::warn!(%folder, %error, "cannot remove unfinished releases");
        }
        Ok(Releases { install_dir })
    }

    fn folder(&self) -> PathBuf {
        self.install_dir.join(RELEASES)
    }

    /// The directory where the app's service keeps what has to stay, whatever its release.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.install_dir.join(STATE)
    }

    /// As [`Self::state_dir`], for what it can do without.
    pub(crate) fn cache_dir(&self) -> PathBuf {
        self.install_dir.join(CACHE)
    }

    /// As [`Self::state_dir`], for sockets and numbers of processes.
    pub(crate) fn runtime_dir(&self) -> PathBuf {
        self.install_dir.join(RUNTIME)
    }

    pub(crate) fn notify_socket(&self) -> PathBuf {
        self.install_dir.join(NOTIFY)
    }

    /// The directories that the app's programs may write to.
    pub(crate) fn own_dirs(&self) -> [PathBuf; 3] {
        [self.state_dir(), self.cache_dir(), self.runtime_dir()]
    }

    /// Creates [`Self::own_dirs`], for `owner`. Only their owner may enter them.
    pub(crate) fn create_own_dirs(&self, owner: Option<RunAs>) -> Result<(), FileError> {
        self.own_dirs().iter().try_for_each(|path| create_own(path, owner))
    }

    /// Lets `reader` read the releases that were unpacked for another user, after `service_user`
    /// has changed. Nobody but the agent can write there, so no link leads out.
    pub(crate) fn open_to(&self, reader: RunAs) -> Result<(), FileError> {
        let folder = self.folder();
        for entry in fs::read_dir(&folder).on_path("read", &folder)? {
            let path = entry.on_path("read", &folder)?.path();
            let marker = fs::symlink_metadata(path.join(MARKER));
            let other = marker.is_ok_and(|marker| marker.gid() != reader.gid);
            if other {
                open_files_to(&path, reader.gid)?;
            }
        }
        Ok(())
    }

    /// Removes everything but what the app's service has written.
    pub(crate) fn remove_all(&self) -> Result<(), FileError> {
        let all =
            [self.current_link(), self.install_dir.join(NEXT), self.folder(), self.notify_socket()];
        all.iter().try_for_each(|own| remove(own))?;
        // What the service has written stays: nobody knows what it is worth, or how deep it is.
        for folder in self.own_dirs().iter().chain([&self.install_dir]) {
            match fs::remove_dir(folder) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                    let folder = folder.display();
                    tracing::info!(%folder, "kept what the service has written");
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.on_path("remove", folder)?,
            }
        }
        Ok(())
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
        self.marker_of(release).is_some()
    }

    fn marker_of(&self, release: &Release) -> Option<Marker> {
        let marker = read_marker(&self.path_of(release))?;
        (marker.release.artifact == release.artifact).then_some(marker)
    }

    /// What the release says about running it, as it was when its bytes were verified.
    pub(crate) fn service_file(&self, release: &Release) -> Result<ServiceFile, ServiceFileError> {
        let marker = self.marker_of(release).ok_or(ServiceFileError::Absent)?;
        marker.service_file.map_or(Ok(ServiceFile::default()), |text| ServiceFile::parse(&text))
    }

    /// Every release that is complete on disk.
    pub(crate) fn unpacked(&self) -> Vec<Release> {
        let Ok(entries) = fs::read_dir(self.folder()) else { return Vec::new() };
        entries
            .filter_map(|entry| Some(read_marker(&entry.ok()?.path())?.release))
            .filter(|release| self.has(release))
            .collect()
    }

    /// The release that `current` points to, if it is one of ours.
    pub(crate) fn current(&self) -> Option<Release> {
        let target = fs::read_link(self.current_link()).ok()?;
        let release = read_marker(&self.install_dir.join(&target))?.release;
        (target == Path::new(RELEASES).join(Self::name_of(&release))).then_some(release)
    }

    /// Verifies and unpacks an artifact next to the other releases, where `reader` may read it.
    /// Idempotent. Blocking.
    ///
    /// # Errors
    /// See [`UnpackError`]; nothing is left behind.
    pub(crate) fn unpack(
        &self,
        artifact: &Path,
        release: &Release,
        reader: Option<RunAs>,
    ) -> Result<(), UnpackError> {
        if self.has(release) {
            return Ok(());
        }
        let (path, unfinished) = (self.path_of(release), self.unfinished_of(release));
        // Ours by its name, incomplete by its marker: removed, never repaired.
        remove(&path)?;
        remove(&unfinished)?;
        let unpacked = unpack(artifact, release, &unfinished, reader).and_then(|service_file| {
            let release = release.clone();
            let marker = Marker { schema: MARKER_SCHEMA, release, service_file };
            Ok(write_marker(&unfinished, &marker)?)
        });
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
                let next = self.install_dir.join(NEXT);
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
pub(crate) struct Marker {
    /// [`MARKER_SCHEMA`]; a directory with another schema is unpacked again.
    schema: u32,
    release: Release,
    /// The text of the release's `cohort.toml`, if it has one.
    service_file: Option<String>,
}

/// Reads a marker that this process's user wrote. Nobody else can put one into a release.
fn read_marker(folder: &Path) -> Option<Marker> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: File = rustix::fs::open(folder.join(MARKER), flags, Mode::empty()).ok()?.into();
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.uid() != own_user() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MARKER_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let marker: Marker = serde_json::from_slice(&bytes).ok()?;
    (marker.schema == MARKER_SCHEMA).then_some(marker)
}

fn write_marker(folder: &Path, marker: &Marker) -> Result<(), FileError> {
    let path = folder.join(MARKER);
    let written = serde_json::to_vec(marker).map_err(io::Error::from);
    written.and_then(|bytes| durable::write(&path, &bytes, READABLE)).on_path("write", &path)
}

/// Creates a directory that everybody may enter, and nobody else may write to, whatever the umask.
/// One that exists stays as it is.
fn create_open(path: &Path) -> Result<(), FileError> {
    match DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        created => {
            created.on_path("create", path)?;
            let open = fs::Permissions::from_mode(0o755);
            fs::set_permissions(path, open).on_path("set mode of", path)?;
            durable::sync_folder(durable::folder_of(path)).on_path("sync", path)
        }
    }
}

/// Creates a directory for `owner`, which nobody else may enter.
fn create_own(path: &Path, owner: Option<RunAs>) -> Result<(), FileError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        created => created.on_path("create", path)?,
    }
    let Some(RunAs { uid, gid }) = owner else { return Ok(()) };
    let owned = fs::symlink_metadata(path).on_path("inspect", path)?;
    if owned.uid() == uid {
        return Ok(());
    }
    // Nobody else can put a link here: the directory above is the agent's.
    lchown(path, Some(uid), Some(gid)).on_path("set owner of", path)
}

/// Removes whatever is there, if anything; all of it is the agent's own.
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
