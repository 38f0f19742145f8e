//! Where the kernel keeps cgroups: in one tree (version 2), in one for each controller (version 1),
//! or in both.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

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

/// Where our processes are, if the service manager puts them aside (systemd's
/// `DelegateSubgroup=cohort-self`): in version 2, a cgroup that has processes hands no controllers
/// down, and one that does gets no processes, so a unit that handed down could not be restarted.
const ASIDE: &str = "cohort-self";

/// This process's own cgroup in one of the kernel's trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) own: PathBuf,
    /// `None`: version 2. Otherwise, the controllers of this tree.
    pub(super) version_1: Option<Vec<String>>,
    /// Version 2: no process of ours is in `own` itself.
    aside: bool,
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

    /// The controllers that cgroups below `own` have, after asking the kernel for them where that
    /// leaves the service manager its way.
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
        if missing.is_empty() || self.aside && hand_down(&self.own, &missing).is_ok() {
            return there;
        }
        there.into_iter().filter(|it| !missing.contains(it)).collect()
    }
}

/// What a cgroup of version 2 hands down to those below it.
const HANDED_DOWN: &str = "cgroup.subtree_control";

/// Has a cgroup of version 2 hand controllers down.
pub(super) fn hand_down(cgroup: &Path, controllers: &[Controller]) -> io::Result<()> {
    let change: Vec<_> = controllers.iter().map(|it| format!("+{}", it.name())).collect();
    fs::write(cgroup.join(HANDED_DOWN), change.join(" "))
}

fn words(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// From a process's mountinfo and cgroup files.
fn parse(mounts: &str, cgroups: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for mount in mounts.lines().filter_map(Mount::of) {
        let Some((own, aside)) = mount.own(cgroups) else { continue };
        let known = |it: &Hierarchy| it.version_1 == mount.version_1;
        if !found.iter().any(known) {
            found.push(Hierarchy { own, version_1: mount.version_1, aside });
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

    /// The directory of this process's cgroup, from lines of `ID:CONTROLLERS:PATH`; if it has been
    /// put aside, the one above, and true.
    fn own(&self, cgroups: &str) -> Option<(PathBuf, bool)> {
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
        let aside = self.version_1.is_none() && below.ends_with(ASIDE);
        let own = if aside { below.parent().unwrap_or(below) } else { below };
        let own = if own.as_os_str().is_empty() { self.at.to_owned() } else { self.at.join(own) };
        Some((own, aside))
    }
}

#[cfg(test)]
#[path = "hierarchy_test.rs"]
mod hierarchy_test;
