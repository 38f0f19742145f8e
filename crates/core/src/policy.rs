//! An app's policy: how its releases roll out. Names are those of the policy file.
//!
//! A rollout keeps the policy it started with.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{AppId, Channel};
pub use crate::probe::{
    GrpcProbe, HttpProbe, Method, PATH_BYTES_MAX, PortAt, Probe, Scalar, TcpProbe, TlsProbe,
};
use crate::shared::Shared;

/// Most checks of an app: every server runs each of them every few seconds.
pub const CHECKS_MAX: usize = 16;
/// Most stages of an app. 32: more than any plausible number of regions.
pub const STAGES_MAX: usize = 32;
/// Most entries in a list of wave sizes; the last one repeats.
pub const WAVE_SIZES_MAX: usize = 64;
/// Longest duration in a policy: 30 days, in milliseconds.
pub const DURATION_MS_MAX: u64 = 30 * 24 * 3_600_000;

/// What an operator signed, as the registry has it: an opaque text here. Members verify it before
/// they give orders by it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Proof(pub Shared<String>);

/// An app's policy, as in its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    pub app: AppId,
    pub channel: Channel,
    /// How a release rolls through a group.
    #[serde(default)]
    pub update: Update,
    /// Health checks; without any, a server that started is healthy.
    #[serde(default, rename = "check", skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    /// The order of the groups of one platform; empty: all at the same time.
    #[serde(default, rename = "stage", skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
}

/// How a release rolls through a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Update {
    /// Servers per wave: a count, a share, or a list of these, whose last entry repeats.
    pub max_parallel: WaveSizes,
    /// How long a server's checks must pass without interruption.
    pub min_healthy_time: Duration,
    /// Deadline for that, counted from the start of the release on the server.
    pub healthy_deadline: Duration,
    /// The rollout fails once a wave makes no progress for this long.
    pub progress_deadline: Duration,
    /// Whether a failed rollout is rolled back without an operator.
    pub auto_revert: bool,
    /// The wave after which the rollout waits for `rollout approve`; 0: none.
    pub approve_after_wave: u32,
    /// Most servers that Cohort may take out of service at once; at least 1.
    pub max_unavailable: Size,
    /// Failures of the release that a rollout tolerates.
    pub failures_allowed: Size,
    /// Lost servers and failures of networks and disks that a rollout tolerates; at least 1.
    pub surroundings_allowed: Size,
    /// A server that cannot reach its group for this long restores the old release on its own; at
    /// least 1s, and longer than `drain_time`.
    pub confirm_within: Duration,
    /// Wait between leaving traffic and stopping.
    pub drain_time: Duration,
    pub warm_up_time: Duration,
    /// Whether a wave stops the running release although one of its hooks fails. A way back always
    /// does.
    pub stop_despite_hooks: bool,
    /// How long a wave is watched after its last server is back in traffic.
    pub bake_time: Duration,
    /// A server that has not asked any member for orders for this long is lost; at least 5s.
    pub unreachable_after: Duration,
    /// Which servers fetch a release before their turn to run it.
    pub prestage: Prestage,
}

impl Default for Update {
    fn default() -> Self {
        Update {
            max_parallel: WaveSizes(vec![Size::Percent(10)]),
            min_healthy_time: Duration::from_secs(10),
            healthy_deadline: Duration::from_secs(5 * 60),
            progress_deadline: Duration::from_secs(10 * 60),
            auto_revert: true,
            approve_after_wave: 0,
            max_unavailable: Size::Percent(10),
            failures_allowed: Size::Count(0),
            surroundings_allowed: Size::Percent(5),
            confirm_within: Duration::from_secs(3 * 60),
            drain_time: Duration::default(),
            warm_up_time: Duration::default(),
            stop_despite_hooks: false,
            bake_time: Duration::default(),
            unreachable_after: Duration::from_secs(30),
            prestage: Prestage::All,
        }
    }
}

/// Which servers fetch a release before their turn to run it. The leader's server always does: it
/// has all the bytes before the first wave starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prestage {
    /// All, immediately: a wave only has to switch, restart and check.
    #[default]
    All,
    /// Those of the current wave, and those expected in the next one.
    NextWave,
    /// Those of the current wave.
    Wave,
}

impl Prestage {
    /// The value as written in a policy.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Prestage::All => "all",
            Prestage::NextWave => "next-wave",
            Prestage::Wave => "wave",
        }
    }
}

/// A stage: the groups that match all of its labels.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stage(pub BTreeMap<String, String>);

impl Stage {
    /// Whether a group with these labels is in the stage.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// A health check. Written flat: the probe's `type` and keys are on one level with those here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What is checked. Rejects keys that neither it nor the check knows.
    #[serde(flatten)]
    pub probe: Probe,
    #[serde(default = "default_interval")]
    pub interval: Duration,
    /// How long a response may take.
    #[serde(default = "default_timeout")]
    pub timeout: Duration,
    #[serde(default = "default_phases")]
    pub phase: Vec<CheckPhase>,
}

impl Check {
    /// The port that it names; `None` if it is for the app's own, or for none.
    #[must_use]
    pub fn port(&self) -> Option<&PortAt> {
        match &self.probe {
            Probe::Tcp(tcp) => tcp.port.as_ref(),
            Probe::Http(http) => http.port.as_ref(),
            Probe::Grpc(grpc) => grpc.port.as_ref(),
            Probe::Exec { .. } => None,
        }
    }
}

/// Checks what no type can say about the checks of a policy.
///
/// # Errors
/// With the first thing that is wrong.
pub fn validate_checks(checks: &[Check]) -> Result<(), String> {
    if checks.len() > CHECKS_MAX {
        return Err(format!("{} checks; the limit is {CHECKS_MAX}", checks.len()));
    }
    for check in checks {
        if check.interval.ms < 10 || check.timeout.ms < 10 {
            return Err("a check's interval and timeout must be at least 10ms".into());
        }
        if check.phase.is_empty() {
            return Err("a check's phase must be `pre-flight`, `running` or both".into());
        }
        check.probe.validate()?;
    }
    Ok(())
}

fn default_interval() -> Duration {
    Duration::from_secs(2)
}

fn default_timeout() -> Duration {
    Duration::from_secs(1)
}

fn default_phases() -> Vec<CheckPhase> {
    vec![CheckPhase::PreFlight, CheckPhase::Running]
}

/// When a check runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckPhase {
    /// After a release has started, before the server takes traffic.
    PreFlight,
    /// While the server takes traffic.
    Running,
}

/// A duration, written as `250ms`, `10s`, `5m`, `1h` or `2d`; at most 30 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration {
    pub ms: u64,
}

impl Duration {
    /// A duration in milliseconds.
    #[must_use]
    pub const fn from_ms(ms: u64) -> Self {
        Duration { ms }
    }

    /// A duration in seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Duration { ms: secs * 1000 }
    }
}

/// A text that is not a value of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidValue {
    /// The offending text, truncated to 80 characters.
    pub text: String,
    pub expected: &'static str,
}

impl fmt::Display for InvalidValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not {}", self.text, self.expected)
    }
}

impl std::error::Error for InvalidValue {}

fn invalid(text: &str, expected: &'static str) -> InvalidValue {
    InvalidValue { text: text.chars().take(80).collect(), expected }
}

impl TryFrom<String> for Duration {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        const EXPECTED: &str =
            "a duration such as `250ms`, `10s`, `5m`, `1h` or `2d` (at most 30 days)";
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = text[..digits].parse().map_err(|_| invalid(&text, EXPECTED))?;
        let unit_ms = match &text[digits..] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(invalid(&text, EXPECTED)),
        };
        match number.checked_mul(unit_ms) {
            Some(ms) if ms <= DURATION_MS_MAX => Ok(Duration { ms }),
            _ => Err(invalid(&text, EXPECTED)),
        }
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> String {
        duration.to_string()
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.ms;
        match ms {
            0 => write!(f, "0s"),
            _ if ms.is_multiple_of(3_600_000) => write!(f, "{}h", ms / 3_600_000),
            _ if ms.is_multiple_of(60_000) => write!(f, "{}m", ms / 60_000),
            _ if ms.is_multiple_of(1000) => write!(f, "{}s", ms / 1000),
            _ => write!(f, "{ms}ms"),
        }
    }
}

/// A count or a share of a group's servers, written as `3` or `"10%"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SizeText", into = "SizeText")]
pub enum Size {
    Count(u32),
    /// A share in percent, 1 to 100.
    Percent(u8),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum SizeText {
    Number(u32),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = InvalidValue;

    fn try_from(text: SizeText) -> Result<Self, InvalidValue> {
        const EXPECTED: &str = "a size such as `3`, `\"1\"` or `\"10%\"` (1% to 100%)";
        let text = match text {
            SizeText::Number(count) => return Ok(Size::Count(count)),
            SizeText::Text(text) => text,
        };
        match text.strip_suffix('%') {
            Some(share) => match share.parse::<u8>() {
                Ok(share @ 1..=100) => Ok(Size::Percent(share)),
                Ok(0) => Ok(Size::Count(0)),
                _ => Err(invalid(&text, EXPECTED)),
            },
            None => text.parse().map(Size::Count).map_err(|_| invalid(&text, EXPECTED)),
        }
    }
}

impl From<Size> for SizeText {
    fn from(size: Size) -> SizeText {
        match size {
            Size::Count(count) => SizeText::Number(count),
            Size::Percent(share) => SizeText::Text(format!("{share}%")),
        }
    }
}

impl Size {
    /// The number of servers, rounded up, at least 1: the size of a wave.
    #[must_use]
    pub fn of_rounded_up(self, servers: u32) -> u32 {
        let share = match self {
            Size::Count(count) => count,
            Size::Percent(share) => (servers * u32::from(share)).div_ceil(100),
        };
        share.max(1)
    }

    /// The number of servers, rounded down, possibly 0: a budget.
    #[must_use]
    pub fn of_rounded_down(self, servers: u32) -> u32 {
        match self {
            Size::Count(count) => count,
            Size::Percent(share) => servers * u32::from(share) / 100,
        }
    }
}

/// The sizes of the waves, in order, 1 to 64 entries; the last one repeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WaveSizesText", into = "WaveSizesText")]
pub struct WaveSizes(pub Vec<Size>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WaveSizesText {
    One(Size),
    List(Vec<Size>),
}

impl TryFrom<WaveSizesText> for WaveSizes {
    type Error = InvalidValue;

    fn try_from(text: WaveSizesText) -> Result<Self, InvalidValue> {
        let sizes = match text {
            WaveSizesText::One(size) => vec![size],
            WaveSizesText::List(sizes) => sizes,
        };
        if sizes.is_empty() || sizes.len() > WAVE_SIZES_MAX {
            return Err(invalid("max_parallel", "a list of 1 to 64 sizes"));
        }
        Ok(WaveSizes(sizes))
    }
}

impl From<WaveSizes> for WaveSizesText {
    fn from(sizes: WaveSizes) -> WaveSizesText {
        match sizes.0.as_slice() {
            [size] => WaveSizesText::One(*size),
            _ => WaveSizesText::List(sizes.0),
        }
    }
}

impl WaveSizes {
    /// The size of wave `number`, counted from 1, in a group of `servers`.
    #[must_use]
    pub fn of_wave(&self, number: u32, servers: u32) -> u32 {
        let index = (number.saturating_sub(1) as usize).min(self.0.len() - 1);
        self.0[index].of_rounded_up(servers)
    }
}

impl Policy {
    /// Checks what the types cannot: counts, and values against one another.
    ///
    /// # Errors
    /// The first broken rule, with the keys it is about.
    pub fn validate(&self) -> Result<(), String> {
        let update = &self.update;
        validate_checks(&self.checks)?;
        if self.stages.len() > STAGES_MAX {
            return Err(format!("{} stages; the limit is {STAGES_MAX}", self.stages.len()));
        }
        if update.max_parallel.0.iter().any(|size| matches!(size, Size::Count(0))) {
            return Err(
                "update.max_parallel is 0: no server would get a release; to stop all, use \
                        `cohort kill on`"
                    .into(),
            );
        }
        if update.healthy_deadline < update.min_healthy_time {
            return Err("update.healthy_deadline is shorter than update.min_healthy_time".into());
        }
        if update.confirm_within.ms < 1000 {
            return Err("update.confirm_within is shorter than 1s".into());
        }
        // Counted from the drain: it must not expire before the service stops.
        if update.confirm_within <= update.drain_time {
            return Err("update.confirm_within is not longer than update.drain_time".into());
        }
        // Servers ask every 2 s, and members share what they heard every half second.
        if update.unreachable_after.ms < 5000 {
            return Err("update.unreachable_after is shorter than 5s".into());
        }
        // A silent server is lost before its silence is taken for a release that makes no progress.
        if update.progress_deadline < update.unreachable_after {
            return Err("update.progress_deadline is shorter than update.unreachable_after".into());
        }
        Ok(())
    }

    /// Servers of a group that may be out of service at once; at least 1.
    #[must_use]
    pub fn max_unavailable_of(&self, servers: u32) -> u32 {
        self.update.max_unavailable.of_rounded_down(servers).max(1)
    }

    /// Failures of the release that a rollout tolerates.
    #[must_use]
    pub fn failures_allowed_of(&self, servers: u32) -> u32 {
        self.update.failures_allowed.of_rounded_down(servers)
    }

    /// Failures of the environment that a rollout tolerates; at least 1.
    #[must_use]
    pub fn surroundings_allowed_of(&self, servers: u32) -> u32 {
        self.update.surroundings_allowed.of_rounded_down(servers).max(1)
    }
}
