//! An app's policy: how its releases roll. The names are those of the policy file.
//!
//! A policy is pinned, with its revision, when a rollout starts.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{AppId, Channel};

/// The most checks an app may have: each runs on every server, often.
pub const CHECKS_MAX: usize = 16;
/// The most stages an app may have.
pub const STAGES_MAX: usize = 32;
/// The most entries of a list of wave sizes; the last one repeats.
pub const WAVE_SIZES_MAX: usize = 64;
/// The longest duration in a policy: thirty days, in milliseconds.
pub const DURATION_MS_MAX: u64 = 30 * 24 * 3_600_000;

/// An app's policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Which app.
    pub app: AppId,
    /// The signed pointer that it follows.
    pub channel: Channel,
    /// How a release rolls.
    #[serde(default)]
    pub update: Update,
    /// What says that a server is healthy.
    #[serde(default, rename = "check", skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    /// The order among groups of one platform; empty: all at once.
    #[serde(default, rename = "stage", skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
}

/// How a release rolls through a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Update {
    /// A wave: a count, a share, or a list whose last entry repeats.
    pub max_parallel: WaveSizes,
    /// Healthy without a break before a server counts.
    pub min_healthy_time: Duration,
    /// Per server, from the start of the release.
    pub healthy_deadline: Duration,
    /// Per wave, since anything in it last went forward.
    pub progress_deadline: Duration,
    /// Go back to what was good by itself.
    pub auto_revert: bool,
    /// Wait for `rollout approve` after this wave; 0: never.
    pub approve_after_wave: u32,
    /// How many servers may be out of service at once, by Cohort's doing.
    pub max_unavailable: Size,
    /// Failures of the release that are borne.
    pub failures_allowed: Size,
    /// Servers lost, network, disk: borne; at least 1.
    pub surroundings_allowed: Size,
    /// Else the host puts the old release back by itself.
    pub confirm_within: Duration,
    /// Between leaving the traffic and the stop.
    pub drain_time: Duration,
    /// How long traffic ramps up.
    pub warm_up_time: Duration,
    /// Between a wave's last server in service and the next wave.
    pub bake_time: Duration,
    /// A server that asked no member for this long is lost to the rollout, and owes.
    pub unreachable_after: Duration,
    /// Which servers fetch a release before their turn. Written only where it is not the default, so
    /// that policies without it stay as they were.
    #[serde(skip_serializing_if = "Prestage::is_all")]
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
            bake_time: Duration::default(),
            unreachable_after: Duration::from_secs(30),
            prestage: Prestage::All,
        }
    }
}

/// Which servers fetch a release before it is their turn to run it. The leader's own server always
/// does: it has every byte before any wave begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prestage {
    /// All of them, at once: waves only switch, restart and check.
    #[default]
    All,
    /// Those of the wave under way, and those that are expected to be in the next one.
    NextWave,
    /// Those of the wave under way.
    Wave,
}

impl Prestage {
    /// As it is written in a policy.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Prestage::All => "all",
            Prestage::NextWave => "next-wave",
            Prestage::Wave => "wave",
        }
    }

    fn is_all(&self) -> bool {
        *self == Prestage::All
    }
}

/// A stage: the groups that match all its labels.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stage(pub BTreeMap<String, String>);

impl Stage {
    /// Whether a group with these labels belongs to the stage.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// What says that a server is healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "CheckText", into = "CheckText")]
pub struct Check {
    /// How it looks.
    pub probe: Probe,
    /// How often.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// When it is asked.
    pub phase: Vec<CheckPhase>,
}

/// A check as it is written: flat, so that an unknown key is refused by name.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckText {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expect_status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expect_body: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    expect_header: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    #[serde(default = "default_interval")]
    interval: Duration,
    #[serde(default = "default_timeout")]
    timeout: Duration,
    #[serde(default = "default_phases")]
    phase: Vec<CheckPhase>,
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

impl TryFrom<CheckText> for Check {
    type Error = InvalidValue;

    fn try_from(text: CheckText) -> Result<Self, InvalidValue> {
        let CheckText { kind, address, url, expect_status, expect_body, expect_header, .. } = text;
        let http_keys = url.is_some()
            || expect_status.is_some()
            || expect_body.is_some()
            || !expect_header.is_empty();
        let exec_keys = text.command.is_some() || !text.args.is_empty();
        let probe = match (kind.as_str(), address, url, text.command) {
            ("tcp", Some(address), None, None) if !http_keys && !exec_keys => {
                Probe::Tcp { address }
            }
            ("http", None, Some(url), None) if !exec_keys => {
                Probe::Http { url, expect_status, expect_body, expect_header }
            }
            ("exec", None, None, Some(command)) if !http_keys => {
                Probe::Exec { command, args: text.args }
            }
            _ => {
                return Err(invalid(
                    &kind,
                    "a check: `tcp` takes `address`; `http` takes `url`, `expect_status`, \
                     `expect_body`, `expect_header`; `exec` takes `command`, `args`",
                ));
            }
        };
        Ok(Check { probe, interval: text.interval, timeout: text.timeout, phase: text.phase })
    }
}

impl From<Check> for CheckText {
    fn from(check: Check) -> CheckText {
        let mut text = CheckText {
            kind: String::new(),
            address: None,
            url: None,
            expect_status: None,
            expect_body: None,
            expect_header: BTreeMap::new(),
            command: None,
            args: Vec::new(),
            interval: check.interval,
            timeout: check.timeout,
            phase: check.phase,
        };
        match check.probe {
            Probe::Tcp { address } => {
                text.kind = "tcp".into();
                text.address = Some(address);
            }
            Probe::Http { url, expect_status, expect_body, expect_header } => {
                text.kind = "http".into();
                text.url = Some(url);
                text.expect_status = expect_status;
                text.expect_body = expect_body;
                text.expect_header = expect_header;
            }
            Probe::Exec { command, args } => {
                text.kind = "exec".into();
                text.command = Some(command);
                text.args = args;
            }
        }
        text
    }
}

/// When a check is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckPhase {
    /// After a release was applied, before the server takes traffic.
    PreFlight,
    /// While it runs.
    Running,
}

/// How a check looks. `{port}` in a text stands for the agent's `service_port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Is somebody there?
    Tcp {
        /// `host:port`.
        address: String,
    },
    /// A request and its answer.
    Http {
        /// What to ask.
        url: String,
        /// The status that is right; 200 if not given.
        expect_status: Option<u16>,
        /// A text that the body holds.
        expect_body: Option<String>,
        /// Headers of the answer, by name, and a text that each holds.
        expect_header: BTreeMap<String, String>,
    },
    /// A program from the artifact (a path within it), or from the list in the server's own configuration.
    Exec {
        /// The path within the artifact, or `host:NAME` of the server's own list.
        command: String,
        /// Its arguments.
        args: Vec<String>,
    },
}

/// A duration, written as in `10s`, `250ms`, `5m`, `1h`, `2d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration {
    /// Milliseconds.
    pub ms: u64,
}

impl Duration {
    /// So many milliseconds.
    #[must_use]
    pub const fn from_ms(ms: u64) -> Self {
        Duration { ms }
    }

    /// So many seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Duration { ms: secs * 1000 }
    }
}

/// Why a text is no duration or no size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidValue {
    /// The offending text, cut to 80 characters.
    pub text: String,
    /// What was expected.
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
            "a duration such as `250ms`, `10s`, `5m`, `1h` or `2d` (30 days at the most)";
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

/// A count or a share of a group's servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SizeText", into = "SizeText")]
pub enum Size {
    /// So many servers.
    Count(u32),
    /// So many per cent, 1 to 100.
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
    /// Of so many servers, rounded up, at least 1: the size of a wave.
    #[must_use]
    pub fn of_rounded_up(self, servers: u32) -> u32 {
        let share = match self {
            Size::Count(count) => count,
            Size::Percent(share) => (servers * u32::from(share)).div_ceil(100),
        };
        share.max(1)
    }

    /// Of so many servers, rounded down: a budget. May be 0.
    #[must_use]
    pub fn of_rounded_down(self, servers: u32) -> u32 {
        match self {
            Size::Count(count) => count,
            Size::Percent(share) => servers * u32::from(share) / 100,
        }
    }
}

/// The sizes of the waves, in order; the last one repeats.
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
    /// How many servers wave `number` (from 1) takes in a group of so many.
    #[must_use]
    pub fn of_wave(&self, number: u32, servers: u32) -> u32 {
        let index = (number.saturating_sub(1) as usize).min(self.0.len() - 1);
        self.0[index].of_rounded_up(servers)
    }
}

impl Policy {
    /// What no single value can say: relations between them, and counts.
    ///
    /// # Errors
    /// The first rule that is broken, in words that name the keys.
    pub fn validate(&self) -> Result<(), String> {
        let update = &self.update;
        if self.checks.len() > CHECKS_MAX {
            return Err(format!("{} checks; {CHECKS_MAX} at the most", self.checks.len()));
        }
        if self.stages.len() > STAGES_MAX {
            return Err(format!("{} stages; {STAGES_MAX} at the most", self.stages.len()));
        }
        if update.healthy_deadline < update.min_healthy_time {
            return Err("update.healthy_deadline is shorter than update.min_healthy_time".into());
        }
        if update.confirm_within.ms < 1000 {
            return Err("update.confirm_within is shorter than 1s".into());
        }
        // The time runs from the drain on: it must not be over before the stop begins.
        if update.confirm_within <= update.drain_time {
            return Err("update.confirm_within is not longer than update.drain_time".into());
        }
        // Servers ask every 2 s, and members pass on what they heard every half second.
        if update.unreachable_after.ms < 5000 {
            return Err("update.unreachable_after is shorter than 5s".into());
        }
        for check in &self.checks {
            if check.interval.ms < 10 || check.timeout.ms < 10 {
                return Err("a check's interval and timeout are at least 10ms".into());
            }
            if check.phase.is_empty() {
                return Err("a check's phase names `pre-flight`, `running` or both".into());
            }
        }
        Ok(())
    }

    /// How many servers of a group may be out of service at once: at least 1.
    #[must_use]
    pub fn max_unavailable_of(&self, servers: u32) -> u32 {
        self.update.max_unavailable.of_rounded_down(servers).max(1)
    }

    /// How many failures of the release are borne.
    #[must_use]
    pub fn failures_allowed_of(&self, servers: u32) -> u32 {
        self.update.failures_allowed.of_rounded_down(servers)
    }

    /// How many failures of the surroundings are borne: at least 1.
    #[must_use]
    pub fn surroundings_allowed_of(&self, servers: u32) -> u32 {
        self.update.surroundings_allowed.of_rounded_down(servers).max(1)
    }
}
