//! `cohort rollout plan`: what a rollout would do, as far as known in advance.

use cohort_core::capacity::has_room;
use cohort_core::ids::{AppId, Digest, GroupId, Revision, Version};
use cohort_core::phase::PhaseName;
use cohort_core::policy::Policy;
use cohort_core::waiting::WaitingOn;
use cohort_wire::agent::{AppStatus, GroupStatus, ServerAppStatus};
use serde::Serialize;

use crate::command::Command;
use crate::figures::brief;
use crate::hint::{self, Hint};
use crate::moving::{self, Difference, Moving, moving};
use crate::report::rollback;
use crate::waiting::{hints, sentence};

/// The release that the channel offers for the group's platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    pub version: Version,
    pub length: u64,
    pub differences: Vec<Difference>,
    /// Root hash of what the whole group runs, if the repository still has it.
    pub base: Option<Digest>,
}

/// What a rollout would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RolloutPlan {
    pub group: GroupId,
    pub app: AppId,
    pub revision: Revision,
    pub running: Option<Version>,
    pub release: Version,
    /// Whether any server would change.
    pub change: bool,
    pub waves: Vec<u32>,
    pub max_unavailable: u32,
    /// What keeps it from starting, or stops it on the way.
    pub gates: Vec<Gate>,
    /// Bytes over the zone's downlink: the group fetches once.
    pub bytes_from_mirror: u64,
    /// Most bytes between servers.
    pub bytes_from_peers: u64,
    /// What is transferred, and how long that should take.
    pub transfer: Moving,
    /// Sum of the policy's waits over all waves, in milliseconds: the minimum duration.
    pub waits_ms: u64,
}

/// Something that stops a rollout until it opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gate {
    pub sentence: String,
    /// How to open it; empty if it opens automatically.
    pub hints: Vec<Hint>,
}

/// Plans a rollout. `kept`: stages and verdicts from the registry.
#[must_use]
pub fn plan(
    status: &GroupStatus,
    id: &AppId,
    policy: &Policy,
    revision: Revision,
    offered: &Offered,
    kept: Option<&WaitingOn>,
) -> RolloutPlan {
    let app = status.apps.get(id);
    let servers = u32::try_from(status.servers.len()).unwrap_or(u32::MAX);
    let there = |status: &AppStatus| {
        let here = |here: &&ServerAppStatus| here.running.as_ref() == Some(&offered.version);
        u32::try_from(status.servers.values().filter(here).count()).unwrap_or(u32::MAX)
    };
    let running = app.and_then(|app| app.last_good.clone());
    // A rollback takes them off it again.
    let leaves = |app: &&AppStatus| {
        app.state == PhaseName::RollingBack && app.last_good.as_ref() != Some(&offered.version)
    };
    let kept_there = app.filter(|app| !leaves(app)).map_or(0, there);
    let missing = servers.saturating_sub(kept_there);
    let change = missing > 0 || running.as_ref() != Some(&offered.version);
    let waves = if change { wave_sizes(policy, servers, missing) } else { Vec::new() };
    let update = &policy.update;
    let per_wave = update.drain_time.ms
        + update.min_healthy_time.ms
        + update.warm_up_time.ms
        + update.bake_time.ms;
    let Offered { version, length, differences, base } = offered;
    let transfer = moving(status, id, version, *length, differences, base.as_ref());
    RolloutPlan {
        group: status.group.clone(),
        app: id.clone(),
        revision,
        running,
        release: offered.version.clone(),
        change,
        max_unavailable: policy.max_unavailable_of(servers),
        gates: if change { gates(status, id, policy, &offered.version, kept) } else { Vec::new() },
        bytes_from_mirror: transfer.bytes_from_mirror,
        bytes_from_peers: transfer.bytes_from_peers,
        transfer,
        waits_ms: per_wave * waves.len() as u64,
        waves,
    }
}

fn wave_sizes(policy: &Policy, servers: u32, missing: u32) -> Vec<u32> {
    let mut left = missing;
    let mut waves = Vec::new();
    let mut number = 1;
    while left > 0 {
        let size = policy.update.max_parallel.of_wave(number, servers).min(left);
        waves.push(size);
        left -= size;
        number += 1;
    }
    waves
}

fn gates(
    status: &GroupStatus,
    id: &AppId,
    policy: &Policy,
    version: &Version,
    kept: Option<&WaitingOn>,
) -> Vec<Gate> {
    let mut gates = Vec::new();
    let group = &status.group;
    let state = status.apps.get(id).map_or(PhaseName::Empty, |app| app.state);
    let mut gate = |on: &WaitingOn| {
        gates.push(Gate { sentence: sentence(on), hints: hints(on, group, id, state) });
    };
    if let Some(reason) = &status.killed {
        gate(&WaitingOn::KillSwitch { reason: reason.clone() });
    }
    if let Some(on) = kept {
        gate(on);
    }
    if status.registry_reachable == Some(false) {
        gate(&WaitingOn::RegistryAway);
    }
    capacity_gates(status, policy, &mut gate);
    if let Some(app) = status.apps.get(id)
        && app.state == PhaseName::RollingBack
    {
        let rejected = app.target.as_ref() == Some(version);
        let retry = Command::RolloutRetry { group: group.clone(), app: id.clone() };
        let then = if rejected { "is then held" } else { "starts after that" };
        gates.push(Gate {
            sentence: format!("{}; {version} {then}", rollback(app)),
            hints: if rejected { vec![Hint::run_to("once it is held", retry)] } else { Vec::new() },
        });
    }
    let mut gate = |on: &WaitingOn| {
        gates.push(Gate { sentence: sentence(on), hints: hints(on, group, id, state) });
    };
    for waiting in status.apps.get(id).into_iter().flat_map(|app| &app.waiting) {
        match &waiting.on {
            WaitingOn::Paused { .. } => gate(&waiting.on),
            WaitingOn::Person { version: held, .. } if held == version => gate(&waiting.on),
            _ => {}
        }
    }
    let after = policy.update.approve_after_wave;
    if after > 0 {
        gates.push(Gate {
            sentence: format!("needs approval after wave {after}"),
            hints: vec![Command::RolloutApprove { group: group.clone(), app: id.clone() }.into()],
        });
    }
    gates
}

/// What servers that are unknown, or out of service, stop: the start, if more are unknown than a
/// rollout tolerates; else every server that would leave service, if there is no room.
fn capacity_gates(status: &GroupStatus, policy: &Policy, gate: &mut impl FnMut(&WaitingOn)) {
    let servers = u32::try_from(status.servers.len()).unwrap_or(u32::MAX);
    let (out, max) = (&status.out, policy.max_unavailable_of(servers));
    let mut serving = status.servers.keys().filter(|server| !out.contains(*server));
    if status.unknown_servers().count() > policy.surroundings_allowed_of(servers) as usize {
        for (server, known) in status.unknown_servers() {
            let for_ms = known.silent_ms.unwrap_or(0);
            gate(&WaitingOn::ServerUnreachable { server: server.clone(), for_ms });
        }
    } else if serving.next().is_some_and(|server| !has_room(out, max, server)) {
        gate(&WaitingOn::Capacity { out: out.clone(), max });
    }
}

/// The plan as text.
#[must_use]
pub fn text(plan: &RolloutPlan) -> String {
    let RolloutPlan { group, app, release, .. } = plan;
    let running = plan.running.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string);
    if !plan.change {
        return format!("{app} in {group}: up to date with {release}\n");
    }
    let mut text = format!("{app} in {group}: {running} -> {release}\n");
    text.push_str(&format!("  waves: {}\n", waves_text(&plan.waves)));
    text.push_str(&format!("  out of service at once: at most {}\n", plan.max_unavailable));
    text.push_str(&moving::text(&plan.transfer));
    if plan.waits_ms > 0 {
        text.push_str(&format!(
            "  time: {} of waits in the policy, plus stopping and starting\n",
            brief(plan.waits_ms)
        ));
    }
    for gate in &plan.gates {
        text.push_str(&format!("  gate: {}\n{}", gate.sentence, hint::lines(&gate.hints, "    ")));
    }
    text
}

/// Waves, such as `12 (1 of 1, then 2 of 5, then 9 of 10)`.
fn waves_text(waves: &[u32]) -> String {
    let mut runs: Vec<(usize, u32)> = Vec::new();
    for size in waves {
        match runs.last_mut() {
            Some((count, last)) if last == size => *count += 1,
            _ => runs.push((1, *size)),
        }
    }
    let of = |(count, size): &(usize, u32)| match (count, size) {
        (1, size) => format!("1 of {size}"),
        (count, size) => format!("{count} of {size}"),
    };
    let texts: Vec<String> = runs.iter().map(of).collect();
    format!("{} ({})", waves.len(), texts.join(", then "))
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod plan_test;
