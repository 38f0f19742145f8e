//! Going back without the group, starting again after a boot, and taking over what is there.

use cohort_core::release::Release;
use cohort_core::report::{Outcome, Step};
use cohort_core::steps::{AppRecord, LocalActivation, Progress};
use tokio_util::sync::CancellationToken;

use crate::app_host::{Acted, AppHost};
use crate::hooks::Hook;
use crate::record::HostError;
use crate::run_service::RunningService;
use crate::run_step::{Interrupt, Work};
use crate::service::{RunService, ServiceState};
use crate::traffic::Traffic;

impl AppHost {
    /// Puts the release before back and takes traffic again. Needs no network.
    ///
    /// It is tried until it works: there is nobody to report a failure to.
    pub(crate) async fn undo(
        &mut self,
        reason: &str,
        attempt: u32,
        cancel: &CancellationToken,
    ) -> Result<Acted, HostError> {
        let Some(activation) = self.record.app.local.activation.clone() else {
            return Ok(Acted::Nothing);
        };
        tracing::warn!(app = %self.app, reason, attempt, "the host goes back by itself");
        let work = Work { attempt, activation: &activation };
        match self.put_back(&work).await {
            Ok(()) => {}
            Err(Interrupt::Fatal(error)) => return Err(error),
            Err(Interrupt::Failed(failure)) => {
                tracing::warn!(app = %self.app, reason = failure.reason, "going back failed");
                return Ok(self.back_off(attempt, cancel).await);
            }
            Err(Interrupt::Later { .. }) => return Ok(self.back_off(attempt, cancel).await),
        }
        let reason = crate::output::first_text(reason);
        self.change(|record| record.undone(reason))?;
        self.tell(match &activation.previous {
            Some(_) => Traffic::Ready,
            None => Traffic::Out { reason: "nothing ran here before".to_owned() },
        });
        Ok(Acted::Done)
    }

    async fn put_back(&self, work: &Work<'_>) -> Result<(), Interrupt> {
        let LocalActivation { order, previous, .. } = work.activation;
        let previous = previous.as_ref();
        if let Some(previous) = previous
            && self.still_serves(previous).await?
        {
            // Only traffic was taken away.
            self.allow_traffic(previous, work).await;
            return Ok(());
        }
        if let Some(release) = &order.release
            && self.releases.has(release)
        {
            self.try_hook(Hook::ApplicationStop, release, work).await;
        }
        for release in [order.release.as_ref(), self.record.app.local.current.as_ref()] {
            self.cuts.point()?;
            self.stop_service(release).await?;
        }
        self.cuts.point()?;
        self.point_to(previous)?;
        self.cuts.point()?;
        let Some(previous) = previous else { return Ok(()) };
        let key = format!("{}/undo", work.key());
        if let Some(RunningService { control, spec }) = self.service_of(previous, &key)? {
            control.start(&spec).await?;
        }
        self.cuts.point()?;
        self.try_hook(Hook::ApplicationStart, previous, work).await;
        self.allow_traffic(previous, work).await;
        Ok(())
    }

    /// Takes traffic again while the kill switch forbids to go on: drained for a step that may not
    /// come for hours, the server would serve nobody. The activation stays, and drains again.
    ///
    /// Only a wave, and only while the release that ran well before was not stopped: what is rolled
    /// back, and what ran on a server that owes another release, is not asked for any more. Does
    /// nothing otherwise; may be repeated, and dropped at any time.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub async fn undrain_for_wait(&mut self) -> Result<(), HostError> {
        let Some(activation) = self.record.app.local.activation.clone() else { return Ok(()) };
        let Some(previous) = self.record.app.undrain_to() else { return Ok(()) };
        match self.still_serves(previous).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(Interrupt::Fatal(error)) => return Err(error),
            Err(interrupt) => {
                tracing::debug!(app = %self.app, ?interrupt, "the service is not known");
                return Ok(());
            }
        }
        tracing::info!(app = %self.app, "the kill switch is on: traffic comes back meanwhile");
        self.allow_traffic(previous, &Work { attempt: 1, activation: &activation }).await;
        // Only now: a crash before this begins it anew.
        self.change(AppRecord::undrained)
    }

    /// Whether a release is switched in and runs: its stop never happened.
    async fn still_serves(&self, release: &Release) -> Result<bool, Interrupt> {
        if self.releases.current().as_ref() != Some(release) {
            return Ok(false);
        }
        match self.service_of(release, "undo")? {
            Some(RunningService { control, spec }) => {
                let status = control.status(&spec.name).await?;
                Ok(status.release.as_deref() == Some(release.artifact.as_str())
                    && status.state != ServiceState::Stopped)
            }
            None => Ok(!self.record.app.local.activation.as_ref().is_some_and(switched)),
        }
    }

    async fn allow_traffic(&self, release: &Release, work: &Work<'_>) {
        self.try_hook(Hook::BeforeAllowTraffic, release, work).await;
        self.tell(Traffic::Ready);
        self.try_hook(Hook::AfterAllowTraffic, release, work).await;
    }

    /// Going back does not fail because of a hook.
    async fn try_hook(&self, hook: Hook, release: &Release, work: &Work<'_>) {
        match self.hook(hook, release, work).await {
            Ok(()) => {}
            Err(Interrupt::Failed(failure)) => {
                tracing::warn!(hook = hook.name(), reason = failure.reason, "a hook failed");
            }
            Err(Interrupt::Later { hook }) => {
                tracing::warn!(hook, "a hook said \"later\", which is not heard while going back");
            }
            Err(Interrupt::Fatal(error)) => tracing::warn!(%error, "a hook was not run"),
        }
    }

    /// After a start of the agent: sees to it that what ran runs, from disk, without the group.
    ///
    /// Leaves [`Traffic::Starting`] in place; [`Self::take_traffic`] ends it. Returns what was
    /// found, to be reported.
    ///
    /// # Errors
    /// When something cannot be made durable. That a service cannot be started is no error: it is
    /// logged, and `in_service` is false.
    pub async fn boot(&mut self) -> Result<Outcome, HostError> {
        crate::orphan::end(&self.folder.join("hooks").join("running")).await;
        if self.record.app.local.current.is_none()
            && self.record.app.local.activation.is_none()
            && let Some(found) = self.releases.current()
        {
            // An installation whose record was lost: it is what runs here.
            self.change(|record| record.local.current = Some(found))?;
        }
        let release = self.record.app.local.current.clone();
        let in_service = match &release {
            Some(release) if !self.record.app.under_way() => match self.bring_up(release).await {
                Ok(()) => true,
                Err(Interrupt::Fatal(error)) => return Err(error),
                Err(interrupt) => {
                    tracing::error!(app = %self.app, ?interrupt, "the service cannot be brought up");
                    false
                }
            },
            _ => false,
        };
        Ok(Outcome::Found { release, in_service })
    }

    /// Sees to it that the guard is there and runs the service that is in use: a guard that was
    /// killed is replaced, which takes its services over. Cheap; to be repeated every few seconds
    /// while there is nothing else to do. Units are systemd's own business.
    pub async fn ensure_running(&self) {
        let Some(current) =
            self.record.app.local.current.as_ref().filter(|_| !self.record.app.under_way())
        else {
            return;
        };
        match self.service_of(current, "boot") {
            Ok(Some(service)) if matches!(service.spec.run, RunService::Command(_)) => {}
            Ok(_) => return,
            Err(interrupt) => {
                tracing::debug!(app = %self.app, ?interrupt, "the service is not known");
                return;
            }
        }
        if let Err(interrupt) = self.bring_up(current).await {
            tracing::warn!(app = %self.app, ?interrupt, "the service cannot be brought up");
        }
    }

    async fn bring_up(&self, release: &Release) -> Result<(), Interrupt> {
        if self.releases.current().as_ref() != Some(release) {
            self.point_to(Some(release))?;
        }
        let Some(RunningService { control, mut spec }) = self.service_of(release, "boot")? else {
            return Ok(());
        };
        let status = control.status(&spec.name).await?;
        if status.release.as_deref() == Some(release.artifact.as_str())
            && status.state != ServiceState::Stopped
        {
            return Ok(());
        }
        if let Some(activation) = &self.record.app.local.activation
            && activation.order.release.as_ref() == Some(release)
        {
            spec.key = Work { attempt: 1, activation }.key();
        }
        Ok(control.start(&spec).await?)
    }

    /// Takes traffic, unless an activation has taken it away: after [`Self::boot`], once the group
    /// has said that nothing is owed, or could not be asked for as long as the agent cares to wait.
    pub fn take_traffic(&self) {
        let traffic = match self.record.app.takes_traffic() {
            Ok(()) => Traffic::Ready,
            Err(reason) => Traffic::Out { reason },
        };
        self.tell(traffic);
    }

    /// Takes an existing installation for what runs here, so that a roll-back can go to it.
    ///
    /// The release has to be unpacked in `releases/` (see [`AppHost::held`]) and nothing else
    /// recorded. Returns whether it is what runs now.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub fn adopt(&mut self, release: &Release) -> Result<bool, HostError> {
        let local = &self.record.app.local;
        if local.current.is_some() || local.activation.is_some() || !self.releases.has(release) {
            return Ok(local.current.as_ref() == Some(release));
        }
        self.releases.switch(Some(release)).map_err(|source| self.folders(source))?;
        self.change(|record| record.local.current = Some(release.clone()))?;
        Ok(true)
    }
}

fn switched(activation: &LocalActivation) -> bool {
    match &activation.progress {
        Progress::Begun { step, .. }
        | Progress::Done { step, .. }
        | Progress::Failed { step, .. } => *step >= Step::Switch,
        Progress::Undone { .. } => false,
        Progress::Complete => true,
    }
}

#[cfg(test)]
#[path = "undrain_test.rs"]
mod undrain_test;
