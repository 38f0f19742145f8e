//! `cohort.toml` inside an artifact: how its service runs, and how long its hooks may take.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cohort_core::policy::Duration;
use cohort_core::release::Rollback;
use serde::Deserialize;

use crate::hooks::Hook;
use crate::process::signal_by_name;

/// The file's name, at the top of the artifact.
pub(crate) const SERVICE_FILE: &str = "cohort.toml";

/// Longest such file, as at publishing: the largest sensible one is some kilobytes.
const SERVICE_FILE_BYTES_MAX: u64 = 256 << 10;

/// Most words of a command, and most variables: far above any service, far below what an
/// operating system passes on.
const WORDS_MAX: usize = 256;

/// Longest time limit of a hook: an hour. What takes longer belongs beside the release.
const HOOK_LIMIT_MS_MAX: u64 = 3_600_000;

/// Longest time that a service may take to stop: its server is out of service meanwhile.
const STOP_TIMEOUT_MS_MAX: u64 = 600_000;

/// What an artifact says about running it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceFile {
    /// The service; a release without one is only unpacked, and its hooks do the rest.
    pub service: Option<Service>,
    /// Time limits.
    #[serde(default)]
    pub hooks: Hooks,
    /// Whether it can be rolled back. Signed with the manifest, which must agree.
    pub rollback: Option<Rollback>,
    /// What it reads and writes. Judged at publishing; here only its form is.
    pub protocols: Option<Protocols>,
    /// Schemas that it needs. Judged at publishing.
    pub schemas: Option<BTreeSet<String>>,
}

/// Protocols and formats by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Protocols {
    /// What the release understands.
    pub reads: BTreeSet<String>,
    /// What the release produces.
    pub writes: BTreeSet<String>,
}

/// The service: a command that the guard supervises, or a unit of systemd.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The program and its arguments. A program with a `/`, such as `./run`, is within the artifact
    /// (unless it begins with one); a bare name, such as `java`, is looked up in the agent's `PATH`.
    /// `{port}` stands for the server's `service_port`.
    #[serde(default)]
    pub command: Vec<String>,
    /// The unit's name, such as `web.service`; the unit itself is the server's own.
    pub systemd_unit: Option<String>,
    /// Variables for the command; `{port}` as above.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What asks it to stop: `TERM` if not given.
    #[serde(default = "default_stop_signal")]
    pub stop_signal: String,
    /// How long it may take before it is killed.
    #[serde(default = "default_stop_timeout")]
    pub stop_timeout: Duration,
}

/// Time limits of hooks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hooks {
    /// For each that has none of its own.
    pub timeout: Duration,
    /// By the hook's name.
    pub timeouts: BTreeMap<String, Duration>,
}

impl Default for Hooks {
    fn default() -> Self {
        Hooks { timeout: Duration::from_secs(60), timeouts: BTreeMap::new() }
    }
}

fn default_stop_signal() -> String {
    "TERM".to_owned()
}

fn default_stop_timeout() -> Duration {
    Duration::from_secs(10)
}

/// Why a `cohort.toml` cannot be used. Always the release's fault, except for [`Self::Io`].
#[derive(Debug, thiserror::Error)]
pub enum ServiceFileError {
    /// Not readable on this server.
    #[error("{SERVICE_FILE} of the release cannot be read")]
    Io(#[source] std::io::Error),
    /// Too long.
    #[error("{SERVICE_FILE} of the release is longer than {SERVICE_FILE_BYTES_MAX} bytes")]
    TooLong,
    /// Not TOML, an unknown key, a wrong value.
    #[error("{SERVICE_FILE} of the release: {0}")]
    Toml(Box<toml::de::Error>),
    /// Values that do not go together.
    #[error("{SERVICE_FILE} of the release: {0}")]
    Invalid(String),
}

impl ServiceFile {
    /// Reads the file in a release's folder; one without it has no service.
    ///
    /// # Errors
    /// When it is there and cannot be used.
    pub fn read(release_folder: &Path) -> Result<Self, ServiceFileError> {
        let path = release_folder.join(SERVICE_FILE);
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(ServiceFileError::Io(error)),
            Ok(about) if about.len() > SERVICE_FILE_BYTES_MAX => {
                return Err(ServiceFileError::TooLong);
            }
            Ok(_) => {}
        }
        Self::parse(&std::fs::read_to_string(path).map_err(ServiceFileError::Io)?)
    }

    /// Parses and checks the text.
    ///
    /// # Errors
    /// When it is not TOML, has a key that is not known, or values that do not go together.
    pub fn parse(text: &str) -> Result<Self, ServiceFileError> {
        let file: ServiceFile =
            toml::from_str(text).map_err(|error| ServiceFileError::Toml(Box::new(error)))?;
        file.check().map_err(ServiceFileError::Invalid)?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        for (name, limit) in &self.hooks.timeouts {
            if Hook::by_name(name).is_none() {
                return Err(format!("hooks.timeouts names `{name}`, which is no hook"));
            }
            check_limit(*limit)?;
        }
        check_limit(self.hooks.timeout)?;
        let Some(service) = &self.service else { return Ok(()) };
        if service.command.is_empty() == service.systemd_unit.is_none() {
            return Err("service needs either `command` or `systemd_unit`".into());
        }
        if service.command.len() > WORDS_MAX || service.env.len() > WORDS_MAX {
            return Err(format!("service.command and service.env have {WORDS_MAX} words at most"));
        }
        if service.command.first().is_some_and(|program| program.split('/').any(|p| p == "..")) {
            return Err("service.command leaves the artifact by `..`".into());
        }
        if service.stop_timeout.ms > STOP_TIMEOUT_MS_MAX {
            return Err("service.stop_timeout is ten minutes at the most".into());
        }
        let bad = |text: &String| text.contains('\0');
        if service.command.iter().chain(service.env.values()).any(bad) {
            return Err("service.command or service.env holds a zero byte".into());
        }
        if let Some(name) = service.env.keys().find(|name| !is_variable(name)) {
            return Err(format!("service.env: `{name}` is no name of a variable of your own"));
        }
        if signal_by_name(&service.stop_signal).is_none() {
            return Err(format!(
                "service.stop_signal: `{}` is none of TERM, INT, QUIT, HUP, USR1, USR2, KILL",
                service.stop_signal
            ));
        }
        if let Some(unit) = &service.systemd_unit {
            let known = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
            if !unit.ends_with(".service") || unit.len() > 255 || !unit.chars().all(known) {
                return Err(format!("service.systemd_unit: `{unit}` is no `NAME.service`"));
            }
        }
        Ok(())
    }

    /// How long a hook may take.
    pub(crate) fn limit_of(&self, hook: Hook) -> std::time::Duration {
        let limit = self.hooks.timeouts.get(hook.name()).copied().unwrap_or(self.hooks.timeout);
        std::time::Duration::from_millis(limit.ms)
    }
}

fn check_limit(limit: Duration) -> Result<(), String> {
    if limit.ms == 0 || limit.ms > HOOK_LIMIT_MS_MAX {
        return Err(format!("a hook's time limit is 1ms to 1h, not {limit}"));
    }
    Ok(())
}

fn is_variable(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !name.is_empty()
        && name.len() <= 128
        && name.bytes().all(inner)
        && !name.as_bytes()[0].is_ascii_digit()
        && !name.starts_with("COHORT_")
}

#[cfg(test)]
#[path = "service_file_test.rs"]
mod service_file_test;
