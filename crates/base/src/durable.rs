//! Files that are either old or new after a crash at any instruction.
//!
//! A file is written next to its place (`.unfinished-…`), synced, renamed, and its directory is
//! synced. [`sweep`] removes what a crash leaves behind; [`sweep_for`] does where others write into
//! the same directory. All functions block.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

pub use tempfile::NamedTempFile;

/// Prefix of the name of every file that is not yet in its place.
pub const UNFINISHED_PREFIX: &str = ".unfinished-";

/// The mode of a file that every user may read, as far as the process's umask allows.
pub const READABLE: u32 = 0o644;

/// The mode of a file that only its owner may read.
pub const SECRET: u32 = 0o600;

/// Replaces `path` with `bytes`. The file has `mode` minus the bits of the process's umask, and is
/// never more readable than that. Its directory must exist. Concurrent writers do not disturb each
/// other: the last one wins.
///
/// # Errors
/// If a file operation fails. The old file is then unchanged, unless syncing the directory failed:
/// after a crash it may be either one.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = unfinished_for(path)?;
    file.write_all(bytes)?;
    put_in_place(file, path, mode)
}

/// A new file in `folder`, readable only by its owner. It is removed when dropped, unless
/// [`put_in_place`] took it.
///
/// # Errors
/// If a file operation fails.
pub fn unfinished(folder: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(UNFINISHED_PREFIX).tempfile_in(folder)
}

/// Makes an open file or directory durable.
///
/// # Errors
/// If it cannot be synced.
pub fn sync(open: &File) -> io::Result<()> {
    open.sync_all()
}

/// Syncs a written file, renames it to `path` in the same directory, and syncs the directory.
///
/// # Errors
/// As [`write`].
pub fn put_in_place(file: NamedTempFile, path: &Path, mode: u32) -> io::Result<()> {
    finish(&file, mode)?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(folder_of(path))
}

/// As [`write`], but never replaces an existing file.
///
/// # Errors
/// As [`write`]; [`io::ErrorKind::AlreadyExists`] if a file of that name exists.
pub fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = unfinished_for(path)?;
    file.write_all(bytes)?;
    finish(&file, mode)?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    sync_folder(folder_of(path))
}

fn finish(file: &NamedTempFile, mode: u32) -> io::Result<()> {
    file.as_file().set_permissions(Permissions::from_mode(mode & !umask()))?;
    file.as_file().sync_all()
}

/// The bits that this process removes from the mode of new files. The system call that returns them
/// also sets them, for all threads; the kernel shows them here too. If unknown (no `/proc`), only
/// the owner gets access.
fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let text = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    text.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o077)
}

/// Renames a file or directory whose content is durable, and syncs the target directory. If the
/// source is in another directory, the caller has to sync that.
///
/// # Errors
/// As [`write`].
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder(folder_of(to))
}

/// Creates a directory and missing ones above it, each durable in its parent.
///
/// # Errors
/// If a file operation fails.
pub fn create_folders(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder_of(folder);
    create_folders(above)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(above),
    }
}

/// Creates a directory (and missing ones above it) that only its owner can access, or removes
/// everyone else's access to an existing one.
///
/// # Errors
/// If a file operation fails, for example because the directory belongs to another user.
pub fn private_folder(folder: &Path) -> io::Result<()> {
    create_folders(folder_of(folder))?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        created => created.and_then(|()| sync_folder(folder_of(folder)))?,
    }
    let mode = fs::metadata(folder)?.permissions().mode();
    match mode & 0o077 {
        0 => Ok(()),
        _ => fs::set_permissions(folder, Permissions::from_mode(mode & 0o700)),
    }
}

/// Persists what was created, renamed and removed in a directory.
///
/// # Errors
/// If a file operation fails.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The directory that contains `path`; `.` for a bare name.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Removes every unfinished file and directory in `folder`. Only for the sole owner of the
/// directory, before it writes. Does nothing if the directory is missing.
///
/// # Errors
/// If a file operation fails.
pub fn sweep(folder: &Path) -> io::Result<()> {
    sweep_prefix(folder, OsStr::new(UNFINISHED_PREFIX))
}

/// Removes what interrupted writes of `path` left next to it. For the only writer of `path`, in a
/// directory that others write to as well.
///
/// # Errors
/// If a file operation fails.
pub fn sweep_for(path: &Path) -> io::Result<()> {
    sweep_prefix(folder_of(path), &unfinished_prefix(path))
}

fn unfinished_for(path: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(&unfinished_prefix(path)).tempfile_in(folder_of(path))
}

/// `.unfinished-NAME.`, to be followed by six random letters.
fn unfinished_prefix(path: &Path) -> OsString {
    let mut prefix = OsString::from(UNFINISHED_PREFIX);
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".");
    prefix
}

fn sweep_prefix(folder: &Path, prefix: &OsStr) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "durable_test.rs"]
mod durable_test;
