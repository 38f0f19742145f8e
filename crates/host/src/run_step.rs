//! The steps themselves. Each may be interrupted anywhere and run again.

use std::sync::Arc;
use std::time::Duration;

use cohort_core::orders::ActivationOrder;
use cohort_core::policy::{Check, CheckPhase};
use cohort_core::release::Release;
use cohort_core::report::{Blame, Step};
use cohort_core::steps::{Failure, LocalActivation};

use crate::app_host::AppHost;
use crate::hooks::{Hook, HookEnd, HookRun};
use crate::preflight::Preflight;
use crate::record::HostError;
use crate::run_service::RunningService;
use crate::service::ServiceError;
use crate::service_file::{ServiceFile, ServiceFileError};
use crate::traffic::Traffic;
use crate::unpack::UnpackError;

/// How often a share of traffic is raised while it comes back. 100 ms: finer than any balancer asks.
const WARM_UP_EVERY: Duration = Duration::from_millis(100);

/// Why a step was not done.
#[derive(Debug)]
pub(crate) enum Interrupt {
    Failed(Box<Failure>),
    /// A hook asks to be tried again.
    Later {
        hook: String,
    },
    Fatal(HostError),
}

pub(crate) fn failed(blame: Blame, reason: impl Into<String>) -> Interrupt {
    let failure = Failure { blame, reason: reason.into(), output: String::new() };
    Interrupt::Failed(Box::new(failure))
}

impl From<HostError> for Interrupt {
    fn from(error: HostError) -> Self {
        Interrupt::Fatal(error)
    }
}

impl From<ServiceError> for Interrupt {
    fn from(error: ServiceError) -> Self {
        failed(error.blame(), error.to_string())
    }
}

impl From<UnpackError> for Interrupt {
    fn from(error: UnpackError) -> Self {
        failed(error.blame(), crate::output::chain(&error))
    }
}

impl From<ServiceFileError> for Interrupt {
    fn from(error: ServiceFileError) -> Self {
        let blame = match &error {
            ServiceFileError::Io(_) => Blame::Surroundings,
            ServiceFileError::TooLong
            | ServiceFileError::Toml(_)
            | ServiceFileError::Invalid(_) => Blame::Release,
        };
        failed(blame, crate::output::chain(&error))
    }
}

impl AppHost {
    pub(crate) async fn step(&mut self, step: Step, attempt: u32) -> Result<(), Interrupt> {
        let Some(activation) = self.record.app.local.activation.clone() else {
            return Err(failed(Blame::Surroundings, "there is no activation to go on with"));
        };
        let work = Work { attempt, activation: &activation };
        match step {
            // Bytes come in beside the steps; by now they are here.
            Step::Fetch => Ok(()),
            Step::Prepare => self.prepare(&activation.order).await,
            Step::Drain => self.drain(&work).await,
            Step::HandOver => self.hand_over(&work).await,
            Step::Stop => self.stop(&work).await,
            Step::Switch => self.switch(&work).await,
            Step::Start => self.start(&work).await,
            Step::Check => self.check(&work).await,
            Step::WarmUp => self.warm_up(&work).await,
            Step::Undo => Err(failed(Blame::Surroundings, "an undo is no step of an order")),
        }
    }

    /// Unpacks the release beside the running one and reads how it wants to be run.
    async fn prepare(&self, order: &ActivationOrder) -> Result<(), Interrupt> {
        let Some(release) = order.release.clone() else { return Ok(()) };
        self.cuts.point()?;
        let artifact = self.config.state_dir.join("artifacts").join(release.artifact.as_str());
        let (releases, limits) = (self.releases.clone(), self.config.limits);
        let owner = self.config.run_as;
        let wanted = release.clone();
        let unpacking = move || releases.unpack(&artifact, &wanted, limits, owner);
        tokio::task::spawn_blocking(unpacking)
            .await
            .map_err(|error| failed(Blame::Surroundings, format!("unpacking ended: {error}")))??;
        self.cuts.point()?;
        let file = self.service_file(&release)?;
        match file.rollback {
            Some(rollback) if rollback != release.rollback => {
                let signed = release.rollback;
                let reason = format!("cohort.toml says {rollback:?}, the manifest {signed:?}");
                Err(failed(Blame::Release, reason))
            }
            // Its service is looked at now, while the old one still runs.
            _ => self.service_of(&release, "prepare").map(drop),
        }
    }

    /// Takes traffic away; nothing to wait for when there was none.
    async fn drain(&self, work: &Work<'_>) -> Result<(), Interrupt> {
        let Some(current) = self.record.app.local.current.clone() else {
            self.tell(Traffic::Out { reason: "a release is being installed".to_owned() });
            return Ok(());
        };
        if self.record.app.blocked {
            self.tell(Traffic::Draining);
            return Ok(());
        }
        self.hook(Hook::BeforeBlockTraffic, &current, work).await?;
        self.tell(Traffic::Draining);
        self.cuts.point()?;
        tokio::time::sleep(Duration::from_millis(work.activation.order.drain_ms)).await;
        self.hook(Hook::AfterBlockTraffic, &current, work).await
    }

    async fn hand_over(&self, work: &Work<'_>) -> Result<(), Interrupt> {
        match &self.record.app.local.current {
            Some(current) => self.hook(Hook::HandOver, current, work).await,
            None => Ok(()),
        }
    }

    async fn stop(&self, work: &Work<'_>) -> Result<(), Interrupt> {
        self.tell(Traffic::Out { reason: "a release is being installed".to_owned() });
        let current = self.record.app.local.current.as_ref();
        if let Some(current) = current {
            self.hook(Hook::ApplicationStop, current, work).await?;
        }
        self.cuts.point()?;
        self.stop_service(current).await?;
        self.cuts.point()?;
        Ok(())
    }

    async fn switch(&self, work: &Work<'_>) -> Result<(), Interrupt> {
        let release = work.activation.order.release.as_ref();
        if let Some(release) = release {
            self.hook(Hook::BeforeInstall, release, work).await?;
        }
        self.cuts.point()?;
        self.point_to(release)?;
        self.cuts.point()?;
        match release {
            Some(release) => self.hook(Hook::AfterInstall, release, work).await,
            None => Ok(()),
        }
    }

    pub(crate) fn point_to(&self, release: Option<&Release>) -> Result<(), Interrupt> {
        self.releases
            .switch(release)
            .map_err(|error| failed(Blame::Surroundings, crate::output::chain(&error)))
    }

    async fn start(&self, work: &Work<'_>) -> Result<(), Interrupt> {
        let Some(release) = &work.activation.order.release else { return Ok(()) };
        self.cuts.point()?;
        if let Some(RunningService { control, spec }) = self.service_of(release, &work.key())? {
            control.start(&spec).await?;
        }
        self.cuts.point()?;
        self.hook(Hook::ApplicationStart, release, work).await
    }

    async fn check(&self, work: &Work<'_>) -> Result<(), Interrupt> {
        let order = &work.activation.order;
        let Some(release) = &order.release else { return Ok(()) };
        let service = self.service_of(release, &work.key())?;
        let context = self.check_context_of(Some(release));
        let pre_flight = |check: &&Check| check.phase.contains(&CheckPhase::PreFlight);
        let checks: Vec<Check> = order.checks.iter().filter(pre_flight).cloned().collect();
        let preflight = Preflight {
            checks: &checks,
            context: &context,
            service: service.as_ref().map(|s| (&*s.control, s.spec.name.as_str())),
            min_healthy: Duration::from_millis(order.min_healthy_ms),
            deadline: Duration::from_millis(order.healthy_deadline_ms),
        };
        preflight.run().await.map_err(|error| {
            let crate::preflight::NotHealthy { blame, reason, output } = error;
            Interrupt::Failed(Box::new(Failure { blame, reason, output }))
        })?;
        self.hook(Hook::ValidateService, release, work).await
    }

    /// Gives traffic back, more and more of it.
    async fn warm_up(&self, work: &Work<'_>) -> Result<(), Interrupt> {
        let order = &work.activation.order;
        let Some(release) = &order.release else { return Ok(()) };
        let service = self.service_of(release, &work.key())?;
        let exits = still_runs(service.as_ref(), None).await?;
        self.hook(Hook::BeforeAllowTraffic, release, work).await?;
        let warm_up = Duration::from_millis(order.warm_up_ms);
        let since = tokio::time::Instant::now();
        while since.elapsed() < warm_up {
            let share = since.elapsed().as_millis() * 100 / warm_up.as_millis();
            let percent = u8::try_from(share.clamp(1, 99)).unwrap_or(99);
            self.tell(Traffic::WarmingUp { percent });
            tokio::time::sleep(WARM_UP_EVERY.min(warm_up - since.elapsed())).await;
            still_runs(service.as_ref(), exits).await?;
        }
        self.cuts.point()?;
        self.tell(Traffic::Ready);
        self.hook(Hook::AfterAllowTraffic, release, work).await
    }

    pub(crate) fn service_file(&self, release: &Release) -> Result<ServiceFile, ServiceFileError> {
        ServiceFile::read(&self.releases.path_of(release))
    }

    /// Runs a hook of `release`; passes when it has none of this name.
    pub(crate) async fn hook(
        &self,
        hook: Hook,
        release: &Release,
        work: &Work<'_>,
    ) -> Result<(), Interrupt> {
        let folder = self.releases.path_of(release);
        let run = HookRun {
            hook,
            folder: &folder,
            limit: self.service_file(release)?.limit_of(hook),
            variables: &self.hook_variables(hook, release, work),
            run_as: self.config.run_as,
            kept_in: &self.folder.join("hooks"),
        };
        self.cuts.point()?;
        let end = run
            .run()
            .await
            .map_err(|error| failed(Blame::Surroundings, crate::output::chain(&error)))?;
        self.cuts.point()?;
        match end {
            HookEnd::Absent | HookEnd::Passed => Ok(()),
            HookEnd::Later { output } => {
                tracing::info!(app = %self.app, hook = hook.name(), output, "hook says later");
                Err(Interrupt::Later { hook: hook.name().to_owned() })
            }
            HookEnd::Failed { reason, output } => {
                let failure = Failure { blame: Blame::Release, reason, output };
                Err(Interrupt::Failed(Box::new(failure)))
            }
        }
    }
}

/// Fails when the service crashed since it was checked; how often it had ended.
async fn still_runs(
    service: Option<&RunningService>,
    exits_before: Option<u64>,
) -> Result<Option<u64>, Interrupt> {
    let Some(RunningService { control, spec }) = service else { return Ok(None) };
    let status = Arc::clone(control).status(&spec.name).await?;
    if status.is_running() && exits_before.is_none_or(|before| before == status.exits) {
        return Ok(Some(status.exits));
    }
    let exit = status.last_exit.unwrap_or_else(|| "it does not run".to_owned());
    let reason = format!("the service ended after its checks had passed ({exit})");
    let failure = Failure { blame: Blame::Release, reason, output: status.output };
    Err(Interrupt::Failed(Box::new(failure)))
}

/// The activation that a step belongs to.
pub(crate) struct Work<'a> {
    pub(crate) attempt: u32,
    pub(crate) activation: &'a LocalActivation,
}

impl Work<'_> {
    /// The fence as text: `incarnation.generation`.
    pub(crate) fn fence(&self) -> String {
        let fence = self.activation.order.fence;
        format!("{}.{}", fence.incarnation, fence.generation)
    }

    /// Under which yes the service runs.
    pub(crate) fn key(&self) -> String {
        self.fence()
    }
}
