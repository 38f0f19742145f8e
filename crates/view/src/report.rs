//! The fleet, judged: which groups are healthy, and what is wrong with the others.
//!
//! These are the shapes of `-o json`; `docs/operating.md` describes them.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::errand::{Errand, HubFault};
use cohort_core::ids::{AppId, GroupId, ServerId, Version};
use cohort_core::kill::KillScope;
use cohort_core::machine::DiskSpace;
use cohort_core::phase::PhaseName;
use cohort_core::reason::Unfit;
use cohort_core::state::ActivationStage;
use cohort_core::waiting::WaitingOn;
use cohort_wire::agent::{AppStatus, ErrandStatus, GroupStatus, ServerAppStatus, ServerStatus};
use serde::{Deserialize, Serialize};

use crate::command::Command;
use crate::figures::{brief, names};
use crate::hint::Hint;
use crate::silence::{mute, silence};
use crate::waiting::{AWAY_TOLERATED_MS, is_healthy, mend_disk, sentence};
use crate::words;

/// The responses of the groups and the hub: the input of a report.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Where the list of groups came from.
    pub origin: Origin,
    /// Every app that has a policy.
    pub apps: BTreeSet<AppId>,
    pub groups: Vec<Asked>,
}

/// Where the list of groups and addresses came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum Origin {
    /// The hub, just now.
    Hub {
        /// Its registry was lost, or restored from a backup, which nobody has confirmed yet.
        restored: bool,
        /// Records that it has and cannot read, each with the reason.
        unreadable: Vec<String>,
    },
    /// The last response of a hub that is now unreachable.
    Cache {
        age_s: u64,
        /// The error of the call to the hub.
        because: String,
    },
    /// A named agent; the hub was not asked.
    Agent,
}

impl Origin {
    /// A hub that answered, and whose registry is sound.
    #[must_use]
    pub fn sound_hub() -> Self {
        Origin::Hub { restored: false, unreadable: Vec::new() }
    }

    /// A warning for the reader of an old picture.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        match self {
            Origin::Agent => None,
            Origin::Hub { restored: true, .. } => Some(format!(
                "warning: the hub's registry was lost, or restored from a backup: it accepts no \
                 policy and no new group until that is confirmed; once `{}` shows every group, and \
                 if no other hub of this fleet runs, on the hub's machine: {}",
                Command::GroupList,
                Command::HubConfirm
            )),
            Origin::Hub { restored: false, unreadable } => {
                let first = words::line(unreadable.first()?);
                let count = unreadable.len();
                Some(format!("warning: the hub cannot read {count} of its records: {first}"))
            }
            Origin::Cache { age_s, because } => Some(format!(
                "warning: hub unreachable ({because}); asking the agents it listed {} ago",
                brief(age_s * 1000)
            )),
        }
    }
}

/// The response of one group.
#[derive(Debug, Clone)]
pub struct Asked {
    pub group: GroupId,
    /// Its status, or why no agent provided one.
    pub status: Result<GroupStatus, String>,
    /// The registry's last record of it, per app.
    pub registry: BTreeMap<AppId, Recorded>,
    /// Servers that joined the fleet, according to the hub.
    pub joined: BTreeSet<ServerId>,
}

/// What the registry knows of an app in a group. Shows the phase if no agent responds, and its age
/// by wall clock: the group's own clock stands still while nothing happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    pub state: PhaseName,
    /// When it entered that phase, as Unix time in seconds.
    pub since: u64,
}

/// The whole fleet, judged.
#[derive(Debug, Clone, Serialize)]
pub struct FleetReport {
    pub healthy: bool,
    pub origin: Origin,
    pub groups: Vec<GroupReport>,
}

/// A group, judged as a whole and per app.
#[derive(Debug, Clone, Serialize)]
pub struct GroupReport {
    pub group: GroupId,
    /// Whether it is reachable and every app in it is healthy.
    pub healthy: bool,
    /// What is wrong with the group as a whole.
    pub problems: Vec<Problem>,
    pub apps: BTreeMap<AppId, AppReport>,
    /// The registry's last record, in case no agent responds.
    pub registry: BTreeMap<AppId, Recorded>,
    /// An agent's full response; `None` if no agent responded.
    pub status: Option<GroupStatus>,
}

impl GroupReport {
    /// Whether it is healthy, and no rollout is in progress or waits.
    #[must_use]
    pub fn rests(&self) -> bool {
        let rests = |app: &AppReport| app.target.is_none() || app.target == app.release;
        self.healthy && self.apps.values().all(rests)
    }
}

/// Something that is wrong with a group as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub sentence: String,
    /// How to resolve it; empty if it resolves automatically.
    pub hints: Vec<Hint>,
}

/// An app in a group, judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AppReport {
    /// The phase, as drawn in `docs/state-machine.md`.
    pub state: PhaseName,
    /// Whether every server runs what it should and is in service, and nothing is held.
    pub healthy: bool,
    /// What the whole group runs, or ran before the rollout.
    pub release: Option<Version>,
    /// What is being rolled out or rolled back, or was rejected.
    pub target: Option<Version>,
    /// The current wave, counted from 1; 0 outside of waves.
    pub wave: u32,
    pub servers: usize,
    /// Servers that run the release that the group is moving to or settled on.
    pub updated: usize,
    /// Servers that serve: they said so, and have been heard from since.
    pub in_service: usize,
    /// Servers of which nobody knows whether they serve.
    pub unknown: usize,
    /// How long it has been in this phase, in milliseconds.
    pub for_ms: u64,
    /// Whether every server runs `release`, and none is being changed.
    #[serde(skip)]
    pub rests: bool,
    /// Why it is not healthy; empty if it is.
    pub reason: String,
    /// What it is waiting for, in sentences.
    pub waiting: Vec<String>,
}

impl FleetReport {
    /// Judges a picture. `now_s`: Unix time in seconds.
    #[must_use]
    pub fn of(picture: Picture, now_s: u64) -> Self {
        let Picture { origin, apps, groups } = picture;
        let groups: Vec<GroupReport> =
            groups.into_iter().map(|asked| GroupReport::of(asked, &apps, now_s)).collect();
        let sound = match &origin {
            Origin::Hub { restored, unreadable } => !restored && unreadable.is_empty(),
            Origin::Cache { .. } | Origin::Agent => true,
        };
        FleetReport { healthy: sound && groups.iter().all(|group| group.healthy), origin, groups }
    }

    /// Whether every group is healthy on this version of the app, or rests on it although it holds
    /// another one. One that is named and that a group does not have is not settled: it may be
    /// misspelt.
    #[must_use]
    pub fn settled_on(&self, app: Option<&AppId>, version: Option<&Version>) -> bool {
        let wanted = |id: &AppId| app.is_none_or(|app| app == id);
        let right = |report: &AppReport| match version {
            None => report.healthy,
            Some(version) => {
                let all = report.in_service == report.servers && report.servers > 0;
                report.release.as_ref() == Some(version)
                    && (report.healthy || (report.rests && all))
            }
        };
        !self.groups.is_empty()
            && self.groups.iter().all(|group| {
                let mut apps = group.apps.iter().filter(|(id, _)| wanted(id)).peekable();
                group.problems.is_empty()
                    && ((version.is_none() && app.is_none()) || apps.peek().is_some())
                    && apps.all(|(_, report)| right(report))
            })
    }
}

impl GroupReport {
    /// Judges a group. `expected`: the apps that have a policy.
    fn of(asked: Asked, expected: &BTreeSet<AppId>, now_s: u64) -> Self {
        let Asked { group, status, registry, joined } = asked;
        let mut status = match status {
            Ok(status) => status,
            Err(sentence) => {
                let remove = Command::GroupRemove { group: group.clone() };
                let hints = vec![
                    "check that the agents on its servers run and reach the hub, and their logs"
                        .into(),
                    Hint::run_to("if all its servers are lost permanently", remove),
                ];
                return GroupReport {
                    group,
                    healthy: false,
                    problems: vec![Problem { sentence, hints }],
                    apps: BTreeMap::new(),
                    registry,
                    status: None,
                };
            }
        };
        // Only a record of the current phase shows its age.
        let age_ms = |id: &AppId, app: &AppStatus| {
            let recorded = registry.get(id).filter(|known| known.state == app.state);
            recorded.map_or(0, |known| now_s.saturating_sub(known.since) * 1000)
        };
        for (id, app) in &mut status.apps {
            let age_ms = age_ms(id, app);
            for waiting in &mut app.waiting {
                // These last as long as the phase does, and no event moves the group's clock.
                if matches!(waiting.on, WaitingOn::Person { .. } | WaitingOn::NewRelease) {
                    waiting.for_ms = waiting.for_ms.max(age_ms);
                }
            }
        }
        let judged = |(id, app): (&AppId, &AppStatus)| {
            (id.clone(), AppReport::of(app, &status, age_ms(id, app)))
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
    let group = &status.group;
    let mut problems: Vec<Problem> = silence(status).into_iter().chain(mute(status)).collect();
    let mut problem = |sentence, hints| problems.push(Problem { sentence, hints });
    if let Some(reason) = &status.killed {
        let on = WaitingOn::KillSwitch { reason: reason.clone() };
        problem(sentence(&on), vec![Command::KillStatus.into()]);
    }
    let passes =
        |failing: &ErrandStatus| failing.why.is_unreachable() && failing.for_ms < AWAY_TOLERATED_MS;
    for failing in status.errands.iter().filter(|failing| !passes(failing)) {
        problem(errand_sentence(failing), errand_hints(failing, status.leader.as_ref()));
    }
    // Why a policy cannot be used says more than that it is not there.
    let is_read = |app: &AppId| {
        let read = Errand::ReadPolicy { app: app.clone() };
        status.errands.iter().all(|failing| failing.errand != read)
    };
    for app in expected.iter().filter(|app| !status.apps.contains_key(*app) && is_read(app)) {
        problem(format!("app {app} has not reached the group yet"), Vec::new());
    }
    problems.extend(status.servers.iter().filter_map(|(id, server)| disk_problem(id, server)));
    let stopped = status.servers.iter().filter(|(_, server)| server.stopped).map(|(id, _)| id);
    problems.extend(stopped.map(stopped_by_file));
    let mut problem = |sentence, hints| problems.push(Problem { sentence, hints });
    let missing = || joined.iter().filter(|server| !status.servers.contains_key(*server));
    if let Some(first) = missing().next() {
        let remove = Command::GroupRemoveServer { group: group.clone(), server: first.clone() };
        problem(
            format!("not in the group yet: {}", names([first], missing().count() as u64)),
            vec![
                format!("start the agent on {first}").into(),
                Hint::run_to("if it is lost permanently", remove),
            ],
        );
    }
    problems
}

/// A server that takes no step, and only it.
pub(crate) fn stopped_by_file(id: &ServerId) -> Problem {
    Problem {
        sentence: format!("the kill file of {id} stops it: nothing new starts there"),
        hints: vec![
            format!("to resume, remove it on {id}: `kill_file` of its agent.toml says where it is")
                .into(),
        ],
    }
}

/// A data directory that cannot be written, or soon cannot.
pub(crate) fn disk_problem(id: &ServerId, server: &ServerStatus) -> Option<Problem> {
    let sentence = match server.disk {
        DiskSpace::Enough => return None,
        DiskSpace::Low => format!("little space is left for the data directory of {id}"),
        DiskSpace::Exhausted => format!("no space is left for the data directory of {id}"),
        DiskSpace::ReadOnly => format!("the data directory of {id} is read-only"),
    };
    Some(Problem { sentence, hints: vec![mend_disk(id, server.disk).into()] })
}

/// An errand of the leader that fails, and for how long.
fn errand_sentence(failing: &ErrandStatus) -> String {
    let what = match &failing.errand {
        Errand::ReadRegistry => "the hub's records cannot be read".to_owned(),
        Errand::ReadPolicy { app } => format!("the hub's policy of {app} cannot be used"),
        Errand::WriteRecords => "the hub does not take this group's records".to_owned(),
        Errand::CarryKill => "the hub does not take a kill register".to_owned(),
        Errand::ReadKill { scope } => {
            format!("the hub's kill register of {scope} cannot be used")
        }
    };
    let text = match &failing.why {
        HubFault::Unreachable { text }
        | HubFault::Refused { text }
        | HubFault::Damaged { text }
        | HubFault::Unproven { text } => words::line(text),
        HubFault::Removed { at } => {
            format!("this group has removed the app since, at revision {at}")
        }
    };
    format!("{what} (for {}): {text}", brief(failing.for_ms))
}

/// What an operator can do, in addition to what the hub advises in its text.
fn errand_hints(failing: &ErrandStatus, leader: Option<&ServerId>) -> Vec<Hint> {
    match (&failing.errand, &failing.why) {
        (_, HubFault::Unreachable { .. }) => {
            let leader = leader.map_or("the leader", ServerId::as_str);
            vec![format!("start the hub, or check that {leader} reaches it").into()]
        }
        (Errand::ReadPolicy { app }, HubFault::Removed { .. }) => vec![
            Hint::run_to("to remove it everywhere", Command::AppRemove { app: app.clone() }),
            Hint::run_to("to add it again", Command::AppApply),
        ],
        (Errand::ReadPolicy { .. }, HubFault::Unproven { .. }) => vec![
            Hint::run_to("to sign it again, if it is right", Command::AppApply),
            "if nobody's certificate has expired, somebody changed it: inspect the hub".into(),
        ],
        (Errand::ReadPolicy { .. }, _) => {
            vec![Hint::run_to("apply one that this version of the agents knows", Command::AppApply)]
        }
        (Errand::CarryKill, _) => vec![Command::KillStatus.into()],
        (Errand::ReadKill { scope }, _) => {
            let scope = match scope {
                KillScope::Fleet => None,
                KillScope::Group(group) => Some(group.clone()),
            };
            let off = Command::KillOff { scope };
            vec![
                Command::KillStatus.into(),
                Hint::run_to("to replace it, if nothing should stop", off),
            ]
        }
        (Errand::ReadRegistry | Errand::WriteRecords, HubFault::Damaged { .. }) => {
            vec!["on the hub's machine: restore registry.redb from a backup".into()]
        }
        (Errand::ReadRegistry | Errand::WriteRecords, _) => vec!["see the log of the hub".into()],
    }
}

impl AppReport {
    /// Judges an app. `age_ms`: how long the registry has recorded it in this phase.
    fn of(app: &AppStatus, group: &GroupStatus, age_ms: u64) -> Self {
        let wanted = wanted(app);
        let on_it = |here: &&ServerAppStatus| here.running.as_ref() == wanted;
        let updated = app.servers.values().filter(on_it).count();
        let in_service = app.servers.values().filter(|here| serves(here)).count();
        let unknown = group.servers.keys().filter(|server| is_unknown(app, group, server)).count();
        let reason = unhealthy_because(app, group);
        let waiting = app.waiting.iter().filter(|waiting| waiting.on != WaitingOn::NewRelease);
        AppReport {
            state: app.state,
            healthy: reason.is_empty(),
            release: app.last_good.clone(),
            target: app.target.clone(),
            wave: app.wave,
            servers: group.servers.len(),
            updated: if wanted.is_some() { updated } else { 0 },
            in_service,
            unknown,
            for_ms: group.clock.since(app.since).max(age_ms),
            rests: matches!(app.state, PhaseName::Running | PhaseName::Held)
                && app.servers.values().all(|here| {
                    here.activation.is_none() && here.running == app.last_good && !here.unknown
                }),
            reason,
            waiting: waiting.map(|waiting| wait_sentence(app, &waiting.on)).collect(),
        }
    }
}

/// Whether the group is rolling back, or has stopped after a rollback.
pub(crate) fn went_back(state: PhaseName) -> bool {
    matches!(state, PhaseName::RollingBack | PhaseName::Held)
}

/// What every server will run in the end, as things stand.
pub(crate) fn wanted(app: &AppStatus) -> Option<&Version> {
    match app.state {
        PhaseName::Forward(_) => app.target.as_ref(),
        PhaseName::Empty
        | PhaseName::Running
        | PhaseName::RollingBack
        | PhaseName::Held
        | PhaseName::Removing => app.last_good.as_ref(),
    }
}

/// Why an app is not healthy; empty if it is.
fn unhealthy_because(app: &AppStatus, group: &GroupStatus) -> String {
    match app.state {
        PhaseName::Empty => return "no release runs yet".to_owned(),
        PhaseName::Held | PhaseName::RollingBack => {
            let reason = app.reason.as_ref().map(words::reason);
            return reason.unwrap_or_else(|| app.state.to_string());
        }
        PhaseName::Forward(_) => return "rollout in progress".to_owned(),
        PhaseName::Removing => return "being removed".to_owned(),
        PhaseName::Running => {}
    }
    if let Some((server, problem)) = server_problems(app, group).next() {
        return format!("{server} {problem}");
    }
    // A release that cannot start: refused, bad elsewhere, waiting for its stage.
    let waiting = app.waiting.iter().find(|waiting| !is_healthy(waiting));
    waiting.map(|waiting| sentence(&waiting.on)).unwrap_or_default()
}

/// What is wrong with an app on the group's servers. In a group that is not settled, what a server
/// runs and owes is a matter of its turn: only what is broken counts.
pub(crate) fn server_problems<'a>(
    app: &'a AppStatus,
    group: &'a GroupStatus,
) -> impl Iterator<Item = (&'a ServerId, String)> {
    let good = app.last_good.as_ref();
    let settled = app.state == PhaseName::Running;
    group.servers.iter().filter_map(move |(server, known)| {
        let here = app.servers.get(server);
        let problem = match here {
            _ if known.unknown => "is silent: unknown whether it serves".to_owned(),
            None if settled => "has not reported yet".to_owned(),
            Some(here) if here.unknown => {
                "was lost in a change, and has not said since what it runs".to_owned()
            }
            Some(ServerAppStatus { debt: Some(debt), .. }) if settled => {
                format!("is to start the last good release again: {}", words::debt(debt))
            }
            Some(here) if settled && here.running.as_ref() != good => runs(here),
            Some(here) if !here.in_service && (settled || is_broken(here)) => {
                format!("is {}", traffic(here))
            }
            None | Some(_) => return None,
        };
        Some((server, problem))
    })
}

/// Whether a server is out of service although its change, if it was granted one, has not begun or
/// has ended.
fn is_broken(here: &ServerAppStatus) -> bool {
    use ActivationStage::{Applied, Checked};
    let fails = matches!(here.unfit, Some(Unfit::Unhealthy { .. } | Unfit::Failed { .. }));
    fails && !matches!(here.activation, Some(Applied { .. } | Checked { .. }))
}

/// What an app waits for; a rollback says that it is one.
pub(crate) fn wait_sentence(app: &AppStatus, on: &WaitingOn) -> String {
    let sentence = sentence(on);
    match app.state {
        PhaseName::RollingBack => format!("{}: {sentence}", rollback(app)),
        PhaseName::Removing => format!("being removed: {sentence}"),
        PhaseName::Empty | PhaseName::Running | PhaseName::Forward(_) | PhaseName::Held => sentence,
    }
}

/// A rollback in progress: from where to where.
pub(crate) fn rollback(app: &AppStatus) -> String {
    match (&app.target, &app.last_good) {
        (Some(target), Some(good)) => format!("rolling back from {target} to {good}"),
        (Some(target), None) => format!("rolling back {target}, to nothing"),
        (None, _) => "rolling back".to_owned(),
    }
}

/// Whether it is unknown what an app does on a server.
fn is_unknown(app: &AppStatus, group: &GroupStatus, server: &ServerId) -> bool {
    group.servers[server].unknown || app.servers.get(server).is_some_and(|here| here.unknown)
}

/// What it runs, such as `runs 1.2.0`.
pub(crate) fn runs(here: &ServerAppStatus) -> String {
    here.running.as_ref().map_or_else(|| "runs nothing".to_owned(), |it| format!("runs {it}"))
}

/// Whether a server takes traffic, as far as known.
pub(crate) fn serves(here: &ServerAppStatus) -> bool {
    here.in_service && !here.unknown
}

/// Whether it serves, and if not, why.
pub(crate) fn traffic(here: &ServerAppStatus) -> String {
    if here.unknown {
        return "unknown whether it serves".to_owned();
    }
    match (here.in_service, &here.unfit) {
        (true, _) => "serving".to_owned(),
        (false, None) => "not serving".to_owned(),
        (false, Some(why)) => format!("not serving ({})", words::unfit(why)),
    }
}

#[cfg(test)]
#[path = "report_test.rs"]
pub(crate) mod report_test;
