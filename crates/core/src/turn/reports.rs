//! Servers' reports.

use super::{Applied, Turn};
use crate::capacity::costs;
use crate::command::{Event, Limited, Rejection};
use crate::ids::{AppId, Digest, Generation, Revision, ServerId};
use crate::orders::Purpose;
use crate::phase::Phase;
use crate::reason::{DebtReason, Unfit};
use crate::release::Release;
use crate::report::{Blame, Outcome, REPORT_TEXT_BYTES_MAX, Report, Step};
use crate::state::{
    Activation, ActivationStage, App, FAILURES_KEPT_MAX, Failure, HOLDS_MAX, ServerApp, State,
    push_bounded,
};
use crate::trial::{Trial, TrialResult};

impl State {
    /// Applies a report. A repeated one, or one about an older plan, is ignored, so a server can
    /// always repeat its reports. The exception is passed checks that do not count: the server
    /// would take the reply as the group's confirmation.
    pub(crate) fn report(
        &mut self,
        report: &Report,
        actor: &str,
        events: &mut Vec<Event>,
    ) -> Applied {
        if report.outcome.is_too_long() {
            let max = 2 * REPORT_TEXT_BYTES_MAX as u64;
            return Err(Rejection::Limit { what: Limited::ReportBytes, max });
        }
        let Some(server) = self.servers.get(&report.server) else {
            return Err(Rejection::NoServer { server: report.server.clone() });
        };
        let position = (report.boot_epoch, report.sequence);
        let news = position > (server.boot_epoch, server.sequence);
        let served = self.takes_traffic_with(&report.app, &report.server);
        let turn = self.turn(&report.app, actor, events);
        let (applied, confirmed) = turn.map_or((false, false), |mut turn| {
            (news && turn.report(report), turn.confirms(report))
        });
        if report.outcome == Outcome::Checked && !confirmed {
            let generation = self.apps.get(&report.app).map_or(Generation(0), |a| a.generation);
            return Err(Rejection::OldPlan { generation });
        }
        if let Some(server) = self.servers.get_mut(&report.server).filter(|_| news) {
            (server.boot_epoch, server.sequence) = position;
        }
        if !served && self.takes_traffic_with(&report.app, &report.server) {
            self.void_free_changes(&report.server);
        }
        if !applied {
            let (server, sequence) = (report.server.clone(), report.sequence);
            events.push(Event::ReportIgnored { server, sequence });
        }
        Ok(())
    }

    fn takes_traffic_with(&self, app: &AppId, server: &ServerId) -> bool {
        let here = self.apps.get(app).and_then(|app| app.servers.get(server));
        here.is_some_and(|here| here.takes_traffic())
    }

    /// A server takes traffic again. The changes on it, of any app, that were free because it did
    /// not, and that it has not begun as far as it has said, have to be granted again at what they
    /// now cost.
    fn void_free_changes(&mut self, server: &ServerId) {
        let now_cost = self.apps.iter().filter_map(|(id, app)| {
            let change = app.servers.get(server)?.in_flight()?;
            let free = !change.costs && change.not_begun();
            (free && costs(self, app, server, change.purpose)).then(|| id.clone())
        });
        for id in now_cost.collect::<Vec<_>>() {
            let here = self.apps.get_mut(&id).and_then(|app| app.servers.get_mut(server));
            let Some(here) = here else { continue };
            here.unsure = true;
            if let Some(change) = &mut here.activation {
                change.void = true;
            }
        }
    }
}

impl Turn<'_> {
    /// Applies a report; false if it is about a change that has ended.
    fn report(&mut self, report: &Report) -> bool {
        let server = &report.server;
        match &report.outcome {
            Outcome::Found { release, in_service } => self.found(server, release, *in_service),
            Outcome::Holds { artifact } => self.holds(server, artifact),
            Outcome::Lacks { artifact } => self.lacks(server, artifact),
            Outcome::Health { in_service, reason } => self.health(server, *in_service, reason),
            Outcome::Tried { revision, failed } => self.tried(server, *revision, failed.as_deref()),
            Outcome::Applied => self.advanced(report, ActivationStage::Applied { at: self.clock }),
            Outcome::Checked => self.advanced(report, ActivationStage::Checked { at: self.clock }),
            Outcome::InService => self.done(report),
            Outcome::GivenBack => self.given_back(report),
            Outcome::HookIgnored { reason } => self.hook_ignored(report, reason),
            Outcome::Failed { blame, step, reason, output } => {
                let failure = self.failure(server, *blame, *step, reason, output);
                self.failed(report, failure)
            }
            Outcome::Undone { release, reason } => {
                let failure = self.failure(server, Blame::Release, Step::Undo, reason, "");
                self.undone(report, release, failure)
            }
        }
    }

    /// Whether the group recorded that the server passed the checks of this change.
    fn confirms(&mut self, report: &Report) -> bool {
        let Some((here, true)) = self.here(report) else { return false };
        let stage = here.activation.as_ref().map(|activation| &activation.stage);
        matches!(stage, Some(ActivationStage::Checked { .. }))
    }

    /// The server's state, and whether the report is about its current change.
    fn here(&mut self, report: &Report) -> Option<(&mut ServerApp, bool)> {
        let here = self.app.servers.get_mut(&report.server)?;
        let same = here.activation.as_ref().is_some_and(|a| a.fence == report.fence);
        Some((here, same))
    }

    fn found(&mut self, server: &ServerId, release: &Option<Release>, in_service: bool) -> bool {
        let App { servers, last_good, phase, .. } = &mut *self.app;
        let Some(here) = servers.get_mut(server) else { return false };
        here.found = true;
        if here.in_flight().is_some() {
            // It has restarted: what it says of its service holds, also for a change that was free
            // because it did not serve.
            if here.unsure {
                here.unsure = false;
                here.in_service = in_service && here.running.is_some();
            }
            return true;
        }
        here.unsure = false;
        let changed = here.running != *release;
        here.running.clone_from(release);
        here.in_service = in_service;
        let coming = phase.forward().map(|rollout| &rollout.release);
        let fits = release == last_good || (release.is_some() && release.as_ref() == coming);
        let in_place = matches!(phase, Phase::Held { in_place: Some(_), .. });
        let removing = matches!(phase, Phase::Removing { .. });
        if removing && release.is_some() {
            here.owe(self.clock, DebtReason::Removed);
        } else if removing && here.activation.is_none() {
            here.debt = None;
        } else if changed && !fits && !in_place && last_good.is_some() {
            let running = release.as_ref().map(|release| release.version.clone());
            here.owe(self.clock, DebtReason::Found { running });
        } else if release.is_some() && release == last_good && here.activation.is_none() {
            // Already on the good release: clear its debt.
            here.debt = None;
        }
        true
    }

    fn holds(&mut self, server: &ServerId, artifact: &Digest) -> bool {
        let Some(here) = self.app.servers.get_mut(server) else { return false };
        if !here.has(artifact) {
            push_bounded(&mut here.holds, artifact.clone(), HOLDS_MAX);
            let coming = match &self.app.phase {
                Phase::Forward { rollout, .. } => Some(&rollout.release),
                Phase::RollingBack { .. } => self.app.last_good.as_ref(),
                Phase::Empty
                | Phase::Running { .. }
                | Phase::Held { .. }
                | Phase::Removing { .. } => None,
            };
            if coming.is_some_and(|release| release.artifact == *artifact) {
                self.progress();
            }
        }
        true
    }

    fn lacks(&mut self, server: &ServerId, artifact: &Digest) -> bool {
        let Some(here) = self.app.servers.get_mut(server) else { return false };
        here.holds.retain(|held| held != artifact);
        true
    }

    fn health(&mut self, server: &ServerId, in_service: bool, reason: &str) -> bool {
        let watched = self.app.servers.get(server);
        let watched = watched.is_some_and(|here| self.app.is_watched(here, self.clock));
        let App { servers, phase, .. } = &mut *self.app;
        let Some(here) = servers.get_mut(server) else { return false };
        if here.in_flight().is_some() {
            if in_service {
                here.in_service = here.running.is_some();
            } else if here.in_flight().is_some_and(Activation::not_begun) {
                here.in_service = false;
                here.unfit = Some(Unfit::Unhealthy { text: reason.to_owned() });
            }
            return true;
        }
        let served = here.in_service;
        here.unsure = false;
        here.in_service = in_service && here.running.is_some();
        here.unfit = (!in_service).then(|| Unfit::Unhealthy { text: reason.to_owned() });
        let broke_down = served && !here.in_service;
        // A server that was done and broke while the rollout continues is a failure of the release
        // like any other; the next waves would only include it again.
        if watched && !in_service {
            // No failure of the release: these checks are new here.
            self.app.fall_back(server, reason);
        } else if let Some(rollout) = phase.forward()
            && broke_down
            && here.running.as_ref() == Some(&rollout.release)
            && !rollout.lost.contains(server)
        {
            let of = here.running.clone();
            let failure = self.failure(server, Blame::Release, Step::Check, reason, "");
            self.count(failure, Purpose::Wave, of.as_ref());
        }
        true
    }

    /// Checks on trial: they do not decide about traffic yet.
    fn tried(&mut self, server: &ServerId, revision: Revision, failed: Option<&str>) -> bool {
        let newest = self.app.newest_checks().revision;
        let Some(here) = self.app.servers.get_mut(server) else { return false };
        if revision != newest || here.checks == newest {
            return false;
        }
        let falls = here.trial.as_ref().map_or(0, |trial| trial.falls);
        let result = match failed {
            Some(text) => TrialResult::Fails { text: text.to_owned() },
            None => TrialResult::Passes,
        };
        here.trial = Some(Trial { revision, falls, result });
        true
    }

    /// Applied or checked. Reaching the same stage again changes nothing.
    fn advanced(&mut self, report: &Report, to: ActivationStage) -> bool {
        let Some((here, true)) = self.here(report) else { return false };
        let Some(activation) = here.activation.as_mut().filter(|a| a.open()) else { return false };
        let news = match activation.stage {
            ActivationStage::Granted | ActivationStage::Withdrawn => true,
            ActivationStage::Applied { .. } => matches!(to, ActivationStage::Checked { .. }),
            ActivationStage::Checked { .. }
            | ActivationStage::Failed { .. }
            | ActivationStage::Undone { .. } => false,
        };
        if news {
            activation.stage = to;
            let purpose = activation.purpose;
            here.unsure = false;
            here.running.clone_from(&activation.release);
            here.in_service = false;
            here.unfit = Some(Unfit::Changing);
            self.progress_by(purpose);
        }
        true
    }

    /// A way back does not depend on a hook; people have to know that it failed.
    fn hook_ignored(&mut self, report: &Report, reason: &str) -> bool {
        let Some((here, true)) = self.here(report) else { return false };
        if here.ignored_hook.as_deref() != Some(reason) {
            here.ignored_hook = Some(reason.to_owned());
            let (app, server) = (self.id.clone(), report.server.clone());
            self.events.push(Event::HookIgnored { app, server, reason: reason.to_owned() });
        }
        true
    }

    fn done(&mut self, report: &Report) -> bool {
        let coming = self.app.phase.forward().map(|rollout| rollout.release.clone());
        let good = self.app.last_good.clone();
        let Some((here, same)) = self.here(report) else { return false };
        if here.activation.as_ref().is_some_and(|change| report.fence < change.fence) {
            // It has another change by now, and serves again: what, it has yet to say.
            here.unsure = true;
            return true;
        }
        let Some(change) = here.activation.take_if(|_| same) else { return false };
        let passed = self.app.preflight_set(change.purpose).revision;
        let Some(here) = self.app.servers.get_mut(&report.server) else { return false };
        (here.checks, here.trial, here.restart) = (passed, None, None);
        here.running = change.release;
        here.unsure = false;
        here.in_service = here.running.is_some();
        here.unfit = None;
        if here.running == good || (coming.is_some() && here.running == coming) {
            here.debt = None;
        }
        let (app, server) = (self.id.clone(), report.server.clone());
        self.events.push(Event::ServerDone { app, server });
        self.progress();
        true
    }

    /// The server keeps what it runs, and may be granted another change. Not one of its tries.
    fn given_back(&mut self, report: &Report) -> bool {
        let Some((here, true)) = self.here(report) else { return false };
        let Some(change) = here.activation.take_if(|change| change.not_begun()) else {
            return false;
        };
        if let Some(debt) = here.debt.as_mut().filter(|_| change.purpose == Purpose::Debt) {
            debt.tries = debt.tries.saturating_sub(1);
        }
        self.progress_forward();
        true
    }

    fn failed(&mut self, report: &Report, failure: Failure) -> bool {
        let Some((here, true)) = self.here(report) else { return false };
        let Some(activation) = here.activation.as_mut().filter(|a| a.open()) else { return false };
        let Failure { at, step, blame, .. } = failure;
        activation.stage =
            ActivationStage::Failed { at, step, blame, reason: failure.reason.clone() };
        let Activation { purpose, release, .. } = activation.clone();
        here.unsure = false;
        // What could not be stopped may still run.
        if step > Step::Stop {
            here.running.clone_from(&release);
        }
        if step >= Step::Drain {
            here.in_service = false;
            here.unfit = Some(Unfit::Failed { step });
        }
        self.count(failure, purpose, release.as_ref());
        true
    }

    /// The host restored the old release on its own.
    fn undone(&mut self, report: &Report, to: &Option<Release>, failure: Failure) -> bool {
        let Some((here, same)) = self.here(report) else { return false };
        here.unsure = false;
        here.running.clone_from(to);
        let Some(activation) = here.activation.as_mut().filter(|_| same) else {
            // It has another change by now; that it serves again still matters.
            here.in_service = here.running.is_some();
            return true;
        };
        let reason = failure.reason.clone();
        activation.stage = ActivationStage::Undone { at: failure.at, reason };
        let Activation { purpose, release, .. } = activation.clone();
        here.in_service = to.is_some();
        here.unfit = None;
        self.count(failure, purpose, release.as_ref());
        true
    }

    fn failure(
        &self,
        server: &ServerId,
        blame: Blame,
        step: Step,
        reason: &str,
        output: &str,
    ) -> Failure {
        let (reason, output) = (reason.to_owned(), output.to_owned());
        Failure { server: server.clone(), blame, step, reason, output, at: self.clock }
    }

    /// Counts a failure against its budget. The server goes into debt, and the rollout continues
    /// without it as long as the budgets allow.
    fn count(&mut self, failure: Failure, purpose: Purpose, of: Option<&Release>) {
        let Failure { server, blame, reason, .. } = &failure;
        if let Some(here) = self.app.servers.get_mut(server) {
            here.owe_after_failure(self.clock, reason.clone());
        }
        let (app, server, reason) = (self.id.clone(), server.clone(), reason.clone());
        self.events.push(Event::ServerFailed { app, server: server.clone(), reason });
        self.progress_by(purpose);
        let Some(rollout) = self.app.phase.rollout_mut() else { return };
        let own = purpose == Purpose::Wave && of == Some(&rollout.release);
        if !own && purpose != Purpose::RollBack {
            // A failure in an older plan or a debt says nothing about this rollout.
            return;
        }
        rollout.lost.insert(server.clone());
        rollout.failed.insert(server);
        if own {
            match blame {
                Blame::Release => rollout.release_failures += 1,
                Blame::Surroundings => rollout.surroundings_failures += 1,
            }
        }
        if rollout.failures.len() < FAILURES_KEPT_MAX {
            rollout.failures.push(failure);
        }
    }
}
