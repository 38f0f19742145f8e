//! What a service sees of the file system, where its release asks for less: a `/tmp` of its own,
//! and everything read-only but its state. As `PrivateTmp=` and `ProtectSystem=strict` of systemd.
//!
//! The wrapper does this before it gives up root, in a mount namespace of its own: nothing outside
//! changes.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change, mount_remount,
};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

/// Where programs put what nobody else needs. What is in memory counts against their limits only
/// as long as they live, unless it goes with them.
const TEMPORARY: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];
/// Of a private `/tmp`: for everybody, and a tenth of the memory at most, as systemd's.
const TEMPORARY_OPTIONS: &std::ffi::CStr = c"mode=1777,size=10%";
/// What the kernel shows, which no read-only flag of ours protects.
const KERNELS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// How much of the file system is read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProtectSystem {
    /// Everything but the service's state, `/proc`, `/sys` and `/dev`.
    Strict,
}

/// What a program sees of the file system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Isolation {
    /// `/tmp`, `/var/tmp`, `/dev/shm` and System V's shared memory are its own, and empty when it
    /// starts.
    pub private_tmp: bool,
    /// If present, everything else is read-only.
    pub writable: Option<Vec<PathBuf>>,
}

impl Isolation {
    /// Separates this process's file system from the machine's. For a process with one thread that
    /// may mount.
    ///
    /// # Errors
    /// If the kernel or missing capabilities do not allow it.
    pub(crate) fn enter(&self) -> io::Result<()> {
        if *self == Isolation::default() {
            return Ok(());
        }
        #[expect(deprecated, reason = "unsafe for file descriptors only, which stay shared")]
        rustix::thread::unshare(match self.private_tmp {
            true => UnshareFlags::NEWNS | UnshareFlags::NEWIPC,
            false => UnshareFlags::NEWNS,
        })?;
        // What the machine mounts later is seen here, unless it would not be read-only; what is
        // mounted here is not seen there.
        let alone = match self.writable {
            Some(_) => MountPropagationFlags::PRIVATE,
            None => MountPropagationFlags::DOWNSTREAM,
        };
        mount_change("/", alone | MountPropagationFlags::REC)?;
        if let Some(writable) = &self.writable {
            for path in writable {
                mount_bind_recursive(path, path)?;
            }
            for Mounted { at, flags } in mounted()? {
                let stays = KERNELS.iter().any(|own| at.starts_with(own))
                    || writable.iter().any(|path| at.starts_with(path));
                if stays {
                    continue;
                }
                let flags = flags | MountFlags::BIND | MountFlags::RDONLY;
                match mount_remount(&at, flags, "") {
                    // Below something mounted later, or another user's: no path leads there.
                    Err(Errno::NOENT | Errno::ACCESS) => {}
                    made => made.map_err(|error| because(error, &at))?,
                }
            }
        }
        let there = |at: &&&str| self.private_tmp && Path::new(at).exists();
        for at in TEMPORARY.iter().filter(there) {
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            mount("tmpfs", *at, "tmpfs", flags, TEMPORARY_OPTIONS)
                .map_err(|error| because(error, Path::new(at)))?;
        }
        Ok(())
    }
}

fn because(error: Errno, at: &Path) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("{}: {error}", at.display()))
}

/// Something mounted in this namespace.
struct Mounted {
    at: PathBuf,
    /// Those that a remount has to repeat.
    flags: MountFlags,
}

fn mounted() -> io::Result<Vec<Mounted>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().filter_map(mounted_of).collect())
}

/// A line of mountinfo: `ID PARENT DEVICE ROOT AT OPTIONS …`.
fn mounted_of(line: &str) -> Option<Mounted> {
    let mut fields = line.split(' ').skip(4);
    let (at, options) = (fields.next()?, fields.next()?);
    let flags = options.split(',').fold(MountFlags::empty(), |flags, option| {
        flags
            | match option {
                "nosuid" => MountFlags::NOSUID,
                "nodev" => MountFlags::NODEV,
                "noexec" => MountFlags::NOEXEC,
                "noatime" => MountFlags::NOATIME,
                "nodiratime" => MountFlags::NODIRATIME,
                "relatime" => MountFlags::RELATIME,
                _ => MountFlags::empty(),
            }
    });
    Some(Mounted { at: unescaped(at).into(), flags })
}

/// A path in which the kernel wrote spaces, tabs, line breaks and backslashes as octal numbers.
fn unescaped(text: &str) -> String {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_keep_their_flags_and_names() {
        let line =
            "36 25 0:30 / /mnt/my\\040disk rw,nosuid,nodev,relatime shared:9 - ext4 /dev/x rw";
        let Mounted { at, flags } = mounted_of(line).unwrap();
        assert_eq!(at, Path::new("/mnt/my disk"));
        assert_eq!(flags, MountFlags::NOSUID | MountFlags::NODEV | MountFlags::RELATIME);
        assert!(mounted_of("nothing").is_none());
    }
}
