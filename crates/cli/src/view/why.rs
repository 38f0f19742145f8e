//! `cohort why`: the one thing that each waits for, since when, and what unblocks it.

use std::collections::BTreeMap;

use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_core::report::Step;
use cohort_core::waiting::WaitingOn;
use cohort_wire::agent::{AppStatus, GroupStatus, OffenderStatus, ServerAppStatus, TransferStatus};
use serde::Serialize;

use crate::clock::brief;
use crate::view::report::{FleetReport, GroupReport, is_idle};
use crate::view::status::{step_text, wanted_text};

/// One wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Wait {
    /// Which group.
    pub(crate) group: GroupId,
    /// Which app; none: the group as a whole.
    pub(crate) app: Option<AppId>,
    /// Which server; none: the group as a whole.
    pub(crate) server: Option<ServerId>,
    /// For what, as data; none when nobody of the group can be asked.
    pub(crate) on: Option<WaitingOn>,
    /// For what, in a sentence.
    pub(crate) sentence: String,
    /// What unblocks it.
    pub(crate) unblocks: String,
    /// For how long, in milliseconds; none: not known.
    pub(crate) for_ms: Option<u64>,
}

/// Every wait of every group; groups that run what they should have one that says so.
pub(crate) fn waits(report: &FleetReport) -> Vec<Wait> {
    report.groups.iter().flat_map(group_waits).collect()
}

fn group_waits(report: &GroupReport) -> Vec<Wait> {
    let group = &report.group;
    let problems = report.problems.iter().map(|problem| Wait {
        group: group.clone(),
        app: None,
        server: None,
        on: None,
        sentence: problem.sentence.clone(),
        unblocks: problem.unblocks.clone(),
        for_ms: None,
    });
    let mut waits: Vec<Wait> = problems.collect();
    for (id, app) in report.status.iter().flat_map(|status| &status.apps) {
        let telling: Vec<_> = app.waiting.iter().filter(|waiting| !is_idle(waiting)).collect();
        // Only when there is nothing else to tell is it worth saying that all is well.
        let shown = if telling.is_empty() { app.waiting.iter().collect() } else { telling };
        waits.extend(shown.into_iter().map(|waiting| Wait {
            group: group.clone(),
            app: Some(id.clone()),
            server: None,
            on: Some(waiting.on.clone()),
            sentence: waiting.sentence.clone() + &fetch_details(&waiting.on, app),
            unblocks: waiting.unblocks.clone(),
            for_ms: Some(waiting.for_ms),
        }));
    }
    waits.extend(report.status.iter().flat_map(|status| offenders(status, None)));
    waits
}

/// Servers whose own words are told of one wait.
const DETAILS_MAX: usize = 3;

/// What those say for whom bytes are awaited: `; web-2: 3.1 MiB of 8.0 MiB; from web-1`.
fn fetch_details(on: &WaitingOn, app: &AppStatus) -> String {
    let WaitingOn::Download { servers } = on else { return String::new() };
    let says = |server: &ServerId| {
        let doing = app.servers.get(server)?.doing.as_ref()?;
        let fetches = doing.step == Step::Fetch && !doing.detail.is_empty();
        fetches.then(|| format!(" ({server}: {})", doing.detail))
    };
    servers.iter().filter_map(says).take(DETAILS_MAX).collect()
}

/// Those that did wrong while artifacts were moved, as far as it concerns a server, or anyone.
fn offenders(status: &GroupStatus, server: Option<&ServerId>) -> Vec<Wait> {
    let concerns = |offender: &&OffenderStatus| {
        server.is_none_or(|server| {
            offender.source == server.as_str() || offender.told_by.contains(server)
        })
    };
    let of = |transfer: &TransferStatus| -> Vec<Wait> {
        let concerning = transfer.offenders.iter().filter(concerns);
        concerning
            .map(|offender| Wait {
                group: status.group.clone(),
                app: transfer.app.clone(),
                server: server.cloned(),
                on: None,
                sentence: offender.sentence.clone(),
                unblocks: offender.unblocks.clone(),
                for_ms: None,
            })
            .collect()
    };
    let lately = |transfer: &&TransferStatus| {
        transfer.under_way || transfer.for_ms < transfer.took_ms.unwrap_or(0) + OFFENDERS_TOLD_MS
    };
    status.transfers.iter().filter(lately).flat_map(of).collect()
}

/// For how long after a transfer those that did wrong in it are named, in milliseconds: long enough
/// that whoever looks after the rollout sees it.
const OFFENDERS_TOLD_MS: u64 = 10 * 60 * 1_000;

/// Waits for people.
pub(crate) fn text(waits: &[Wait]) -> String {
    let mut text = String::new();
    let mut groups: BTreeMap<&GroupId, Vec<&Wait>> = BTreeMap::new();
    for wait in waits {
        groups.entry(&wait.group).or_default().push(wait);
    }
    for (group, waits) in groups {
        text.push_str(&format!("{group}\n"));
        for wait in waits {
            let about = match (&wait.server, &wait.app) {
                (Some(server), Some(app)) => format!("{server}, {app}: "),
                (Some(server), None) => format!("{server}: "),
                (None, Some(app)) => format!("{app}: "),
                (None, None) => String::new(),
            };
            let since = match wait.for_ms {
                Some(ms) if ms >= 1000 => format!(" (for {})", brief(ms)),
                Some(_) | None => String::new(),
            };
            text.push_str(&format!("  {about}{}{since}\n", wait.sentence));
            if !wait.unblocks.is_empty() {
                text.push_str(&format!("    -> {}\n", wait.unblocks));
            }
        }
    }
    if text.is_empty() {
        text.push_str("nothing is deployed yet: cohort app apply -f FILE, cohort publish\n");
    }
    text
}

/// The waits of one server: its own first, then those of its group that name it, then all others
/// of its group when it simply has to wait for its turn.
pub(crate) fn server_waits(status: &GroupStatus, server: &ServerId) -> Vec<Wait> {
    let group = &status.group;
    let mut waits = Vec::new();
    let Some(known) = status.servers.get(server) else {
        return vec![Wait {
            group: group.clone(),
            app: None,
            server: Some(server.clone()),
            on: None,
            sentence: "joined the fleet, but its group does not know it yet".to_owned(),
            unblocks: "is its agent running, and can it reach the group's members?".to_owned(),
            for_ms: None,
        }];
    };
    for (id, app) in &status.apps {
        let here = app.servers.get(server);
        let wait = |sentence: String, unblocks: String, on: Option<WaitingOn>, for_ms| Wait {
            group: group.clone(),
            app: Some(id.clone()),
            server: Some(server.clone()),
            on,
            sentence,
            unblocks,
            for_ms,
        };
        let heard = match known.contact_age_ms {
            Some(ms) => format!("; heard {} ago", brief(ms)),
            None => "; never heard by the leader".to_owned(),
        };
        waits.push(wait(own_sentence(here, app) + &heard, String::new(), None, None));
        let naming: Vec<_> =
            app.waiting.iter().filter(|waiting| names(&waiting.on, server)).collect();
        let its_turn = naming.is_empty();
        let shown = app
            .waiting
            .iter()
            .filter(|waiting| !is_idle(waiting) && (its_turn || names(&waiting.on, server)));
        for waiting in shown {
            waits.push(wait(
                waiting.sentence.clone(),
                waiting.unblocks.clone(),
                Some(waiting.on.clone()),
                Some(waiting.for_ms),
            ));
        }
    }
    waits.extend(offenders(status, Some(server)));
    waits
}

/// What the server itself is at.
fn own_sentence(here: Option<&ServerAppStatus>, app: &AppStatus) -> String {
    let Some(here) = here else { return "has not reported yet".to_owned() };
    let runs = match &here.running {
        Some(version) => format!("runs {version}"),
        None => "runs nothing".to_owned(),
    };
    let traffic = match (here.in_service, here.health.as_str()) {
        (true, _) => "takes traffic".to_owned(),
        (false, "") => "takes no traffic".to_owned(),
        (false, why) => format!("takes no traffic ({why})"),
    };
    let step = match step_text(here).as_str() {
        "-" => String::new(),
        step => format!(", step: {step}"),
    };
    let debt = here.debt.as_ref().map_or_else(String::new, |debt| format!(", owes: {debt}"));
    format!("{runs}{}, {traffic}{step}{debt}", wanted_text(here, app))
}

/// Whether a wait is about this server.
fn names(on: &WaitingOn, server: &ServerId) -> bool {
    match serde_json::to_value(on) {
        // Whatever the variant: a server that is named in it is concerned.
        Ok(value) => mentions(&value, server.as_str()),
        Err(_) => false,
    }
}

fn mentions(value: &serde_json::Value, server: &str) -> bool {
    match value {
        serde_json::Value::String(text) => text == server,
        serde_json::Value::Array(list) => list.iter().any(|value| mentions(value, server)),
        serde_json::Value::Object(map) => map.values().any(|value| mentions(value, server)),
        _ => false,
    }
}

#[cfg(test)]
#[path = "why_test.rs"]
mod why_test;
