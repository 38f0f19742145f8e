//! A small change to a real binary: two versions of a package that a registry has, as two releases.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::network::output;
use super::zone::Zone;
use crate::bench::GROUP;

/// Packages of Debian with large binaries that were rebuilt with a small change: the first of which
/// two versions can be had.
const DEBIAN: &[&str] = &["libnode108", "openjdk-17-jre-headless"];

/// The folders of the two versions.
const OLD: &str = "old";

/// See [`OLD`].
const NEW: &str = "new";

/// Else two wheels of a package with one large binary.
const WHEELS: [&str; 2] = ["ruff==0.12.0", "ruff==0.12.1"];

/// Bytes through the downlink for the whole of the newer version ÷ those for the delta.
pub(super) fn wan_reduction(zone: &mut Zone, folder: &Path) -> Result<f64> {
    let (old, new) = (folder.join(OLD), folder.join(NEW));
    ensure!(old.exists() && new.exists(), "there are no two versions of a real package");
    let before = zone.publish_folder(&old, &["--no-deltas"])?;
    let whole = zone.send(&before, |_| Ok(Vec::new()))?;
    whole.tell("the older version, whole");
    // A delta begins at what runs.
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

/// Gets two versions of a real package, unpacked.
pub(super) fn fetch(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for package in DEBIAN {
        match debian(folder, package) {
            Ok(true) => return Ok(()),
            Ok(false) => eprintln!("  {package}: Debian offers one version only"),
            Err(error) => eprintln!("  {package}: {error:#}"),
        }
        // Nothing half.
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder)?;
    }
    wheels(folder).context("two versions of a package to make a delta of")
}

/// False when there are no two versions.
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
        // Else it wants to become a user that may not write here.
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

fn wheels(folder: &Path) -> Result<()> {
    let get = |wheel: &str, into: &str| -> Result<()> {
        let downloads = folder.join(format!("{into}.download"));
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]);
        output(pip.arg("--dest").arg(&downloads).arg(wheel))?;
        let mut unzip = Command::new("python3");
        let unzip = unzip.args(["-m", "zipfile", "-e"]);
        output(unzip.arg(only_file(&downloads)?).arg(folder.join(into)))?;
        Ok(())
    };
    eprintln!("  {} and {}", WHEELS[0], WHEELS[1]);
    get(WHEELS[0], OLD)?;
    get(WHEELS[1], NEW)
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let mut files = fs::read_dir(folder)?;
    let file = files.next().context("nothing was downloaded")??;
    Ok(file.path())
}
