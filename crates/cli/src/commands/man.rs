//! `cohort man`: manual pages.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};

use crate::args::Cli;
use crate::failure::{Exit, Failure};

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Directory for the pages, such as /usr/local/share/man/man1
    folder: PathBuf,
}

pub(crate) fn run(args: &ManArgs) -> Result<Exit, Failure> {
    let folder = &args.folder;
    clap_mangen::generate_to(Cli::command(), folder).map_err(|error| {
        let error = format!("cannot write to {}: {error}", folder.display());
        Failure::new("file", error)
    })?;
    Ok(Exit::Done)
}
