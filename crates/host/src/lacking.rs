//! What this machine does not let the agent do to the programs of releases.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroups, Controller};

/// Something that is missing on this machine, or that the agent may not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lack {
    /// Cgroups, of either version.
    Cgroups,
    /// The controller of memory.
    Memory,
    /// The controller of processors.
    Cpu,
    /// The controller of processes.
    Pids,
    /// The agent is not root.
    Root,
}

impl Lack {
    /// A name, such as a metric's label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Lack::Cgroups => "cgroups",
            Lack::Memory => "memory",
            Lack::Cpu => "cpu",
            Lack::Pids => "pids",
            Lack::Root => "root",
        }
    }
}

/// What follows from it, and what helps; for people.
impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lack::Cgroups => {
                "no cgroups that the agent may write to: a program can leave processes behind on \
                 purpose, and no limit of a release has an effect (with systemd: `Delegate=yes` in \
                 the agent's unit)"
            }
            Lack::Memory => {
                "no memory controller: `memory_max` has no effect (with systemd 254 or later: \
                 `DelegateSubgroup=cohort-self` in the agent's unit)"
            }
            Lack::Cpu => "no cpu controller: `cpu_weight` has no effect",
            Lack::Pids => "no pids controller: `pids_max` has no effect",
            Lack::Root => {
                "the agent is not root: programs of releases run as its own user, and those that \
                 ask for `private_tmp` or `protect_system` do not start"
            }
        })
    }
}

/// All that is lacking, with the cgroups that the agent has.
#[must_use]
pub fn lacking(cgroups: &Cgroups) -> Vec<Lack> {
    let root = rustix::process::geteuid().is_root();
    let limits = cgroups.lacking().into_iter().map(|controller| match controller {
        Controller::Memory => Lack::Memory,
        Controller::Cpu => Lack::Cpu,
        Controller::Pids => Lack::Pids,
    });
    let limits: Vec<_> = if cgroups.is_empty() { vec![Lack::Cgroups] } else { limits.collect() };
    limits.into_iter().chain((!root).then_some(Lack::Root)).collect()
}
