//! What a report changes.

use crate::command::{Event, Rejection};
use crate::ids::{AppId, ClockMs};
use crate::orders::Purpose;
use crate::phase::Phase;
use crate::release::Release;
use crate::report::{Blame, Outcome, REPORT_TEXT_BYTES_MAX, Report, Step};
use crate::state::{
    Activation, ActivationStage, App, Debt, FAILURES_KEPT_MAX, Failure, HOLDS_MAX, ServerApp, State,
};
use crate::transitions::counts;

impl State {
    /// Takes in what a server says it did. A report that was seen before, or that is about an
    /// older plan, is ignored: saying it again is always safe.
    pub(crate) fn report(
        &mut self,
        report: &Report,
        events: &mut Vec<Event>,
    ) -> Result<(), Rejection> {
        if let Outcome::Failed { reason, output, .. } = &report.outcome
            && reason.len() + output.len() > 2 * REPORT_TEXT_BYTES_MAX
        {
            let what = "bytes of text in a report".into();
            return Err(Rejection::Limit { what, max: 2 * REPORT_TEXT_BYTES_MAX as u64 });
        }
        let ignored =
            Event::ReportIgnored { server: report.server.clone(), sequence: report.sequence };
        let Some(server) = self.servers.get_mut(&report.server) else {
            return Err(Rejection::NoServer { server: report.server.clone() });
        };
        let known = (server.boot_epoch, server.sequence);
        if (report.boot_epoch, report.sequence) <= known {
            events.push(ignored);
            return Ok(());
        }
        server.boot_epoch = report.boot_epoch;
        server.sequence = report.sequence;
        let clock = self.clock;
        let Some(app) = self.apps.get_mut(&report.app) else {
            events.push(ignored);
            return Ok(());
        };
        if !take(&report.app, app, report, clock, events) {
            events.push(ignored);
        }
        Ok(())
    }
}

/// Changes the app; false when the report is about something that is over.
fn take(
    app_id: &AppId,
    app: &mut App,
    report: &Report,
    clock: ClockMs,
    events: &mut Vec<Event>,
) -> bool {
    let good = app.last_good.clone();
    let going_to = app.phase.forward().map(|rollout| rollout.release.clone());
    let Some(server) = app.servers.get_mut(&report.server) else { return false };
    let in_flight = server.activation.as_ref().is_some_and(|a| a.in_flight());
    let open = server.activation.as_ref().is_some_and(Activation::open);
    let same = server.activation.as_ref().is_some_and(|a| a.fence == report.fence);
    match &report.outcome {
        Outcome::Found { release, in_service } => {
            server.found = true;
            if !in_flight {
                let known = server.running == *release;
                server.running.clone_from(release);
                server.in_service = *in_service;
                let fits = *release == good || (release.is_some() && *release == going_to);
                let settled = matches!(app.phase, Phase::Held { in_place: Some(_), .. });
                if !known && !fits && !settled && good.is_some() && server.debt.is_none() {
                    let reason = match release {
                        Some(release) => format!("was found running {}", release.version),
                        None => "was found running nothing".into(),
                    };
                    server.debt = Some(Debt { since: clock, reason, tries: 0 });
                } else if release.is_some() && *release == good && server.activation.is_none() {
                    // It owes nothing that it has.
                    server.debt = None;
                }
                if release.is_none() && !known {
                    // A server that lost what it ran lost what it held as well.
                    server.holds.clear();
                }
            }
            true
        }
        Outcome::Holds { artifact } => {
            if !server.has(artifact) {
                server.holds.push(artifact.clone());
                if server.holds.len() > HOLDS_MAX {
                    server.holds.remove(0);
                }
                progress(app, clock);
            }
            true
        }
        Outcome::Health { in_service, reason } => {
            if !in_flight {
                let served = server.in_service;
                server.in_service = *in_service && server.running.is_some();
                server.health = if *in_service { String::new() } else { reason.clone() };
                if served && !server.in_service && server.running == going_to {
                    broke_down(app_id, app, report, reason, clock, events);
                }
            } else if *in_service {
                serves_again(server);
            }
            true
        }
        Outcome::Applied | Outcome::Checked if same && open => {
            let activation = server.activation.as_mut().expect("`same` says so");
            let stage = match (&report.outcome, &activation.stage) {
                (Outcome::Applied, ActivationStage::Granted) => {
                    ActivationStage::Applied { at: clock }
                }
                (Outcome::Checked, ActivationStage::Granted | ActivationStage::Applied { .. }) => {
                    ActivationStage::Checked { at: clock }
                }
                _ => return true,
            };
            activation.stage = stage;
            server.running.clone_from(&activation.release);
            server.in_service = false;
            server.health = "being changed".into();
            progress(app, clock);
            true
        }
        Outcome::InService if same => {
            let activation = server.activation.take().expect("`same` says so");
            server.running = activation.release;
            server.in_service = server.running.is_some();
            server.health = String::new();
            if server.running == good || (going_to.is_some() && server.running == going_to) {
                server.debt = None;
            }
            progress(app, clock);
            events.push(Event::ServerDone { app: app_id.clone(), server: report.server.clone() });
            true
        }
        Outcome::Failed { blame, step, reason, output } if same && open => {
            let activation = server.activation.as_mut().expect("`same` says so");
            activation.stage = ActivationStage::Failed {
                at: clock,
                step: *step,
                blame: *blame,
                reason: reason.clone(),
            };
            let (purpose, of) = (activation.purpose, activation.release.clone());
            if *step >= Step::Stop {
                server.running.clone_from(&activation.release);
            }
            if *step >= Step::Drain {
                server.in_service = false;
                server.health = format!("{} failed", step.name());
            }
            let failure = Failure {
                server: report.server.clone(),
                blame: *blame,
                step: *step,
                reason: reason.clone(),
                output: output.clone(),
                at: clock,
            };
            failed(app, failure, purpose, of.as_ref(), clock);
            events.push(Event::ServerFailed {
                app: app_id.clone(),
                server: report.server.clone(),
                reason: reason.clone(),
            });
            true
        }
        Outcome::Undone { release, reason } if same => {
            let activation = server.activation.as_mut().expect("`same` says so");
            activation.stage = ActivationStage::Undone { at: clock, reason: reason.clone() };
            let (purpose, of) = (activation.purpose, activation.release.clone());
            server.running.clone_from(release);
            server.in_service = release.is_some();
            server.health = String::new();
            let failure = Failure {
                server: report.server.clone(),
                blame: Blame::Release,
                step: Step::Undo,
                reason: reason.clone(),
                output: String::new(),
                at: clock,
            };
            failed(app, failure, purpose, of.as_ref(), clock);
            events.push(Event::ServerFailed {
                app: app_id.clone(),
                server: report.server.clone(),
                reason: reason.clone(),
            });
            true
        }
        Outcome::Undone { release, .. } => {
            // Told to do something else meanwhile; that it serves again is news nevertheless.
            server.running.clone_from(release);
            serves_again(server);
            true
        }
        Outcome::Applied | Outcome::Checked | Outcome::InService | Outcome::Failed { .. } => false,
    }
}

/// A server that was thought to be out of service serves, before it has begun with what it was
/// granted: a change that was thought to cost nothing has to be granted anew.
fn serves_again(server: &mut ServerApp) {
    let served = server.in_service;
    server.in_service = server.running.is_some();
    if let Some(activation) = &mut server.activation
        && activation.stage == ActivationStage::Granted
        && !activation.costs
        && server.in_service
        && !served
    {
        activation.void = true;
    }
}

/// A server that went through its change and broke down while the rollout goes on: a failure of the
/// release like any other, or the next wave would take it in again and again.
fn broke_down(
    app_id: &AppId,
    app: &mut App,
    report: &Report,
    reason: &str,
    clock: ClockMs,
    events: &mut Vec<Event>,
) {
    let Some(rollout) = app.phase.forward() else { return };
    if rollout.lost.contains(&report.server) {
        return;
    }
    let release = rollout.release.clone();
    let failure = Failure {
        server: report.server.clone(),
        blame: Blame::Release,
        step: Step::Check,
        reason: reason.to_owned(),
        output: String::new(),
        at: clock,
    };
    failed(app, failure, Purpose::Wave, Some(&release), clock);
    events.push(Event::ServerFailed {
        app: app_id.clone(),
        server: report.server.clone(),
        reason: reason.to_owned(),
    });
}

/// Counts a failure against its budget; the server owes, and the rollout goes on without it for as
/// long as the budgets bear it.
fn failed(app: &mut App, failure: Failure, purpose: Purpose, of: Option<&Release>, clock: ClockMs) {
    let server_id = failure.server.clone();
    if let Some(server) = app.servers.get_mut(&server_id)
        && server.debt.is_none()
    {
        server.debt = Some(Debt { since: clock, reason: failure.reason.clone(), tries: 0 });
    }
    let Some(rollout) = app.phase.rollout_mut() else { return };
    rollout.progress = clock;
    let own = counts(purpose) && of == Some(&rollout.release);
    if !own && purpose != Purpose::RollBack {
        // What an older plan or a debt left behind says nothing about this rollout.
        return;
    }
    rollout.lost.insert(server_id);
    if own {
        match failure.blame {
            Blame::Release => rollout.release_failures += 1,
            Blame::Surroundings => rollout.surroundings_failures += 1,
        }
    }
    if rollout.failures.len() < FAILURES_KEPT_MAX {
        rollout.failures.push(failure);
    }
}

fn progress(app: &mut App, clock: ClockMs) {
    if let Some(rollout) = app.phase.rollout_mut() {
        rollout.progress = clock;
    }
}
