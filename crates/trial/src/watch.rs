//! Polls groups until a condition holds.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use cohort_core::phase::PhaseName;
use cohort_wire::agent::{AppStatus, GroupStatus};

use crate::Fleet;

/// How often a group is polled.
const EVERY: Duration = Duration::from_millis(150);

/// The app that fleets of this crate deploy.
pub const APP: &str = "web";

/// The app's part of a group's status, if there is one.
#[must_use]
pub fn app(status: &GroupStatus) -> Option<&AppStatus> {
    status.apps.iter().find(|(id, _)| id.as_str() == APP).map(|(_, app)| app)
}

/// Whether the whole group runs this version and is idle.
#[must_use]
pub fn runs(status: &GroupStatus, version: &str) -> bool {
    app(status).is_some_and(|app| {
        app.state == PhaseName::Running
            && app.last_good.as_ref().is_some_and(|good| good.as_str() == version)
            && app.servers.values().all(|server| {
                server.in_service
                    && server.debt.is_none()
                    && server.running.as_ref().is_some_and(|running| running.as_str() == version)
            })
    })
}

/// Whether the group rolled back from `rejected` to `running` and is held.
#[must_use]
pub fn holds(status: &GroupStatus, rejected: &str, running: &str) -> bool {
    app(status).is_some_and(|app| {
        app.state == PhaseName::Held
            && app.target.as_ref().is_some_and(|target| target.as_str() == rejected)
            && app.servers.values().all(|server| {
                server.running.as_ref().is_some_and(|now| now.as_str() == running)
                    && server.in_service
            })
    })
}

/// Whether the sentence of any wait or refusal contains `words`.
#[must_use]
pub fn says(status: &GroupStatus, words: &str) -> bool {
    app(status).is_some_and(|app| app.waiting.iter().any(|wait| wait.sentence.contains(words)))
        || status.refusals.iter().any(|refusal| refusal.contains(words))
}

/// A group in one line, for error messages.
#[must_use]
pub fn line(status: &GroupStatus) -> String {
    let Some(app) = app(status) else { return format!("{}: no app yet", status.group) };
    let mut text = format!("{}: {}", status.group, app.state);
    if let Some(target) = &app.target {
        text.push_str(&format!(" {target}"));
    }
    if app.wave > 0 {
        text.push_str(&format!(" wave {}", app.wave));
    }
    for wait in &app.waiting {
        text.push_str(&format!("; {}", wait.sentence));
    }
    text
}

impl Fleet {
    /// Polls a group until `done` returns true; returns that status.
    ///
    /// # Errors
    /// When it does not within `patience`; the error has the last status.
    pub fn until(
        &self,
        group: &str,
        patience: Duration,
        mut done: impl FnMut(&GroupStatus) -> bool,
    ) -> Result<GroupStatus> {
        let begun = Instant::now();
        let mut last = "it never answered".to_owned();
        loop {
            match self.status(group) {
                Ok(status) => {
                    if done(&status) {
                        return Ok(status);
                    }
                    last = line(&status);
                }
                Err(error) => last = format!("{last} ({error:#})"),
            }
            if begun.elapsed() > patience {
                bail!("not within {} s; last seen: {last}", patience.as_secs());
            }
            std::thread::sleep(EVERY);
        }
    }
}
