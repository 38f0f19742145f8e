//! `cohort guard`: the process that owns a server's services. The agent starts it.

use std::path::PathBuf;

use clap::Args;
use cohort_host::Launch;
use cohort_host::guard::{GuardConfig, run as run_guard};

use crate::failure::{Exit, Failure, OrFail as _};

#[derive(Debug, Args)]
pub(crate) struct GuardArgs {
    /// Directory of the guard's socket and records
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Start a new session, so that the guard survives its parent
    #[arg(long)]
    detach: bool,
}

/// Returns after SIGTERM.
pub(crate) fn run(args: &GuardArgs) -> Result<Exit, Failure> {
    let (folder, detach) = (args.dir.clone(), args.detach);
    let config = GuardConfig { folder, detach, confine: Launch::confine() };
    run_guard(&config).or_fail("guard")?;
    Ok(Exit::Done)
}
