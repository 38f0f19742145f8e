//! What a server says of its machine whenever it asks for its orders.

use serde::{Deserialize, Serialize};

/// A server's machine, as its agent sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Its wall clock, as Unix time in milliseconds.
    pub unix_ms: u64,
    pub disk: DiskSpace,
    /// Whether the group's members vouch for the log on its disk, if it has one. Until they do, its
    /// agent obeys nothing: what the group knows of its services may not be what they do.
    pub vouched: bool,
    /// Whether its kill file stops it: it takes no step.
    pub stopped: bool,
}

/// How much the agent can still write to its data directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskSpace {
    #[default]
    Enough,
    /// So little that the agent has given up its ballast.
    Low,
    /// So little that the group's log may soon be unwritable.
    Exhausted,
    /// The file system is read-only.
    ReadOnly,
}

impl DiskSpace {
    /// Whether the group's log may grow on this disk.
    #[must_use]
    pub fn may_write(self) -> bool {
        match self {
            DiskSpace::Enough | DiskSpace::Low => true,
            DiskSpace::Exhausted | DiskSpace::ReadOnly => false,
        }
    }
}
