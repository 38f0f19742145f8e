//! `cohort status`: one line per group and app, or one group in detail.

use cohort_core::ids::ServerId;
use cohort_core::phase::PhaseName;
use cohort_core::state::ActivationStage;
use cohort_wire::agent::{AppStatus, GroupStatus, ServerAppStatus, ServerStatus, TransferStatus};
use comfy_table::Cell;

use crate::command::Command;
use crate::doing::detail;
use crate::figures::brief;
use crate::report::{AppReport, FleetReport, GroupReport, serves, wanted, went_back};
use crate::table::{Look, Tone, cell, render, table, toned};
use crate::transfer;
use crate::waiting::sentence;
use crate::words;

/// Larger groups get only numbers, no strip of marks: it would not fit next to the other columns.
const STRIP_SERVERS_MAX: usize = 40;

/// The fleet, one line per group and app.
#[must_use]
pub fn fleet(report: &FleetReport, look: Look, all: bool) -> String {
    if report.groups.is_empty() {
        let token = Command::TokenCreate { role: None, named: false };
        let agent = Command::Agent { hub: None };
        return format!("no server has joined yet\n  -> {token}\n  -> on the server: {agent}\n");
    }
    let headings =
        ["GROUP", "APP", "STATE", "RUNS", "TARGET", "WAVE", "UPDATED", "SERVING", "LEADER", "WHY"];
    let mut rows = table(look, &headings);
    let few = all || report.groups.len() <= GROUPS_SHOWN_MAX;
    let rests = |group: &&GroupReport| !few && group.rests();
    // What is not well comes first, where it could be overlooked.
    let mut shown: Vec<&GroupReport> = report.groups.iter().filter(|it| !rests(it)).collect();
    if !few {
        shown.sort_by_key(|group| group.healthy);
    }
    for group in shown {
        add_group(&mut rows, group, look);
    }
    let mut text = render(&rows);
    let resting = report.groups.iter().filter(rests).count();
    if resting > 0 {
        let all = report.groups.len();
        text.push_str(&format!(
            "{resting} of {all} groups are well and not moving: cohort status --all\n"
        ));
    }
    // Below the table: lines this long would break its columns.
    let moving: String = report
        .groups
        .iter()
        .flat_map(|group| {
            let transfers = group.status.iter().flat_map(under_way);
            transfers.map(move |it| format!("{} {}\n", group.group, transfer::sentence(it)))
        })
        .collect();
    if !moving.is_empty() {
        text.push('\n');
        text.push_str(&moving);
    }
    text
}

/// Of more groups, those that are well and not moving are counted only.
const GROUPS_SHOWN_MAX: usize = 40;

fn under_way(status: &GroupStatus) -> impl Iterator<Item = &TransferStatus> {
    status.transfers.iter().filter(|transfer| transfer.under_way)
}

fn add_group(rows: &mut comfy_table::Table, group: &GroupReport, look: Look) {
    let leader = group.status.as_ref().and_then(|status| status.leader.as_ref());
    let leader = leader.map_or("-", ServerId::as_str);
    let Some(status) = group.status.as_ref().filter(|status| !status.apps.is_empty()) else {
        let last = group.registry.values().next().map(|known| format!("({})", known.state));
        let mut row = vec![cell(&group.group), cell("-")];
        let state = match group.status {
            Some(_) => "no app".to_owned(),
            None => last.unwrap_or_else(|| "unknown".to_owned()),
        };
        row.push(toned(look, tone_of(group.healthy), state));
        row.extend((0..5).map(|_| cell("-")));
        row.push(cell(leader));
        row.push(cell(first_of(&sentences(group))));
        rows.add_row(row);
        return;
    };
    for (id, app) in &status.apps {
        let Some(report) = group.apps.get(id) else { continue };
        let why = why(group, report);
        rows.add_row([
            cell(&group.group),
            cell(id),
            toned(look, state_tone(report), state_text(app)),
            cell(version(report.release.as_ref())),
            cell(version(report.target.as_ref())),
            cell(if report.wave == 0 { "-".to_owned() } else { report.wave.to_string() }),
            cell(progress(app, status, report)),
            cell(serving(report)),
            cell(leader),
            cell(why),
        ]);
    }
}

fn state_text(app: &AppStatus) -> String {
    if app.paused { format!("{} (paused)", app.state) } else { app.state.to_string() }
}

/// Servers that serve, such as `3/5`, or `3/5 (2 unknown)`.
fn serving(report: &AppReport) -> String {
    let AppReport { in_service, servers, unknown, .. } = report;
    match unknown {
        0 => format!("{in_service}/{servers}"),
        unknown => format!("{in_service}/{servers} ({unknown} unknown)"),
    }
}

/// The most important fact for an app's row.
fn why(group: &GroupReport, app: &AppReport) -> String {
    if !group.problems.is_empty() {
        return first_of(&sentences(group));
    }
    // Why it rolled back is more informative than what it is waiting for.
    if went_back(app.state) {
        return app.reason.clone();
    }
    // At rest, what makes it unhealthy comes first.
    let reason = Some(&app.reason).filter(|why| app.state == PhaseName::Running && !why.is_empty());
    let waiting = app.waiting.iter().filter(|it| Some(*it) != reason);
    first_of(&reason.into_iter().chain(waiting).cloned().collect::<Vec<_>>())
}

fn sentences(group: &GroupReport) -> Vec<String> {
    group.problems.iter().map(|problem| problem.sentence.clone()).collect()
}

fn first_of(texts: &[String]) -> String {
    match texts {
        [] => "-".to_owned(),
        [one] => one.clone(),
        [first, more @ ..] => format!("{first} (and {} more)", more.len()),
    }
}

fn version(version: Option<&cohort_core::ids::Version>) -> String {
    version.map_or_else(|| "-".to_owned(), ToString::to_string)
}

fn state_tone(app: &AppReport) -> Tone {
    if went_back(app.state) {
        Tone::Bad
    } else if app.state == PhaseName::Running && app.healthy {
        Tone::Good
    } else {
        Tone::Busy
    }
}

fn tone_of(healthy: bool) -> Tone {
    if healthy { Tone::Good } else { Tone::Bad }
}

/// Progress, such as `3/10 ###>......`: `#` updated, `>` changing, `x` failed or in debt, `?`
/// unknown, `.` pending.
fn progress(app: &AppStatus, group: &GroupStatus, report: &AppReport) -> String {
    let numbers = format!("{}/{}", report.updated, report.servers);
    let all = report.updated == report.servers && report.unknown == 0;
    if all || report.servers > STRIP_SERVERS_MAX {
        return numbers;
    }
    let goal = wanted(app);
    let strip: String = group.servers.keys().map(|id| mark(app.servers.get(id), goal)).collect();
    format!("{numbers} {strip}")
}

fn mark(here: Option<&ServerAppStatus>, goal: Option<&cohort_core::ids::Version>) -> char {
    let Some(here) = here else { return '.' };
    let failed = matches!(
        here.activation,
        Some(ActivationStage::Failed { .. } | ActivationStage::Undone { .. })
    );
    if here.unknown {
        '?'
    } else if failed || here.debt.is_some() {
        'x'
    } else if here.activation.is_some() {
        '>'
    } else if goal.is_some() && here.running.as_ref() == goal {
        '#'
    } else {
        '.'
    }
}

/// One group in detail.
#[must_use]
pub fn group(report: &GroupReport, look: Look) -> String {
    let Some(status) = &report.status else {
        let mut text = format!("group {}: {}\n", report.group, first_of(&sentences(report)));
        for (app, known) in &report.registry {
            let state = &known.state;
            text.push_str(&format!("  last recorded by the hub: {app} {state}\n"));
        }
        return text;
    };
    let mut text = heading(status);
    for problem in &report.problems {
        text.push_str(&format!("  ! {}\n", problem.sentence));
    }
    for refusal in &status.refusals {
        text.push_str(&format!("  ! refused: {}\n", words::refused(refusal)));
    }
    for transfer in under_way(status) {
        text.push_str(&format!("  transfer {}\n", transfer::sentence(transfer)));
        for offender in &transfer.offenders {
            text.push_str(&format!("  ! {}\n", transfer::offender(offender)));
        }
    }
    for (id, app) in &status.apps {
        text.push('\n');
        let for_ms = report.apps.get(id).map_or(0, |app| app.for_ms);
        text.push_str(&app_lines(id.as_str(), app, for_ms));
        text.push('\n');
        text.push_str(&servers(app, status, look));
    }
    text
}

fn heading(status: &GroupStatus) -> String {
    let leader = status.leader.as_ref().map_or("none", ServerId::as_str);
    let platform = status.platform.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    format!(
        "group {} ({platform}): {} servers, {} voters, {} standbys, leader {leader} (term {}), \
         incarnation {}\n",
        status.group,
        status.servers.len(),
        status.voters.len(),
        status.standbys.len(),
        status.term,
        status.incarnation,
    )
}

fn app_lines(id: &str, app: &AppStatus, for_ms: u64) -> String {
    let mut text = format!("app {id}: {}", state_text(app));
    if app.wave > 0 {
        let names: Vec<&str> = app.wave_servers.iter().map(ServerId::as_str).collect();
        text.push_str(&format!(", wave {} ({})", app.wave, names.join(", ")));
    }
    match (&app.last_good, &app.target) {
        (Some(good), Some(target)) if good != target => {
            text.push_str(&format!(", runs {good}, target {target}"));
        }
        (Some(good), _) => text.push_str(&format!(", runs {good}")),
        (None, Some(target)) => text.push_str(&format!(", target {target}")),
        (None, None) => {}
    }
    text.push_str(&format!(", for {}\n", brief(for_ms)));
    if let Some(reason) = &app.reason {
        text.push_str(&format!("  reason: {}\n", words::reason(reason)));
    }
    for failure in &app.failures {
        let (step, server) = (failure.step.name(), &failure.server);
        text.push_str(&format!("  failed: {step} on {server}: {}\n", failure.reason));
    }
    for waiting in &app.waiting {
        let age = brief(waiting.for_ms);
        text.push_str(&format!("  waiting {age}: {}\n", sentence(&waiting.on)));
    }
    text
}

fn servers(app: &AppStatus, status: &GroupStatus, look: Look) -> String {
    let headings = ["SERVER", "MEMBER", "HEARD", "RUNS", "SERVING", "STEP", "NOTE"];
    let mut rows = table(look, &headings);
    for (id, server) in &status.servers {
        let heard = server.contact_age_ms.map_or_else(|| "-".to_owned(), brief);
        let mut row = vec![cell(id), cell(member_text(id, status)), cell(heard)];
        row.extend(app_here(app.servers.get(id), server, look));
        rows.add_row(row);
    }
    render(&rows)
}

/// What an app does on a server: RUNS, SERVING, STEP, NOTE.
pub(crate) fn app_here(
    here: Option<&ServerAppStatus>,
    server: &ServerStatus,
    look: Look,
) -> [Cell; 4] {
    let serving = here.is_some_and(serves);
    let unknown = server.unknown || here.is_some_and(|here| here.unknown);
    let word = match (unknown, serving) {
        (true, _) => "unknown",
        (false, true) => "yes",
        (false, false) => "no",
    };
    [
        cell(version(here.and_then(|here| here.running.as_ref()))),
        toned(look, tone_of(serving), word),
        cell(here.and_then(step).unwrap_or_else(|| "-".to_owned())),
        cell(here.map_or_else(|| "has not reported yet".to_owned(), note_text)),
    ]
}

/// A server's role in the group's log.
pub fn member_text(id: &ServerId, status: &GroupStatus) -> &'static str {
    let is_in = |members: &[cohort_core::orders::MemberAddress]| {
        members.iter().any(|member| member.server == *id)
    };
    if status.leader.as_ref() == Some(id) {
        "leader"
    } else if is_in(&status.voters) {
        "voter"
    } else if is_in(&status.standbys) {
        "standby"
    } else {
        "-"
    }
}

/// The step that a server is taking, with details; `None` if no change is in progress. Of an
/// unknown server, the last one that it reported.
pub(crate) fn step(here: &ServerAppStatus) -> Option<String> {
    if let Some(doing) = &here.doing {
        let name = doing.step().name();
        if here.unknown {
            return Some(format!("{name} (last seen)"));
        }
        let detail = detail(doing);
        return Some(if detail.is_empty() {
            name.to_owned()
        } else {
            format!("{name} ({detail})")
        });
    }
    here.activation.as_ref().map(|stage| match stage {
        ActivationStage::Granted => "granted".to_owned(),
        ActivationStage::Withdrawn => "withdrawn".to_owned(),
        ActivationStage::Applied { .. } => "applied".to_owned(),
        ActivationStage::Checked { .. } => "checked".to_owned(),
        ActivationStage::Failed { step, reason, .. } => {
            format!("{} failed: {reason}", step.name())
        }
        ActivationStage::Undone { reason, .. } => format!("undone: {reason}"),
    })
}

fn note_text(here: &ServerAppStatus) -> String {
    match (&here.debt, &here.unfit, here.in_service) {
        (Some(debt), _, _) => {
            format!("to start the last good release again: {}", words::debt(debt))
        }
        (None, Some(why), false) => words::unfit(why),
        (None, _, _) => match &here.ignored_hook {
            Some(why) => format!("stopped although a hook failed: {}", words::line(why)),
            None => String::new(),
        },
    }
}

#[cfg(test)]
#[path = "status_test.rs"]
mod status_test;
