//! What people and CI do with this repository: see it, test it, measure it.

mod bench;
mod build;
mod demo;
mod packages;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Tasks of the Cohort repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Start a whole fleet on this machine and watch it update itself
    Demo(demo::DemoArgs),
    /// Measure a release build: waves, failover, distribution
    Bench(bench::BenchArgs),
    /// Everything that proves the product
    Test(test::TestArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome: Result<bool> = match cli.task {
        Task::Demo(args) => demo::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Test(args) => test::run(&args),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
