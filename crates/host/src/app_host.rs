//! One app on one server: what is written down about it, and who does what [`next_action`] says.
//!
//! [`next_action`]: cohort_core::steps::next_action

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cohort_core::ids::{AppId, Digest, GroupId, Platform, ServerId};
use cohort_core::orders::{ActivationOrder, Fence};
use cohort_core::release::Release;
use cohort_core::report::Step;
use cohort_core::steps::{
    AppRecord, BootTime, Failure, LocalApp, Moment, Reached, StepAction, Told, back_off_ms,
    reported_when_done,
};
use cohort_store::DurableFile;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::check::CheckContext;
use crate::clock::{boot_id, boot_time_ms};
use crate::program::RunAs;
use crate::record::{Cuts, HostError, HostRecord};
use crate::releases::Releases;
use crate::run_step::Interrupt;
use crate::service::ServiceControl;
use crate::traffic::Traffic;
use crate::unpack::UnpackLimits;

/// What an app's host needs to know of its server.
#[derive(Debug, Clone)]
pub struct AppHostConfig {
    /// The agent's own folder: `artifacts/<digest>` are whole and verified there.
    pub state_dir: PathBuf,
    /// The app's folder: `releases/` and `current`.
    pub install_dir: PathBuf,
    /// This server.
    pub server: ServerId,
    /// Its group.
    pub group: GroupId,
    /// Its platform.
    pub platform: Platform,
    /// Where the app's service listens: `{port}`, `COHORT_SERVICE_PORT`.
    pub service_port: Option<u16>,
    /// As whom hooks and services run; the agent's own user when absent.
    pub run_as: Option<RunAs>,
    /// Programs of the server's own, for checks: `host:NAME`.
    pub host_programs: Arc<BTreeMap<String, PathBuf>>,
    /// What an artifact may unpack to.
    pub limits: UnpackLimits,
}

/// Who runs services on this server.
#[derive(Debug, Clone)]
pub struct Controls {
    /// For commands.
    pub guard: Arc<dyn ServiceControl>,
    /// For units; `None` on a server without systemd.
    pub systemd: Option<Arc<dyn ServiceControl>>,
}

/// What came of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acted {
    /// It was done, and is written down.
    Done,
    /// It failed, and that is written down.
    Failed,
    /// It asks to be tried again; the wait is already over.
    Later,
    /// A newer order came; nothing more is written down.
    Cancelled,
    /// There was nothing to do.
    Nothing,
    /// The order's fence is lower than one seen before, or was activated before.
    Refused {
        /// The highest fence seen.
        highest: Fence,
    },
}

/// Tells the host that the group was reached; cheap to clone, usable while the host acts.
#[derive(Debug, Clone, Default)]
pub struct Contact {
    last_ms: Arc<AtomicU64>,
}

impl Contact {
    /// Orders were answered that were asked for at `asked_boot_ms` of
    /// [`boot_time_ms`](crate::boot_time_ms).
    pub fn reached(&self, asked_boot_ms: u64) {
        self.last_ms.fetch_max(asked_boot_ms, Ordering::SeqCst);
    }
}

/// One app on this server.
#[derive(Debug)]
pub struct AppHost {
    pub(crate) app: AppId,
    pub(crate) config: AppHostConfig,
    pub(crate) controls: Controls,
    pub(crate) releases: Releases,
    pub(crate) folder: PathBuf,
    file: DurableFile<HostRecord>,
    pub(crate) record: HostRecord,
    /// The record is ahead of the file: a step is done that nobody has heard of.
    ahead: bool,
    pub(crate) traffic: watch::Sender<Traffic>,
    local: watch::Sender<LocalApp>,
    contact: Contact,
    pub(crate) reached: Reached,
    /// Which boot of the machine this is; it does not change under a running agent.
    boot: String,
    pub(crate) cuts: Cuts,
}

impl AppHost {
    /// Reads what is written down about the app and sweeps up after a crash.
    ///
    /// # Errors
    /// When its record is damaged or its folders cannot be used.
    pub fn open(config: AppHostConfig, app: AppId, controls: Controls) -> Result<Self, HostError> {
        let folder = config.state_dir.join("apps").join(app.as_str());
        let fail = |source| HostError::Folders { app: app.to_string(), source };
        std::fs::create_dir_all(folder.join("hooks")).map_err(|source| {
            let path = folder.clone();
            fail(crate::releases::ReleasesError { path, what: "created", source })
        })?;
        let releases = Releases::open(&config.install_dir).map_err(fail)?;
        let (file, record) = HostRecord::open(&folder, app.as_str())?;
        Ok(AppHost {
            local: watch::Sender::new(record.app.local.clone()),
            traffic: watch::Sender::new(Traffic::Starting),
            contact: Contact::default(),
            reached: Reached::new(boot_time_ms()),
            boot: boot_id(),
            cuts: Cuts::default(),
            app,
            config,
            controls,
            releases,
            folder,
            file,
            record,
            ahead: false,
        })
    }

    /// The app.
    #[must_use]
    pub fn app(&self) -> &AppId {
        &self.app
    }

    /// What is written down.
    #[must_use]
    pub fn local(&self) -> &LocalApp {
        &self.record.app.local
    }

    /// Everything that is written down.
    #[must_use]
    pub fn record(&self) -> &AppRecord {
        &self.record.app
    }

    /// The boot-time clock of this machine.
    #[must_use]
    pub fn now(&self) -> BootTime<'_> {
        BootTime { boot: &self.boot, ms: boot_time_ms() }
    }

    /// When the group was last in contact.
    #[must_use]
    pub fn reached(&self) -> Reached {
        let mut reached = self.reached;
        reached.heard(self.contact.last_ms.load(Ordering::SeqCst));
        reached
    }

    /// What is written down, as it changes: each value is durable before it is seen here.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<LocalApp> {
        self.local.subscribe()
    }

    /// What load balancers are to be told.
    #[must_use]
    pub fn traffic(&self) -> watch::Receiver<Traffic> {
        self.traffic.subscribe()
    }

    /// Where the agent notes that the group was reached.
    #[must_use]
    pub fn contact(&self) -> Contact {
        self.contact.clone()
    }

    /// Artifacts that need no fetching, because their releases are unpacked.
    #[must_use]
    pub fn held(&self) -> Vec<Digest> {
        self.releases.unpacked().into_iter().map(|release| release.artifact).collect()
    }

    /// What [`next_action`](cohort_core::steps::next_action) needs to know besides.
    #[must_use]
    pub fn moment(&self, told: Told) -> Moment {
        self.record().moment(told, self.reached(), self.now())
    }

    /// As [`AppRecord::undo_left_ms`], now.
    #[must_use]
    pub fn undo_left_ms(&self) -> Option<u64> {
        self.record().undo_left_ms(self.reached(), self.now())
    }

    /// What the checks of the release in use need to know.
    #[must_use]
    pub fn check_context(&self) -> CheckContext {
        self.check_context_of(self.local().current.as_ref())
    }

    pub(crate) fn check_context_of(&self, release: Option<&Release>) -> CheckContext {
        CheckContext {
            service_port: self.config.service_port,
            release_folder: release.map(|release| self.releases.path_of(release)),
            variables: release.map(|release| self.service_variables(release)).unwrap_or_default(),
            host_programs: Arc::clone(&self.config.host_programs),
            run_as: self.config.run_as,
        }
    }

    /// Removes releases from disk that are neither in `keep`, nor current, nor where an
    /// activation may go back to. Blocking.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn collect(&self, keep: &[Digest]) -> Result<Vec<Release>, HostError> {
        let mut keep = keep.to_vec();
        let local = self.local();
        keep.extend(local.current.iter().map(|release| release.artifact.clone()));
        if let Some(activation) = &local.activation {
            let order = &activation.order;
            let needed = [&activation.previous, &order.release, &order.undo_to];
            keep.extend(needed.into_iter().flatten().map(|release| release.artifact.clone()));
        }
        self.releases.collect(&keep).map_err(|source| self.folders(source))
    }

    /// Does what was decided: writes down that it begins, does it, writes down what came of it.
    ///
    /// `cancel` is for a newer fence that arrives meanwhile; waiting ends at once then, and the
    /// step stays written down as begun.
    ///
    /// # Errors
    /// When something cannot be made durable: the agent has to stop then.
    pub async fn act(
        &mut self,
        action: StepAction,
        cancel: &CancellationToken,
    ) -> Result<Acted, HostError> {
        match action {
            StepAction::Accept { order, step } => {
                let highest = self.local().highest;
                if order.fence <= highest {
                    return Ok(Acted::Refused { highest });
                }
                self.accept(order, step)?;
                self.run(step, 1, cancel).await
            }
            StepAction::Run { step, attempt } => {
                self.begin(step, attempt)?;
                self.run(step, attempt, cancel).await
            }
            StepAction::Complete => {
                self.complete()?;
                Ok(Acted::Done)
            }
            StepAction::GiveUp { step, attempt } => {
                let failure = self.record.app.given_up(attempt);
                self.failed(step, attempt, failure)?;
                Ok(Acted::Failed)
            }
            StepAction::Undo { reason, attempt } => {
                self.begin(Step::Undo, attempt)?;
                self.undo(&reason, attempt, cancel).await
            }
            StepAction::Settled | StepAction::Wait(_) => Ok(Acted::Nothing),
        }
    }

    async fn run(
        &mut self,
        step: Step,
        attempt: u32,
        cancel: &CancellationToken,
    ) -> Result<Acted, HostError> {
        tracing::info!(app = %self.app, step = step.name(), attempt, "step begins");
        let ended = if step == Step::Prepare {
            // Unpacking goes on in its own thread whatever happens here: it is waited for.
            self.step(step, attempt).await
        } else {
            tokio::select! {
                ended = self.step(step, attempt) => ended,
                () = cancel.cancelled() => return Ok(Acted::Cancelled),
            }
        };
        match ended {
            Ok(()) => {
                self.done(step, attempt)?;
                Ok(Acted::Done)
            }
            Err(Interrupt::Failed(failure)) => {
                self.failed(step, attempt, *failure)?;
                Ok(Acted::Failed)
            }
            Err(Interrupt::Later { hook }) => {
                self.change(|record| record.later = Some(hook))?;
                Ok(self.back_off(attempt, cancel).await)
            }
            Err(Interrupt::Fatal(error)) => Err(error),
        }
    }

    /// Waits before another attempt.
    pub(crate) async fn back_off(&self, attempt: u32, cancel: &CancellationToken) -> Acted {
        let pause = std::time::Duration::from_millis(back_off_ms(attempt));
        tokio::select! {
            () = tokio::time::sleep(pause) => Acted::Later,
            () = cancel.cancelled() => Acted::Cancelled,
        }
    }

    /// Changes the record; durable before it returns, and before anybody sees it.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut AppRecord)) -> Result<(), HostError> {
        let mut record = self.record.clone();
        change(&mut record.app);
        if let Some(confirm) = &mut record.app.confirm {
            confirm.clock = confirm.clock.carried(self.now());
        }
        self.cuts.point()?;
        self.file
            .save(&record)
            .map_err(|source| HostError::Record { app: self.app.to_string(), source })?;
        self.record = record;
        self.ahead = false;
        self.cuts.point()?;
        self.local.send_if_modified(|local| {
            let changed = *local != self.record.app.local;
            local.clone_from(&self.record.app.local);
            changed
        });
        Ok(())
    }

    /// Writes down what was done and is not on disk yet. Call it before anything is waited for.
    ///
    /// # Errors
    /// When it cannot be made durable: the agent has to stop then.
    pub fn write_down(&mut self) -> Result<(), HostError> {
        if self.ahead { self.change(|_| {}) } else { Ok(()) }
    }

    fn accept(&mut self, order: ActivationOrder, step: Step) -> Result<(), HostError> {
        self.reached.begin(step, boot_time_ms());
        let (releases, boot) = (self.releases.clone(), self.boot.clone());
        let now = BootTime { boot: &boot, ms: boot_time_ms() };
        self.change(|record| record.accept(order, step, |release| releases.has(release), now))
    }

    fn begin(&mut self, step: Step, attempt: u32) -> Result<(), HostError> {
        self.reached.begin(step, boot_time_ms());
        let boot = self.boot.clone();
        let now = BootTime { boot: &boot, ms: boot_time_ms() };
        self.change(|record| record.begin(step, attempt, now))
    }

    fn done(&mut self, step: Step, attempt: u32) -> Result<(), HostError> {
        tracing::info!(app = %self.app, step = step.name(), attempt, "step done");
        if reported_when_done(step) {
            return self.change(|record| record.done(step, attempt));
        }
        self.record.app.done(step, attempt);
        self.ahead = true;
        Ok(())
    }

    fn failed(&mut self, step: Step, attempt: u32, failure: Failure) -> Result<(), HostError> {
        let Failure { blame, reason, output } = failure;
        tracing::warn!(app = %self.app, step = step.name(), attempt, ?blame, reason, "step failed");
        let reason = crate::output::first_text(&reason);
        let output = crate::output::last_text(&output);
        if step >= Step::Drain {
            self.tell(Traffic::Out { reason: reason.clone() });
        }
        self.change(|record| record.fail(step, attempt, Failure { blame, reason, output }))
    }

    fn complete(&mut self) -> Result<(), HostError> {
        self.change(AppRecord::complete)?;
        self.tell(match self.local().current {
            // Also when the agent restarted between the warm-up and this.
            Some(_) => Traffic::Ready,
            None => Traffic::Out { reason: "nothing is to run here".to_owned() },
        });
        Ok(())
    }

    pub(crate) fn tell(&self, traffic: Traffic) {
        self.traffic.send_if_modified(|told| {
            let changed = *told != traffic;
            *told = traffic;
            changed
        });
    }

    pub(crate) fn folders(&self, source: crate::releases::ReleasesError) -> HostError {
        HostError::Folders { app: self.app.to_string(), source }
    }
}

#[cfg(test)]
#[path = "previous_test.rs"]
mod previous_test;
