//! Files that are either the old or the new ones after a crash at any instruction.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

const UNFINISHED_PREFIX: &str = ".unfinished-";

/// Writes aside, syncs, renames, syncs the folder. One writer per name, which the claims assure.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
    else {
        return Err(io::Error::other("the path names no file in a folder"));
    };
    let aside = folder.join(format!("{UNFINISHED_PREFIX}{name}"));
    let mut file = File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    sync_folder(folder)
}

/// Makes the entries of a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes what earlier crashes left half written.
pub(crate) fn sweep_unfinished(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED_PREFIX.as_bytes()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
