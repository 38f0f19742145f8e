//! A small change to a real binary: two versions of a public package, as two releases.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::network::output;
use super::zone::Zone;
use crate::bench::GROUP;

/// Debian packages with large binaries, rebuilt with a small change: the first one with two
/// available versions is used.
const DEBIAN: &[&str] = &["libnode108", "openjdk-17-jre-headless"];

/// The directories of the two versions.
const OLD: &str = "old";

const NEW: &str = "new";

/// Bytes through the downlink for the newer version: whole ÷ as a delta.
pub(super) fn wan_reduction(zone: &mut Zone, folder: &Path) -> Result<f64> {
    let (old, new) = (folder.join(OLD), folder.join(NEW));
    ensure!(old.exists() && new.exists(), "there are no two versions of a real package");
    let before = zone.publish_folder(&old, &["--no-deltas"])?;
    let whole = zone.send(&before, |_| Ok(Vec::new()))?;
    whole.tell("the older version, whole");
    // Deltas start from what runs.
    zone.fleet.run(&["rollout", "resume", GROUP])?;
    zone.run_everywhere(&before)?;
    let after = zone.publish_folder(&new, &[])?;
    let delta = zone.send(&after, |_| Ok(Vec::new()))?;
    delta.tell("the newer version");
    ensure!(delta.wrong_units == 0, "{} units are wrong", delta.wrong_units);
    let whole_bytes = whole.wan * after.bytes as f64;
    eprintln!(
        "    {} bytes packed; {} crossed the downlink, whole it would be {whole_bytes:.0}",
        after.bytes, delta.wan_bytes
    );
    Ok(whole_bytes / delta.wan_bytes as f64)
}

/// Downloads and unpacks two versions of a real package.
pub(super) fn fetch(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for package in DEBIAN {
        match debian(folder, package) {
            Ok(true) => return Ok(()),
            Ok(false) => eprintln!("  {package}: Debian offers one version only"),
            Err(error) => eprintln!("  {package}: {error:#}"),
        }
        // Leave nothing incomplete.
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder)?;
    }
    bail!("Debian offers two versions of none of {}", DEBIAN.join(", "))
}

/// False when only one version is available.
fn debian(folder: &Path, package: &str) -> Result<bool> {
    let text = output(Command::new("apt-cache").args(["madison", package]))?;
    let mut versions: Vec<&str> =
        text.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim).collect();
    versions.dedup();
    // The newest comes first.
    let [new, old, ..] = versions.as_slice() else { return Ok(false) };
    eprintln!("  {package} {old} and {new}");
    let get = |version: &str, into: &str| -> Result<()> {
        let downloads = folder.join(format!("{into}.download"));
        fs::create_dir_all(&downloads)?;
        let mut apt = Command::new("apt-get");
        // The default sandbox user cannot write here.
        apt.args(["-o", "APT::Sandbox::User=root", "download", &format!("{package}={version}")]);
        output(apt.current_dir(&downloads))?;
        let mut dpkg = Command::new("dpkg-deb");
        output(dpkg.arg("-x").arg(only_file(&downloads)?).arg(folder.join(into)))?;
        Ok(())
    };
    get(old, OLD)?;
    get(new, NEW)?;
    Ok(true)
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let mut files = fs::read_dir(folder)?;
    let file = files.next().context("nothing was downloaded")??;
    Ok(file.path())
}
