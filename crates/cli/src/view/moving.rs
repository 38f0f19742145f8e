//! What a rollout would move between machines, and how long that should take: before anything moves.

use cohort_core::ids::{AppId, Digest, ServerId, Version};
use cohort_wire::agent::{GroupStatus, ServerAppStatus};
use serde::Serialize;

use crate::clock::{bits, brief, bytes};

/// What each server is to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum By {
    /// Every server has it, or nothing changes.
    Nothing,
    /// The artifact.
    Whole,
    /// The difference to what the group runs.
    Delta,
}

/// By what the time was worked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Basis {
    /// What mirrors gave in the last transfer of the group.
    LastTransfer,
    /// `download_limit` of the leader's server, which is lower, or all that is known.
    DownloadLimit,
}

/// A way to the release from an older one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Root of the older artifact.
    pub(crate) from: Digest,
    /// Its length, in bytes.
    pub(crate) length: u64,
}

/// What would move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Moving {
    /// What each server is to receive.
    pub(crate) by: By,
    /// For a delta: the release that it starts from.
    pub(crate) from: Option<Version>,
    /// How much that is.
    pub(crate) bytes_per_server: u64,
    /// How many servers are to receive something;
    pub(crate) servers: u32,
    /// for a delta: those of them that do not run what it starts from. They take the whole artifact
    /// from the others.
    pub(crate) servers_without_base: u32,
    /// Bytes over the zone's downlink: once, whatever the number of servers.
    pub(crate) bytes_from_mirror: u64,
    /// Bytes that the servers take from each other, at the most.
    pub(crate) bytes_from_peers: u64,
    /// What mirrors gave in the last transfer that was large enough to tell.
    pub(crate) downlink_bytes_per_second: Option<u64>,
    /// `download_limit` of the server that answers: the leader's, as a rule.
    pub(crate) download_limit_bytes_per_second: Option<u64>,
    /// How long it should take; none when nothing is known that says so.
    pub(crate) estimate_ms: Option<u64>,
    /// By what that was worked out.
    pub(crate) estimate_by: Option<Basis>,
}

/// Works it out. `length` is the artifact's, `base` the root of what the whole group runs.
pub(crate) fn moving(
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
    // Where a server has it whole, the others take it from there.
    let mirrored = if held && by == By::Whole { 0 } else { bytes_per_server };
    let alike = servers - servers_without_base;
    let from_peers = if mirrored == 0 { alike } else { alike.saturating_sub(1) };
    let between_servers = bytes_per_server
        .saturating_mul(u64::from(from_peers))
        .saturating_add(length.saturating_mul(u64::from(servers_without_base)));
    let downlink = status.downlink_bytes_per_second;
    let limit = status.download_limit_bytes_per_second;
    let (rate, basis) = match (downlink, limit) {
        (Some(downlink), Some(limit)) if limit < downlink => (limit, Some(Basis::DownloadLimit)),
        (Some(downlink), _) => (downlink, Some(Basis::LastTransfer)),
        (None, Some(limit)) => (limit, Some(Basis::DownloadLimit)),
        (None, None) => (0, None),
    };
    // What crosses no downlink is as fast as links that nobody has measured.
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
        downlink_bytes_per_second: downlink,
        download_limit_bytes_per_second: limit,
        estimate_by: basis.filter(|_| mirrored > 0 && estimate_ms.is_some()),
        estimate_ms,
    }
}

/// For people: what moves, and how long that should take.
pub(crate) fn text(moving: &Moving) -> String {
    let Moving { bytes_per_server, servers, servers_without_base, .. } = moving;
    let Moving { bytes_from_mirror, bytes_from_peers, .. } = moving;
    let what = match (moving.by, &moving.from) {
        (By::Nothing, _) => return "  transfer: nothing, every server has it\n".to_owned(),
        (By::Delta, Some(from)) => format!("the difference to {from}"),
        (By::Delta, None) => "a difference".to_owned(),
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
            format!("at least {} at download_limit, {limit}; no transfer was measured", time(ms))
        }
        (_, _) if *bytes_from_mirror == 0 => "as fast as the servers' links are".to_owned(),
        (_, _) => "not known yet: no transfer was measured".to_owned(),
    };
    text.push_str(&format!("  transfer time: {line}\n"));
    text
}

#[cfg(test)]
#[path = "moving_test.rs"]
mod moving_test;
