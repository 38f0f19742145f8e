//! `cohort mirror`: serve a copy of the repository. Any static HTTP server with ranges does as well.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use cohort_mirror::{MirrorConfig, run_mirror};

use crate::commands::{daemon_runtime, stopping};
use crate::failure::{Exit, Failure};

/// What `cohort mirror` takes.
#[derive(Debug, Args)]
pub(crate) struct MirrorArgs {
    /// The folder that holds a copy of the repository
    #[arg(long, value_name = "DIR")]
    repository_dir: PathBuf,
    /// Where it listens (plain HTTP, signed content)
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:7419")]
    listen: SocketAddr,
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(args: &MirrorArgs) -> Result<Exit, Failure> {
    if !args.repository_dir.join("metadata").is_dir() {
        let error = format!("{} is not a copy of a repository", args.repository_dir.display());
        return Err(Failure::usage(error).hint(
            "it has no metadata/: copy the hub's repository there first, for example by rsync",
        ));
    }
    let config = MirrorConfig { listen: args.listen, repository_dir: args.repository_dir.clone() };
    daemon_runtime()?.block_on(async {
        let stop = stopping()?;
        run_mirror(config, stop).await.map_err(|error| Failure::of("mirror", &error))
    })?;
    Ok(Exit::Done)
}
