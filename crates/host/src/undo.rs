//! Going back without the group, and serving again while the kill switch is on.

use cohort_core::release::Release;
use cohort_core::report::Step;
use cohort_core::steps::{AppRecord, LocalActivation, Progress};
use tokio_util::sync::CancellationToken;

use crate::app_host::{Acted, AppHost};
use crate::hooks::Hook;
use crate::interrupt::Interrupt;
use crate::output::first_text;
use crate::record::HostError;
use crate::run_service::RunningService;
use crate::run_step::Work;
use crate::traffic::Traffic;

impl AppHost {
    /// Restores the previous release and returns to traffic. Needs no network, and is retried until
    /// it works: there is no one to report a failure to.
    pub(crate) async fn undo(
        &mut self,
        reason: &str,
        attempt: u32,
        cancel: &CancellationToken,
    ) -> Result<Acted, HostError> {
        let Some(activation) = self.record.local.activation.clone() else {
            return Ok(Acted::Nothing);
        };
        tracing::warn!(app = %self.app, reason, attempt, "going back without the group");
        match self.put_back(&Work { attempt, activation: &activation }).await {
            Ok(()) => {}
            Err(Interrupt::Fatal(error)) => return Err(error),
            Err(interrupt) => {
                tracing::warn!(app = %self.app, reason = %interrupt, "going back failed, retrying");
                return Ok(self.back_off(attempt, cancel).await);
            }
        }
        self.change(|record| record.undone(first_text(reason)))?;
        self.take_traffic();
        Ok(Acted::Done)
    }

    async fn put_back(&self, work: &Work<'_>) -> Result<(), Interrupt> {
        let LocalActivation { order, previous, .. } = work.activation;
        let previous = previous.as_ref();
        if let Some(previous) = previous
            && self.still_serves(previous).await?
        {
            // Only traffic had been taken away.
            self.allow_traffic(previous, work).await;
            return Ok(());
        }
        if let Some(release) = &order.release
            && self.releases.has(release)
        {
            self.try_hook(Hook::ApplicationStop, release, work).await;
        }
        for release in [order.release.as_ref(), self.record.local.current.as_ref()] {
            self.cuts.point()?;
            self.stop_service(release).await?;
        }
        self.cuts.point()?;
        self.releases.switch(previous)?;
        self.cuts.point()?;
        let Some(previous) = previous else { return Ok(()) };
        let key = format!("{}/undo", work.fence());
        if let Some(service) = self.service_of(previous, &key)? {
            self.start_service(service).await?;
        }
        self.cuts.point()?;
        self.try_hook(Hook::ApplicationStart, previous, work).await;
        self.allow_traffic(previous, work).await;
        Ok(())
    }

    /// Returns to traffic while the kill switch blocks the activation: drained for a step that may
    /// be hours away, the server would serve nothing. The activation stays, and drains again.
    ///
    /// Does nothing if the previous release is not fit to serve. May be repeated, and dropped at
    /// any time.
    ///
    /// # Errors
    /// If it cannot be persisted.
    pub async fn undrain_for_wait(&mut self) -> Result<(), HostError> {
        let record = &self.record;
        let (Some(activation), Some(previous)) = (&record.local.activation, record.undrain_to())
        else {
            return Ok(());
        };
        match self.still_serves(previous).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(Interrupt::Fatal(error)) => return Err(error),
            Err(interrupt) => {
                tracing::debug!(app = %self.app, reason = %interrupt, "service state unknown");
                return Ok(());
            }
        }
        tracing::info!(app = %self.app, "taking traffic again while the kill switch is on");
        self.allow_traffic(previous, &Work { attempt: 1, activation }).await;
        // Only now: after a crash before this point, everything above runs again.
        self.change(AppRecord::undrained)
    }

    /// Whether a release is switched in and running: its stop never happened.
    async fn still_serves(&self, release: &Release) -> Result<bool, Interrupt> {
        if self.releases.current().as_ref() != Some(release) {
            return Ok(false);
        }
        match self.service_of(release, "undo")? {
            Some(RunningService { control, spec }) => {
                Ok(control.status(&spec.name).await?.runs(release))
            }
            None => Ok(!self.record.local.activation.as_ref().is_some_and(switched)),
        }
    }

    async fn allow_traffic(&self, release: &Release, work: &Work<'_>) {
        self.try_hook(Hook::BeforeAllowTraffic, release, work).await;
        self.tell(Traffic::Ready);
        self.try_hook(Hook::AfterAllowTraffic, release, work).await;
    }

    /// Runs a hook whose failure does not keep the server from going back.
    async fn try_hook(&self, hook: Hook, release: &Release, work: &Work<'_>) {
        if let Err(interrupt) = self.hook(hook, release, work).await {
            let (app, hook) = (&self.app, hook.name());
            tracing::warn!(%app, hook, reason = %interrupt, "ignoring a failed hook");
        }
    }
}

fn switched(activation: &LocalActivation) -> bool {
    match &activation.progress {
        Progress::Begun { step, .. }
        | Progress::Done { step, .. }
        | Progress::Failed { step, .. } => *step >= Step::Switch,
        Progress::Undone { .. } | Progress::GivenBack => false,
        Progress::Complete => true,
    }
}

#[cfg(test)]
#[path = "undrain_test.rs"]
mod undrain_test;
