//! Tasks of this repository, for people and CI: demo, tests, benchmarks, fuzzing, packages, tidy.
//!
//! **What it is.** `cargo xtask TASK`: drives the production binary through `cohort_trial`, and
//! reads the sources as text.
//!
//! **What it must never know.** The internals of any component; nothing depends on it.
//!
//! **Where to start reading.** `test.rs` (what CI runs), `tidy.rs` (the house rules),
//! `demo/acts.rs` (the story), `bench.rs`, then `bench/distribute/plan.rs` (its rows).

mod bench;
mod build;
mod demo;
mod fuzz;
mod package;
mod packages;
mod simulate;
mod test;
mod tidy;

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
    /// Measure a release build: rollout, failover, distribution
    Bench(bench::BenchArgs),
    /// Run everything: format, tidy, lints, tests, demo
    Test(test::TestArgs),
    /// Play fleets from seeds, under faults; `-- --help` lists its options
    Simulate(simulate::SimulateArgs),
    /// Search for inputs that break a decoder, target by target
    Fuzz(fuzz::FuzzArgs),
    /// Build what is released, reproducibly: program, tarball, SBOM, checksums
    Package(package::PackageArgs),
    /// Check the rules of the house, or print figures about the sources
    Tidy(tidy::TidyArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome: Result<bool> = match cli.task {
        Task::Demo(args) => demo::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Simulate(args) => simulate::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Package(args) => package::run(&args),
        Task::Tidy(args) => tidy::run(&args),
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
