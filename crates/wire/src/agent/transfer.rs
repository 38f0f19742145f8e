//! Artifact transfers as the group's leader tracks them: part of the group's status.
//!
//! Bounded regardless of the size of the group: a few kilobytes for a thousand servers.

use cohort_core::ids::{AppId, Digest, ServerId, Version};
use cohort_transfer::{Offence, SourceName};
use serde::{Deserialize, Serialize};

/// Most transfers in one status: those in progress, then those that ended last. A group moves one
/// artifact per app, and few apps at a time.
pub const TRANSFERS_SHOWN_MAX: usize = 8;
/// Chains shown; the rest are counted.
pub const CHAINS_SHOWN_MAX: usize = 4;
/// Servers shown of one chain, from its head.
pub const CHAIN_SERVERS_SHOWN_MAX: usize = 8;
/// Slow servers and offenders shown; the rest are counted.
pub const NAMES_SHOWN_MAX: usize = 8;

/// The transfer of one artifact to the servers of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferStatus {
    /// The app, if the artifact belongs to a release that the group knows.
    pub app: Option<AppId>,
    pub version: Option<Version>,
    /// Whether it is the delta to that release rather than the whole artifact.
    pub delta: bool,
    /// Root hash of the transferred bytes.
    pub artifact: Digest,
    /// Whether a reachable server still lacks bytes.
    pub under_way: bool,
    /// Length of the artifact or delta being transferred.
    pub length_bytes: u64,
    pub servers: u64,
    /// Servers that have all of it.
    pub whole_servers: u64,
    /// Servers that lack bytes and are unreachable.
    pub away_servers: u64,
    /// Bytes received and verified, over all servers.
    pub held_bytes: u64,
    /// Bytes to receive in total, over all servers.
    pub wanted_bytes: u64,
    /// Bytes from mirrors, over all servers.
    pub mirror_bytes: u64,
    /// Bytes from other servers, over all servers.
    pub peer_bytes: u64,
    /// Current throughput of mirrors.
    pub mirror_bytes_per_second: u64,
    /// Current throughput between servers.
    pub peer_bytes_per_second: u64,
    /// Average throughput of mirrors; `None` if too few bytes arrived to measure it.
    pub downlink_bytes_per_second: Option<u64>,
    pub for_ms: u64,
    /// Time until the last server had it; `None` while in progress.
    pub took_ms: Option<u64>,
    /// Time until all have it at the current rate; `None` if unknown.
    pub left_ms: Option<u64>,
    /// Servers that fetch from mirrors.
    pub heads: Vec<ServerId>,
    pub fan_out: u64,
    /// Which server sends to which, longest chain first; at most [`CHAINS_SHOWN_MAX`].
    pub chains: Vec<ChainStatus>,
    pub chains_in_all: u64,
    /// Servers too slow to keep up; at most [`NAMES_SHOWN_MAX`].
    pub slow: Vec<ServerId>,
    /// Total number of slow servers.
    pub slow_servers: u64,
    /// Misbehaving sources; at most [`NAMES_SHOWN_MAX`].
    pub offenders: Vec<OffenderStatus>,
    pub offenders_in_all: u64,
}

/// Servers, each of which sends to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainStatus {
    /// From the head; at most [`CHAIN_SERVERS_SHOWN_MAX`].
    pub servers: Vec<ServerId>,
    /// Total length of the chain.
    pub depth: u64,
}

/// A misbehaving source, its offence, and the servers that saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffenderStatus {
    pub source: SourceName,
    pub what: Offence,
    pub count: u64,
    /// The servers that reported it; at most [`NAMES_SHOWN_MAX`].
    pub told_by: Vec<ServerId>,
    /// Total number of servers that reported it.
    pub told_by_servers: u64,
    /// Whether the group currently refuses it as a source.
    pub barred: bool,
}
