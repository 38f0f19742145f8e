//! Builds the simulator with its checks, and runs it.

use anyhow::{Context as _, Result};
use clap::Args;

use crate::build::cargo;

#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// Without the checks that only debug builds have; to measure steps per second
    #[arg(long)]
    release: bool,
    /// Options of the simulator, such as --seeds 1000 or --replay 17
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// True if no seed found a violation.
pub(crate) fn run(args: &SimulateArgs) -> Result<bool> {
    let mut command = cargo();
    command.args(["run", "--quiet", "--package", "cohort-simulate"]);
    if args.release {
        command.args(["--profile", "simulate"]);
    }
    let status = command.arg("--").args(&args.options).status();
    Ok(status.with_context(|| format!("{command:?}"))?.success())
}
