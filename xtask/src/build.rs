//! Builds the programs to run, test and measure.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use cohort_trial::Programs;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// The cargo that started this program.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command to completion; an error unless it succeeds.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// Builds the production binary and the example service.
pub(crate) fn programs(release: bool) -> Result<Programs> {
    let mut command = cargo();
    command.args(["build", "--package", "cohort", "--package", "cohort-example-web"]);
    if release {
        command.arg("--release");
    }
    succeed(&mut command)?;
    built(release)
}

/// Builds an example with this profile; returns its program.
pub(crate) fn example(package: &str, name: &str, profile: &str) -> Result<PathBuf> {
    eprintln!("building {name} of {package}…");
    let mut command = cargo();
    command.args(["build", "--quiet", "--profile", profile, "--package", package]);
    succeed(command.args(["--example", name]))?;
    Ok(target(profile).join("examples").join(name))
}

/// The machine's target triple, by the pinned compiler.
pub(crate) fn host_triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").current_dir(root()).output().context("rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

/// Where cargo puts what it builds with this profile.
pub(crate) fn target(profile: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR");
    target.map_or_else(|| root().join("target"), PathBuf::from).join(profile)
}

pub(crate) fn built(release: bool) -> Result<Programs> {
    let target = target(if release { "release" } else { "debug" });
    ensure!(
        target.join("cohort").exists(),
        "nothing built in {} yet; leave out --no-build",
        target.display()
    );
    Ok(Programs {
        cohort: target.join("cohort"),
        web: target.join("cohort-example-web"),
        artifact: root().join("examples/web/artifact"),
    })
}
