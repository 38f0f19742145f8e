//! Polls groups until a condition holds.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use cohort_core::phase::PhaseName;
use cohort_core::reason::Reason;
use cohort_core::refused::WhyRefused;
use cohort_core::report::Step;
use cohort_core::waiting::WaitingOn;
use cohort_wire::agent::{AppStatus, GroupStatus};

use crate::Fleet;

/// How often to poll a group.
const EVERY: Duration = Duration::from_millis(150);

/// The app that fleets of this crate deploy.
pub const APP: &str = "web";

/// The app's part of a group's status, if there is one.
pub fn app(status: &GroupStatus) -> Option<&AppStatus> {
    status.apps.iter().find(|(id, _)| id.as_str() == APP).map(|(_, app)| app)
}

/// Whether the whole group runs this version and is idle.
pub fn runs(status: &GroupStatus, version: &str) -> bool {
    app(status).is_some_and(|app| {
        app.state == PhaseName::Running
            && app.last_good.as_ref().is_some_and(|good| good.as_str() == version)
            && app.servers.values().all(|server| {
                server.in_service
                    && !server.unknown
                    && server.debt.is_none()
                    && server.running.as_ref().is_some_and(|running| running.as_str() == version)
            })
    })
}

/// Whether the group rolled back from `rejected` to `running` and is held.
pub fn holds(status: &GroupStatus, rejected: &str, running: &str) -> bool {
    app(status).is_some_and(|app| {
        app.state == PhaseName::Held
            && app.target.as_ref().is_some_and(|target| target.as_str() == rejected)
            && app.servers.values().all(|server| {
                server.running.as_ref().is_some_and(|now| now.as_str() == running)
                    && server.in_service
                    && !server.unknown
            })
    })
}

/// Why the app is held or rolls back.
pub fn reason(status: &GroupStatus) -> Option<&Reason> {
    app(status).and_then(|app| app.reason.as_ref())
}

/// The step that failed on a server, which is why the app is held or rolls back.
pub fn failed_step(status: &GroupStatus) -> Option<Step> {
    match reason(status) {
        Some(Reason::ServerFailed { step, .. }) => Some(*step),
        _ => None,
    }
}

/// Whether the app waits on something that `is` matches.
pub fn waits(status: &GroupStatus, is: impl Fn(&WaitingOn) -> bool) -> bool {
    app(status).is_some_and(|app| app.waiting.iter().any(|wait| is(&wait.on)))
}

/// Whether the group sees the kill switch on, with this reason.
pub fn killed(status: &GroupStatus, why: &str) -> bool {
    waits(status, |on| matches!(on, WaitingOn::KillSwitch { reason } if reason.contains(why)))
}

/// Whether the group refuses a mirror or a release for a reason that `is` matches.
pub fn refuses(status: &GroupStatus, is: impl Fn(&WhyRefused) -> bool) -> bool {
    waits(status, |on| matches!(on, WaitingOn::ReleaseRefused(refused) if is(&refused.why)))
        || status.refusals.iter().any(|refused| is(&refused.why))
}

/// A group in one line, for error messages.
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
        text.push_str(&format!("; {:?}", wait.on));
    }
    text
}

impl Fleet {
    /// Polls a group until `done` returns true; returns that status. An error has the last status.
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
                bail!("timed out after {} s; last status: {last}", patience.as_secs());
            }
            std::thread::sleep(EVERY);
        }
    }
}
