//! A picture of the fleet, judged: which groups are healthy, and what is wrong with the others.
//!
//! These are the shapes of `-o json`; `docs/operating.md` describes them.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::{AppId, GroupId, ServerId, Version};
use cohort_core::phase::PhaseName;
use cohort_core::waiting::WaitingOn;
use cohort_wire::agent::{AppStatus, GroupStatus, ServerAppStatus, WaitingStatus};
use serde::Serialize;

use crate::clock::unix_now;
use crate::fleet::{Origin, Recorded};
use crate::group::{Asked, Picture};

/// The fleet, judged.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FleetReport {
    /// Whether every group is healthy.
    pub(crate) healthy: bool,
    /// Where the list of groups came from.
    pub(crate) origin: Origin,
    /// Every group that was asked for.
    pub(crate) groups: Vec<GroupReport>,
}

/// A group, judged.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct GroupReport {
    /// Which.
    pub(crate) group: GroupId,
    /// Whether it is reachable and every app in it is healthy.
    pub(crate) healthy: bool,
    /// What is wrong with the group as a whole; empty when nothing is.
    pub(crate) problems: Vec<Problem>,
    /// Its apps.
    pub(crate) apps: BTreeMap<AppId, AppReport>,
    /// What the registry last knew, app by app; for when no agent answers.
    pub(crate) registry: BTreeMap<AppId, Recorded>,
    /// All that an agent of the group said; none when none answered.
    pub(crate) status: Option<GroupStatus>,
}

/// Something that is wrong with a group as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    /// What.
    pub(crate) sentence: String,
    /// What unblocks it.
    pub(crate) unblocks: String,
}

impl Problem {
    fn new(sentence: impl Into<String>, unblocks: impl Into<String>) -> Self {
        Problem { sentence: sentence.into(), unblocks: unblocks.into() }
    }
}

/// An app in a group, judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct AppReport {
    /// The state of the drawing.
    pub(crate) state: PhaseName,
    /// Whether the whole group runs what it should, in service, and nothing is held.
    pub(crate) healthy: bool,
    /// What the whole group runs, or ran before the rollout.
    pub(crate) release: Option<Version>,
    /// What is rolled out, rolled back, or was rejected.
    pub(crate) target: Option<Version>,
    /// The wave, from 1; 0 outside of waves.
    pub(crate) wave: u32,
    /// Servers of the group.
    pub(crate) servers: usize,
    /// Servers that run what the group is going to (or settled on).
    pub(crate) updated: usize,
    /// Servers that take traffic.
    pub(crate) in_service: usize,
    /// For how long it has been in this state, in milliseconds.
    pub(crate) for_ms: u64,
    /// Why it is held, goes back, or is otherwise not healthy; empty when it is.
    pub(crate) reason: String,
    /// What it waits for, in sentences.
    pub(crate) waiting: Vec<String>,
}

impl FleetReport {
    /// Judges a picture.
    pub(crate) fn of(picture: Picture) -> Self {
        let Picture { origin, apps, groups } = picture;
        let groups: Vec<GroupReport> =
            groups.into_iter().map(|asked| GroupReport::of(asked, &apps)).collect();
        FleetReport { healthy: groups.iter().all(|group| group.healthy), origin, groups }
    }

    /// Whether every group that has the app runs this version of it, in good health.
    pub(crate) fn settled_on(&self, app: Option<&AppId>, version: Option<&Version>) -> bool {
        let wanted = |id: &AppId| app.is_none_or(|app| app == id);
        let right = |report: &AppReport| {
            report.healthy && version.is_none_or(|version| report.release.as_ref() == Some(version))
        };
        !self.groups.is_empty()
            && self.groups.iter().all(|group| {
                let mut apps = group.apps.iter().filter(|(id, _)| wanted(id)).peekable();
                group.problems.is_empty()
                    && (version.is_none() || apps.peek().is_some())
                    && apps.all(|(_, report)| right(report))
            })
    }
}

impl GroupReport {
    /// Judges a group. `expected` are the apps that have a policy.
    fn of(asked: Asked, expected: &BTreeSet<AppId>) -> Self {
        let Asked { group, status, registry, joined } = asked;
        let mut status = match status {
            Ok(status) => status,
            Err(reason) => {
                return GroupReport {
                    group,
                    healthy: false,
                    problems: vec![Problem::new(
                        reason,
                        "start cohort agent on the group's servers, and look at their logs",
                    )],
                    apps: BTreeMap::new(),
                    registry,
                    status: None,
                };
            }
        };
        let now_s = unix_now();
        for (id, app) in &mut status.apps {
            let recorded = registry.get(id).filter(|known| known.state == app.state.as_str());
            catch_up(app, recorded.map(|known| now_s.saturating_sub(known.since) * 1000));
        }
        let judged = |(id, app): (&AppId, &AppStatus)| {
            let recorded = registry.get(id).filter(|known| known.state == app.state.as_str());
            let age_ms = recorded.map_or(0, |known| now_s.saturating_sub(known.since) * 1000);
            (id.clone(), AppReport::of(app, &status, age_ms))
        };
        let apps: BTreeMap<AppId, AppReport> = status.apps.iter().map(judged).collect();
        let problems = problems(&status, expected, &joined);
        let healthy = problems.is_empty() && apps.values().all(|app| app.healthy);
        GroupReport { group, healthy, problems, apps, registry, status: Some(status) }
    }
}

fn problems(
    status: &GroupStatus,
    expected: &BTreeSet<AppId>,
    joined: &BTreeSet<ServerId>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !status.linearizable {
        let by = &status.answered_by;
        let voters: Vec<&str> = status.voters.iter().map(|voter| voter.server.as_str()).collect();
        problems.push(Problem::new(
            format!("no majority of voters answers; {by} tells what it last knew"),
            format!("start the agents of most of its voters: {}", voters.join(", ")),
        ));
    }
    if let Some(reason) = &status.killed {
        problems.push(Problem::new(
            format!("the kill switch is on: {reason}"),
            format!("cohort kill status; then: cohort kill off [--scope {}]", status.group),
        ));
    }
    for app in expected.iter().filter(|app| !status.apps.contains_key(*app)) {
        problems.push(Problem::new(
            format!("the group has not heard of app {app} yet"),
            "goes on by itself while the hub answers its leader",
        ));
    }
    let missing: Vec<&str> = joined
        .iter()
        .filter(|server| !status.servers.contains_key(*server))
        .map(ServerId::as_str)
        .collect();
    if let Some(first) = missing.first() {
        let more = match missing.len() {
            1 => String::new(),
            many => format!(" and {} more", many - 1),
        };
        problems.push(Problem::new(
            format!("{first}{more} joined the fleet, but the group does not know it yet"),
            format!(
                "goes on by itself once the agent runs there; gone for good? \
                 cohort group remove-server {} {first}",
                status.group
            ),
        ));
    }
    problems
}

impl AppReport {
    /// Judges an app. `age_ms`: for how long the registry has known it in this state.
    pub(crate) fn of(app: &AppStatus, group: &GroupStatus, age_ms: u64) -> Self {
        let wanted = wanted(app);
        let on_it = |here: &&ServerAppStatus| here.running.as_ref() == wanted;
        let updated = app.servers.values().filter(on_it).count();
        let in_service = app.servers.values().filter(|here| here.in_service).count();
        let reason = unhealthy_because(app, group);
        let waiting = app.waiting.iter().filter(|waiting| !is_idle(waiting));
        AppReport {
            state: app.state,
            healthy: reason.is_empty(),
            release: app.last_good.clone(),
            target: app.target.clone(),
            wave: app.wave,
            servers: group.servers.len(),
            updated: if wanted.is_some() { updated } else { 0 },
            in_service,
            for_ms: group.clock.since(app.since).max(age_ms),
            reason,
            waiting: waiting.map(|waiting| waiting.sentence.clone()).collect(),
        }
    }
}

/// A group that waits for a person has waited for as long as it has been held: its own clock stands
/// still meanwhile.
fn catch_up(app: &mut AppStatus, age_ms: Option<u64>) {
    let Some(age_ms) = age_ms else { return };
    for waiting in &mut app.waiting {
        if matches!(waiting.on, WaitingOn::Person { .. } | WaitingOn::NewRelease) {
            waiting.for_ms = waiting.for_ms.max(age_ms);
        }
    }
}

/// What every server is to run in the end, as things stand.
pub(crate) fn wanted(app: &AppStatus) -> Option<&Version> {
    match app.state {
        PhaseName::Empty | PhaseName::Running | PhaseName::RollingBack | PhaseName::Held => {
            app.last_good.as_ref()
        }
        PhaseName::Forward(_) => app.target.as_ref(),
    }
}

/// Whether nothing has to happen about it: the group runs what its channel names, or only the
/// hub's bookkeeping is late.
pub(crate) fn is_idle(waiting: &WaitingStatus) -> bool {
    matches!(
        waiting.on,
        WaitingOn::NewRelease | WaitingOn::RegistryAway | WaitingOn::RegistryRecord
    )
}

/// Why an app is not healthy; empty when it is.
fn unhealthy_because(app: &AppStatus, group: &GroupStatus) -> String {
    match app.state {
        PhaseName::Empty => return "nothing runs yet".to_owned(),
        PhaseName::Running => {}
        PhaseName::Held | PhaseName::RollingBack if !app.reason.is_empty() => {
            return app.reason.clone();
        }
        PhaseName::Held => return "held".to_owned(),
        PhaseName::RollingBack => return "rolling back".to_owned(),
        PhaseName::Forward(_) => return "a rollout is going on".to_owned(),
    }
    for server in group.servers.keys() {
        let problem = match app.servers.get(server) {
            None => Some("has not reported yet".to_owned()),
            Some(here) => server_problem(here, app.last_good.as_ref()),
        };
        if let Some(problem) = problem {
            return format!("{server} {problem}");
        }
    }
    // A release that cannot begin: refused, bad elsewhere, waiting for its stage.
    let waiting = app.waiting.iter().find(|waiting| !is_idle(waiting));
    waiting.map(|waiting| waiting.sentence.clone()).unwrap_or_default()
}

/// What is wrong with an app on a server of a group that has settled.
fn server_problem(here: &ServerAppStatus, good: Option<&Version>) -> Option<String> {
    if let Some(debt) = &here.debt {
        return Some(format!("owes the good release: {debt}"));
    }
    if here.running.as_ref() != good {
        return Some(match &here.running {
            Some(version) => format!("runs {version}"),
            None => "runs nothing".to_owned(),
        });
    }
    match (here.in_service, here.health.as_str()) {
        (true, _) => None,
        (false, "") => Some("takes no traffic".to_owned()),
        (false, why) => Some(format!("takes no traffic: {why}")),
    }
}

#[cfg(test)]
#[path = "report_test.rs"]
pub(crate) mod report_test;
