//! How artifacts move in a group, as its leader tells it: part of the group's status.
//!
//! Bounded whatever the group's size: a thousand servers make a few kilobytes.

use cohort_core::ids::{AppId, Digest, ServerId, Version};
use serde::{Deserialize, Serialize};

/// Transfers in one status: those under way, then those that ended last. A group moves one artifact
/// per app, and few apps at once.
pub const TRANSFERS_SHOWN_MAX: usize = 8;
/// Chains that are named; of what is beyond, the number is told.
pub const CHAINS_SHOWN_MAX: usize = 4;
/// Servers named of one chain, from its first.
pub const CHAIN_SERVERS_SHOWN_MAX: usize = 8;
/// Servers, and offenders, that are named.
pub const NAMES_SHOWN_MAX: usize = 8;

/// One artifact on its way to the servers of a group, or there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferStatus {
    /// Of which app, if a release of it is known by this artifact.
    pub app: Option<AppId>,
    /// Of which release.
    pub version: Option<Version>,
    /// Whether what moves is the difference to the release before.
    pub delta: bool,
    /// Root of what moves.
    pub artifact: Digest,
    /// Whether a server that can be reached lacks some of it.
    pub under_way: bool,
    /// Its length.
    pub length_bytes: u64,
    /// Servers that take part,
    pub servers: u64,
    /// those that have it whole,
    pub whole_servers: u64,
    /// and those that lack some of it and cannot be reached now.
    pub away_servers: u64,
    /// Bytes that are there, verified, over all servers.
    pub held_bytes: u64,
    /// Bytes that have to be there in the end, over all servers.
    pub wanted_bytes: u64,
    /// Bytes that came from mirrors, over all servers.
    pub mirror_bytes: u64,
    /// Bytes that came from other servers, over all servers.
    pub peer_bytes: u64,
    /// What mirrors give now.
    pub mirror_bytes_per_second: u64,
    /// What servers give each other now.
    pub peer_bytes_per_second: u64,
    /// What mirrors gave over the whole transfer; none when it was too little to tell.
    pub downlink_bytes_per_second: Option<u64>,
    /// For how long it has been going on.
    pub for_ms: u64,
    /// How long it took until the last server had it; none before that.
    pub took_ms: Option<u64>,
    /// When all will have it at this rate; none when that cannot be said.
    pub left_ms: Option<u64>,
    /// Those that ask mirrors.
    pub heads: Vec<ServerId>,
    /// Children that a server may have.
    pub fan_out: u64,
    /// Who sends to whom, the longest first; at most [`CHAINS_SHOWN_MAX`].
    pub chains: Vec<ChainStatus>,
    /// All chains.
    pub chains_in_all: u64,
    /// Servers that cannot keep up; at most [`NAMES_SHOWN_MAX`].
    pub slow: Vec<ServerId>,
    /// All of them.
    pub slow_servers: u64,
    /// Sources that did wrong; at most [`NAMES_SHOWN_MAX`].
    pub offenders: Vec<OffenderStatus>,
    /// All of them.
    pub offenders_in_all: u64,
    /// All this in one line, for people.
    pub sentence: String,
}

/// Servers of which each sends to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainStatus {
    /// From the first; at most [`CHAIN_SERVERS_SHOWN_MAX`].
    pub servers: Vec<ServerId>,
    /// All of them.
    pub depth: u64,
}

/// A source of bytes that did wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffenderStatus {
    /// A server's name, or a mirror's URL.
    pub source: String,
    /// What it did: `wrong-bytes`, `wrong-length`, `silent` or `slow`.
    pub what: String,
    /// How often.
    pub count: u64,
    /// Who says so; at most [`NAMES_SHOWN_MAX`].
    pub told_by: Vec<ServerId>,
    /// All of them.
    pub told_by_servers: u64,
    /// Whether the group takes nothing from it for a while.
    pub barred: bool,
    /// In one line, for people.
    pub sentence: String,
    /// What to do about it.
    pub unblocks: String,
}
