//! Cgroups (version 2): what a program started, in whatever session, ends with it.
//!
//! ```text
//! <this process's own cgroup>/cohort-<mark>/<name>/     one per service, and per running hook
//! ```
//!
//! Without a cgroup file system that this process may write to, process groups and descendants are
//! all that is known: a program can then leave something behind on purpose.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use cohort_base::retry::Schedule;
use rustix::process::{Pid, Signal};

/// Longest wait until a killed cgroup is empty: a process may wait for a disk.
const EMPTY_MAX: Duration = Duration::from_secs(5);

/// Pauses between two looks at a killed cgroup.
const EMPTY_LOOK: Schedule = Schedule::new(Duration::from_millis(1), Duration::from_millis(50));

/// Attempts to create a cgroup whose base others remove.
const CREATE_TRIES: u32 = 100;

/// Digits of the digest in a base's name.
const MARK_DIGITS: usize = 12;

/// The cgroups that this process makes. Empty: there are none.
#[derive(Debug, Clone, Default)]
pub struct Cgroups {
    base: Option<PathBuf>,
}

/// One program's.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroups {
    /// Below this process's own cgroup, for the one process that works in `folder`.
    ///
    /// # Errors
    /// If there is no such file system, or this process may not write to it.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let folder = std::path::absolute(folder)?;
        let folder = fs::canonicalize(&folder).unwrap_or(folder);
        let mark = blake3::hash(folder.as_os_str().as_encoded_bytes()).to_hex();
        let base = own()?.join(format!("cohort-{}", &mark[..MARK_DIGITS]));
        create(&base)?;
        // What is not of version 2 has no such file.
        fs::OpenOptions::new().write(true).open(base.join("cgroup.procs"))?;
        remove_unused(&base);
        Ok(Cgroups { base: Some(base) })
    }

    /// The cgroup of a program that is about to start, after ending what is left of an earlier one.
    ///
    /// # Errors
    /// If that has not ended, or the cgroup cannot be made.
    pub(crate) async fn fresh(&self, name: &str) -> io::Result<Option<Cgroup>> {
        let Some(base) = &self.base else { return Ok(None) };
        let cgroup = Cgroup { path: base.join(name) };
        if cgroup.path.exists() && !cgroup.clone().end().await {
            return Err(io::Error::other("what an earlier start left behind has not ended"));
        }
        // The end of another program may remove the base in between.
        let mut created = Ok(());
        for _ in 0..CREATE_TRIES {
            created = create(base).and_then(|()| create(&cgroup.path));
            if created.as_ref().map_err(io::Error::kind) != Err(io::ErrorKind::NotFound) {
                break;
            }
        }
        created.map(|()| Some(cgroup))
    }

    /// Ends everything that an earlier process in this folder has left behind.
    pub async fn sweep(&self) {
        let Some(base) = &self.base else { return };
        for entry in fs::read_dir(base).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                Cgroup { path: entry.path() }.end().await;
            }
        }
    }
}

impl Cgroup {
    /// One that an earlier process made.
    pub(crate) fn at(path: PathBuf) -> Self {
        Cgroup { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Kills every process in it.
    pub(crate) fn kill(&self) {
        kill(&self.path);
    }

    /// Kills every process in it, waits until there is none, and removes it; the base, too, if no
    /// other program uses it. Returns false if a process has not ended.
    pub(crate) async fn end(self) -> bool {
        let deadline = tokio::time::Instant::now() + EMPTY_MAX;
        let mut pauses = EMPTY_LOOK.pauses();
        while let Err(error) = remove(&self.path) {
            if tokio::time::Instant::now() > deadline {
                let path = self.path.display();
                tracing::warn!(%path, %error, "a killed program has not ended");
                return false;
            }
            tokio::time::sleep(pauses.next_pause()).await;
        }
        if let Some(base) = self.path.parent() {
            remove_unused(base);
        }
        true
    }
}

fn kill(path: &Path) {
    // Linux 5.14.
    if fs::write(path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for member in members.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        let _gone = rustix::process::kill_process(member, Signal::KILL);
    }
}

/// Kills what is in a cgroup and in those below it, and removes those that are empty by now.
fn remove(path: &Path) -> io::Result<()> {
    kill(path);
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn create(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The kernel removes no directory that has processes or directories in it.
fn remove_unused(path: &Path) {
    let _in_use = fs::remove_dir(path);
}

/// The directory of this process's own cgroup.
fn own() -> io::Result<PathBuf> {
    let none = |what: &str| io::Error::new(io::ErrorKind::NotFound, what.to_owned());
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let (mount, root) =
        mounts.lines().find_map(mount_of).ok_or_else(|| none("no cgroup2 file system"))?;
    let cgroups = fs::read_to_string("/proc/self/cgroup")?;
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
    let path = path.ok_or_else(|| none("this process is in no cgroup of version 2"))?;
    let below = Path::new(path).strip_prefix(root);
    let below = below.map_err(|_| none("this process's cgroup is not mounted"))?;
    if below.components().any(|part| part == Component::ParentDir) {
        return Err(none("this process's cgroup is outside of its namespace"));
    }
    Ok(mount.join(below))
}

/// Where a line of mountinfo mounts cgroups of version 2, and which directory of them.
fn mount_of(line: &str) -> Option<(PathBuf, &str)> {
    let (mount, kind) = line.split_once(" - ")?;
    kind.starts_with("cgroup2 ").then_some(())?;
    let mut fields = mount.split(' ').skip(3);
    let (root, at) = (fields.next()?, fields.next()?);
    Some((at.into(), root))
}

#[cfg(test)]
mod tests {
    use super::mount_of;

    #[test]
    fn version_2_is_found_beside_version_1() {
        let old = "35 25 0:30 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids";
        assert_eq!(mount_of(old), None);
        let both = "44 33 0:39 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        assert_eq!(mount_of(both), Some(("/sys/fs/cgroup/unified".into(), "/")));
        let bound =
            "44 33 0:39 /docker/1 /sys/fs/cgroup rw shared:9 - cgroup2 cgroup rw,nsdelegate";
        assert_eq!(mount_of(bound), Some(("/sys/fs/cgroup".into(), "/docker/1")));
    }
}
