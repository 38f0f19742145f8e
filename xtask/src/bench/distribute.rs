//! How fast an artifact reaches every server of a zone, and what crosses the zone's downlink.
//!
//! Real agents with mutual TLS in network namespaces whose links are limited by `tc tbf`; beside
//! them, over the same links, what else one might use. `docs/benchmarks.md` says what is measured
//! from when until when.

mod cpu;
mod delta;
mod faults;
mod network;
mod noise;
mod origin;
mod plan;
mod rivals;
mod sandbox;
mod service;
mod swarm_tracker;
mod zone;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use super::{BenchArgs, Output};
use crate::packages::need;

/// What `cargo xtask bench distribute` takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct DistributeArgs {
    /// Only the first row, and what it is compared with
    #[arg(long)]
    quick: bool,
    /// Only rows whose name begins so (may be given several times)
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Transfers of each row; the median counts [default: 3, quick: 2]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=50))]
    runs: Option<u8>,
    /// Not what it is compared with
    #[arg(long)]
    no_rivals: bool,
    /// A folder on a real disk, for the row that is durable, and for logs
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    disk: PathBuf,
    /// Keep the logs of all processes in this folder
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

/// Where two versions of a real package are, below the folder on the disk.
const PACKAGES: &str = "packages";

impl DistributeArgs {
    fn runs(&self) -> usize {
        self.runs.map_or(if self.quick { 2 } else { 3 }, usize::from)
    }
}

/// Whether this process is the one inside the namespaces: everything is built.
pub(crate) fn is_inside() -> bool {
    sandbox::folder().is_some()
}

/// Measures inside namespaces of its own.
pub(crate) fn run(args: &DistributeArgs, all: &BenchArgs) -> Result<bool> {
    let Some(folder) = sandbox::folder() else {
        ensure!(plan::rows(args).next().is_some(), "no row begins with {}", args.only.join(", "));
        need("nginx", "-v", "nginx-light")?;
        if !args.no_rivals {
            need("curl", "--version", "curl")?;
            need("aria2c", "--version", "aria2")?;
        }
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
    let measured = plan::measure(args, &all.programs()?, &folder);
    let json = matches!(all.output, Output::Json);
    for line in measured.comparison() {
        // What is no row is for people.
        if json {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    }
    super::print(&measured.rows, all.output)?;
    Ok(measured.rows.iter().all(|row| row.measured.is_some()))
}
