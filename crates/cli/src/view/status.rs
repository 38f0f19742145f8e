//! `cohort status`: one line per group and app.

use cohort_core::ids::ServerId;
use cohort_core::phase::PhaseName;
use cohort_wire::agent::{AppStatus, GroupStatus, ServerAppStatus, TransferStatus};

use crate::clock::brief;
use crate::output::{Look, Tone, cell, render, table, toned};
use crate::view::report::{AppReport, FleetReport, GroupReport, wanted};

/// Groups with more servers get numbers only.
const STRIP_SERVERS_MAX: usize = 40;

/// The fleet.
pub(crate) fn fleet(report: &FleetReport, look: Look) -> String {
    if report.groups.is_empty() {
        return "no server has joined yet: cohort token create, then cohort agent there\n".into();
    }
    let headings =
        ["GROUP", "APP", "STATE", "RUNS", "TARGET", "WAVE", "UPDATED", "SERVING", "LEADER", "WHY"];
    let mut rows = table(look, &headings);
    for group in &report.groups {
        add_group(&mut rows, group, look);
    }
    let mut text = render(&rows);
    // Below the table: a line as long as this would tear it.
    let moving = report.groups.iter().flat_map(|group| {
        let transfers = group.status.iter().flat_map(under_way);
        transfers.map(move |transfer| format!("{} {}\n", group.group, transfer_text(transfer)))
    });
    for (place, line) in moving.enumerate() {
        if place == 0 {
            text.push('\n');
        }
        text.push_str(&line);
    }
    text
}

/// What moves now; nothing is said of what came before.
fn under_way(status: &GroupStatus) -> impl Iterator<Item = &TransferStatus> {
    status.transfers.iter().filter(|transfer| transfer.under_way)
}

fn transfer_text(transfer: &TransferStatus) -> String {
    match &transfer.app {
        Some(app) => format!("{app} {}", transfer.sentence),
        None => transfer.sentence.clone(),
    }
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
            cell(format!("{}/{}", report.in_service, report.servers)),
            cell(leader),
            cell(why),
        ]);
    }
}

/// The state, and whether a person has stopped it there.
pub(crate) fn state_text(app: &AppStatus) -> String {
    if app.paused { format!("{} (paused)", app.state) } else { app.state.to_string() }
}

/// The one thing to know about an app's row.
fn why(group: &GroupReport, app: &AppReport) -> String {
    if !group.problems.is_empty() {
        return first_of(&sentences(group));
    }
    match app.state {
        // What it waits for is less telling than why it is there.
        PhaseName::Held | PhaseName::RollingBack => app.reason.clone(),
        PhaseName::Empty | PhaseName::Running | PhaseName::Forward(_) => {
            match first_of(&app.waiting) {
                none if none == "-"
                    && app.state == PhaseName::Running
                    && !app.reason.is_empty() =>
                {
                    app.reason.clone()
                }
                first => first,
            }
        }
    }
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
    match app.state {
        PhaseName::Running if app.healthy => Tone::Good,
        PhaseName::Held | PhaseName::RollingBack => Tone::Bad,
        PhaseName::Empty | PhaseName::Running | PhaseName::Forward(_) => Tone::Busy,
    }
}

fn tone_of(healthy: bool) -> Tone {
    if healthy { Tone::Good } else { Tone::Bad }
}

/// Such as `3/10 ###>......`: `#` is there, `>` is being changed, `x` failed or owes, `.` is next.
fn progress(app: &AppStatus, group: &GroupStatus, report: &AppReport) -> String {
    let numbers = format!("{}/{}", report.updated, report.servers);
    if report.updated == report.servers || report.servers > STRIP_SERVERS_MAX {
        return numbers;
    }
    let goal = wanted(app);
    let strip: String = group.servers.keys().map(|id| mark(app.servers.get(id), goal)).collect();
    format!("{numbers} {strip}")
}

fn mark(here: Option<&ServerAppStatus>, goal: Option<&cohort_core::ids::Version>) -> char {
    let Some(here) = here else { return '.' };
    let failed = here
        .activation
        .as_ref()
        .is_some_and(|stage| stage.starts_with("failed") || stage.starts_with("undone"));
    if failed || here.debt.is_some() {
        'x'
    } else if here.activation.is_some() {
        '>'
    } else if goal.is_some() && here.running.as_ref() == goal {
        '#'
    } else {
        '.'
    }
}

/// One group in full.
pub(crate) fn group(report: &GroupReport, look: Look) -> String {
    let Some(status) = &report.status else {
        let mut text = format!("group {}: {}\n", report.group, first_of(&sentences(report)));
        for (app, known) in &report.registry {
            let state = &known.state;
            text.push_str(&format!("  the registry last knew: {app} is {state}\n"));
        }
        return text;
    };
    let mut text = heading(status);
    for problem in &report.problems {
        text.push_str(&format!("  ! {}\n", problem.sentence));
    }
    for refusal in &status.refusals {
        text.push_str(&format!("  ! refused: {refusal}\n"));
    }
    for transfer in under_way(status) {
        text.push_str(&format!("  moves {}\n", transfer_text(transfer)));
        for offender in &transfer.offenders {
            text.push_str(&format!("  ! {}\n", offender.sentence));
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
    if !app.reason.is_empty() {
        text.push_str(&format!("  reason: {}\n", app.reason));
    }
    for failure in &app.failures {
        text.push_str(&format!("  failed: {failure}\n"));
    }
    for waiting in &app.waiting {
        text.push_str(&format!("  waits {}: {}\n", brief(waiting.for_ms), waiting.sentence));
    }
    text
}

fn servers(app: &AppStatus, status: &GroupStatus, look: Look) -> String {
    let headings = ["SERVER", "MEMBER", "HEARD", "RUNS", "SERVING", "STEP", "NOTE"];
    let mut rows = table(look, &headings);
    for (id, server) in &status.servers {
        let here = app.servers.get(id);
        let heard = server.contact_age_ms.map_or_else(|| "-".to_owned(), brief);
        let serving = here.is_some_and(|here| here.in_service);
        rows.add_row([
            cell(id),
            cell(member_text(id, status)),
            cell(heard),
            cell(version(here.and_then(|here| here.running.as_ref()))),
            toned(look, tone_of(serving), if serving { "yes" } else { "no" }),
            cell(here.map_or_else(|| "-".to_owned(), step_text)),
            cell(here.map_or_else(|| "has not reported yet".to_owned(), note_text)),
        ]);
    }
    render(&rows)
}

/// What a server carries of the group's log.
pub(crate) fn member_text(id: &ServerId, status: &GroupStatus) -> &'static str {
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

/// What is being done to it, in the server's own words when it said so.
pub(crate) fn step_text(here: &ServerAppStatus) -> String {
    match (&here.doing, &here.activation) {
        (Some(doing), _) if doing.detail.is_empty() => doing.step.name().to_owned(),
        (Some(doing), _) => format!("{} ({})", doing.step.name(), doing.detail),
        (None, Some(stage)) => stage.clone(),
        (None, None) => "-".to_owned(),
    }
}

/// Where a server is to end, when it is not there.
pub(crate) fn wanted_text(here: &ServerAppStatus, app: &AppStatus) -> String {
    match wanted(app) {
        Some(goal) if here.running.as_ref() != Some(goal) => format!(" (to be {goal})"),
        Some(_) | None => String::new(),
    }
}

fn note_text(here: &ServerAppStatus) -> String {
    match (&here.debt, here.health.as_str(), here.in_service) {
        (Some(debt), _, _) => format!("owes the good release: {debt}"),
        (None, why, false) if !why.is_empty() => why.to_owned(),
        (None, ..) => String::new(),
    }
}

#[cfg(test)]
#[path = "status_test.rs"]
mod status_test;
