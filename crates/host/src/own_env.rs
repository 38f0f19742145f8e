//! Variables of this server's own for an app: configuration and secrets that no release has.

use std::collections::BTreeMap;
use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use cohort_base::{FileError, OnPath as _};
use rustix::fs::OFlags;

use crate::program::RunAs;
use crate::trusted_folder::{UntrustedFolder, check_trusted, own_user};

/// Largest file, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Variables of this prefix are Cohort's own.
const OWN_VARIABLES: &str = "COHORT_";

/// Why the variables cannot be used. No value is ever named.
#[derive(Debug, thiserror::Error)]
pub enum OwnEnvError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is in a directory that somebody else can write to", path.display())]
    Folder {
        path: PathBuf,
        #[source]
        source: Box<UntrustedFolder>,
    },
    #[error("{}: {must}", path.display())]
    Access { path: PathBuf, must: &'static str },
    #[error("{} has more than {FILE_BYTES_MAX} bytes", path.display())]
    TooLong { path: PathBuf },
    #[error("{} line {line}: {why}", path.display())]
    Line { path: PathBuf, line: usize, why: &'static str },
}

/// Reads the file of an app's variables; none if there is no file. Blocking, shortly.
pub(crate) fn read(
    path: &Path,
    run_as: Option<RunAs>,
) -> Result<BTreeMap<String, String>, OwnEnvError> {
    // A link could lead to a file that only root may read.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        file => file.on_path("open", path)?,
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    check_trusted(folder).map_err(|source| OwnEnvError::Folder {
        path: path.to_owned(),
        source: Box::new(source),
    })?;
    let about = file.metadata().on_path("read", path)?;
    let access = |must| Err(OwnEnvError::Access { path: path.to_owned(), must });
    if let Err(must) = private(&about, run_as) {
        return access(must);
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).on_path("read", path)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(OwnEnvError::TooLong { path: path.to_owned() });
    }
    parse(&text).map_err(|(line, why)| OwnEnvError::Line { path: path.to_owned(), line, why })
}

/// Checks that a file is one of root or the service's user, and that nobody else may read it; the
/// error says what it must be.
pub(crate) fn private(about: &Metadata, run_as: Option<RunAs>) -> Result<(), &'static str> {
    let owners = [Some(0), Some(own_user()), run_as.map(|run_as| run_as.uid)];
    if !about.is_file() || !owners.contains(&Some(about.uid())) {
        return Err("it has to be a file of root or of the service's user: chown it");
    }
    match about.mode() & 0o027 {
        0 => Ok(()),
        _ => Err("others must neither read nor write it: chmod 600"),
    }
}

/// Lines `NAME=value`, as systemd and containers read them: a value may be in quotes, which are not
/// part of it; nothing is replaced in it.
fn parse(text: &str) -> Result<BTreeMap<String, String>, (usize, &'static str)> {
    let mut variables = BTreeMap::new();
    for (nth, line) in text.lines().enumerate() {
        let wrong = |why| Err((nth + 1, why));
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { return wrong("not NAME=value") };
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let begins = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        if !begins || !name.bytes().all(allowed) {
            return wrong("the name has letters, digits and _, and begins with no digit");
        }
        if name.starts_with(OWN_VARIABLES) {
            return wrong("variables that begin with COHORT_ are Cohort's own");
        }
        if value.contains('\0') {
            return wrong("the value has a zero byte");
        }
        let quoted = |quote| value.strip_prefix(quote)?.strip_suffix::<char>(quote);
        let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
        variables.insert(name.to_owned(), value.to_owned());
    }
    Ok(variables)
}

#[cfg(test)]
mod own_env_test {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn lines_are_variables_and_no_error_shows_a_value() {
        let text = "# database\n\nURL=postgres://u:p@db/x?a=b\nWORD=\"a b\"\n EMPTY=\nQ='1'\n";
        let read = parse(text).unwrap();
        let names: Vec<(&str, &str)> = read.iter().map(|(name, it)| (&**name, &**it)).collect();
        let url = "postgres://u:p@db/x?a=b";
        assert_eq!(names, [("EMPTY", ""), ("Q", "1"), ("URL", url), ("WORD", "a b")]);
        for wrong in ["A=1\nsecret", "1A=secret", "A B=secret", "COHORT_APP=secret", "=secret"] {
            let (line, why) = parse(wrong).unwrap_err();
            assert!(line > 0 && !why.contains("secret"), "{wrong}: {why}");
        }
    }

    #[test]
    fn only_a_private_file_that_is_no_link_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("web.env");
        assert_eq!(read(&path, None).unwrap(), BTreeMap::new());
        fs::write(&path, "A=1\n").unwrap();
        for (mode, good) in [(0o600, true), (0o640, true), (0o644, false), (0o660, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path, None).is_ok(), good, "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let link = dir.path().join("api.env");
        symlink(&path, &link).unwrap();
        assert!(matches!(read(&link, None), Err(OwnEnvError::File(_))));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(read(&path, None), Err(OwnEnvError::Folder { .. })));
    }
}
