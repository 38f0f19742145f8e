//! Builds what is released, so that everybody who builds the same sources gets the same bytes.
//!
//! Sources are copied first: the program is made from nothing else, and the checkout's own path is
//! one of many. Paths are the only thing in a build that differs between machines with the same
//! compilers, so all are replaced.

mod licences;
mod tarball;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use cohort_identity::sha256_hex;

use crate::build::{cargo, host_triple, root, succeed, target};

/// When every file was made, in Unix seconds: 1980, the first year that all archives can say.
const EPOCH_S: u64 = 315_532_800;

/// What else is in the tarball: what its reader needs to run it.
const DOCUMENTS: &[&str] = &[
    "CHANGELOG.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
    "docs/keys.md",
    "docs/metrics.md",
    "docs/operating.md",
    "docs/security.md",
];

#[derive(Debug, Args)]
pub(crate) struct PackageArgs {
    /// Build a second time from a copy of the sources elsewhere, and compare byte by byte
    #[arg(long)]
    verify: bool,
}

/// One build: its sources and what cargo makes of them.
struct Build {
    sources: PathBuf,
    built: PathBuf,
}

/// Packs into `target/package`. False if a second build differs.
pub(crate) fn run(args: &PackageArgs) -> Result<bool> {
    ensure!(
        cargo().args(["cyclonedx", "--version"]).output().is_ok_and(|it| it.status.success()),
        "cargo-cyclonedx is missing, which writes the SBOM: cargo install cargo-cyclonedx --locked"
    );
    let out = target("package");
    let triple = host_triple()?;
    let first = Build { sources: out.join("sources"), built: out.join("build") };
    let made = first.make(&root(), &triple)?;
    let mut sums = String::new();
    for (name, bytes) in &made {
        let path = out.join(name);
        fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        sums += &format!("{}  {name}\n", sha256_hex(bytes));
    }
    fs::write(out.join("SHA256SUMS"), &sums).context("SHA256SUMS")?;
    print!("{sums}");
    if !args.verify {
        return Ok(true);
    }
    let elsewhere = tempfile::tempdir().context("a temporary directory")?;
    let second = Build {
        sources: elsewhere.path().join("somewhere/else"),
        built: elsewhere.path().join("built"),
    };
    let again = second.make(&first.sources, &triple)?;
    let mut same = true;
    for ((name, first), (_, second)) in made.iter().zip(&again) {
        let verdict = if first == second { "the same" } else { "DIFFERENT" };
        println!("{verdict}: {name}, built again in {}", elsewhere.path().display());
        if first != second {
            same = false;
            let kept = out.join(format!("{name}.second"));
            fs::write(&kept, second).with_context(|| kept.display().to_string())?;
            println!("compare: diffoscope {} {}", out.join(name).display(), kept.display());
        }
    }
    Ok(same)
}

impl Build {
    /// The files of the release: the program, its SBOM, and the tarball with both, by name.
    fn make(&self, from: &Path, triple: &str) -> Result<Vec<(String, Vec<u8>)>> {
        if self.sources.exists() {
            fs::remove_dir_all(&self.sources).context("the last copy of the sources")?;
        }
        copy(from, &self.sources)?;
        let program = self.program(triple)?;
        let sbom = self.sbom(triple)?;
        let version = env!("CARGO_PKG_VERSION");
        let name = format!("cohort-{version}-{triple}");
        let mut files = vec![
            ("cohort".to_owned(), 0o755, program),
            ("cohort.cdx.json".to_owned(), 0o644, sbom.clone()),
            ("THIRD-PARTY-LICENSES".to_owned(), 0o644, licences::all(&self.sources, triple)?),
        ];
        for document in DOCUMENTS {
            let bytes = fs::read(self.sources.join(document)).context(*document)?;
            files.push(((*document).to_owned(), 0o644, bytes));
        }
        let tarball = tarball::pack(&name, files)?;
        Ok(vec![(format!("{name}.tar.gz"), tarball), (format!("{name}.cdx.json"), sbom)])
    }

    fn cargo(&self) -> Command {
        let mut command = cargo();
        command.current_dir(&self.sources);
        command.env("CARGO_TARGET_DIR", &self.built).env("SOURCE_DATE_EPOCH", EPOCH_S.to_string());
        command
    }

    /// The paths that would end up in the program, and what stands there instead.
    fn replaced(&self) -> Result<Vec<(PathBuf, &'static str)>> {
        let home = std::env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
        let home = home.context("neither CARGO_HOME nor HOME is set")?;
        Ok(vec![
            (self.sources.clone(), "/cohort"),
            (self.built.clone(), "/built"),
            (home, "/cargo"),
        ])
    }

    fn program(&self, triple: &str) -> Result<Vec<u8>> {
        let replaced = self.replaced()?;
        let flags = |option: &str| {
            let one = |(from, to): &(PathBuf, &str)| format!("{option}{}={to}", from.display());
            replaced.iter().map(one).collect::<Vec<_>>()
        };
        let for_c = flags("-ffile-prefix-map=").join(" ");
        let mut build = self.cargo();
        build.args(["build", "--locked", "--profile", "dist", "--package", "cohort"]);
        build.args(["--target", triple]);
        build.env("CARGO_ENCODED_RUSTFLAGS", flags("--remap-path-prefix=").join("\u{1f}"));
        build.env_remove("RUSTFLAGS").env("CFLAGS", &for_c).env("CXXFLAGS", &for_c);
        succeed(&mut build)?;
        let path = self.built.join(triple).join("dist/cohort");
        let program = fs::read(&path).with_context(|| path.display().to_string())?;
        for (path, _) in &replaced {
            let text = path.display().to_string();
            let found = program.windows(text.len()).any(|it| it == text.as_bytes());
            ensure!(!found, "the program contains {text}: it differs on every machine");
        }
        Ok(program)
    }

    /// What the program is made of. Paths in it are relative to the sources.
    fn sbom(&self, triple: &str) -> Result<Vec<u8>> {
        let mut command = self.cargo();
        command.args(["cyclonedx", "--format", "json", "--spec-version", "1.5", "--quiet"]);
        command.args(["--describe", "binaries", "--target", triple]);
        command.args(["--manifest-path", "crates/cli/Cargo.toml"]);
        succeed(&mut command)?;
        let path = self.sources.join("crates/cli/cohort_bin.cdx.json");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(text.replace(&self.sources.display().to_string(), "/cohort").into_bytes())
    }
}

/// Copies what belongs to the sources: everything but what was built or is git's.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let (entry, target) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        let name = target.file_name().unwrap_or_default();
        if name == "target" || name == ".git" {
            continue;
        }
        if entry.is_dir() {
            copy(&entry, &target)?;
        } else {
            fs::copy(&entry, &target).with_context(|| entry.display().to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "package_test.rs"]
mod package_test;
