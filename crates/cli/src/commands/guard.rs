//! `cohort guard`: the process that owns a server's services. Started by the agent.

use std::path::PathBuf;

use clap::Args;
use cohort_host::guard::{GuardConfig, run as run_guard};

use crate::failure::{Exit, Failure};

/// What `cohort guard` takes.
#[derive(Debug, Args)]
pub(crate) struct GuardArgs {
    /// The guard's folder
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Leave the session of whoever started it
    #[arg(long)]
    detach: bool,
}

/// Runs until it is told to stop.
pub(crate) fn run(args: &GuardArgs) -> Result<Exit, Failure> {
    let config = GuardConfig { folder: args.dir.clone(), detach: args.detach };
    run_guard(&config).map_err(|error| Failure::of("guard", &error))?;
    Ok(Exit::Done)
}
