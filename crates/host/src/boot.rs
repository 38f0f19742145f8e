//! Starts services from disk, without the group: at the agent's start, and while it is idle.

use cohort_core::release::Release;

use crate::app_host::AppHost;
use crate::interrupt::Interrupt;
use crate::record::HostError;
use crate::run_step::fence_text;
use crate::service::RunService;

/// What [`AppHost::boot`] found and did.
#[derive(Debug)]
pub struct Boot {
    /// Whether the service came up, and may take traffic.
    pub in_service: bool,
    /// Whether the service is only just starting, now or after it exited.
    pub started: bool,
}

impl AppHost {
    /// At the agent's start: makes sure that what ran before is running. Returns what it found, to
    /// be reported. [`Traffic::Starting`] stays until [`Self::take_traffic`].
    ///
    /// [`Traffic::Starting`]: crate::Traffic::Starting
    ///
    /// # Errors
    /// If something cannot be persisted. A service that cannot be started is not an error: it is
    /// logged, and `in_service` is false.
    pub async fn boot(&mut self) -> Result<Boot, HostError> {
        crate::orphan::end(&self.folder.join("hooks").join("running")).await;
        let local = self.local();
        if local.current.is_none()
            && local.activation.is_none()
            && let Some(found) = self.releases.current()
        {
            // The record was lost; the installation shows what runs here.
            self.change(|record| record.local.current = Some(found))?;
        }
        let mut started = false;
        let in_service = match self.release_to_run() {
            None => false,
            Some(release) => match self.bring_up(release).await {
                Ok(brought_up) => {
                    started = brought_up;
                    self.record.takes_traffic().is_ok()
                }
                Err(Interrupt::Fatal(error)) => return Err(error),
                Err(interrupt) => {
                    tracing::error!(app = %self.app, reason = %interrupt, "cannot start service");
                    false
                }
            },
        };
        Ok(Boot { in_service, started })
    }

    /// Makes sure that a guard is running, and that it runs the current service; a new guard takes
    /// over the services of one that was killed. Cheap: call it every few seconds while idle. Units
    /// are left to systemd.
    pub async fn ensure_running(&self) {
        let Some(release) = self.release_to_run() else { return };
        match self.service_of(release, "boot") {
            Ok(Some(service)) if matches!(service.spec.run, RunService::Command(_)) => {}
            Ok(_) => return,
            Err(interrupt) => {
                tracing::debug!(app = %self.app, reason = %interrupt, "service unknown");
                return;
            }
        }
        if let Err(interrupt) = self.bring_up(release).await {
            tracing::warn!(app = %self.app, reason = %interrupt, "cannot bring up the service");
        }
    }

    /// The current release, unless an activation has stopped it and has steps left.
    fn release_to_run(&self) -> Option<&Release> {
        self.local().current.as_ref().filter(|_| !self.record.under_way())
    }

    /// Returns whether the service is only just starting.
    async fn bring_up(&self, release: &Release) -> Result<bool, Interrupt> {
        if self.releases.current().as_ref() != Some(release) {
            self.releases.switch(Some(release))?;
        }
        let Some(mut service) = self.service_of(release, "boot")? else { return Ok(false) };
        let status = service.control.status(&service.spec.name).await?;
        if status.runs(release) {
            return Ok(status.is_young());
        }
        if let Some(activation) = &self.record.local.activation
            && activation.order.release.as_ref() == Some(release)
        {
            service.spec.key = fence_text(activation.order.fence);
        }
        self.start_service(service).await?;
        Ok(true)
    }
}
