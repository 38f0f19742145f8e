//! A tarball that depends on nothing but its files.

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use super::EPOCH_S;

/// Packs files (path, mode, bytes) below a directory, sorted, of root, of 1980.
pub(super) fn pack(folder: &str, mut files: Vec<(String, u32, Vec<u8>)>) -> Result<Vec<u8>> {
    files.sort();
    // Without a name and a time in gzip's own header.
    let mut tar = Builder::new(GzBuilder::new().write(Vec::new(), Compression::best()));
    for (path, mode, bytes) in &files {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(*mode);
        header.set_mtime(EPOCH_S);
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root")?;
        header.set_groupname("root")?;
        header.set_size(bytes.len() as u64);
        let path = format!("{folder}/{path}");
        tar.append_data(&mut header, &path, bytes.as_slice()).with_context(|| path.clone())?;
    }
    Ok(tar.into_inner()?.finish()?)
}
