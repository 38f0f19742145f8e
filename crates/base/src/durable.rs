//! Files that are the old one or the new one after a crash at any instruction.
//!
//! A file is written beside its place (`.unfinished-…`), synced, renamed, and its folder is synced.
//! What a crash leaves behind is removed by [`sweep`], or by [`sweep_for`] where others write into
//! the same folder. All functions block.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

pub use tempfile::NamedTempFile;

/// How the name of every file begins that is not in its place yet.
pub const UNFINISHED_PREFIX: &str = ".unfinished-";

/// The mode of a file that everybody may read.
pub const READABLE: u32 = 0o644;

/// The mode of a file that only its owner may read.
pub const SECRET: u32 = 0o600;

/// Replaces `path` with `bytes`. The file has exactly `mode`, and is never readable by more
/// people than that. Its folder must exist. Two writers do not disturb each other: the last one
/// wins.
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
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
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
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    sync_folder(folder_of(path))
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
mod durable_test {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_with_the_mode_it_is_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        for (bytes, mode) in [("old", READABLE), ("new", SECRET), ("public", READABLE)] {
            write(&path, bytes.as_bytes(), mode).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), bytes);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
        assert_eq!(names(folder.path()), ["record"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record");
        fs::create_dir(&path).unwrap();
        assert!(write(&path, b"new", READABLE).is_err());
        assert!(path.is_dir());
        assert_eq!(names(folder.path()), ["record"]);
        assert!(write(&folder.path().join("missing/record"), b"new", READABLE).is_err());
    }

    #[test]
    fn leftovers_are_swept_for_one_file_or_for_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let leave = |name: &str| unfinished_for(&path(name)).unwrap().keep().unwrap();
        let ((_, _a), (_, b)) = (leave("a"), leave("ab"));
        write(&path("a"), b"", READABLE).unwrap();
        sweep_for(&path("a")).unwrap();
        assert_eq!(names(folder.path()), [b.file_name().unwrap().to_str().unwrap(), "a"]);
        fs::create_dir(path(".unfinished-folder")).unwrap();
        sweep(folder.path()).unwrap();
        assert_eq!(names(folder.path()), ["a"]);
        sweep(&path("missing")).unwrap();
    }

    #[test]
    fn an_unfinished_file_vanishes_unless_it_is_put_in_place() {
        let folder = tempfile::tempdir().unwrap();
        drop(unfinished(folder.path()).unwrap());
        let file = unfinished(folder.path()).unwrap();
        put_in_place(file, &folder.path().join("kept"), READABLE).unwrap();
        rename(&folder.path().join("kept"), &folder.path().join("renamed")).unwrap();
        assert_eq!(names(folder.path()), ["renamed"]);
    }

    #[test]
    fn missing_folders_are_created_and_a_bare_name_is_in_the_current_one() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        create_folders(&deep).unwrap();
        create_folders(&deep).unwrap();
        assert!(deep.is_dir());
        assert_eq!(folder_of(Path::new("name")), Path::new("."));
        assert_eq!(folder_of(Path::new("/a/name")), Path::new("/a"));
    }
}
