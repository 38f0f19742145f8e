//! The agent's configuration, merged from `agent.toml`, its drop-ins, `COHORT_*` and flags.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use cohort_consensus::Timing;
use cohort_core::ids::{Platform, PortName, ProgramName, ServerId};
use cohort_core::placement::Carriers;
use cohort_core::policy::Duration;
use cohort_host::HostProgram;
use cohort_server::leading::REPLACE_AFTER_MS;
use cohort_wire::dscp::Dscp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::AgentError;

/// The default peer port.
pub const PEER_PORT: u16 = 7417;

/// Standbys of a group, at most. Each costs the leader a stream of the log.
const STANDBYS_MAX: usize = 16;

/// The settings of an agent. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// This server's name: a DNS label, unique in the fleet.
    pub server: ServerId,
    /// The agent's own data: identity, log, artifacts, fences.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// Root of the installed apps: `<install_dir>/<app>/releases` and
    /// `<install_dir>/<app>/current`.
    #[serde(default = "default_install_dir")]
    pub install_dir: PathBuf,
    /// The peer port, for other agents and people (mutual TLS), `address:port`.
    #[serde(default = "default_listen")]
    pub listen: String,
    /// The `host:port` that others use to reach the peer port; `listen` if not set.
    pub advertise: Option<String>,
    /// Plain-text port for probes and metrics; loopback by default.
    #[serde(default = "default_probe_listen")]
    pub probe_listen: String,
    /// The hub's API, as `host:port`; tried in this order.
    #[serde(default)]
    pub hub: Vec<String>,
    /// File with the join token; read at the first start only.
    pub join_token_file: Option<PathBuf>,
    /// The platform that releases are chosen by: `linux/amd64`, or a name of your own.
    pub platform: Platform,
    /// Labels of this server; `zone` is one of the grouping labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its failure domain, for spreading voters; the server itself if not set.
    pub rack: Option<String>,
    /// Mirrors of the repository, closest first; the hub's list if empty.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// The address of this server where the service listens, for checks; the loopback addresses if
    /// not set.
    pub service_address: Option<IpAddr>,
    /// The port of the app: `{port}` in commands, and the port of checks that name none. Of apps
    /// that have a port of their name, that one.
    pub service_port: Option<u16>,
    /// Ports by name: `{port.NAME}` in commands, and `port` of checks.
    #[serde(default)]
    pub ports: BTreeMap<PortName, u16>,
    /// The user that services, hooks and `exec` checks run as: a name in `/etc/passwd`, `UID` or
    /// `UID:GID`; the agent's own user if not set.
    pub service_user: Option<String>,
    /// How often the leader looks for a new release.
    #[serde(default = "default_poll_interval")]
    pub poll_interval: Duration,
    /// How long the mirrors may show nothing newer before `why` says so; the leader's setting
    /// counts.
    #[serde(default = "default_max_metadata_age")]
    pub max_metadata_age: Duration,
    /// How long a starting server that cannot reach its group waits before it takes traffic with
    /// the release it has.
    #[serde(default = "default_ready_without_orders_after")]
    pub ready_without_orders_after: Duration,
    /// For how long a voter may be silent before another server takes its place; the leader's
    /// setting counts.
    #[serde(default = "default_replace_after")]
    pub replace_after: Duration,
    /// Voters of the group, at most: 1, 3, 5 or 7; the leader's setting counts.
    #[serde(default = "default_voters", deserialize_with = "odd_voters")]
    pub voters: usize,
    /// Servers that hold the group's log in addition to the voters; the leader's setting counts.
    #[serde(default, deserialize_with = "few_standbys")]
    pub standbys: usize,
    /// How long a member waits for a sign of the leader before it starts an election, at least; at
    /// most twice as long.
    #[serde(default = "default_election_timeout")]
    pub election_timeout: Duration,
    /// How often the leader sends a heartbeat to the group's members.
    #[serde(default = "default_heartbeat")]
    pub heartbeat: Duration,
    /// Limit for receiving artifacts, such as `20MB/s` or `100Mbit/s`. Applied without a restart.
    pub download_limit: Option<ByteRate>,
    /// Limit for sending artifacts to other servers. Applied without a restart.
    pub upload_limit: Option<ByteRate>,
    /// Limit for what all servers of the group together fetch from mirrors; the leader's setting
    /// counts. Applied without a restart.
    pub zone_download_limit: Option<ByteRate>,
    /// DSCP mark of packets that carry artifacts.
    #[serde(default)]
    pub packet_marking: Dscp,
    /// What transfers yield to: `io`, `cpu`; nothing if empty. Applied without a restart.
    #[serde(default = "default_yield_to")]
    pub yield_to: Vec<YieldTo>,
    /// Transfers that yield never get slower than this. Applied without a restart.
    #[serde(default = "default_yield_floor")]
    pub yield_floor: ByteRate,
    /// Where to read pressure stall information: the whole machine's folder, or a cgroup's.
    #[serde(default = "default_pressure_dir")]
    pub pressure_dir: PathBuf,
    /// Where this server's own variables for apps are: `APP.env`.
    #[serde(default = "default_env_dir")]
    pub env_dir: PathBuf,
    /// Where this server's own files for apps are: a directory `APP` each.
    #[serde(default = "default_files_dir")]
    pub files_dir: PathBuf,
    /// While this file exists, nothing new starts on this server.
    #[serde(default = "default_kill_file")]
    pub kill_file: PathBuf,
    /// Units of this server that a release may name in `service.systemd_unit`.
    #[serde(default)]
    pub systemd_units: BTreeSet<String>,
    /// Programs of this server that `exec` checks may name as `host:NAME`: absolute paths, or lists
    /// of one and its arguments.
    #[serde(default)]
    pub exec_programs: BTreeMap<ProgramName, HostProgram>,
}

impl AgentConfig {
    /// How fast the group detects a lost leader.
    ///
    /// # Errors
    /// If `election_timeout` or `heartbeat` is out of bounds.
    pub(crate) fn timing(&self) -> Result<Timing, AgentError> {
        Timing::new(self.election_timeout.ms, self.heartbeat.ms)
            .map_err(AgentError::config("election_timeout"))
    }
}

/// What transfers yield to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum YieldTo {
    Io,
    Cpu,
}

/// Reads the configuration again, for the settings that apply without a restart.
pub type Reload = Arc<dyn Fn() -> Result<AgentConfig, String> + Send + Sync>;

/// Bytes per second, at least 1: `500kB/s`, `20MB/s`, `1GB/s`, or bits: `100Mbit/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRate(u64);

impl ByteRate {
    /// In bytes per second.
    #[must_use]
    pub fn bytes_per_second(self) -> u64 {
        self.0
    }
}

const UNITS: &[(&str, u64, u64)] = &[
    ("GB/s", 1_000_000_000, 1),
    ("MB/s", 1_000_000, 1),
    ("kB/s", 1_000, 1),
    ("Gbit/s", 1_000_000_000, 8),
    ("Mbit/s", 1_000_000, 8),
    ("kbit/s", 1_000, 8),
    ("B/s", 1, 1),
];

impl FromStr for ByteRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("invalid rate `{text}`; use a form such as 20MB/s or 100Mbit/s");
        let found = UNITS.iter().find_map(|(unit, times, part)| {
            let number = text.strip_suffix(unit)?.trim_end();
            Some((number.parse::<u64>().ok()?.checked_mul(*times)?, *part))
        });
        let (times, part) = found.ok_or_else(wrong)?;
        let rate = times / part;
        if rate == 0 { Err(wrong()) } else { Ok(Self(rate)) }
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit =
            UNITS.iter().find(|(_, times, part)| *part == 1 && self.0.is_multiple_of(*times));
        let (name, times, _) = unit.copied().unwrap_or(("B/s", 1, 1));
        write!(f, "{}{name}", self.0 / times)
    }
}

impl Serialize for ByteRate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteRate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A transfer takes a few per cent of a processor, so yielding to CPU pressure gains little; but it
/// shares the service's disk.
fn default_yield_to() -> Vec<YieldTo> {
    vec![YieldTo::Io]
}

/// At 4 MB/s a release of 1 GB reaches a machine that is always busy in four minutes; a wave has
/// ten by default.
fn default_yield_floor() -> ByteRate {
    ByteRate(4_000_000)
}

fn default_pressure_dir() -> PathBuf {
    "/proc/pressure".into()
}

fn default_files_dir() -> PathBuf {
    PathBuf::from("/etc/cohort/files.d")
}

fn default_env_dir() -> PathBuf {
    "/etc/cohort/env.d".into()
}

fn default_kill_file() -> PathBuf {
    "/run/cohort/kill".into()
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

/// A week: the hub signs every day, and may be away for a few.
fn default_max_metadata_age() -> Duration {
    Duration::from_secs(7 * 86_400)
}

fn default_ready_without_orders_after() -> Duration {
    Duration::from_secs(60)
}

fn default_replace_after() -> Duration {
    Duration::from_ms(REPLACE_AFTER_MS)
}

fn default_election_timeout() -> Duration {
    Duration::from_ms(500)
}

fn default_heartbeat() -> Duration {
    Duration::from_ms(100)
}

fn default_voters() -> usize {
    Carriers::default().voters
}

fn odd_voters<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    match usize::deserialize(from)? {
        voters @ (1 | 3 | 5 | 7) => Ok(voters),
        other => Err(D::Error::custom(format!("`voters` is {other}; use 1, 3, 5 or 7"))),
    }
}

fn few_standbys<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    match usize::deserialize(from)? {
        standbys if standbys <= STANDBYS_MAX => Ok(standbys),
        other => {
            Err(D::Error::custom(format!("`standbys` is {other}; use at most {STANDBYS_MAX}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ByteRate;

    #[test]
    fn rates_are_read_and_written() {
        for (text, bytes, again) in [
            ("20MB/s", 20_000_000, "20MB/s"),
            ("100 Mbit/s", 12_500_000, "12500kB/s"),
            ("7B/s", 7, "7B/s"),
            ("1GB/s", 1_000_000_000, "1GB/s"),
        ] {
            let rate: ByteRate = text.parse().unwrap();
            assert_eq!((rate.bytes_per_second(), rate.to_string().as_str()), (bytes, again));
            assert_eq!(again.parse(), Ok(rate));
        }
        for wrong in ["", "20", "20MB", "MB/s", "0MB/s", "-1MB/s", "99999999999GB/s", "4bit/s"] {
            assert!(wrong.parse::<ByteRate>().is_err(), "{wrong}");
        }
    }
}
