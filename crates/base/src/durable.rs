//! Files that are the old one or the new one after a crash at any instruction.
//!
//! A file is written beside its place (`.unfinished-…`), synced, renamed, and its folder is synced.
//! What a crash leaves behind is removed by [`sweep`], or by [`sweep_for`] where others write into
//! the same folder. All functions block.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

pub use tempfile::NamedTempFile;

/// How the name of every file begins that is not in its place yet.
pub const UNFINISHED_PREFIX: &str = ".unfinished-";

/// The mode of a file that everybody may read, as far as the process's umask allows.
pub const READABLE: u32 = 0o644;

/// The mode of a file that only its owner may read.
pub const SECRET: u32 = 0o600;

/// Replaces `path` with `bytes`. The file has `mode` without the bits of the process's umask, and
/// is never readable by more people than that. Its folder must exist. Two writers do not disturb
/// each other: the last one wins.
///
/// # Errors
/// When the file system refuses. The old file is untouched then, except when the error came from
/// syncing the folder: after a crash it may be either one.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = unfinished_for(path)?;
    file.write_all(bytes)?;
    put_in_place(file, path, mode)
}

/// A new file in `folder`, readable by its owner only. It is removed when dropped, unless
/// [`put_in_place`] took it.
///
/// # Errors
/// When the file system refuses.
pub fn unfinished(folder: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(UNFINISHED_PREFIX).tempfile_in(folder)
}

/// Syncs a written file, renames it to `path` in the same folder, and syncs the folder.
///
/// # Errors
/// As [`write`].
pub fn put_in_place(file: NamedTempFile, path: &Path, mode: u32) -> io::Result<()> {
    finish(&file, mode)?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(folder_of(path))
}

/// As [`write`], but never in place of something that is there.
///
/// # Errors
/// As [`write`]; [`io::ErrorKind::AlreadyExists`] when there is a file of that name.
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

/// The bits that this process denies to files that it creates. The system call that returns them
/// also sets them, for all threads; the kernel shows them here as well. Unknown (no `/proc`):
/// only the owner gets anything.
fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let text = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    text.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o077)
}

/// Renames a file or folder whose content is durable, and syncs the folder it goes to. The folder
/// it came from, if that is another one, is the caller's to sync.
///
/// # Errors
/// As [`write`].
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder(folder_of(to))
}

/// Creates a folder and the missing ones above it, each durable in the one above.
///
/// # Errors
/// When the file system refuses.
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

/// Creates a folder (and the missing ones above it) that is for its owner only, or takes an
/// existing one away from everybody else.
///
/// # Errors
/// When the file system refuses, for instance because the folder belongs to another user.
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

/// Makes what was created, renamed and removed in a folder durable.
///
/// # Errors
/// When the file system refuses.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The folder that holds `path`; `.` for a bare name.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Removes every unfinished file and folder in `folder`. For the one owner of the folder, before
/// it writes. A missing folder is clean.
///
/// # Errors
/// When the file system refuses.
pub fn sweep(folder: &Path) -> io::Result<()> {
    sweep_prefix(folder, OsStr::new(UNFINISHED_PREFIX))
}

/// Removes what interrupted writes of `path` left beside it. For the one writer of `path`, where
/// the folder has others.
///
/// # Errors
/// When the file system refuses.
pub fn sweep_for(path: &Path) -> io::Result<()> {
    sweep_prefix(folder_of(path), &unfinished_prefix(path))
}

fn unfinished_for(path: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(&unfinished_prefix(path)).tempfile_in(folder_of(path))
}

/// `.unfinished-NAME.`, to which six random letters are added.
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
