//! One app on one server: carries out what [`next_action`] decides, and records it.
//!
//! [`next_action`]: cohort_core::steps::next_action

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cohort_base::{FileError, OnPath as _, durable, events};
use cohort_core::ids::{AppId, Digest, GroupId, Platform, ProgramName, ServerId};
use cohort_core::release::Release;
use cohort_core::report::Step;
use cohort_core::steps::{
    AppRecord, BootTime, Failure, LocalApp, Reached, StepAction, back_off_ms, reported_when_done,
};
use cohort_store::DurableFile;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::check::CheckContext;
use crate::check_exec::{HostProgram, ReleaseChecks};
use crate::clock::now;
use crate::interrupt::Interrupt;
use crate::isolation::Isolation;
use crate::output::{first_text, last_text, with_last_line};
use crate::own_values::OwnValues;
use crate::preflight::NotYet;
use crate::program::{Programs, RunAs};
use crate::record::{self, Cuts, HostError};
use crate::releases::Releases;
use crate::service::ServiceControl;
use crate::service_file::ServiceFile;
use crate::traffic::Traffic;

/// What an app's host knows about its server.
#[derive(Debug, Clone)]
pub struct AppHostConfig {
    /// The agent's state directory; `artifacts/<digest>` in it are complete and verified.
    pub state_dir: PathBuf,
    /// The app's install directory, with `releases/` and `current`.
    pub install_dir: PathBuf,
    /// `COHORT_SERVER` for hooks, services and checks.
    pub server: ServerId,
    /// `COHORT_GROUP` for hooks, services and checks.
    pub group: GroupId,
    /// `COHORT_PLATFORM` for hooks, services and checks.
    pub platform: Platform,
    /// The address of this server that checks connect to; if absent, the loopback addresses.
    pub service_address: Option<IpAddr>,
    /// The server's ports and labels, for commands, variables and checks.
    pub own_values: Arc<OwnValues>,
    /// The user that hooks and services run as; if absent, the agent's own.
    pub run_as: Option<RunAs>,
    /// The home directory of `run_as`.
    pub home: Option<PathBuf>,
    /// Variables of the server's own for the app, if the file is there.
    pub env_file: PathBuf,
    /// Files of the server's own for the app, if the directory is there.
    pub files_dir: PathBuf,
    /// How hooks and checks are run.
    pub programs: Arc<Programs>,
    /// The server's units that a release may name.
    pub systemd_units: Arc<BTreeSet<String>>,
    /// The server's own programs that checks may run as `host:NAME`.
    pub host_programs: Arc<BTreeMap<ProgramName, HostProgram>>,
}

/// The managers that run services on this server.
#[derive(Debug, Clone)]
pub struct Controls {
    pub guard: Arc<dyn ServiceControl>,
    /// Runs units; `None` on a server without systemd.
    pub systemd: Option<Arc<dyn ServiceControl>>,
}

/// The outcome of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acted {
    Done,
    /// Failed, and the failure is recorded.
    Failed,
    /// The hook asked for a retry; the pause has already passed.
    Later,
    /// A newer order arrived; nothing more was recorded.
    Cancelled,
    Nothing,
    /// The order's fence is not higher than every fence seen before.
    Refused,
}

/// One app on this server.
#[derive(Debug)]
pub struct AppHost {
    pub(crate) app: AppId,
    pub(crate) config: AppHostConfig,
    pub(crate) controls: Controls,
    pub(crate) releases: Releases,
    pub(crate) folder: PathBuf,
    file: DurableFile<AppRecord>,
    pub(crate) record: AppRecord,
    /// The record in memory is newer than the file: a step is done that has not been reported.
    ahead: bool,
    traffic: watch::Sender<Traffic>,
    pub(crate) not_yet: watch::Sender<Option<NotYet>>,
    pub(crate) reached: Reached,
    pub(crate) cuts: Cuts,
}

impl AppHost {
    /// Reads the app's record and removes what a crash left behind. Blocking.
    ///
    /// # Errors
    /// If the record is damaged, or the app's directories cannot be used.
    pub fn open(config: AppHostConfig, app: AppId, controls: Controls) -> Result<Self, HostError> {
        let folder = config.state_dir.join("apps").join(app.as_str());
        let folders = |source| HostError::Folders { app: app.to_string(), source };
        let hooks = folder.join("hooks");
        let created = durable::private_folder(&hooks).on_path("create", &hooks);
        created.map_err(|error| folders(error.into()))?;
        let releases = Releases::open(&config.install_dir).map_err(folders)?;
        let own = releases.create_own_dirs(config.run_as);
        own.map_err(|error| folders(error.into()))?;
        if let Some(reader) = config.run_as {
            releases.open_to(reader).map_err(|error| folders(error.into()))?;
        }
        let (file, record) = record::open(&folder, app.as_str())?;
        Ok(AppHost {
            traffic: watch::Sender::new(Traffic::Starting),
            not_yet: watch::Sender::new(None),
            reached: Reached::new(now().ms),
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

    /// What this server knows about the app.
    #[must_use]
    pub fn local(&self) -> &LocalApp {
        &self.record.local
    }

    /// Everything recorded about the app.
    #[must_use]
    pub fn record(&self) -> &AppRecord {
        &self.record
    }

    /// This machine's boot-time clock.
    #[must_use]
    pub fn now(&self) -> BootTime<'static> {
        now()
    }

    /// When the group was last in contact.
    #[must_use]
    pub fn reached(&self) -> Reached {
        self.reached
    }

    /// The traffic state that load balancers see.
    #[must_use]
    pub fn traffic(&self) -> watch::Receiver<Traffic> {
        self.traffic.subscribe()
    }

    /// What the checks of a release that has started see, while they do not pass.
    pub fn not_yet(&self) -> watch::Receiver<Option<NotYet>> {
        self.not_yet.subscribe()
    }

    /// Records that the group answered a request for orders sent at this
    /// [`boot_time_ms`](crate::boot_time_ms).
    pub fn heard(&mut self, asked_boot_ms: u64) {
        self.reached.heard(asked_boot_ms);
    }

    /// Artifacts that need no download, because their releases are unpacked.
    #[must_use]
    pub fn held(&self) -> Vec<Digest> {
        self.releases.unpacked().into_iter().map(|release| release.artifact).collect()
    }

    /// What checks need to know about the release in use.
    #[must_use]
    pub fn check_context(&self) -> CheckContext {
        self.check_context_of(self.record.local.current.as_ref())
    }

    /// What the programs of a release see of the file system.
    pub(crate) fn isolation_of(&self, file: &ServiceFile) -> Isolation {
        let service = file.service.as_ref();
        service.map(|it| it.isolation(&self.releases.own_dirs())).unwrap_or_default()
    }

    pub(crate) fn check_context_of(&self, release: Option<&Release>) -> CheckContext {
        let of_release = |release: &Release| {
            let file = self.service_file(release).unwrap_or_default();
            let (isolation, limits) = (self.isolation_of(&file), file.limits());
            let declared = file.checks.into_iter().map(|(name, check)| (name, check.command));
            ReleaseChecks {
                version: release.version.clone(),
                folder: self.releases.path_of(release),
                declared: declared.collect(),
                isolation,
                limits,
            }
        };
        CheckContext {
            service_address: self.config.service_address,
            own_values: Arc::clone(&self.config.own_values),
            release: release.map(of_release),
            variables: release.map(|release| self.service_variables(release)).unwrap_or_default(),
            // One that cannot be read is told where the service is started.
            own_env: self.own_env().unwrap_or_default(),
            host_programs: Arc::clone(&self.config.host_programs),
            programs: Arc::clone(&self.config.programs),
            run_as: self.config.run_as,
            home: self.config.home.clone(),
        }
    }

    /// Removes releases from disk, except those in `keep`, the current one, and those that the
    /// activation needs or may go back to. Blocking.
    ///
    /// # Errors
    /// If a disk operation fails.
    pub fn collect(&self, keep: &[Digest]) -> Result<Vec<Release>, HostError> {
        let local = self.local();
        let mut needed: Vec<&Release> = local.current.iter().collect();
        if let Some(activation) = &local.activation {
            let order = &activation.order;
            needed.extend(
                [&activation.previous, &order.release, &order.undo_to].into_iter().flatten(),
            );
        }
        let mut keep = keep.to_vec();
        keep.extend(needed.into_iter().map(|release| release.artifact.clone()));
        self.releases
            .collect(&keep)
            .map_err(|error| HostError::Folders { app: self.app.to_string(), source: error.into() })
    }

    /// Removes everything of the app from this server, except what its service has written; the
    /// record last: while it is there, the app is removed again after a restart. Only for an app
    /// that runs nothing here. Blocking.
    ///
    /// # Errors
    /// If a file operation fails.
    pub fn remove(&self) -> Result<(), HostError> {
        let remove = || -> Result<(), FileError> {
            self.releases.remove_all()?;
            match std::fs::remove_dir_all(&self.folder) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.on_path("remove", &self.folder)?,
            }
            let apps = durable::folder_of(&self.folder);
            durable::sync_folder(apps).on_path("sync", apps)
        };
        remove()
            .map_err(|error| HostError::Folders { app: self.app.to_string(), source: error.into() })
    }

    /// Performs an action: records its start, does it, records the outcome.
    ///
    /// Cancel when a newer fence arrives: waiting stops immediately, and the step stays recorded as
    /// begun.
    ///
    /// # Errors
    /// If something cannot be persisted: the agent has to stop.
    pub async fn act(
        &mut self,
        action: StepAction,
        cancel: &CancellationToken,
    ) -> Result<Acted, HostError> {
        match action {
            StepAction::Accept { order, step } => {
                if order.fence <= self.local().highest {
                    return Ok(Acted::Refused);
                }
                let releases = self.releases.clone();
                self.begin(step, |record, now| {
                    record.accept(order, step, |release| releases.has(release), now);
                })?;
                self.run(step, 1, cancel).await
            }
            StepAction::Run { step, attempt } => {
                self.begin(step, |record, now| record.begin(step, attempt, now))?;
                self.run(step, attempt, cancel).await
            }
            StepAction::GiveBack { order } => {
                let releases = self.releases.clone();
                self.change(|record| record.give_back(order, |release| releases.has(release)))?;
                Ok(Acted::Done)
            }
            StepAction::Complete => {
                self.change(AppRecord::complete)?;
                self.take_traffic();
                Ok(Acted::Done)
            }
            StepAction::GiveUp { step, attempt } => {
                self.failed(step, attempt, self.record.given_up(attempt))
            }
            StepAction::Undo { reason, attempt } => {
                self.begin(Step::Undo, |record, now| record.begin(Step::Undo, attempt, now))?;
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
        let event = events::STEP_BEGIN;
        tracing::info!(event, app = %self.app, step = step.name(), attempt, "step started");
        let ended = if step == Step::Prepare {
            // Unpacking continues in its own thread in any case, so wait for it.
            self.step(step, attempt).await
        } else {
            tokio::select! {
                ended = self.step(step, attempt) => ended,
                () = cancel.cancelled() => return Ok(Acted::Cancelled),
            }
        };
        match ended {
            Ok(ignored) => {
                if let Some(Failure { reason, output, .. }) = ignored {
                    let step = step.name();
                    tracing::warn!(app = %self.app, step, reason, output, "ignoring a failed hook");
                    self.change(|record| record.ignore_hook(first_text(&reason)))?;
                }
                self.done(step, attempt)?;
                Ok(Acted::Done)
            }
            Err(Interrupt::Failed(failure)) => self.failed(step, attempt, *failure),
            Err(Interrupt::Later(hook)) => {
                self.change(|record| record.later = Some(hook.name().to_owned()))?;
                Ok(self.back_off(attempt, cancel).await)
            }
            Err(Interrupt::Fatal(error)) => Err(error),
        }
    }

    /// Waits before the next attempt.
    pub(crate) async fn back_off(&self, attempt: u32, cancel: &CancellationToken) -> Acted {
        let pause = Duration::from_millis(back_off_ms(attempt));
        tokio::select! {
            () = tokio::time::sleep(pause) => Acted::Later,
            () = cancel.cancelled() => Acted::Cancelled,
        }
    }

    fn begin(
        &mut self,
        step: Step,
        change: impl FnOnce(&mut AppRecord, BootTime<'_>),
    ) -> Result<(), HostError> {
        let now = now();
        self.reached.begin(step, now.ms);
        self.change(|record| change(record, now))
    }

    fn done(&mut self, step: Step, attempt: u32) -> Result<(), HostError> {
        let event = events::STEP_DONE;
        tracing::info!(event, app = %self.app, step = step.name(), attempt, "step finished");
        if reported_when_done(step) {
            return self.change(|record| record.done(step, attempt));
        }
        self.record.done(step, attempt);
        self.ahead = true;
        Ok(())
    }

    fn failed(&mut self, step: Step, attempt: u32, failure: Failure) -> Result<Acted, HostError> {
        let Failure { blame, reason, output } = failure;
        tracing::warn!(app = %self.app, step = step.name(), attempt, ?blame, reason, "step failed");
        let (reason, output) = (with_last_line(&reason, &output), last_text(&output));
        self.change(|record| record.fail(step, attempt, Failure { blame, reason, output }))?;
        if step >= Step::Drain {
            self.take_traffic();
        }
        Ok(Acted::Failed)
    }

    /// Changes the record, and persists it before returning, so before the outcome is reported.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut AppRecord)) -> Result<(), HostError> {
        let mut record = self.record.clone();
        change(&mut record);
        if let Some(confirm) = &mut record.confirm {
            confirm.clock = confirm.clock.carried(now());
        }
        self.cuts.point()?;
        self.file
            .save(&record)
            .map_err(|source| HostError::Record { app: self.app.to_string(), source })?;
        self.record = record;
        self.ahead = false;
        self.cuts.point()
    }

    /// Persists finished steps that are not yet on disk. Call it before waiting for anything.
    ///
    /// # Errors
    /// If they cannot be persisted: the agent has to stop.
    pub fn write_down(&mut self) -> Result<(), HostError> {
        if self.ahead { self.change(|_| {}) } else { Ok(()) }
    }

    /// Takes as much traffic as the record allows. After [`Self::boot`], call it once the group has
    /// said that this server is not in debt, or the agent has waited long enough for it to say so.
    pub fn take_traffic(&self) {
        self.tell(match self.record.takes_traffic() {
            Ok(()) => Traffic::Ready,
            Err(reason) => Traffic::Out { reason },
        });
    }

    pub(crate) fn tell(&self, traffic: Traffic) {
        self.traffic.send_if_modified(|told| {
            let changed = *told != traffic;
            *told = traffic;
            changed
        });
    }
}
