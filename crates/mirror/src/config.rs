//! Configuration of a cache, and its limits with the reason for each number.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use cohort_base::retry::Schedule;

use crate::MirrorError;
use crate::bucket::BucketSettings;

/// The smallest cache, in bytes: room for signed metadata and one or two small artifacts. A smaller
/// size is a typo.
pub const CACHE_BYTES_MIN: u64 = 64 << 20;

/// Most origins: the hub, a second site, a content network, and then some.
pub const ORIGINS_MAX: usize = 16;

/// Configuration of a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// Address to listen on; plain HTTP, because all content is signed.
    pub listen: SocketAddr,
    /// Base URLs of the repository or of other mirrors, directories, or buckets such as
    /// `s3://BUCKET/PREFIX`; if one does not deliver, the next is tried.
    pub origins: Vec<String>,
    pub buckets: BucketSettings,
    /// Directory used only by this cache.
    pub cache_dir: PathBuf,
    /// Most disk space to use, in bytes; at least [`CACHE_BYTES_MIN`].
    pub cache_bytes: u64,
    pub limits: CacheLimits,
}

/// Limits of a cache. Operators set `requests_max`; tests shorten the times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheLimits {
    /// Requests for files in progress; one more gets a 503. Each holds at most one unit, and about
    /// 450 KiB waiting for the socket: at most 256 MiB.
    pub requests_max: usize,
    /// Free disk space to leave to others, such as logs, in bytes, regardless of the cache's size.
    pub free_bytes_min: u64,
    /// Units of one request to an origin: 4 MiB, so that a round trip barely matters.
    pub run_units_max: u32,
    /// How long a reader may take for one unit before its slot is given away.
    pub reader_max: Duration,
    /// How long an origin may take for a response head, between two pieces of the body, and for a
    /// whole unit (8 KiB/s). Shorter than agents wait for a byte (10 s), so that they get it from
    /// the next origin rather than the next mirror.
    pub answer_max: Duration,
    /// For one small file if there is a copy to fall back on. Far shorter than agents wait.
    pub revalidate_max: Duration,
    /// For one small file if there is no copy, and for a file of unit hashes (8 MiB at most).
    pub small_max: Duration,
    /// Pauses after consecutive failures of an origin: one that recovers is used again soon.
    pub pauses: Schedule,
    /// How long an origin is skipped for a file whose bytes it sent wrong.
    pub wrong_bytes_for: Duration,
    /// How long *there is no such file* is cached. Short: it may be published at any time.
    pub absent_for: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            requests_max: 512,
            free_bytes_min: 256 << 20,
            run_units_max: 64,
            reader_max: Duration::from_secs(30),
            answer_max: Duration::from_secs(8),
            revalidate_max: Duration::from_secs(4),
            small_max: Duration::from_secs(20),
            pauses: Schedule::new(Duration::from_millis(250), Duration::from_secs(30)),
            wrong_bytes_for: Duration::from_secs(60),
            absent_for: Duration::from_secs(5),
        }
    }
}

impl CacheConfig {
    pub(crate) fn check(&self) -> Result<(), MirrorError> {
        self.contradiction().map_or(Ok(()), |reason| Err(MirrorError::Config { reason }))
    }

    fn contradiction(&self) -> Option<String> {
        if self.origins.is_empty() || self.origins.len() > ORIGINS_MAX {
            return Some(format!(
                "{} origins; it needs 1 to {ORIGINS_MAX}, such as http://hub.example:7419/",
                self.origins.len()
            ));
        }
        if self.cache_bytes < CACHE_BYTES_MIN {
            return Some(format!(
                "a cache of {} bytes is smaller than {CACHE_BYTES_MIN}",
                self.cache_bytes
            ));
        }
        if self.limits.requests_max == 0 || self.limits.run_units_max == 0 {
            return Some("a limit of 0 requests or units would serve nothing".to_owned());
        }
        None
    }
}
