//! The agent's configuration: `agent.toml`, its drop-ins, `COHORT_*`, flags.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cohort_core::ids::{Platform, ServerId};
use cohort_core::policy::Duration;
use serde::{Deserialize, Serialize};

/// The peer port.
pub const PEER_PORT: u16 = 7417;

/// How an agent is set up. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// This server's name: a DNS label, unique in the fleet.
    pub server: ServerId,
    /// Everything that the agent keeps: identity, log, artifacts, fences.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// Where apps are installed: `<install_dir>/<app>/releases`, `<install_dir>/<app>/current`.
    #[serde(default = "default_install_dir")]
    pub install_dir: PathBuf,
    /// Where other agents and people reach it (mutual TLS).
    #[serde(default = "default_listen")]
    pub listen: String,
    /// The address that others are told; `listen` when it is not given.
    #[serde(default)]
    pub advertise: Option<String>,
    /// Plain port for probes and metrics; loopback by default.
    #[serde(default = "default_probe_listen")]
    pub probe_listen: String,
    /// The hub's API, `host:port`; the next is tried when one does not answer.
    #[serde(default)]
    pub hub: Vec<String>,
    /// A file that holds the join token; needed at the first start only.
    #[serde(default)]
    pub join_token_file: Option<PathBuf>,
    /// The processor platform, such as `linux/amd64`, or a name of your own.
    pub platform: Platform,
    /// What else is known of this server; `zone` is one of the grouping labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its failure domain; the host itself when none is given.
    #[serde(default)]
    pub rack: Option<String>,
    /// Mirrors of the repository, closest first; what the hub names when empty.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// The port of the service: `{port}` in commands and checks.
    #[serde(default)]
    pub service_port: Option<u16>,
    /// As whom services, hooks and `exec` checks run: a name of `/etc/passwd`, `UID` or `UID:GID`;
    /// the agent's own user when it is not given.
    #[serde(default)]
    pub service_user: Option<String>,
    /// How often the leader looks for a new release.
    #[serde(default = "default_poll_interval")]
    pub poll_interval: Duration,
    /// How long a server that starts without reaching its group waits before it takes traffic with
    /// what it runs.
    #[serde(default = "default_ready_without_orders_after")]
    pub ready_without_orders_after: Duration,
    /// Programs that `exec` checks may name as `host:NAME`: name and absolute path.
    #[serde(default)]
    pub exec_programs: BTreeMap<String, PathBuf>,
}

fn default_data_dir() -> PathBuf {
    "/var/lib/cohort".into()
}

fn default_install_dir() -> PathBuf {
    "/opt/cohort".into()
}

fn default_listen() -> String {
    format!("0.0.0.0:{PEER_PORT}")
}

fn default_probe_listen() -> String {
    "127.0.0.1:7416".into()
}

fn default_poll_interval() -> Duration {
    Duration::from_secs(5)
}

fn default_ready_without_orders_after() -> Duration {
    Duration::from_secs(60)
}
