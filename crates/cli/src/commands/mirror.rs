//! `cohort mirror`: a cache of the repository close to a zone, or a directory with a copy of it.
//! Any static HTTP server that supports ranges can serve a copy too.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use cohort_mirror::{
    BucketSettings, CacheConfig, CacheLimits, MirrorConfig, MirrorError, run_cache, run_mirror,
};
use cohort_view::command::Flag;
use cohort_view::hint::Hint;

use crate::commands::{SERVER_THREADS, daemon_runtime, stopping};
use crate::failure::{Exit, Failure};

#[derive(Debug, Args)]
pub(crate) struct MirrorArgs {
    /// Fetch on demand from here: the hub's repository, another mirror, or a bucket such as
    /// s3://BUCKET/PREFIX; repeatable, the next is used if one fails
    #[arg(long = "origin", value_name = "URL", required_unless_present = "repository_dir")]
    origins: Vec<String>,
    /// Cache directory
    #[arg(long, value_name = "DIR", required_unless_present = "repository_dir")]
    cache_dir: Option<PathBuf>,
    /// Maximum size of the cache, such as `50GiB`
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "20GiB")]
    cache_size: u64,
    /// Maximum number of concurrent requests; more are answered with 503
    #[arg(long, value_name = "COUNT", default_value_t = CacheLimits::default().requests_max)]
    requests_max: usize,
    /// Serve this directory with a copy of the repository instead of a cache
    #[arg(long, value_name = "DIR", conflicts_with_all = ["origins", "cache_dir", "cache_size"])]
    #[arg(conflicts_with = "requests_max")]
    repository_dir: Option<PathBuf>,
    /// Listen address (plain HTTP, signed content)
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:7419")]
    listen: SocketAddr,
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(args: &MirrorArgs) -> Result<Exit, Failure> {
    match (&args.repository_dir, &args.cache_dir) {
        (Some(dir), _) => serve_folder(dir, args.listen),
        (None, Some(dir)) => serve_cache(dir, args),
        (None, None) => Err(Failure::usage("missing --cache-dir")),
    }
}

fn serve_folder(dir: &Path, listen: SocketAddr) -> Result<Exit, Failure> {
    if !dir.join("metadata").is_dir() {
        let error = format!("{} is not a copy of a repository: it has no metadata/", dir.display());
        return Err(Failure::usage(error).hint(
            "copy the hub's repository there first, for example with rsync, or let the mirror \
             fetch it: --origin http://HUB:7419/ --cache-dir DIR",
        ));
    }
    let config = MirrorConfig { listen, repository_dir: dir.to_owned() };
    cohort_wire::limits::raise_files();
    daemon_runtime(SERVER_THREADS)?.block_on(async {
        let stop = stopping()?;
        run_mirror(config, stop).await.map_err(|error| failure(&error))
    })?;
    Ok(Exit::Done)
}

fn serve_cache(dir: &Path, args: &MirrorArgs) -> Result<Exit, Failure> {
    let config = CacheConfig {
        listen: args.listen,
        origins: args.origins.clone(),
        buckets: BucketSettings::from_env(),
        cache_dir: dir.to_owned(),
        cache_bytes: args.cache_size,
        limits: CacheLimits { requests_max: args.requests_max, ..CacheLimits::default() },
    };
    cohort_wire::limits::raise_files();
    daemon_runtime(SERVER_THREADS)?.block_on(async {
        let stop = stopping()?;
        run_cache(config, stop).await.map_err(|error| failure(&error))
    })?;
    Ok(Exit::Done)
}

fn failure(error: &MirrorError) -> Failure {
    let failure = Failure::of("mirror", error);
    match error {
        MirrorError::Config { .. } | MirrorError::Origin(_) => {
            Failure { exit: Exit::Usage, ..failure }
        }
        MirrorError::Bucket(error) => failure.hints(error.hints()).exit(Exit::Usage),
        MirrorError::InUse { .. } => {
            failure.hint(Hint::add("give each mirror its own directory", Flag::CacheDir))
        }
        _ => failure,
    }
}

/// Parses a size: a number with an optional unit, KiB to TiB or kB to TB.
fn size(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit.trim() {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => 0,
    };
    let number = number.parse::<u64>().ok().filter(|_| factor > 0);
    let bytes = number.and_then(|number| number.checked_mul(factor));
    bytes.ok_or_else(|| "expected a whole number and a unit, such as 50GiB or 500MB".to_owned())
}

#[cfg(test)]
#[path = "mirror_test.rs"]
mod mirror_test;
