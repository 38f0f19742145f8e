//! Releases of the example service; their faults are part of the release.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::Programs;

/// A release of `examples/web`.
#[derive(Debug, Clone, Default)]
pub struct WebRelease {
    pub version: String,
    /// Lines of `[faults]` in `release.toml`.
    pub faults: Vec<String>,
    /// Hooks: name and script.
    pub hooks: Vec<(String, String)>,
    /// Incompressible bytes of ballast.
    pub ballast_bytes: usize,
    /// Replaces the example's `cohort.toml`.
    pub cohort_toml: Option<String>,
}

impl WebRelease {
    /// A release without faults.
    pub fn new(version: &str) -> WebRelease {
        WebRelease { version: version.to_owned(), ..WebRelease::default() }
    }

    /// Adds a line to `[faults]`.
    pub fn fault(mut self, line: &str) -> WebRelease {
        self.faults.push(line.to_owned());
        self
    }

    /// Adds a hook: its name and script.
    pub fn hook(mut self, name: &str, script: &str) -> WebRelease {
        self.hooks.push((name.to_owned(), script.to_owned()));
        self
    }

    /// Sets the bytes of ballast.
    pub fn ballast(mut self, bytes: usize) -> WebRelease {
        self.ballast_bytes = bytes;
        self
    }

    /// Writes the directory to publish.
    pub fn write(&self, folder: &Path, programs: &Programs) -> Result<PathBuf> {
        let dist = folder.join(format!("web-{}", self.version));
        if dist.exists() {
            fs::remove_dir_all(&dist)?;
        }
        copy_folder(&programs.artifact, &dist)?;
        fs::create_dir_all(dist.join("bin"))?;
        fs::copy(&programs.web, dist.join("bin/web"))
            .with_context(|| format!("{} (cargo build first)", programs.web.display()))?;
        let mut text =
            format!("version = {:?}\nbody = \"hello from {}\"\n", self.version, self.version);
        if !self.faults.is_empty() {
            text.push_str("\n[faults]\n");
            for line in &self.faults {
                text.push_str(line);
                text.push('\n');
            }
        }
        fs::write(dist.join("release.toml"), text)?;
        if let Some(text) = &self.cohort_toml {
            fs::write(dist.join("cohort.toml"), text)?;
        }
        fs::create_dir_all(dist.join("hooks"))?;
        for (name, script) in &self.hooks {
            let path = dist.join("hooks").join(name);
            fs::write(&path, script)?;
            make_executable(&path)?;
        }
        if self.ballast_bytes > 0 {
            fs::write(dist.join("ballast"), noise(self.ballast_bytes, &self.version))?;
        }
        Ok(dist)
    }
}

/// Incompressible bytes, the same for the same seed.
pub fn noise(bytes: usize, seed: &str) -> Vec<u8> {
    let mut state = seed.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

pub(crate) fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
