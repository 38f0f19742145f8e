//! Why a program was not started: the file's own fault, or this server's surroundings.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use cohort_base::disk;
use rustix::io::Errno;

/// How much of a program is read for the name of its interpreter, in bytes: as the kernel does.
const HEAD_BYTES: u64 = 256;

/// Whose fault it is, and an error that helps.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Missing, not executable, not a program: so on every server.
    Program(io::Error),
    /// Memory, process numbers, descriptors; a mount option; an interpreter that is not installed.
    Machine(io::Error),
}

/// Judges the error of an attempt to start a program. Blocking, shortly.
pub(crate) fn fault_of(program: &Path, error: io::Error) -> Fault {
    use Errno as E;
    let errno = error.raw_os_error().map(E::from_raw_os_error);
    let machine = |why: String| Fault::Machine(io::Error::new(error.kind(), why));
    match errno {
        Some(E::ACCESS) if is_executable(program) && is_noexec(program) => machine(
            "its file system is mounted noexec: remount it with exec, or set another install_dir"
                .to_owned(),
        ),
        Some(E::NOENT) if program.components().count() == 1 => Fault::Program(io::Error::new(
            error.kind(),
            "no such program in the PATH of this server",
        )),
        Some(E::NOENT) if program.exists() => match interpreter_of(program) {
            Some(name) if name.ends_with('\r') => Fault::Program(io::Error::new(
                error.kind(),
                format!("its first line asks for `{}`: Windows line ends", name.escape_debug()),
            )),
            Some(name) => machine(format!("its interpreter `{name}` is not on this server")),
            None => machine("its loader is not on this server: was it built for it?".to_owned()),
        },
        Some(E::NOENT | E::ACCESS | E::NOEXEC | E::NOTDIR | E::ISDIR | E::LOOP | E::PERM) => {
            Fault::Program(error)
        }
        Some(_) | None => Fault::Machine(error),
    }
}

fn is_executable(program: &Path) -> bool {
    fs::metadata(program).is_ok_and(|about| about.permissions().mode() & 0o111 != 0)
}

fn is_noexec(path: &Path) -> bool {
    disk::is_noexec(path).unwrap_or(false)
}

/// What a script's first line names.
fn interpreter_of(program: &Path) -> Option<String> {
    let mut head = Vec::new();
    File::open(program).ok()?.take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    Some(line.trim_start().split([' ', '\t']).next()?.to_owned())
}

#[cfg(test)]
mod not_started_test {
    use super::*;

    fn fault(program: &Path, errno: Errno) -> Fault {
        fault_of(program, errno.into())
    }

    #[test]
    fn an_interpreter_that_is_missing_is_named_and_windows_line_ends_are_the_releases() {
        let dir = tempfile::tempdir().unwrap();
        let of = |head: &str| {
            let path = dir.path().join("run");
            fs::write(&path, head).unwrap();
            fault(&path, Errno::NOENT)
        };
        let missing = of("#! /opt/python9 -u\nprint()\n");
        assert!(
            matches!(&missing, Fault::Machine(why) if why.to_string().contains("/opt/python9"))
        );
        assert!(matches!(of("#!/bin/sh\r\necho\r\n"), Fault::Program(_)));
        assert!(matches!(of("\u{7f}ELF"), Fault::Machine(_)));
        assert!(matches!(fault(&dir.path().join("none"), Errno::NOENT), Fault::Program(_)));
        assert!(matches!(fault(Path::new("python9"), Errno::NOENT), Fault::Program(_)));
        assert!(matches!(fault(&dir.path().join("run"), Errno::NOMEM), Fault::Machine(_)));
        assert!(matches!(fault(&dir.path().join("run"), Errno::NOEXEC), Fault::Program(_)));
    }

    /// As the kernel lists it.
    #[test]
    fn a_mount_option_is_the_servers() {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().rfind(|line| line.split(' ').nth(1) == Some("/")).unwrap();
        let options = root.split(' ').nth(3).unwrap();
        let listed = options.split(',').any(|option| option == "noexec");
        assert_eq!(is_noexec(Path::new("/")), listed);
    }
}
