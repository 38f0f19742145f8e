//! What a rollout would transfer, and how long that should take: before it starts.

use cohort_core::ids::{AppId, Digest, ServerId, Version};
use cohort_wire::agent::{GroupStatus, ServerAppStatus};
use serde::Serialize;

use crate::figures::{bits, brief, bytes};

/// What each server would receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    Nothing,
    Whole,
    /// The delta to the release that the group runs.
    Delta,
}

/// The basis of the estimated time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// Mirror throughput of the group's last transfer.
    LastTransfer,
    /// `download_limit` of the responding server, if lower than that or the only known rate.
    DownloadLimit,
}

/// A delta to the release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Root hash of the old artifact.
    pub from: Digest,
    pub length: u64,
}

/// What a rollout would transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moving {
    pub by: By,
    /// The release that a delta starts from.
    pub from: Option<Version>,
    pub bytes_per_server: u64,
    /// Servers that would receive something.
    pub servers: u32,
    /// Of those, servers that do not run the release that the delta starts from: they get the whole
    /// artifact from the others.
    pub servers_without_base: u32,
    /// Bytes over the zone's downlink: once, regardless of the number of servers.
    pub bytes_from_mirror: u64,
    /// Most bytes between servers.
    pub bytes_from_peers: u64,
    /// Mirror throughput of the last transfer large enough to measure.
    pub downlink_bytes_per_second: Option<u64>,
    /// `download_limit` of the responding server, usually the leader's.
    pub download_limit_bytes_per_second: Option<u64>,
    pub estimate_ms: Option<u64>,
    pub estimate_by: Option<Basis>,
}

/// `length` is the artifact's; `base` is the root hash of what the whole group runs.
#[must_use]
pub fn moving(
    status: &GroupStatus,
    id: &AppId,
    version: &Version,
    length: u64,
    differences: &[Difference],
    base: Option<&Digest>,
) -> Moving {
    let app = status.apps.get(id);
    let here = |server: &ServerId| app.and_then(|app| app.servers.get(server));
    let targeted = app.is_some_and(|app| app.target.as_ref() == Some(version));
    let has = |here: Option<&ServerAppStatus>| {
        here.is_some_and(|here| {
            here.running.as_ref() == Some(version) || (targeted && here.holds_target)
        })
    };
    let lacking = || status.servers.keys().filter(|id| !has(here(id)));
    let servers = u32::try_from(lacking().count()).unwrap_or(u32::MAX);
    let held = (servers as usize) < status.servers.len();
    let good = app.and_then(|app| app.last_good.as_ref());
    let runs_base = |id: &ServerId| {
        good.is_some() && here(id).is_some_and(|here| here.running.as_ref() == good)
    };
    let with_base = u32::try_from(lacking().filter(|id| runs_base(id)).count()).unwrap_or(u32::MAX);
    let delta = base.filter(|_| with_base > 0).and_then(|base| {
        let fitting = differences.iter().filter(|one| one.from == *base && one.length < length);
        fitting.map(|one| one.length).min()
    });
    let (by, bytes_per_server) = match (servers, delta) {
        (0, _) => (By::Nothing, 0),
        (_, Some(delta)) => (By::Delta, delta),
        (_, None) => (By::Whole, length),
    };
    let servers_without_base = if by == By::Delta { servers - with_base } else { 0 };
    // If any server has the whole artifact, the others get it from there.
    let mirrored = if held && by == By::Whole { 0 } else { bytes_per_server };
    let alike = servers - servers_without_base;
    let from_peers = if mirrored == 0 { alike } else { alike.saturating_sub(1) };
    let between_servers = bytes_per_server
        .saturating_mul(u64::from(from_peers))
        .saturating_add(length.saturating_mul(u64::from(servers_without_base)));
    let (rate, basis) = rate(status);
    // The rate of links between servers is not measured.
    let estimate_ms = (mirrored > 0)
        .then(|| mirrored.saturating_mul(1_000).checked_div(rate))
        .flatten()
        .or((by == By::Nothing).then_some(0));
    Moving {
        by,
        from: good.filter(|_| by == By::Delta).cloned(),
        bytes_per_server,
        servers,
        servers_without_base,
        bytes_from_mirror: mirrored,
        bytes_from_peers: between_servers,
        downlink_bytes_per_second: status.downlink_bytes_per_second,
        download_limit_bytes_per_second: status.download_limit_bytes_per_second,
        estimate_by: basis.filter(|_| mirrored > 0 && estimate_ms.is_some()),
        estimate_ms,
    }
}

/// The rate to expect from mirrors, in bytes per second, and where it comes from; 0 if unknown.
fn rate(status: &GroupStatus) -> (u64, Option<Basis>) {
    match (status.downlink_bytes_per_second, status.download_limit_bytes_per_second) {
        (Some(downlink), Some(limit)) if limit < downlink => (limit, Some(Basis::DownloadLimit)),
        (Some(downlink), _) => (downlink, Some(Basis::LastTransfer)),
        (None, Some(limit)) => (limit, Some(Basis::DownloadLimit)),
        (None, None) => (0, None),
    }
}

/// Two lines: what would be transferred, and how long that should take.
#[must_use]
pub fn text(moving: &Moving) -> String {
    let Moving { bytes_per_server, servers, servers_without_base, .. } = moving;
    let Moving { bytes_from_mirror, bytes_from_peers, .. } = moving;
    let what = match (moving.by, &moving.from) {
        (By::Nothing, _) => return "  transfer: nothing, every server has it already\n".to_owned(),
        (By::Delta, Some(from)) => format!("the delta to {from}"),
        (By::Delta, None) => "a delta".to_owned(),
        (By::Whole, _) => "the whole artifact".to_owned(),
    };
    let count = |servers: u32| match servers {
        1 => "1 server".to_owned(),
        many => format!("{many} servers"),
    };
    let to = match (servers, servers_without_base) {
        (all, 0) => count(*all),
        (all, without) => {
            format!("{} and the whole artifact to {}", count(all - without), count(*without))
        }
    };
    let mirror = match bytes_from_mirror {
        0 => "nothing from mirrors".to_owned(),
        some => format!("{} from mirrors", bytes(*some)),
    };
    let mut text = format!(
        "  transfer: {what}, {} to {to}; {mirror}, up to {} between servers\n",
        bytes(*bytes_per_server),
        bytes(*bytes_from_peers)
    );
    let time = |ms: u64| brief(ms.max(1_000));
    let rate = |rate: Option<u64>| bits(rate.unwrap_or(0));
    let line = match (moving.estimate_ms, moving.estimate_by) {
        (Some(ms), Some(Basis::LastTransfer)) => format!(
            "about {} at {}, as in the last transfer",
            time(ms),
            rate(moving.downlink_bytes_per_second)
        ),
        (Some(ms), Some(Basis::DownloadLimit)) if moving.downlink_bytes_per_second.is_some() => {
            let limit = rate(moving.download_limit_bytes_per_second);
            format!("about {} at download_limit, {limit}", time(ms))
        }
        (Some(ms), Some(Basis::DownloadLimit)) => {
            let limit = rate(moving.download_limit_bytes_per_second);
            format!("at least {} at download_limit, {limit}; no transfer measured yet", time(ms))
        }
        (_, _) if *bytes_from_mirror == 0 => "limited by the links between servers".to_owned(),
        (_, _) => "unknown: no transfer measured yet".to_owned(),
    };
    text.push_str(&format!("  transfer time: {line}\n"));
    text
}

#[cfg(test)]
#[path = "moving_test.rs"]
mod moving_test;
