//! Debian packages that tests and benchmarks need.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::build::succeed;

pub(crate) fn answers(program: &str, arg: &str) -> bool {
    let mut command = Command::new(program);
    command.arg(arg).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Installs packages as root with apt; without root or apt, does nothing.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if !is_root() || Command::new("apt-get").arg("--version").output().is_err() {
        return Ok(());
    }
    // Standard output is for figures only.
    eprintln!("installing {}…", packages.join(" and "));
    for args in [&["update", "-qq"][..], &["install", "-y", "-qq", "--no-install-recommends"]] {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(args).stdout(std::io::stderr());
        if args[0] == "install" {
            apt.args(packages);
        }
        succeed(&mut apt)?;
    }
    Ok(())
}

/// Installs a program's package if the program is missing.
pub(crate) fn need(program: &str, arg: &str, package: &str) -> Result<()> {
    if !answers(program, arg) {
        install(&[package])?;
    }
    ensure!(answers(program, arg), "{program} is missing; install the package {package}");
    Ok(())
}

pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}
