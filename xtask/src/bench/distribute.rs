//! Time until every server of a zone has an artifact, and bytes through the zone's downlink.
//!
//! Real agents with mutual TLS in network namespaces whose links `tc tbf` limits.
//! `docs/benchmarks.md` defines what is measured.

mod cpu;
mod delta;
mod faults;
mod network;
mod origin;
mod plan;
mod sandbox;
mod service;
mod zone;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use super::BenchArgs;
use crate::packages::need;

#[derive(Debug, Clone, Args)]
pub(crate) struct DistributeArgs {
    /// Only the first rows
    #[arg(long)]
    quick: bool,
    /// Only rows whose name has this prefix (repeatable)
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Transfers per row; the median counts [default: 3, with --quick: 2]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=50))]
    runs: Option<u8>,
    /// Directory on a real disk, for the durable row and for logs
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    disk: PathBuf,
    /// Keep the logs of all processes in this directory
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

/// Directory of two versions of a real package, below `--disk`.
const PACKAGES: &str = "packages";

impl DistributeArgs {
    fn runs(&self) -> usize {
        self.runs.map_or(if self.quick { 2 } else { 3 }, usize::from)
    }
}

/// Whether this process runs inside the namespaces, where everything is already built.
pub(crate) fn is_inside() -> bool {
    sandbox::folder().is_some()
}

/// Enters new namespaces, and measures there.
pub(crate) fn run(args: &DistributeArgs, all: &BenchArgs) -> Result<bool> {
    let Some(folder) = sandbox::folder() else {
        ensure!(plan::rows(args).next().is_some(), "no row starts with {}", args.only.join(", "));
        need("nginx", "-v", "nginx-light")?;
        all.programs()?;
        return sandbox::enter(&args.disk, |disk| {
            if plan::rows(args).any(|(what, ..)| what.starts_with("delta."))
                && let Err(error) = delta::fetch(&disk.join(PACKAGES))
            {
                eprintln!("error: {error:#}");
            }
        });
    };
    sandbox::furnish(&folder)?;
    let rows = plan::measure(args, &all.programs()?, &folder);
    super::print(&rows, all.output)?;
    Ok(rows.iter().all(|row| row.measured.is_some()))
}
