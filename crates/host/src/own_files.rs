//! Files of this server's own for an app: configuration and secrets that no release has. The
//! service reads them itself; here it is checked that it can, and that nobody else can.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use cohort_base::OnPath as _;

use crate::own_env::{OwnEnvError, private};
use crate::program::RunAs;
use crate::trusted_folder::check_trusted;

/// Checks the directory of an app's files; without one there is nothing to check. Blocking,
/// shortly.
pub(crate) fn check(folder: &Path, run_as: Option<RunAs>) -> Result<(), OwnEnvError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.on_path("read", folder)?,
    };
    let place = check_trusted(folder).map_err(|source| OwnEnvError::Folder {
        path: folder.to_owned(),
        source: Box::new(source),
    })?;
    let access = |path: &Path, must| Err(OwnEnvError::Access { path: path.to_owned(), must });
    for above in place.ancestors() {
        let about = fs::metadata(above).on_path("inspect", above)?;
        if !may(&about, run_as, 0o1) {
            return access(above, "the service's user has to get through: chmod o+x");
        }
    }
    for entry in entries {
        let path = entry.on_path("read", folder)?.path();
        let about = fs::symlink_metadata(&path).on_path("inspect", &path)?;
        if let Err(must) = private(&about, run_as) {
            return access(&path, must);
        }
        if !may(&about, run_as, 0o4) {
            return access(&path, "the service's user has to read it: chown it to that user");
        }
    }
    Ok(())
}

/// Whether the service's user may do what this bit of a mode says; root may.
fn may(about: &fs::Metadata, run_as: Option<RunAs>, bit: u32) -> bool {
    let Some(RunAs { uid, gid, .. }) = run_as else { return true };
    let shift = match (about.uid() == uid, about.gid() == gid) {
        (true, _) => 6,
        (false, true) => 3,
        (false, false) => 0,
    };
    uid == 0 || about.mode() & (bit << shift) != 0
}

#[cfg(test)]
mod own_files_test {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;
    use crate::trusted_folder::own_user;

    fn refused(folder: &Path, run_as: Option<RunAs>) -> bool {
        matches!(check(folder, run_as), Err(OwnEnvError::Access { .. }))
    }

    #[test]
    fn a_file_that_others_read_or_the_service_cannot_is_refused() {
        if own_user() != 0 {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        mode(dir.path(), 0o755).unwrap();
        let folder = dir.path().join("files.d/web");
        let theirs = Some(RunAs { uid: 12_345, gid: 12_345 });
        check(&folder, theirs).unwrap();
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("tls.key");
        fs::write(&file, "secret").unwrap();
        mode(&file, 0o644).unwrap();
        assert!(refused(&folder, None) && refused(&folder, theirs));
        mode(&file, 0o600).unwrap();
        check(&folder, None).unwrap();
        assert!(refused(&folder, theirs), "it is root's alone");
        chown(&file, Some(12_345), None).unwrap();
        check(&folder, theirs).unwrap();
        assert!(refused(&folder, Some(RunAs { uid: 12_346, gid: 12_346 })), "another user's");
        mode(&dir.path().join("files.d"), 0o700).unwrap();
        assert!(refused(&folder, theirs), "it cannot get there");
        mode(&dir.path().join("files.d"), 0o711).unwrap();
        symlink("/etc/shadow", folder.join("link")).unwrap();
        assert!(refused(&folder, theirs), "a link leads elsewhere");
        fs::remove_file(folder.join("link")).unwrap();
        mode(&folder, 0o777).unwrap();
        assert!(matches!(check(&folder, theirs), Err(OwnEnvError::Folder { .. })));
    }
}
