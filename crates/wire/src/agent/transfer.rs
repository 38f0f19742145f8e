//! Transfers of artifacts, as the group's leader tracks them: part of the group's status.
//!
//! Bounded whatever the size of the group: a few kilobytes for a thousand servers.

use cohort_core::ids::{AppId, Digest, ServerId, Version};
use cohort_transfer::{Offence, SourceName};
use serde::{Deserialize, Serialize};

/// Transfers in one status: those in progress, then those that ended last. A group moves one
/// artifact per app, and few apps at once.
pub const TRANSFERS_SHOWN_MAX: usize = 8;
/// Chains shown; the rest are counted.
pub const CHAINS_SHOWN_MAX: usize = 4;
/// Servers shown of one chain, from its head.
pub const CHAIN_SERVERS_SHOWN_MAX: usize = 8;
/// Slow servers, and offenders, shown; the rest are counted.
pub const NAMES_SHOWN_MAX: usize = 8;

/// The transfer of one artifact to the servers of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferStatus {
    /// The app, if the artifact belongs to a release that the group knows.
    pub app: Option<AppId>,
    pub version: Option<Version>,
    /// Whether it is the delta to that release rather than the whole artifact.
    pub delta: bool,
    /// Root hash of what is transferred.
    pub artifact: Digest,
    /// Whether a reachable server still lacks bytes.
    pub under_way: bool,
    /// Length of what is transferred.
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
    /// Bytes that came from mirrors, over all servers.
    pub mirror_bytes: u64,
    /// Bytes that came from other servers, over all servers.
    pub peer_bytes: u64,
    /// Current throughput of mirrors.
    pub mirror_bytes_per_second: u64,
    /// Current throughput between servers.
    pub peer_bytes_per_second: u64,
    /// Average throughput of mirrors; none when too few bytes came to measure it.
    pub downlink_bytes_per_second: Option<u64>,
    pub for_ms: u64,
    /// Time until the last server had it; none while in progress.
    pub took_ms: Option<u64>,
    /// Time until all have it at the current rate; none when unknown.
    pub left_ms: Option<u64>,
    /// Servers that fetch from mirrors.
    pub heads: Vec<ServerId>,
    pub fan_out: u64,
    /// Who sends to whom, longest chain first; at most [`CHAINS_SHOWN_MAX`].
    pub chains: Vec<ChainStatus>,
    pub chains_in_all: u64,
    /// Servers too slow to keep up; at most [`NAMES_SHOWN_MAX`].
    pub slow: Vec<ServerId>,
    /// The number of all of them.
    pub slow_servers: u64,
    /// Misbehaving sources; at most [`NAMES_SHOWN_MAX`].
    pub offenders: Vec<OffenderStatus>,
    pub offenders_in_all: u64,
}

/// Servers of which each sends to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainStatus {
    /// From the first; at most [`CHAIN_SERVERS_SHOWN_MAX`].
    pub servers: Vec<ServerId>,
    /// The number of all of them.
    pub depth: u64,
}

/// A misbehaving source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffenderStatus {
    pub source: SourceName,
    pub what: Offence,
    /// How often it happened.
    pub count: u64,
    /// The servers that saw it; at most [`NAMES_SHOWN_MAX`].
    pub told_by: Vec<ServerId>,
    /// The number of all of them.
    pub told_by_servers: u64,
    /// Whether the group refuses it as a source for a while.
    pub barred: bool,
}
