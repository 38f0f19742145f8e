//! A directory that somebody else may write to: every path is resolved below it by the kernel, and
//! through no link (openat2(2), Linux 5.6).

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use cohort_base::{FileError, OnPath as _, durable};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::process::Gid;

const BELOW: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

#[derive(Debug)]
pub(crate) struct Inside {
    folder: OwnedFd,
    /// For errors.
    path: PathBuf,
}

impl Inside {
    /// Creates the directory, which only this process's user can enter. It must not exist.
    pub(crate) fn create(path: &Path) -> Result<Self, FileError> {
        DirBuilder::new().mode(0o700).create(path).on_path("create", path)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty());
        let folder = folder.map_err(io::Error::from).on_path("open", path)?;
        Ok(Inside { folder, path: path.to_owned() })
    }

    /// Opens a directory that is there.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::PATH;
        let folder = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Inside { folder, path: path.to_owned() })
    }

    /// What is at `path`, without opening it.
    pub(crate) fn handle(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open_as(path, OFlags::PATH)
    }

    /// The directory above `path`, and the name in it.
    fn above<'p>(&self, path: &'p Path) -> io::Result<(OwnedFd, &'p OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let above = path.parent().filter(|above| !above.as_os_str().is_empty());
        Ok((self.open_as(above.unwrap_or(Path::new(".")), OFlags::DIRECTORY)?, name))
    }

    fn open_as(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(&self.folder, path, flags, Mode::empty(), BELOW)?)
    }

    /// Runs `change` with the directory above `path` and the name in it.
    fn change<T>(
        &self,
        action: &'static str,
        path: &Path,
        change: impl FnOnce(OwnedFd, &OsStr) -> rustix::io::Result<T>,
    ) -> Result<T, FileError> {
        let changed = self.above(path).and_then(|(above, name)| Ok(change(above, name)?));
        changed.on_path(action, &self.path.join(path))
    }

    /// A new file, readable only by this process's user.
    pub(crate) fn file(&self, path: &Path) -> Result<File, FileError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        self.change("create", path, |above, name| {
            Ok(rustix::fs::openat(above, name, flags, mode)?.into())
        })
    }

    /// A new directory that everybody may enter, whatever the umask.
    pub(crate) fn folder(&self, path: &Path) -> Result<(), FileError> {
        self.change("create", path, |above, name| rustix::fs::mkdirat(above, name, Mode::RWXU))?;
        let opened = self.open_as(path, OFlags::DIRECTORY);
        let opened = opened.and_then(|folder| Ok(rustix::fs::fchmod(folder, entered_by_all())?));
        opened.on_path("set mode of", &self.path.join(path))
    }

    pub(crate) fn symlink(&self, target: &Path, path: &Path) -> Result<(), FileError> {
        self.change("create", path, |above, name| rustix::fs::symlinkat(target, above, name))
    }

    /// Another name of a file in the directory.
    pub(crate) fn hard_link(&self, target: &Path, path: &Path) -> Result<(), FileError> {
        let linked = self.above(target).and_then(|(from, old)| {
            let (to, new) = self.above(path)?;
            Ok(rustix::fs::linkat(from, old, to, new, AtFlags::empty())?)
        });
        linked.on_path("link", &self.path.join(path))
    }

    /// Gives a file its mode, and lets a group read what its owner may read and nobody else.
    pub(crate) fn finish_file(
        &self,
        file: &File,
        path: &Path,
        mode: u32,
        readers: Option<u32>,
    ) -> Result<(), FileError> {
        let (mode, readers) = (Mode::from_raw_mode(mode), readers.map(Gid::from_raw));
        // Its group first: giving a file away clears bits of its mode.
        let finished = readers
            .map_or(Ok(()), |readers| rustix::fs::fchown(file, None, Some(readers)))
            .and_then(|()| rustix::fs::fchmod(file, mode));
        finished.map_err(io::Error::from).on_path("set mode of", &self.path.join(path))
    }

    /// Makes a file or a directory durable.
    pub(crate) fn sync(&self, path: &Path) -> Result<(), FileError> {
        let synced =
            self.open_as(path, OFlags::RDONLY).and_then(|fd| durable::sync(&File::from(fd)));
        synced.on_path("sync", &self.path.join(path))
    }

    /// Makes everything on its file system durable.
    pub(crate) fn sync_everything(&self) -> Result<(), FileError> {
        let synced = rustix::fs::syncfs(&self.folder).map_err(io::Error::from);
        synced.on_path("sync", &self.path)
    }

    /// Lets everybody enter the directory itself.
    pub(crate) fn open_up(&self) -> Result<(), FileError> {
        let opened = rustix::fs::fchmod(&self.folder, entered_by_all());
        opened.map_err(io::Error::from).on_path("set mode of", &self.path)
    }
}

fn entered_by_all() -> Mode {
    Mode::from_raw_mode(0o755)
}
