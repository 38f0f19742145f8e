//! `cohort status SERVER`: one server in detail.

use std::collections::BTreeMap;

use cohort_core::ids::{AppId, GroupId, ServerId};
use cohort_wire::agent::{ServerAppStatus, ServerStatus};
use serde::Serialize;

use crate::figures::brief;
use crate::report::{GroupReport, serves};
use crate::status::{self, app_here, member_text};
use crate::table::{Look, cell, render, table};
use crate::why::{Wait, server_waits};

/// One server in detail, for `-o json`.
#[derive(Debug, Clone, Serialize)]
pub struct ServerReport<'a> {
    pub server: &'a ServerId,
    pub group: &'a GroupId,
    /// Whether its group hears it, it serves with every app, and nothing of it waits.
    pub healthy: bool,
    /// As its group knows it; `None` if it has joined the fleet only, or no agent responded.
    pub known: Option<&'a ServerStatus>,
    pub apps: BTreeMap<&'a AppId, &'a ServerAppStatus>,
    /// What `why` says of it.
    pub waits: Vec<Wait>,
}

impl<'a> ServerReport<'a> {
    /// The part of a group's report that is about one of its servers.
    #[must_use]
    pub fn of(report: &'a GroupReport, server: &'a ServerId) -> Self {
        let status = report.status.as_ref();
        let known = status.and_then(|status| status.servers.get(server));
        let apps = status.iter().flat_map(|status| &status.apps);
        let apps: BTreeMap<_, _> =
            apps.filter_map(|(id, app)| Some((id, app.servers.get(server)?))).collect();
        let waits = match status {
            Some(status) => server_waits(status, server),
            None => Vec::new(),
        };
        let every = status.map_or(0, |status| status.apps.len());
        let serve = apps.len() == every && apps.values().all(|here| serves(here));
        let waiting = waits.iter().any(|wait| wait.hints.is_some());
        let healthy = known.is_some_and(|known| !known.unknown) && serve && !waiting;
        ServerReport { server, group: &report.group, healthy, known, apps, waits }
    }

    /// As text.
    #[must_use]
    pub fn text(&self, report: &GroupReport, look: Look) -> String {
        let ServerReport { server, group, known, waits, .. } = self;
        let Some(known_group) = &report.status else { return status::group(report, look) };
        let mut text = format!("server {server} of {group}");
        if let Some(known) = known {
            let rack = known.rack.as_ref().map_or_else(String::new, |it| format!(", rack {it}"));
            let heard = known.contact_age_ms.map_or_else(
                || "not heard by the leader yet".to_owned(),
                |age| format!("heard {} ago", brief(age)),
            );
            let member = match member_text(server, known_group) {
                "-" => "no member",
                member => member,
            };
            text.push_str(&format!(": {}{rack}, {member}, {heard}\n", known.address));
            let mut rows = table(look, &["APP", "RUNS", "SERVING", "STEP", "NOTE"]);
            for id in known_group.apps.keys() {
                let mut row = vec![cell(id)];
                row.extend(app_here(self.apps.get(id).copied(), known, look));
                rows.add_row(row);
            }
            if !known_group.apps.is_empty() {
                text.push_str(&render(&rows));
            }
        } else {
            text.push('\n');
        }
        for wait in waits.iter().filter(|wait| wait.hints.is_some()) {
            text.push_str(&wait.lines(wait.app.iter().map(AppId::as_str)));
        }
        text
    }
}

#[cfg(test)]
#[path = "server_test.rs"]
mod server_test;
