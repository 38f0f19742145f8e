//! Everything that proves the product.

use anyhow::Result;
use clap::Args;

use crate::build::{cargo, succeed};

/// What `cargo xtask test` takes.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {}

/// Formatting, lints, and every test.
pub(crate) fn run(_args: &TestArgs) -> Result<bool> {
    succeed(cargo().args(["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    succeed(cargo().args(clippy))?;
    crate::build::programs(false)?;
    succeed(cargo().args(["nextest", "run", "--workspace"]))?;
    Ok(true)
}
