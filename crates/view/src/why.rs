//! `cohort why`: what each app or server is waiting for, since when, and what unblocks it.

use std::collections::BTreeMap;

use cohort_core::doing::Download;
use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_core::reason::Unfit;
use cohort_core::waiting::WaitingOn;
use cohort_wire::agent::{
    AppStatus, Doing, GroupStatus, OffenderStatus, ServerAppStatus, SourceName, TransferStatus,
    WaitingStatus,
};
use serde::Serialize;

use crate::command::Command;
use crate::doing::detail;
use crate::figures::brief;
use crate::hint::{self, Hint};
use crate::report::{
    FleetReport, GroupReport, Problem, disk_problem, runs, server_problems, stopped_by_file,
    traffic, wait_sentence, wanted,
};
use crate::silence::silence;
use crate::status::step;
use crate::transfer;
use crate::waiting::{concerns, hints, inspect_download, placing_hints, placing_sentence};
use crate::words;

/// A wait of an app, a server or a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wait {
    pub group: GroupId,
    /// The app that is waiting; `None`: the group as a whole.
    pub app: Option<AppId>,
    /// The server that is waiting; `None`: the group as a whole.
    pub server: Option<ServerId>,
    /// What it is waiting for, as data; `None` for a problem of the group, or a server's own state.
    pub on: Option<WaitingOn>,
    pub sentence: String,
    /// What unblocks it; `None`: `sentence` is a state, and nothing is waiting.
    pub hints: Option<Vec<Hint>>,
    /// How long it has been waiting, in milliseconds; `None` if unknown.
    pub for_ms: Option<u64>,
}

impl Wait {
    fn state(group: &GroupId, app: Option<&AppId>, sentence: String) -> Self {
        let (group, app) = (group.clone(), app.cloned());
        Wait { group, app, server: None, on: None, sentence, hints: None, for_ms: None }
    }

    /// The wait and what unblocks it, as lines of text; `about` is what it is about.
    pub(crate) fn lines<'a>(&self, about: impl Iterator<Item = &'a str>) -> String {
        let about: Vec<&str> = about.collect();
        let colon = if about.is_empty() { "" } else { ": " };
        // How long a server has been silent is said once, by its own age.
        let has_age = matches!(self.on, Some(WaitingOn::ServerUnreachable { .. }));
        let since = match self.for_ms {
            Some(ms) if ms >= 1000 && !has_age => format!(" (for {})", brief(ms)),
            Some(_) | None => String::new(),
        };
        let hints = self.hints.as_ref().map(|hints| hint::lines(hints, "    "));
        let about = about.join(", ");
        format!("  {about}{colon}{}{since}\n{}", self.sentence, hints.unwrap_or_default())
    }

    fn of(group: &GroupId, id: &AppId, app: &AppStatus, waiting: &WaitingStatus) -> Self {
        Wait {
            hints: Some(hints(&waiting.on, group, id, app.state)),
            on: Some(waiting.on.clone()),
            for_ms: Some(waiting.for_ms),
            ..Wait::state(group, Some(id), wait_sentence(app, &waiting.on))
        }
    }
}

/// Every wait of every group. A group with nothing to wait for says that it is up to date.
#[must_use]
pub fn waits(report: &FleetReport) -> Vec<Wait> {
    report.groups.iter().flat_map(group_waits).collect()
}

fn is_up_to_date(waiting: &WaitingStatus) -> bool {
    waiting.on == WaitingOn::NewRelease
}

fn group_waits(report: &GroupReport) -> Vec<Wait> {
    let group = &report.group;
    let problems = report.problems.iter().map(|problem| Wait {
        hints: Some(problem.hints.clone()),
        ..Wait::state(group, None, problem.sentence.clone())
    });
    let mut waits: Vec<Wait> = problems.collect();
    let placing = report.status.iter().find_map(|status| status.placing.as_ref());
    waits.extend(placing.map(|placing| Wait {
        hints: Some(placing_hints(&placing.on, group)),
        for_ms: Some(placing.for_ms),
        ..Wait::state(group, None, placing_sentence(&placing.on))
    }));
    for (id, app) in report.status.iter().flat_map(|status| &status.apps) {
        let broken: Vec<Wait> =
            report.status.iter().flat_map(|status| broken(status, id, app)).collect();
        // Being up to date is worth a line only where nothing else is.
        let rests = broken.is_empty() && app.waiting.iter().all(is_up_to_date);
        let shown = app.waiting.iter().filter(|waiting| rests || !is_up_to_date(waiting));
        waits.extend(shown.map(|waiting| {
            let mut wait = Wait::of(group, id, app, waiting);
            wait.sentence.push_str(&details(&waiting.on, app));
            wait.hints.get_or_insert_default().extend(hint_of(&waiting.on, id, app));
            wait
        }));
        waits.extend(broken);
        let group = report.status.iter();
        waits.extend(group.flat_map(|status| {
            app.servers.iter().filter_map(|(it, here)| ignored_hook(status, id, it, here))
        }));
    }
    waits.extend(
        report
            .status
            .iter()
            .flat_map(|status| status.servers.keys().flat_map(|server| machine(status, server))),
    );
    waits.extend(report.status.iter().flat_map(|status| offenders(status, None)));
    waits
}

/// What is wrong with a server's machine, although its group may be healthy: a clock that differs
/// from the others', a copy of the machine.
fn machine(status: &GroupStatus, id: &ServerId) -> Vec<Wait> {
    let mut waits = Vec::new();
    let Some(server) = status.servers.get(id) else { return waits };
    let mut wait = |sentence, hints| {
        let (server, hints) = (Some(id.clone()), Some(hints));
        waits.push(Wait { server, hints, ..Wait::state(&status.group, None, sentence) });
    };
    let ahead_ms = server.clock_ahead_ms;
    if ahead_ms != 0 {
        let side = if ahead_ms > 0 { "ahead of" } else { "behind" };
        let by = brief(ahead_ms.unsigned_abs());
        wait(
            format!("the clock of {id} is {by} {side} the other servers'"),
            vec![format!("set the clock of {id}").into()],
        );
    }
    if let Some(copy) = &server.copy {
        let (host, age, first) = (&copy.host, brief(copy.age_ms), &server.address);
        wait(
            format!("a machine on {host} runs as {id}, too, and is refused (last {age} ago)"),
            vec![
                "if it is a copy: stop its agent, empty its data_dir, and let it join under a name \
                 of its own"
                    .into(),
                format!(
                    "if it replaces the one at {first}: stop that one's agent; the group accepts \
                     the other after 10 minutes of its silence"
                )
                .into(),
            ],
        );
    }
    waits
}

/// A way back that stopped a release although a hook failed: what the hook should have done was not
/// done.
fn ignored_hook(
    status: &GroupStatus,
    id: &AppId,
    server: &ServerId,
    here: &ServerAppStatus,
) -> Option<Wait> {
    let why = words::line(here.ignored_hook.as_ref()?);
    let hint = format!("see the hook's output in apps/{id}/hooks of the data_dir of {server}");
    Some(Wait {
        server: Some(server.clone()),
        hints: Some(vec![hint.into()]),
        ..Wait::state(&status.group, Some(id), format!("stopped although a hook failed: {why}"))
    })
}

/// Servers that do not do what they should, although nothing waits for them.
fn broken(status: &GroupStatus, id: &AppId, app: &AppStatus) -> Vec<Wait> {
    // That something waits for it does not say that its checks fail.
    let unhealthy = |server: &ServerId| {
        let unfit = app.servers.get(server).and_then(|here| here.unfit.as_ref());
        matches!(unfit, Some(Unfit::Unhealthy { .. }))
    };
    let says_why = |on: &WaitingOn| {
        use WaitingOn::{Debt, NotStopped, ServerUnreachable};
        matches!(on, Debt { .. } | NotStopped { .. } | ServerUnreachable { .. })
    };
    let named = |server: &ServerId| {
        let mut waiting = app.waiting.iter().filter(|waiting| concerns(&waiting.on, server));
        status.servers[server].unknown
            || waiting.any(|waiting| says_why(&waiting.on) || !unhealthy(server))
    };
    let wait = |(server, problem): (&ServerId, String)| Wait {
        server: Some(server.clone()),
        hints: Some(vec![Hint::run_to(
            "read what it wrote",
            Command::Logs { server: server.clone(), app: id.clone() },
        )]),
        ..Wait::state(&status.group, Some(id), problem)
    };
    server_problems(app, status).filter(|(server, _)| !named(server)).map(wait).collect()
}

/// Most servers whose progress is shown.
const DETAILS_MAX: usize = 3;

/// The progress of servers that download, ` (web-2: 3.1 MiB of 8.0 MiB; from web-1)`, or are
/// checked, ` (web-2: http :8080/healthz: status 503, expected 200; fails in 4m)`.
fn details(on: &WaitingOn, app: &AppStatus) -> String {
    let says = |server: &ServerId| {
        let doing = app.servers.get(server)?.doing.as_ref()?;
        let shown = match on {
            WaitingOn::Download { .. } => matches!(doing, Doing::Download(_)),
            _ => matches!(doing, Doing::Checking { .. }),
        };
        shown.then(|| format!(" ({server}: {})", detail(doing)))
    };
    let servers: Vec<&ServerId> = match on {
        WaitingOn::Download { servers } => servers.iter().collect(),
        WaitingOn::Steps { servers } => servers.iter().map(|(server, _)| server).collect(),
        _ => Vec::new(),
    };
    servers.into_iter().filter_map(says).take(DETAILS_MAX).collect()
}

/// What to do about a download that has failed more than once, or a check that does not pass. Both
/// go on, but what they fail at (a full disk, a network, a database) may need somebody.
fn hint_of(on: &WaitingOn, id: &AppId, app: &AppStatus) -> Option<Hint> {
    let doing = |server: &ServerId| app.servers.get(server)?.doing.as_ref();
    match on {
        WaitingOn::Download { servers } => {
            let fails = |server: &&ServerId| {
                matches!(doing(server), Some(Doing::Download(Download::Failed { tries: 2.., .. })))
            };
            servers.iter().find(fails).map(inspect_download)
        }
        WaitingOn::Steps { servers } => {
            let fails = |server: &&ServerId| matches!(doing(server), Some(Doing::Checking { .. }));
            let server = servers.iter().map(|(server, _)| server).find(fails)?.clone();
            let logs = Command::Logs { server, app: id.clone() };
            Some(Hint::run_to("read what its service writes", logs))
        }
        _ => None,
    }
}

/// How long offenders are still shown after their transfer has ended, in milliseconds. 10 min: long
/// enough to look after a rollout.
const OFFENDERS_SHOWN_MS: u64 = 10 * 60 * 1_000;

/// Misbehaving sources of transfers; with `server`, only those that it is or has seen.
fn offenders(status: &GroupStatus, server: Option<&ServerId>) -> Vec<Wait> {
    let concerns = |offender: &&OffenderStatus| {
        let is = |server| matches!(&offender.source, SourceName::Server(it) if it == server);
        server.is_none_or(|server| is(server) || offender.told_by.contains(server))
    };
    let recent = |transfer: &&TransferStatus| {
        transfer.under_way || transfer.for_ms < transfer.took_ms.unwrap_or(0) + OFFENDERS_SHOWN_MS
    };
    let of = |transfer: &TransferStatus| -> Vec<Wait> {
        let wait = |offender: &OffenderStatus| Wait {
            server: server.cloned(),
            hints: Some(transfer::offender_hints(offender)),
            ..Wait::state(&status.group, transfer.app.as_ref(), transfer::offender(offender))
        };
        transfer.offenders.iter().filter(concerns).map(wait).collect()
    };
    status.transfers.iter().filter(recent).flat_map(of).collect()
}

/// Waits as text, by group.
#[must_use]
pub fn text(waits: &[Wait]) -> String {
    let mut groups: BTreeMap<&GroupId, Vec<&Wait>> = BTreeMap::new();
    for wait in waits {
        groups.entry(&wait.group).or_default().push(wait);
    }
    let mut text = String::new();
    for (group, waits) in groups {
        text.push_str(&format!("{group}\n"));
        for wait in waits {
            let server = wait.server.iter().map(ServerId::as_str);
            text.push_str(&wait.lines(server.chain(wait.app.iter().map(AppId::as_str))));
        }
    }
    if text.is_empty() {
        let publish = Command::Publish { app: None, channel: Some("stable".to_owned()) };
        let hints = [Command::AppApply.into(), publish.into()];
        text = format!("nothing is deployed yet\n{}", hint::lines(&hints, "  "));
    }
    text
}

/// The waits of one server: its own state, then those that name it. If none do, and it does not run
/// what it should, it is waiting for its turn, and therefore for everything that its group is
/// waiting for.
#[must_use]
pub fn server_waits(status: &GroupStatus, server: &ServerId) -> Vec<Wait> {
    let group = &status.group;
    let mine = |wait: Wait| Wait { server: Some(server.clone()), ..wait };
    let Some(known) = status.servers.get(server) else {
        let hint = "check that its agent runs and reaches the group's members".into();
        let sentence = "joined the fleet, but not in its group yet".to_owned();
        return vec![mine(Wait { hints: Some(vec![hint]), ..Wait::state(group, None, sentence) })];
    };
    let mut waits = Vec::new();
    for (id, app) in &status.apps {
        let heard = match known.contact_age_ms {
            Some(ms) => format!("; last contact {} ago", brief(ms)),
            None => "; no contact with the leader yet".to_owned(),
        };
        let own = own_sentence(app.servers.get(server), app) + &heard;
        waits.push(mine(Wait::state(group, Some(id), own)));
        // One that runs what it should, and changes nothing, does not wait for what others owe.
        let rests = app.servers.get(server).is_some_and(|here| {
            let runs = here.running.as_ref().is_some_and(|it| Some(it) == wanted(app));
            runs && here.activation.is_none() && here.debt.is_none()
        });
        let of_others =
            |on: &WaitingOn| rests && status.servers.keys().any(|other| concerns(on, other));
        let its_turn = !app.waiting.iter().any(|waiting| concerns(&waiting.on, server));
        let shown =
            app.waiting.iter().filter(|waiting| !is_up_to_date(waiting)).filter(|waiting| {
                concerns(&waiting.on, server) || (its_turn && !of_others(&waiting.on))
            });
        waits.extend(shown.map(|waiting| mine(Wait::of(group, id, app, waiting))));
        let here = app.servers.get(server);
        waits.extend(here.and_then(|here| ignored_hook(status, id, server, here)));
    }
    if known.unknown
        && let Some(problem) = silence(status)
    {
        let hints = Some(problem.hints);
        waits.insert(
            waits.len().min(1),
            mine(Wait { hints, ..Wait::state(group, None, problem.sentence) }),
        );
    }
    let stopped = known.stopped.then(|| stopped_by_file(server));
    let machine_problems = disk_problem(server, known).into_iter().chain(stopped);
    waits.extend(machine_problems.map(|Problem { sentence, hints }| {
        mine(Wait { hints: Some(hints), ..Wait::state(group, None, sentence) })
    }));
    waits.extend(machine(status, server));
    waits.extend(offenders(status, Some(server)));
    waits
}

fn own_sentence(here: Option<&ServerAppStatus>, app: &AppStatus) -> String {
    let Some(here) = here else { return "has not reported yet".to_owned() };
    let goal = match wanted(app) {
        Some(goal) if here.running.as_ref() != Some(goal) => format!(" (target {goal})"),
        Some(_) | None => String::new(),
    };
    let step = step(here).map_or_else(String::new, |step| format!(", step {step}"));
    let debt = here.debt.as_ref();
    let debt = debt.map_or_else(String::new, |why| {
        format!(", to start the last good again: {}", words::debt(why))
    });
    format!("{}{goal}, {}{step}{debt}", runs(here), traffic(here))
}

#[cfg(test)]
#[path = "why_test.rs"]
mod why_test;
