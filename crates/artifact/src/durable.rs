//! Files that are either the old or the new ones after a crash at any instruction.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

/// Prefix of files that are being written; what a crash leaves behind is swept by this name.
pub(crate) const UNFINISHED_PREFIX: &str = ".unfinished-";

/// A file in `folder` that vanishes unless it is put in place by [`put_in_place`].
pub(crate) fn unfinished(folder: &Path) -> io::Result<NamedTempFile> {
    create_folders(folder)?;
    Builder::new().prefix(UNFINISHED_PREFIX).tempfile_in(folder)
}

/// Syncs a written file, renames it to `path` in the same folder, and syncs the folder.
pub(crate) fn put_in_place(file: NamedTempFile, path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_folder(folder_of(path)?)
}

/// Writes aside, syncs, renames, syncs the folder. Missing folders are created.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = unfinished(folder_of(path)?)?;
    file.write_all(bytes)?;
    put_in_place(file, path, mode)
}

/// Creates a folder and the missing ones above it, each durable in the one above.
pub(crate) fn create_folders(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder_of(folder)?;
    if !above.as_os_str().is_empty() {
        create_folders(above)?;
    }
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) if above.as_os_str().is_empty() => sync_folder(Path::new(".")),
        Ok(()) => sync_folder(above),
    }
}

/// Makes the entries of a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes what earlier crashes left half written in `folder`. A missing folder is clean.
pub(crate) fn sweep_unfinished(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED_PREFIX.as_bytes()) {
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

fn folder_of(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::other(format!("{} has no folder", path.display())))
}
