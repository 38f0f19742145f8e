//! Cgroups: what a program started, in whatever session, ends with it, uses no more than it may,
//! and is counted.
//!
//! ```text
//! <this process's own cgroup>/cohort-<mark>/<name>/     one per service, and per running hook
//! ```
//!
//! In version 2 there is one such directory; in version 1, one for each controller. Without a
//! cgroup file system that this process may write to, process groups and descendants are all that
//! is known: a program can then leave something behind on purpose.

mod hierarchy;
mod limits;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cohort_base::retry::Schedule;
use rustix::process::{Pid, Signal};

pub use self::hierarchy::Controller;
use self::hierarchy::{Hierarchy, hand_down};
pub use self::limits::{Limits, Usage};

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
    /// In the first one, programs are found and ended.
    bases: Vec<Base>,
}

/// The cgroup above those of all programs, in one of the kernel's trees.
#[derive(Debug, Clone)]
struct Base {
    path: PathBuf,
    controllers: Vec<Controller>,
    /// Version 2: they have to be handed down.
    hands_down: bool,
}

/// One program's: in each tree that counts, one directory.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    paths: Vec<PathBuf>,
}

impl Base {
    fn of(hierarchy: &Hierarchy, name: &str) -> io::Result<Self> {
        let path = hierarchy.own.join(name);
        create(&path)?;
        // What is no cgroup has no such file.
        fs::OpenOptions::new().write(true).open(path.join("cgroup.procs"))?;
        remove_unused(&path);
        let hands_down = hierarchy.version_1.is_none();
        Ok(Base { path, controllers: hierarchy.controllers(), hands_down })
    }

    fn create(&self) -> io::Result<()> {
        create(&self.path)?;
        if self.hands_down && !self.controllers.is_empty() {
            hand_down(&self.path, &self.controllers)?;
        }
        Ok(())
    }
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
        let name = format!("cohort-{}", &mark[..MARK_DIGITS]);
        let mut refused = io::Error::new(io::ErrorKind::NotFound, "no cgroup file system");
        let mut bases = Vec::new();
        for hierarchy in Hierarchy::all()? {
            match Base::of(&hierarchy, &name) {
                Ok(base) => bases.push(base),
                Err(error) => refused = error,
            }
        }
        if bases.is_empty() { Err(refused) } else { Ok(Cgroups { bases }) }
    }

    /// What this machine can neither limit nor count.
    #[must_use]
    pub fn lacking(&self) -> Vec<Controller> {
        let there = |it: &Controller| self.bases.iter().any(|base| base.controllers.contains(it));
        Controller::ALL.into_iter().filter(|it| !there(it)).collect()
    }

    /// Whether there are none: what a program leaves behind on purpose is not found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bases.is_empty()
    }

    /// The cgroup of a program that is about to start, after ending what is left of an earlier one.
    /// Without limits, nothing is limited or counted.
    ///
    /// # Errors
    /// If that has not ended, or the cgroup cannot be made.
    pub(crate) async fn fresh(
        &self,
        name: &str,
        limits: Option<&Limits>,
    ) -> io::Result<Option<Cgroup>> {
        let bases = match limits {
            Some(_) => &self.bases[..],
            None => self.bases.get(..1).unwrap_or_default(),
        };
        if bases.is_empty() {
            return Ok(None);
        }
        let cgroup = Cgroup { paths: bases.iter().map(|base| base.path.join(name)).collect() };
        if cgroup.paths.iter().any(|path| path.exists()) && !cgroup.clone().end().await {
            return Err(io::Error::other("what an earlier start left behind has not ended"));
        }
        for (base, path) in bases.iter().zip(&cgroup.paths) {
            // The end of another program may remove the base in between.
            let mut created = Ok(());
            for _ in 0..CREATE_TRIES {
                created = base.create().and_then(|()| create(path));
                if created.as_ref().map_err(io::Error::kind) != Err(io::ErrorKind::NotFound) {
                    break;
                }
            }
            let set = created.and_then(|()| limits.map_or(Ok(()), |limits| limits.set(path)));
            if let Err(error) = set {
                cgroup.end().await;
                return Err(error);
            }
        }
        Ok(Some(cgroup))
    }

    /// Kills what is in the cgroups of these members; whether there was one.
    pub(crate) fn kill(&self, of: impl Fn(&[Pid]) -> bool) -> bool {
        let all = self.bases.iter().flat_map(|base| below(&base.path));
        let doomed: Vec<PathBuf> = all.filter(|path| of(&members(path))).collect();
        doomed.iter().for_each(|path| kill_below(path));
        !doomed.is_empty()
    }

    /// Ends everything that an earlier process in this folder has left behind.
    pub async fn sweep(&self) {
        for path in self.bases.iter().flat_map(|base| below(&base.path)) {
            Cgroup { paths: vec![path] }.end().await;
        }
    }
}

impl Cgroup {
    /// One that an earlier process made.
    pub(crate) fn at(paths: Vec<PathBuf>) -> Option<Self> {
        (!paths.is_empty()).then_some(Cgroup { paths })
    }

    /// Its directories, all of which its program joins.
    pub(crate) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// What is used in it, as far as that is counted.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        self.paths.iter().for_each(|path| usage.read(path));
        usage
    }

    /// Whether the kernel has killed something in it because memory ran out.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        self.paths.iter().any(|path| limits::ran_out_of_memory(path))
    }

    /// Whether a process is in it, or in one below.
    pub(crate) fn has(&self, pid: Pid) -> bool {
        self.paths.first().is_some_and(|path| members(path).contains(&pid))
    }

    /// Whether other processes than this one live in it.
    pub(crate) fn has_others(&self, pid: Pid) -> bool {
        let others = |path: &PathBuf| members(path).into_iter().any(|member| member != pid);
        self.paths.first().is_some_and(others)
    }

    /// Kills every process in it.
    pub(crate) fn kill(&self) {
        self.paths.iter().for_each(|path| kill(path));
    }

    /// Kills every process in it, waits until there is none, and removes it; the base, too, if no
    /// other program uses it. Returns false if a process has not ended.
    pub(crate) async fn end(self) -> bool {
        let deadline = tokio::time::Instant::now() + EMPTY_MAX;
        let mut pauses = EMPTY_LOOK.pauses();
        for path in &self.paths {
            while let Err(error) = remove(path) {
                if tokio::time::Instant::now() > deadline {
                    let path = path.display();
                    tracing::warn!(%path, %error, "a killed program has not ended");
                    return false;
                }
                tokio::time::sleep(pauses.next_pause()).await;
            }
            if let Some(base) = path.parent() {
                remove_unused(base);
            }
        }
        true
    }
}

fn kill(path: &Path) {
    // Linux 5.14.
    if fs::write(path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    for member in members_of(path) {
        let _gone = rustix::process::kill_process(member, Signal::KILL);
    }
}

/// Kills what is in a cgroup, and in those below it.
fn kill_below(path: &Path) {
    kill(path);
    below(path).for_each(|below| kill_below(&below));
}

/// The processes in a cgroup itself.
fn members_of(path: &Path) -> Vec<Pid> {
    let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    members.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
}

/// The processes in a cgroup, and in those below it: a program may make its own.
fn members(path: &Path) -> Vec<Pid> {
    let mut all = members_of(path);
    below(path).for_each(|below| all.extend(members(&below)));
    all
}

fn below(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path())
}

/// Kills what is in a cgroup and in those below it, and removes those that are empty by now.
fn remove(path: &Path) -> io::Result<()> {
    kill(path);
    for below in below(path) {
        remove(&below)?;
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
