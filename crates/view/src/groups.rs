//! `cohort group`: groups with their servers and members.

use std::collections::BTreeMap;

use cohort_core::ids::{GroupId, Incarnation, Platform, ServerId};
use cohort_core::orders::MemberAddress;
use cohort_wire::agent::GroupStatus;
use serde::Serialize;

use crate::figures::brief;
use crate::report::{FleetReport, GroupReport, Problem};
use crate::status::member_text;
use crate::table::{Look, cell, render, table};

/// Every group, one line each.
#[must_use]
pub fn list(report: &FleetReport, look: Look) -> String {
    let headings = ["GROUP", "SERVERS", "VOTERS", "STANDBYS", "LEADER", "LABELS", "NOTE"];
    let mut rows = table(look, &headings);
    for group in &report.groups {
        let first = group.problems.first();
        let note = first.map_or_else(String::new, |problem| problem.sentence.clone());
        match &group.status {
            Some(status) => rows.add_row([
                cell(&group.group),
                cell(status.servers.len()),
                cell(status.voters.len()),
                cell(status.standbys.len()),
                cell(status.leader.as_ref().map_or("-", ServerId::as_str)),
                cell(labels(status)),
                cell(note),
            ]),
            None => {
                let unknown = ["-", "-", "-", "-", "-"].map(cell);
                let mut row = vec![cell(&group.group)];
                row.extend(unknown);
                row.push(cell(note));
                rows.add_row(row)
            }
        };
    }
    render(&rows)
}

/// A line of [`list`] for programs. What only an agent knows is none if none answered.
#[derive(Debug, Serialize)]
pub struct GroupSummary<'a> {
    pub group: &'a GroupId,
    reachable: bool,
    incarnation: Option<Incarnation>,
    labels: Option<&'a BTreeMap<String, String>>,
    platform: Option<&'a Platform>,
    servers: Option<Vec<&'a ServerId>>,
    voters: Option<&'a [MemberAddress]>,
    standbys: Option<&'a [MemberAddress]>,
    leader: Option<&'a ServerId>,
    problems: &'a [Problem],
}

impl<'a> GroupSummary<'a> {
    /// What `group list` says of a group.
    #[must_use]
    pub fn of(group: &'a GroupReport) -> Self {
        let status = group.status.as_ref();
        Self {
            group: &group.group,
            reachable: status.is_some(),
            incarnation: status.map(|status| status.incarnation),
            labels: status.map(|status| &status.labels),
            platform: status.and_then(|status| status.platform.as_ref()),
            servers: status.map(|status| status.servers.keys().collect()),
            voters: status.map(|status| &status.voters[..]),
            standbys: status.map(|status| &status.standbys[..]),
            leader: status.and_then(|status| status.leader.as_ref()),
            problems: &group.problems,
        }
    }
}

fn labels(status: &GroupStatus) -> String {
    let pairs: Vec<String> =
        status.labels.iter().map(|(name, text)| format!("{name}={text}")).collect();
    pairs.join(",")
}

/// One group: its servers and their roles.
#[must_use]
pub fn show(status: &GroupStatus, look: Look) -> String {
    let mut text = format!(
        "group {}\n  incarnation {}, term {}, log {} (applied {}), answered by {}\n\
         \x20 labels: {}\n\n",
        status.group,
        status.incarnation,
        status.term,
        status.commit,
        status.applied,
        status.answered_by,
        labels(status),
    );
    let headings = ["SERVER", "ADDRESS", "RACK", "MEMBER", "NUMBER", "HEARD"];
    let mut rows = table(look, &headings);
    for (id, server) in &status.servers {
        rows.add_row([
            cell(id),
            cell(&server.address),
            cell(server.rack.as_deref().unwrap_or("-")),
            cell(member_text(id, status)),
            cell(server.member.map_or_else(|| "-".to_owned(), |member| member.to_string())),
            cell(server.contact_age_ms.map_or_else(|| "-".to_owned(), brief)),
        ]);
    }
    text.push_str(&render(&rows));
    text
}
