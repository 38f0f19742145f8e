//! A leader's guidance to one server about one artifact.

use cohort_core::orders::Source;
use serde::{Deserialize, Serialize};

use crate::unit_set::UnitRun;

/// One server's part in the transfer of one artifact. Soft state: followed while it lasts; losing
/// it loses nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guidance {
    /// Servers to subscribe to, all at the same time.
    pub feeds: Vec<Source>,
    /// Replacements for a silent feed, nearest first: the parent's parent and so on.
    pub spares: Vec<Source>,
    /// Units to take from a mirror. Without a lease, a server contacts no mirror.
    pub lease: Vec<UnitRun>,
    /// Whether this server fetches the rest from a mirror if there is no leader for a while.
    pub heir: bool,
    /// The server that does, if it is not this one.
    pub heir_at: Option<Source>,
    /// This server's share of the zone's limit, in bytes per second from mirrors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror_rate_max: Option<u64>,
}
