//! How fast an artifact reaches every server of a zone, and what crosses the zone's downlink.
//!
//! Real agents with mutual TLS in network namespaces whose links are limited by `tc tbf`; beside
//! them, over the same links, what else one might use. `docs/benchmarks.md` says what is measured
//! from when until when.

mod cpu;
mod network;
mod noise;
mod origin;
mod sandbox;
mod zone;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::{BenchArgs, Row};
use zone::{Links, Zone};

/// What `cargo xtask bench distribute` takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct DistributeArgs {
    /// Only the first rows, and what they are compared with
    #[arg(long)]
    quick: bool,
    /// Only rows whose name begins so (may be given several times)
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Transfers of each row; the median counts
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Not what it is compared with
    #[arg(long)]
    no_peers: bool,
    /// A folder on a real disk, for the row that is durable, and for logs
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    disk: PathBuf,
}

/// Measures inside namespaces of its own.
pub(crate) fn run(args: &DistributeArgs, all: &BenchArgs) -> Result<bool> {
    match sandbox::folder() {
        None => {
            all.programs()?;
            sandbox::enter(&args.disk)
        }
        Some(folder) => {
            sandbox::furnish(&folder)?;
            measure(args, all, &folder)
        }
    }
}

/// Whether this process is the one inside the namespaces: everything is built.
pub(crate) fn is_inside() -> bool {
    sandbox::folder().is_some()
}

fn measure(args: &DistributeArgs, all: &BenchArgs, folder: &Path) -> Result<bool> {
    let programs = all.programs()?;
    let links = Links { servers: 10, downlink_mbit: 50, nic_mbit: 250 };
    let dir = folder.join("memory/zone");
    let mut zone = Zone::start(&programs, &dir, &folder.join("logs/zone"), links)?;
    for _ in 0..args.runs {
        zone.transfer("50/250", 64)?;
    }
    let rows: Vec<Row> = Vec::new();
    super::print(&rows, all.output)?;
    Ok(true)
}
