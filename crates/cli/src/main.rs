//! The `cohort` binary: the daemons, and every command for people and programs.
//!
//! **What it is.** The command line: it reads configuration, asks the hub and agents, and prints
//! what `cohort-view` makes of the responses.
//!
//! **What it must never know.** How a rollout is decided, and how facts become sentences.
//!
//! **Where to start reading.** [`args::Command`], the list of commands; each has a file in
//! `commands`.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod about;
mod agent_keys;
mod answer;
mod args;
mod commands;
mod connect;
mod context;
mod failure;
mod fleet;
mod group;
mod hub_keys;
mod kill_registers;
mod layers;
mod logging;
mod output;
mod passphrase;
mod policy_file;
mod policy_known;
mod toml_keys;
mod workplace;

#[cfg(test)]
mod hints_test;

use std::process::ExitCode;

use clap::Parser as _;
use cohort_host::confine;

use args::Cli;
use failure::{Exit, Failure};
use output::Output;

fn main() -> ExitCode {
    // Before the command line, which takes longer to build than all the rest: a release's programs
    // wait for it.
    if std::env::args_os().skip(1).eq([confine::COMMAND]) {
        std::process::exit(confine::run());
    }
    commands::completions::answer_shell();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let output = cli.global.output;
    match commands::run(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::show_failure(&failure, output);
            failure.exit.into()
        }
    }
}

/// Prints help or a usage error as clap does, or as JSON if requested.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || !asks_for_json() {
        error.exit();
    }
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("wrong usage");
    let failure = Failure::usage(first.trim_start_matches("error: "))
        .hints(lines.filter(|line| !line.starts_with("Usage:")).map(str::to_owned));
    output::show_failure(&failure, Output::Json);
    Exit::Usage.into()
}

fn asks_for_json() -> bool {
    let args: Vec<String> = std::env::args().collect();
    args.windows(2).any(|pair| matches!(pair[0].as_str(), "-o" | "--output") && pair[1] == "json")
        || args.iter().any(|arg| arg == "-ojson" || arg == "--output=json")
}
