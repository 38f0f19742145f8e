//! What runs a service: the guard next to the agent, or systemd.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use cohort_base::Cause;
use cohort_core::release::Release;
use cohort_core::report::{Blame, STARTING_MS_MAX};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::cgroup::{Limits, Usage};
use crate::confine::Capability;
use crate::isolation::Isolation;
use crate::output::with_last_line;
use crate::own_env::OwnEnvError;
use crate::process::{Exit, StopSignal, age};
use crate::program::RunAs;

/// A service to run. Sent to the guard and stored on its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// The app's name under the guard, the unit's name under systemd.
    pub name: String,
    /// Starting the same key again does nothing: once per fence.
    pub key: String,
    /// The digest of the release's artifact.
    pub release: String,
    pub run: RunService,
}

impl ServiceSpec {
    /// The user of its processes, if it is known.
    pub(crate) fn user(&self) -> Option<u32> {
        match &self.run {
            RunService::Command(command) => {
                Some(command.run_as.map_or_else(crate::trusted_folder::own_user, |run| run.uid))
            }
            RunService::Unit => None,
        }
    }
}

/// How a service runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RunService {
    /// As a process group under the guard.
    Command(Box<ServiceCommand>),
    /// As a unit of systemd, which knows the rest.
    Unit,
}

/// When a service counts as started, and which of its processes is its first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceType {
    /// As soon as its program runs.
    #[default]
    Simple,
    /// When it says so (`READY=1`, sd_notify(3)).
    Notify,
    /// When its program has ended; the process that its `pid_file` names goes on.
    Forking,
    /// When its program has ended with exit status 0; nothing has to go on.
    Oneshot,
}

/// A process group under the guard.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceCommand {
    /// A name without `/` is looked up in `PATH`.
    pub program: PathBuf,
    pub args: Vec<String>,
    /// The whole environment: nothing is inherited.
    pub env: BTreeMap<String, String>,
    pub folder: PathBuf,
    #[serde(rename = "type")]
    pub kind: ServiceType,
    /// Of a forking service: the file that it writes its number to.
    pub pid_file: Option<PathBuf>,
    /// The socket where it says that it is ready; made by the guard.
    pub notify: Option<PathBuf>,
    /// It is killed after so many milliseconds without `WATCHDOG=1`.
    pub watchdog_ms: Option<u64>,
    /// Where the guard listens for it, by name; the sockets are passed on.
    pub listen: BTreeMap<String, SocketAddr>,
    /// Where it listens itself: nobody else may.
    pub ports: Vec<SocketAddr>,
    /// The signal sent to the group first.
    pub stop_signal: StopSignal,
    /// Time until the group is killed, in milliseconds.
    pub stop_timeout_ms: u64,
    /// If absent, the guard's own user.
    pub run_as: Option<RunAs>,
    /// What it keeps of root's capabilities as another user.
    pub capabilities: Vec<Capability>,
    /// What it sees of the file system.
    pub isolation: Isolation,
    /// What it may use.
    pub limits: Limits,
}

/// The state of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceStatus {
    /// The digest of its release's artifact; `None` if it was stopped or never started.
    pub release: Option<String>,
    pub state: ServiceState,
    /// How often it exited on its own under this key.
    pub exits: u64,
    pub last_exit: Option<Exit>,
    /// What it says of itself (`STATUS=`).
    pub says: String,
    /// Its last output, at most as long as a report allows.
    pub output: String,
    /// What it uses now.
    pub usage: Usage,
}

/// What a service is doing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Stopped, or never started.
    #[default]
    Stopped,
    /// It runs, and is not ready: it has not said so, or says that it stops.
    Unready {
        /// The leader of its process group.
        pid: u32,
    },
    Running {
        /// The leader of its process group.
        pid: u32,
    },
    /// A oneshot: it ended well.
    Finished,
    /// It exited on its own, and will be restarted.
    Waiting,
}

impl ServiceStatus {
    /// Whether it does now what it is for.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.state, ServiceState::Running { .. } | ServiceState::Finished)
    }

    /// Whether its process has just been started, or is about to be: it may not answer yet. A new
    /// guard starts what the last one ran, after a reboot too.
    pub(crate) fn is_young(&self) -> bool {
        match self.state {
            ServiceState::Finished => false,
            ServiceState::Running { pid } | ServiceState::Unready { pid } => {
                let age = i32::try_from(pid).ok().and_then(Pid::from_raw).and_then(age);
                age.is_none_or(|age| age < Duration::from_millis(STARTING_MS_MAX))
            }
            ServiceState::Waiting | ServiceState::Stopped => true,
        }
    }

    /// Whether it is running, or being restarted, from this release.
    pub(crate) fn runs(&self, release: &Release) -> bool {
        self.release.as_deref() == Some(release.artifact.as_str())
            && self.state != ServiceState::Stopped
    }

    /// Says that it is not running, and why, for people.
    pub(crate) fn not_running(&self) -> String {
        match (self.state, &self.last_exit) {
            (ServiceState::Unready { .. }, _) if self.says.is_empty() => {
                "the service runs, and is not ready".to_owned()
            }
            (ServiceState::Unready { .. }, _) => {
                format!("the service runs, and is not ready: {}", self.says)
            }
            (_, Some(exit)) => {
                with_last_line(&format!("the service is not running ({exit})"), &self.output)
            }
            (_, None) => "the service is not running".to_owned(),
        }
    }

    /// Says that it crashes again and again, and how, for people.
    pub(crate) fn crashes_on(&self) -> String {
        let exit = self.last_exit.as_ref().map(|exit| format!(" ({exit})")).unwrap_or_default();
        with_last_line(&format!("the service crashes again and again{exit}"), &self.output)
    }
}

/// Why a service could not be started, stopped or queried.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The release's program cannot be run.
    #[error("cannot start the service: {reason}")]
    Start { reason: String },
    /// The guard or systemd did not respond.
    #[error("{manager} is unreachable")]
    Unreachable { manager: &'static str, source: Cause },
    #[error("cannot use this server's own variables and files for the app")]
    Environment { source: OwnEnvError },
    /// Something else on the server has what the service needs.
    #[error("cannot start the service: {reason}")]
    Taken { reason: String },
    /// The manager responded, but refused or failed.
    #[error("{manager} failed")]
    Failed { manager: &'static str, source: Cause },
}

impl ServiceError {
    pub(crate) fn blame(&self) -> Blame {
        match self {
            ServiceError::Start { .. } => Blame::Release,
            ServiceError::Environment { .. }
            | ServiceError::Taken { .. }
            | ServiceError::Unreachable { .. }
            | ServiceError::Failed { .. } => Blame::Surroundings,
        }
    }
}

/// A manager of services: the guard, or systemd.
#[async_trait]
pub trait ServiceControl: Send + Sync + std::fmt::Debug {
    /// Starts the service, after stopping one that runs under another key. Does nothing if the same
    /// key was started before.
    async fn start(&self, spec: &ServiceSpec) -> Result<(), ServiceError>;

    /// Stops the service and all its processes. A service that is not running is not an error.
    /// `at_most` is the service's own time limit.
    async fn stop(&self, name: &str, at_most: Duration) -> Result<(), ServiceError>;

    /// The state of the service.
    async fn status(&self, name: &str) -> Result<ServiceStatus, ServiceError>;
}
