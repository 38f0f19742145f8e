//! Whoever runs services: the guard beside the agent, or systemd.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use cohort_core::report::Blame;
use serde::{Deserialize, Serialize};

use crate::program::RunAs;

/// A service to run. Plain data: it is sent to the guard and kept on disk there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// The app's name under the guard, the unit's name under systemd.
    pub name: String,
    /// Under which yes it runs: starting the same key again does nothing.
    pub key: String,
    /// The digest of the release.
    pub release: String,
    /// How.
    pub run: RunService,
}

/// How a service runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RunService {
    /// As a process group under the guard.
    Command(ServiceCommand),
    /// As a unit of systemd, by its name.
    Unit(String),
}

/// A process group under the guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceCommand {
    /// The program; a name without `/` is looked up in `PATH`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// Where it starts.
    pub folder: PathBuf,
    /// The name of the signal that asks it to stop.
    pub stop_signal: String,
    /// How long it may take before the group is killed, in milliseconds.
    pub stop_timeout_ms: u64,
    /// As whom; the guard's own user when absent.
    pub run_as: Option<RunAs>,
}

/// What is known about a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceStatus {
    /// Under which yes it was last started; `None`: never, or stopped.
    pub key: Option<String>,
    /// The digest of its release.
    pub release: Option<String>,
    /// What it does now.
    pub state: ServiceState,
    /// How often it ended by itself under this key.
    pub exits: u64,
    /// How it ended last, in words.
    pub last_exit: Option<String>,
    /// Its last output, as long as a report carries.
    pub output: String,
}

/// What a service does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// It was stopped, or never started.
    #[default]
    Stopped,
    /// It runs.
    Running {
        /// Its process.
        pid: u32,
    },
    /// It ended by itself and will be started again.
    Waiting,
}

impl ServiceStatus {
    /// Whether it runs now.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.state, ServiceState::Running { .. })
    }
}

/// Why a service was not started, stopped or looked at.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The release's program cannot be run.
    #[error("the service cannot be started: {0}")]
    Start(String),
    /// The guard or systemd cannot be reached.
    #[error("{what} cannot be reached: {reason}")]
    Unreachable {
        /// Who.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// It answered, and refused or failed.
    #[error("{what} failed: {reason}")]
    Failed {
        /// Who.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

impl ServiceError {
    /// Whose fault it is.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            ServiceError::Start(_) => Blame::Release,
            ServiceError::Unreachable { .. } | ServiceError::Failed { .. } => Blame::Surroundings,
        }
    }
}

/// Runs services.
#[async_trait]
pub trait ServiceControl: Send + Sync + std::fmt::Debug {
    /// Starts the service; what runs under another key is stopped first. The same key again does
    /// nothing, so that a service is started once per fence.
    async fn start(&self, spec: &ServiceSpec) -> Result<(), ServiceError>;

    /// Stops the service and all its processes; one that does not run is no error.
    /// `at_most` is how long that may take by its own time limit.
    async fn stop(&self, name: &str, at_most: Duration) -> Result<(), ServiceError>;

    /// What the service does.
    async fn status(&self, name: &str) -> Result<ServiceStatus, ServiceError>;
}
