//! `release.toml`: the release's version, body and faults.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The file next to the program, in the parent directory, or in the working directory.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Release {
    pub(crate) version: String,
    /// The answer to `/`.
    #[serde(default)]
    pub(crate) body: String,
    #[serde(default)]
    pub(crate) faults: Faults,
}

/// Faults come from the release; servers have none of their own.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Faults {
    /// Platforms on which `/healthz` answers 500.
    unhealthy_on: Vec<String>,
    /// Platforms with the faults below; empty: all.
    on: Vec<String>,
    /// Exits on its own after this time.
    die_after_ms: Option<u64>,
    /// Starts to listen only after this time.
    slow_start_ms: Option<u64>,
    /// Accepts connections and never answers.
    hang: bool,
}

impl Release {
    pub(crate) fn read() -> Result<Self, String> {
        let path = Self::find().ok_or("no release.toml next to or above the program")?;
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn find() -> Option<PathBuf> {
        let program = std::env::current_exe().ok();
        let above = program.iter().flat_map(|program| program.ancestors().skip(1).take(2));
        above.chain([Path::new(".")]).map(|folder| folder.join("release.toml")).find(|p| p.exists())
    }
}

impl Faults {
    pub(crate) fn unhealthy(&self, platform: &str) -> bool {
        self.unhealthy_on.iter().any(|name| name == platform)
    }

    pub(crate) fn die_after_ms(&self, platform: &str) -> Option<u64> {
        self.die_after_ms.filter(|_| self.here(platform))
    }

    pub(crate) fn slow_start_ms(&self, platform: &str) -> Option<u64> {
        self.slow_start_ms.filter(|_| self.here(platform))
    }

    pub(crate) fn hang(&self, platform: &str) -> bool {
        self.hang && self.here(platform)
    }

    fn here(&self, platform: &str) -> bool {
        self.on.is_empty() || self.on.iter().any(|name| name == platform)
    }
}
