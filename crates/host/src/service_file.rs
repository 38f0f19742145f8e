//! `cohort.toml` inside an artifact: how to run its service, and how long its hooks may take.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use bytesize::ByteSize;
use cohort_base::archive::SERVICE_FILE;
use cohort_core::ids::ProgramName;
use cohort_core::policy::Duration;
use cohort_core::release::Rollback;
use cohort_core::report::Blame;
use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};

use crate::cgroup::Limits;
use crate::confine::{Capability, PASSED_MAX};
use crate::hooks::Hook;
use crate::isolation::{Isolation, ProtectSystem};
use crate::process::StopSignal;
use crate::service::ServiceType;

/// Most words in a command, and most variables: far more than any service needs, far fewer than the
/// operating system accepts.
const WORDS_MAX: usize = 256;

/// Most checks that a release declares: four times as many as a policy may name.
const CHECKS_MAX: usize = 64;

/// As many as there are.
const CAPABILITIES_MAX: usize = 2;

/// Longest command and variables together, in bytes: encoded, they fit a request to the guard.
const COMMAND_BYTES_MAX: usize = 32 * 1024;

/// Longest time limit of a hook: an hour. Anything longer does not belong in a hook.
const HOOK_LIMIT_MS_MAX: u64 = 3_600_000;

/// Longest time a service may take to stop: its server is out of service meanwhile.
const STOP_TIMEOUT_MS_MAX: u64 = 600_000;

/// Shortest time that a service may have to be heard from, in milliseconds.
const WATCHDOG_MS_MIN: u64 = 100;

/// How long a service may take to stop if its release does not say.
pub(crate) const STOP_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// What an artifact says about running it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServiceFile {
    /// A release without one is only unpacked; its hooks do the rest.
    pub(crate) service: Option<Service>,
    #[serde(default)]
    pub(crate) hooks: Hooks,
    /// Programs that `exec` checks of a policy may name.
    #[serde(default)]
    pub(crate) checks: BTreeMap<ProgramName, DeclaredCheck>,
    /// Whether it can be rolled back. The signed manifest must agree.
    pub(crate) rollback: Option<Rollback>,
    /// Not used here: validated at publishing.
    #[serde(rename = "protocols")]
    _protocols: Option<IgnoredAny>,
    /// Not used here: validated at publishing.
    #[serde(rename = "schemas")]
    _schemas: Option<IgnoredAny>,
}

/// The service: a command that the guard supervises, or a systemd unit.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Service {
    /// The program and its arguments; empty for a unit. A relative program with a `/`, such as
    /// `./run`, is inside the artifact; a bare name, such as `java`, is looked up in the agent's
    /// `PATH`. `{port}` and the like are filled in by the server: [`OwnValues`](crate::OwnValues).
    #[serde(default)]
    pub(crate) command: Vec<String>,
    /// When it counts as started.
    #[serde(default, rename = "type")]
    pub(crate) kind: ServiceType,
    /// Of a forking service: a file in its runtime directory.
    pub(crate) pid_file: Option<String>,
    /// Of a service that notifies: it is killed after so long without `WATCHDOG=1`.
    pub(crate) watchdog: Option<Duration>,
    /// Where the guard listens for it, by name: `PORT` or `ADDRESS:PORT`, filled in as above.
    #[serde(default)]
    pub(crate) listen: BTreeMap<String, String>,
    /// A unit such as `web.service`, defined by the server, not the release.
    pub(crate) systemd_unit: Option<String>,
    /// Variables for the command, filled in as above.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// Capabilities that the command keeps as another user than root.
    #[serde(default)]
    pub(crate) capabilities: Vec<Capability>,
    /// `/tmp` and `/var/tmp` are the command's own, and empty when it starts.
    #[serde(default)]
    pub(crate) private_tmp: bool,
    /// What is read-only for the command.
    pub(crate) protect_system: Option<ProtectSystem>,
    /// Bytes of memory, such as `512MiB`.
    #[serde(default, deserialize_with = "size")]
    memory_max: Option<ByteSize>,
    cpu_weight: Option<u64>,
    pids_max: Option<u64>,
    #[serde(default)]
    pub(crate) stop_signal: StopSignal,
    #[serde(default = "stop_timeout_default")]
    pub(crate) stop_timeout: Duration,
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteSize>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong =
        |_| D::Error::custom(format!("memory_max: `{text}` is not a size such as `512MiB`"));
    text.parse().map(Some).map_err(wrong)
}

/// A program that tells whether the release works.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeclaredCheck {
    /// The program and its arguments, as in [`Service::command`].
    pub(crate) command: Vec<String>,
}

fn stop_timeout_default() -> Duration {
    STOP_TIMEOUT_DEFAULT
}

/// Time limits of hooks.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Hooks {
    /// For hooks not listed in `timeouts`.
    timeout: Duration,
    timeouts: BTreeMap<Hook, Duration>,
}

impl Default for Hooks {
    fn default() -> Self {
        Hooks { timeout: Duration::from_secs(60), timeouts: BTreeMap::new() }
    }
}

/// Why a `cohort.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceFileError {
    /// The release is not on this server's disk, or not whole.
    #[error("the release is not unpacked on this server")]
    Absent,
    /// Not TOML, an unknown key, a wrong value.
    #[error("invalid {SERVICE_FILE} in the release")]
    Toml(#[source] Box<toml::de::Error>),
    /// Values that contradict one another or exceed a limit.
    #[error("invalid {SERVICE_FILE} in the release: {0}")]
    Invalid(String),
}

impl ServiceFileError {
    pub(crate) fn blame(&self) -> Blame {
        match self {
            ServiceFileError::Absent => Blame::Surroundings,
            ServiceFileError::Toml(_) | ServiceFileError::Invalid(_) => Blame::Release,
        }
    }
}

impl ServiceFile {
    pub(crate) fn parse(text: &str) -> Result<Self, ServiceFileError> {
        let file: ServiceFile =
            toml::from_str(text).map_err(|error| ServiceFileError::Toml(Box::new(error)))?;
        file.check().map_err(ServiceFileError::Invalid)?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        for limit in self.hooks.timeouts.values().chain([&self.hooks.timeout]) {
            check_hook_limit(*limit)?;
        }
        if self.checks.len() > CHECKS_MAX {
            return Err(format!("checks has more than {CHECKS_MAX} entries"));
        }
        for (name, check) in &self.checks {
            check_command(&check.command).map_err(|why| format!("checks.{name}.command: {why}"))?;
        }
        self.service.as_ref().map_or(Ok(()), Service::check)
    }

    /// What its programs may use, each for itself.
    pub(crate) fn limits(&self) -> Limits {
        self.service.as_ref().map(Service::limits).unwrap_or_default()
    }

    /// How long a hook may take.
    pub(crate) fn limit_of(&self, hook: Hook) -> std::time::Duration {
        let limit = self.hooks.timeouts.get(&hook).unwrap_or(&self.hooks.timeout);
        std::time::Duration::from_millis(limit.ms)
    }
}

impl Service {
    /// What its command may use, and the release's hooks and checks, each for itself.
    pub(crate) fn limits(&self) -> Limits {
        let Service { memory_max, cpu_weight, pids_max, .. } = *self;
        Limits { memory_max, cpu_weight, pids_max }
    }

    /// What they see of the file system; if it is protected, only these directories may be written
    /// to.
    pub(crate) fn isolation(&self, own: &[PathBuf; 3]) -> Isolation {
        let writable = self.protect_system.map(|ProtectSystem::Strict| own.to_vec());
        Isolation { private_tmp: self.private_tmp, writable }
    }

    /// What only some types have, and a unit's file says itself.
    fn check_type(&self) -> Result<(), String> {
        let Service { kind, pid_file, watchdog, listen, .. } = self;
        if self.systemd_unit.is_some() {
            let own = (*kind, pid_file.as_ref(), watchdog.as_ref(), listen.is_empty());
            return match own == (ServiceType::Simple, None, None, true) {
                true => Ok(()),
                false => Err("a unit's file, not the release, has the type, pid_file, watchdog \
                              and listen of service.systemd_unit"
                    .into()),
            };
        }
        match (kind, pid_file) {
            (ServiceType::Forking, None) => {
                return Err("service.type `forking` needs `pid_file`: the file in \
                            COHORT_RUNTIME_DIR that the service writes its process number to"
                    .into());
            }
            (ServiceType::Forking, Some(name)) => {
                let plain = !name.is_empty() && name.len() <= 255 && !name.contains(['/', '\0']);
                if !plain || name == "." || name == ".." {
                    return Err(format!(
                        "service.pid_file: `{name}` is not the name of a file; it is in \
                         COHORT_RUNTIME_DIR"
                    ));
                }
            }
            (_, Some(_)) => return Err("service.pid_file needs `type = \"forking\"`".into()),
            (_, None) => {}
        }
        if let Some(watchdog) = watchdog {
            if *kind != ServiceType::Notify {
                return Err("service.watchdog needs `type = \"notify\"`".into());
            }
            if watchdog.ms < WATCHDOG_MS_MIN || watchdog.ms > STOP_TIMEOUT_MS_MAX {
                return Err(format!("service.watchdog is 100ms to 10m, not {watchdog}"));
            }
        }
        if listen.len() > PASSED_MAX {
            return Err(format!("service.listen has more than {PASSED_MAX} entries"));
        }
        for (name, at) in listen {
            if !is_socket_name(name) {
                return Err(format!("service.listen: `{name}` is not letters, digits, - and _"));
            }
            // Whatever port a server has.
            let fits = |port: &str| address(&at.replace("{port}", port), None).is_some();
            if !fits("1") || !fits("65535") {
                return Err(format!(
                    "service.listen.{name}: `{at}` is not a port, such as `{{port}}`, nor an \
                     address and port, such as `127.0.0.1:{{port}}`"
                ));
            }
            if listen.iter().any(|(other, same)| other < name && same == at) {
                return Err(format!("service.listen.{name}: another one is at `{at}`, too"));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        if self.command.is_empty() == self.systemd_unit.is_none() {
            return Err("service needs either `command` or `systemd_unit`".into());
        }
        if self.systemd_unit.is_none() {
            check_command(&self.command).map_err(|why| format!("service.command: {why}"))?;
        }
        if self.env.len() > WORDS_MAX {
            return Err(format!("service.env has more than {WORDS_MAX} entries"));
        }
        let bytes = self.command.iter().chain(self.env.keys()).chain(self.env.values());
        if bytes.map(String::len).sum::<usize>() > COMMAND_BYTES_MAX {
            return Err("service.command and service.env are together longer than 32 KiB".into());
        }
        if self.capabilities.len() > CAPABILITIES_MAX {
            return Err("service.capabilities names one twice".into());
        }
        self.check_type()?;
        self.limits().check()?;
        if self.systemd_unit.is_some() && self.limits() != Limits::default() {
            return Err(
                "a unit's file, not the release, has the limits of service.systemd_unit".into()
            );
        }
        if self.stop_timeout.ms > STOP_TIMEOUT_MS_MAX {
            return Err("service.stop_timeout is longer than ten minutes".into());
        }
        if self.env.values().any(|text| text.contains('\0')) {
            return Err("service.env contains a zero byte".into());
        }
        if let Some(name) = self.env.keys().find(|name| !is_variable(name)) {
            return Err(format!("service.env: invalid or reserved variable name `{name}`"));
        }
        if let Some(unit) = &self.systemd_unit {
            let known = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
            if !unit.ends_with(".service") || unit.len() > 255 || !unit.chars().all(known) {
                return Err(format!("service.systemd_unit: `{unit}` is not a `NAME.service`"));
            }
        }
        Ok(())
    }
}

/// Where `PORT` or `ADDRESS:PORT` is: without an address, everywhere, or at the server's own.
pub(crate) fn address(text: &str, own: Option<IpAddr>) -> Option<SocketAddr> {
    let everywhere = IpAddr::from(Ipv6Addr::UNSPECIFIED);
    let at = match text.parse::<u16>() {
        Ok(port) => SocketAddr::new(own.unwrap_or(everywhere), port),
        Err(_) => text.parse().ok()?,
    };
    (at.port() != 0).then_some(at)
}

/// A name in [`Service::listen`]: what sd_listen_fds_with_names(3) can tell apart.
fn is_socket_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    !name.is_empty() && name.len() <= 64 && name.bytes().all(inner)
}

/// Checks a program and its arguments.
pub(crate) fn check_words(words: &[String]) -> Result<(), String> {
    if words.first().is_none_or(String::is_empty) {
        Err("it names no program".to_owned())
    } else if words.len() > WORDS_MAX {
        Err(format!("it has more than {WORDS_MAX} words"))
    } else if words.iter().map(String::len).sum::<usize>() > COMMAND_BYTES_MAX {
        Err("it is longer than 32 KiB".to_owned())
    } else if words.iter().any(|word| word.contains('\0')) {
        Err("it contains a zero byte".to_owned())
    } else {
        Ok(())
    }
}

/// Checks the same for a program of the release.
fn check_command(words: &[String]) -> Result<(), String> {
    check_words(words)?;
    match words.first().is_some_and(|program| program.split('/').any(|part| part == "..")) {
        true => Err("it leaves the artifact by `..`".to_owned()),
        false => Ok(()),
    }
}

fn check_hook_limit(limit: Duration) -> Result<(), String> {
    if limit.ms == 0 || limit.ms > HOOK_LIMIT_MS_MAX {
        return Err(format!("a hook's timeout is 1ms to 1h, not {limit}"));
    }
    Ok(())
}

/// Names that start with `COHORT_` are reserved.
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
