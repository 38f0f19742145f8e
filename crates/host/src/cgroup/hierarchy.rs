//! Where the kernel keeps cgroups: in one tree (version 2), in one for each controller (version 1),
//! or in both.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

/// What limits or counts what programs use, as the kernel names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    Memory,
    Cpu,
    Pids,
}

impl Controller {
    pub(super) const ALL: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

    pub(super) fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Cpu => "cpu",
            Controller::Pids => "pids",
        }
    }
}

/// Counts processor time in version 1; version 2 always does.
const ACCOUNTING: &str = "cpuacct";

/// Where a process of ours steps aside to, because in version 2 a cgroup that has processes hands
/// no controllers down.
const ASIDE: &str = "cohort-self";

/// This process's own cgroup in one of the kernel's trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) own: PathBuf,
    /// `None`: version 2. Otherwise, the controllers of this tree.
    pub(super) version_1: Option<Vec<String>>,
}

impl Hierarchy {
    /// All that can be of use, the one where programs are ended first: version 2, or that of pids.
    pub(super) fn all() -> io::Result<Vec<Self>> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let cgroups = fs::read_to_string("/proc/self/cgroup")?;
        Ok(parse(&mounts, &cgroups))
    }

    fn has(&self, controller: &str) -> bool {
        self.version_1.iter().flatten().any(|name| name == controller)
    }

    /// The controllers that cgroups below `own` have, after asking the kernel for them.
    pub(super) fn controllers(&self) -> Vec<Controller> {
        let all = Controller::ALL.into_iter();
        if self.version_1.is_some() {
            return all.filter(|it| self.has(it.name())).collect();
        }
        let there = words(&self.own.join("cgroup.controllers"));
        let there: Vec<_> = all.filter(|it| there.iter().any(|name| name == it.name())).collect();
        let handed = words(&self.own.join(HANDED_DOWN));
        let missing = |it: &&Controller| !handed.iter().any(|name| name == it.name());
        let missing: Vec<_> = there.iter().filter(missing).copied().collect();
        if missing.is_empty() {
            return there;
        }
        let mut handed = hand_down(&self.own, &missing);
        if matches!(&handed, Err(error) if is_busy(error)) {
            handed = self.hand_down_from_aside(&missing);
        }
        match handed {
            Ok(()) => there,
            Err(error) => {
                let own = self.own.display();
                tracing::debug!(%own, %error, "the kernel hands no controllers down");
                there.into_iter().filter(|it| !missing.contains(it)).collect()
            }
        }
    }

    /// As a service manager's `DelegateSubgroup=`: works if nobody else is in the cgroup.
    fn hand_down_from_aside(&self, controllers: &[Controller]) -> io::Result<()> {
        let aside = self.own.join(ASIDE);
        super::create(&aside)?;
        fs::write(aside.join("cgroup.procs"), "0")?;
        hand_down(&self.own, controllers).inspect_err(|_| {
            let _stays = fs::write(self.own.join("cgroup.procs"), "0");
            super::remove_unused(&aside);
        })
    }
}

/// What a cgroup of version 2 hands down to those below it.
const HANDED_DOWN: &str = "cgroup.subtree_control";

/// Has a cgroup of version 2 hand controllers down.
pub(super) fn hand_down(cgroup: &Path, controllers: &[Controller]) -> io::Result<()> {
    let change: Vec<_> = controllers.iter().map(|it| format!("+{}", it.name())).collect();
    fs::write(cgroup.join(HANDED_DOWN), change.join(" "))
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::BUSY.raw_os_error())
}

fn words(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// From a process's mountinfo and cgroup files.
fn parse(mounts: &str, cgroups: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for mount in mounts.lines().filter_map(Mount::of) {
        let Some(own) = mount.own(cgroups) else { continue };
        let known = |it: &Hierarchy| it.version_1 == mount.version_1;
        if !found.iter().any(known) {
            found.push(Hierarchy { own, version_1: mount.version_1 });
        }
    }
    found.sort_by_key(|it| (it.version_1.is_some(), !it.has(Controller::Pids.name())));
    found
}

/// A tree of cgroups, or a part of one, where it is mounted.
struct Mount<'a> {
    at: &'a Path,
    root: &'a Path,
    version_1: Option<Vec<String>>,
}

impl<'a> Mount<'a> {
    /// A line of mountinfo: `ID PARENT DEVICE ROOT AT OPTIONS… - TYPE SOURCE OPTIONS`.
    fn of(line: &'a str) -> Option<Self> {
        let (mount, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let version_1 = match kind.next()? {
            "cgroup2" => None,
            "cgroup" => {
                let wanted = |it: &&str| {
                    *it == ACCOUNTING || Controller::ALL.iter().any(|known| known.name() == *it)
                };
                let options = kind.nth(1)?.split(',').filter(wanted);
                let controllers: Vec<_> = options.map(str::to_owned).collect();
                (!controllers.is_empty()).then_some(())?;
                Some(controllers)
            }
            _ => return None,
        };
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (Path::new(fields.next()?), Path::new(fields.next()?));
        Some(Mount { at, root, version_1 })
    }

    /// The directory of this process's cgroup, from lines of `ID:CONTROLLERS:PATH`.
    fn own(&self, cgroups: &str) -> Option<PathBuf> {
        let path = cgroups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let same = match &self.version_1 {
                None => controllers.is_empty(),
                Some(own) => controllers.split(',').any(|it| own.iter().any(|own| own == it)),
            };
            same.then_some(path)
        })?;
        let below = Path::new(path).strip_prefix(self.root).ok()?;
        // Outside of its namespace.
        if below.components().any(|part| part == Component::ParentDir) {
            return None;
        }
        let own = if self.version_1.is_none() && below.ends_with(ASIDE) {
            below.parent().unwrap_or(below)
        } else {
            below
        };
        Some(if own.as_os_str().is_empty() { self.at.to_owned() } else { self.at.join(own) })
    }
}

#[cfg(test)]
#[path = "hierarchy_test.rs"]
mod hierarchy_test;
