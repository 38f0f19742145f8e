//! `cohort completions`: completions for shells.

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use crate::args::Cli;
use crate::failure::Exit;
use crate::output::print;

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell: bash, zsh, fish, …
    shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs) -> Exit {
    let mut text = Vec::new();
    generate(args.shell, &mut Cli::command(), "cohort", &mut text);
    print(&String::from_utf8_lossy(&text));
    Exit::Done
}
