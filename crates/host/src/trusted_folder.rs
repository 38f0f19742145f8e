//! Whether root may trust a path: who could put something else in its place?

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use cohort_base::{FileError, OnPath as _};

/// Bits of a mode that let others change what is in a directory.
const WRITABLE: u32 = 0o022;
/// In a directory with this bit, a user can only replace what is the user's own.
const STICKY: u32 = 0o1000;

/// Why root does not trust a directory.
#[derive(Debug, thiserror::Error)]
pub enum UntrustedFolder {
    #[error(transparent)]
    File(#[from] FileError),
    /// Somebody else could put another program in the place of a release.
    #[error(
        "{} is not safe: uid {owner} owns {}, and could replace it; chown root {}",
        folder.display(), at.display(), at.display()
    )]
    Owned { folder: PathBuf, at: PathBuf, owner: u32 },
    /// As [`Self::Owned`].
    #[error(
        "{} is not safe: others may write to {} (mode {mode:o}), and could replace it; chmod go-w \
         {}",
        folder.display(), at.display(), at.display()
    )]
    Writable { folder: PathBuf, at: PathBuf, mode: u32 },
}

/// This process's effective user.
#[must_use]
pub fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Most links on the way to a directory; the kernel follows 40.
const LINKS_MAX: usize = 40;

/// Checks that nobody but this process's user and root can replace `folder`, what is in it, or a
/// link on the way to it. Then its path leads to the same place every time. Returns that place.
/// What does not exist yet is left to whoever creates it.
///
/// # Errors
/// If somebody else could, or the directory cannot be inspected.
pub fn check_trusted(folder: &Path) -> Result<PathBuf, UntrustedFolder> {
    let path = std::path::absolute(folder).on_path("find", folder)?;
    let mut rest: Vec<PathBuf> = parts(&path);
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    while let Some(part) = rest.pop() {
        match part.components().next() {
            Some(Component::RootDir) => at = PathBuf::from("/"),
            // The directory above was checked on the way to this one.
            Some(Component::ParentDir) => drop(at.pop()),
            Some(Component::Normal(name)) => {
                let next = at.join(name);
                if !fs::exists(&next).on_path("inspect", &next)? && !next.is_symlink() {
                    rest.push(part);
                    return Ok(rest.iter().rev().fold(at, |at, part| at.join(part)));
                }
                let metadata = check(folder, &next, false)?;
                if !metadata.is_symlink() {
                    at = next;
                    continue;
                }
                links += 1;
                if links > LINKS_MAX {
                    let loops: io::Result<PathBuf> = Err(rustix::io::Errno::LOOP.into());
                    return Ok(loops.on_path("find", folder)?);
                }
                rest.extend(parts(&fs::read_link(&next).on_path("read", &next)?));
            }
            _ => {}
        }
        check(folder, &at, false)?;
    }
    check(folder, &at, true)?;
    Ok(at)
}

/// The parts of a path, the first one last.
fn parts(path: &Path) -> Vec<PathBuf> {
    path.components().rev().map(|part| PathBuf::from(part.as_os_str())).collect()
}

/// Checks one directory or link on the way; `is_end`: it is the directory itself.
fn check(folder: &Path, at: &Path, is_end: bool) -> Result<fs::Metadata, UntrustedFolder> {
    let metadata = fs::symlink_metadata(at).on_path("inspect", at)?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let (folder, at) = (folder.to_owned(), at.to_owned());
    if owner != 0 && owner != own_user() {
        return Err(UntrustedFolder::Owned { folder, at, owner });
    }
    // In a shared directory, everybody has only what is their own. Links have no mode.
    let is_shared = !is_end && mode & STICKY != 0;
    if mode & WRITABLE != 0 && !is_shared && !metadata.is_symlink() {
        return Err(UntrustedFolder::Writable { folder, at, mode });
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::{UntrustedFolder, check_trusted, own_user};

    #[test]
    fn a_directory_that_others_could_replace_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let (above, folder) = (root.path().join("srv"), root.path().join("srv/web"));
        fs::create_dir_all(&folder).unwrap();
        let mode = |path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        mode(&above, 0o755);
        mode(&folder, 0o755);
        check_trusted(&folder).unwrap();
        for open in [&above, &folder] {
            for writable in [0o775, 0o757] {
                mode(open, writable);
                let refused = check_trusted(&folder).unwrap_err();
                assert!(
                    matches!(&refused, UntrustedFolder::Writable { at, .. } if at.ends_with(open)),
                    "{refused}"
                );
            }
            mode(open, 0o755);
        }
        mode(&above, 0o1777);
        check_trusted(&folder).unwrap();
        let new = above.join("new/opt");
        assert_eq!(check_trusted(&new).unwrap(), fs::canonicalize(&above).unwrap().join("new/opt"));
        mode(&folder, 0o1777);
        check_trusted(&folder).unwrap_err();
    }

    #[test]
    fn a_directory_below_somebody_elses_is_refused() {
        if own_user() != 0 {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let (theirs, link) = (root.path().join("home"), root.path().join("opt"));
        let own = root.path().join("srv");
        fs::create_dir_all(theirs.join("web")).unwrap();
        fs::create_dir_all(own.join("web")).unwrap();
        // Their link to a directory of root's: they can let it point elsewhere.
        symlink(own.join("web"), theirs.join("app")).unwrap();
        symlink(theirs.join("app"), root.path().join("far")).unwrap();
        symlink(&theirs, &link).unwrap();
        let real = fs::canonicalize(root.path()).unwrap();
        assert_eq!(check_trusted(&link.join("web")).unwrap(), real.join("home/web"));
        chown(&theirs, Some(12_345), None).unwrap();
        let far = root.path().join("far");
        for folder in [theirs.join("web"), link.join("web"), theirs.join("app"), far] {
            let refused = check_trusted(&folder).unwrap_err();
            assert!(matches!(refused, UntrustedFolder::Owned { owner: 12_345, .. }), "{refused}");
        }
        symlink("srv", root.path().join("near")).unwrap();
        assert_eq!(check_trusted(&root.path().join("near/web")).unwrap(), own.join("web"));
        symlink("srv/../srv", root.path().join("over")).unwrap();
        assert_eq!(check_trusted(&root.path().join("over/web/../web")).unwrap(), own.join("web"));
        // The way of this one leads through their link.
        symlink("opt/../srv", root.path().join("under")).unwrap();
        check_trusted(&root.path().join("under")).unwrap_err();
        symlink("loop", root.path().join("loop")).unwrap();
        check_trusted(&root.path().join("loop/web")).unwrap_err();
    }
}
