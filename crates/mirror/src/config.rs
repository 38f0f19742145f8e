//! What a cache is told, and its limits with the reason for each number. Times in milliseconds.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bucket::BucketSettings;

/// The smallest cache, in bytes: room for signed metadata and a small artifact or two. Below it a
/// size is a slip of the pen.
pub const CACHE_BYTES_MIN: u64 = 64 << 20;

/// Most origins: the hub, a second site, a content network, and then some.
pub const ORIGINS_MAX: usize = 16;

/// What a cache is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheConfig {
    /// Where it answers; plain HTTP, because everything read is signed.
    pub listen: SocketAddr,
    /// Base URLs of the repository, or of other mirrors, or buckets such as `s3://BUCKET/PREFIX`;
    /// the next is asked when one does not deliver.
    pub origins: Vec<String>,
    /// How buckets are reached.
    #[serde(default)]
    pub buckets: BucketSettings,
    /// The folder that is the cache's own.
    pub cache_dir: PathBuf,
    /// What it may take of the disk, in bytes; at least [`CACHE_BYTES_MIN`].
    pub cache_bytes: u64,
    /// The limits.
    #[serde(default)]
    pub limits: CacheLimits,
}

/// Limits of a cache. People may want another `requests_max`; tests shorten the times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheLimits {
    /// Requests for files in progress; the next gets 503. Each holds at most one unit, and about
    /// 450 KiB that wait for the socket: 256 MiB at the worst.
    pub requests_max: usize,
    /// Free space that is left on the disk, whatever the size of the cache, in bytes: logs and
    /// others live there as well.
    pub free_bytes_min: u64,
    /// Requests for artifacts to origins at once: enough to fill a downlink over a long way; more
    /// only share it.
    pub bulk_requests_max: usize,
    /// Requests for small files to origins at once.
    pub small_requests_max: usize,
    /// Responses at once that are passed on without being kept, because the disk is full. Each
    /// costs the downlink once more, so that they are few.
    pub passed_on_max: usize,
    /// Units of one request to an origin: 4 MiB, so that a round trip hardly shows.
    pub run_units_max: u32,
    /// How long a reader may take for one unit before its place is given to another.
    pub reader_ms_max: u64,
    /// To connect to an origin.
    pub connect_ms_max: u64,
    /// From asking to the head of an answer. Below what agents wait for their first byte (10 s).
    pub first_byte_ms_max: u64,
    /// Between two pieces of an answer.
    pub idle_ms_max: u64,
    /// For one whole unit: slower (8 KiB/s) is no origin at all, and below what agents wait for a
    /// byte, so that they get it from the next origin and not from the next mirror.
    pub unit_ms_max: u64,
    /// For one small file when there is a copy to fall back on. Far below what agents wait.
    pub revalidate_ms_max: u64,
    /// For one small file when there is none, and for a file of unit hashes (8 MiB at most).
    pub small_ms_max: u64,
    /// First pause after an origin failed; doubled by each failure in a row.
    pub backoff_ms_min: u64,
    /// Longest pause after failures in a row: an origin that is back is used again soon.
    pub backoff_ms_max: u64,
    /// Pause after wrong bytes: bytes do not get wrong by chance.
    pub wrong_bytes_ms: u64,
    /// Longest `Retry-After` that is obeyed to the letter.
    pub retry_after_ms_max: u64,
    /// How long *there is no such file* is believed. Short: it may be published the next moment.
    pub absent_ms: u64,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            requests_max: 512,
            free_bytes_min: 256 << 20,
            bulk_requests_max: 8,
            small_requests_max: 16,
            passed_on_max: 8,
            run_units_max: 64,
            reader_ms_max: 30_000,
            connect_ms_max: 3_000,
            first_byte_ms_max: 8_000,
            idle_ms_max: 8_000,
            unit_ms_max: 8_000,
            revalidate_ms_max: 4_000,
            small_ms_max: 20_000,
            backoff_ms_min: 250,
            backoff_ms_max: 30_000,
            wrong_bytes_ms: 60_000,
            retry_after_ms_max: 120_000,
            absent_ms: 5_000,
        }
    }
}

impl CacheLimits {
    pub(crate) fn first_byte(&self) -> Duration {
        Duration::from_millis(self.first_byte_ms_max)
    }

    pub(crate) fn backoff_max(&self) -> Duration {
        Duration::from_millis(self.backoff_ms_max)
    }
}

impl CacheConfig {
    /// Says what contradicts itself.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.origins.is_empty() || self.origins.len() > ORIGINS_MAX {
            return Err(format!(
                "{} origins; it needs 1 to {ORIGINS_MAX}, such as http://hub.example:7419/",
                self.origins.len()
            ));
        }
        if self.cache_bytes < CACHE_BYTES_MIN {
            return Err(format!(
                "a cache of {} bytes is smaller than {CACHE_BYTES_MIN}",
                self.cache_bytes
            ));
        }
        let limits = &self.limits;
        let counts = [
            limits.requests_max,
            limits.bulk_requests_max,
            limits.small_requests_max,
            limits.passed_on_max,
            limits.run_units_max as usize,
        ];
        if counts.contains(&0) {
            return Err("a limit of 0 requests or units lets nothing through".to_owned());
        }
        Ok(())
    }
}
