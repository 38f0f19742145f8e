//! Free space, preallocation, and locks that the kernel releases when the process dies.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, StatVfsMountFlags, fallocate, statvfs};
use rustix::io::Errno;

/// What the file system of `path` lets an unprivileged user write, in bytes.
///
/// # Errors
/// If the file system cannot be asked.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let about = statvfs(path)?;
    Ok(about.f_bavail.saturating_mul(about.f_frsize))
}

/// Whether the file system of `path` is mounted read-only.
///
/// # Errors
/// If the file system cannot be asked.
pub fn is_read_only(path: &Path) -> io::Result<bool> {
    Ok(statvfs(path)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Whether the file system of `path` is mounted so that no program on it can run.
///
/// # Errors
/// If the file system cannot be asked.
pub fn is_noexec(path: &Path) -> io::Result<bool> {
    Ok(statvfs(path)?.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

/// Allocates a range of a file, in bytes, which grows it if needed; `false` if the file system
/// cannot, and a check of [`free_bytes`] has to suffice.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`] and [`io::ErrorKind::QuotaExceeded`] if the space is not there;
/// others if the file cannot be written.
pub fn preallocate(file: &File, start: u64, length: u64) -> io::Result<bool> {
    loop {
        match fallocate(file, FallocateFlags::empty(), start, length) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
            result => return result.map(|()| true).map_err(io::Error::from),
        }
    }
}

/// Locks a file, created if absent, against other processes and other callers for as long as the
/// returned file is open; `None` if somebody else has the lock.
///
/// # Errors
/// If the file cannot be opened or locked.
pub fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether a path still names this open file: whoever empties or replaces a directory takes a lock
/// in it away, too.
///
/// # Errors
/// If either cannot be inspected.
pub fn names(path: &Path, file: &File) -> io::Result<bool> {
    let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        there => Ok(identity(there?) == identity(file.metadata()?)),
    }
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod disk_test;
