//! The steps themselves. Each may be interrupted anywhere, and run again.

use std::collections::BTreeMap;
use std::time::Duration;

use cohort_core::orders::{ActivationOrder, Fence, Purpose};
use cohort_core::policy::{Check, CheckPhase, Probe};
use cohort_core::release::Release;
use cohort_core::report::{Blame, Step};
use cohort_core::steps::{ATTEMPTS_MAX, Failure, LocalActivation, NoTraffic, Progress};

use crate::app_host::AppHost;
use crate::hooks::{Hook, HookEnd, HookRun};
use crate::interrupt::{Interrupt, failure};
use crate::preflight::Preflight;
use crate::run_service::RunningService;
use crate::service::ServiceStatus;
use crate::service_file::{ServiceFile, ServiceFileError};
use crate::traffic::Traffic;

/// How often the share of traffic grows during warm-up. 100 ms: more often than any balancer asks.
const WARM_UP_EVERY: Duration = Duration::from_millis(100);

/// The activation that a step belongs to.
pub(crate) struct Work<'a> {
    pub(crate) attempt: u32,
    pub(crate) activation: &'a LocalActivation,
}

impl Work<'_> {
    /// The key for starting the service: once per fence.
    pub(crate) fn fence(&self) -> String {
        fence_text(self.activation.order.fence)
    }
}

/// A fence as `incarnation.generation`.
pub(crate) fn fence_text(fence: Fence) -> String {
    format!("{}.{}", fence.incarnation, fence.generation)
}

impl AppHost {
    /// Takes a step; returns the failure of a hook that did not keep it from ending well.
    pub(crate) async fn step(
        &self,
        step: Step,
        attempt: u32,
    ) -> Result<Option<Failure>, Interrupt> {
        let Some(activation) = &self.record.local.activation else {
            return Err(surroundings("there is no activation to continue"));
        };
        let work = Work { attempt, activation };
        match step {
            // Artifacts are fetched in parallel with the steps; this one is here by now.
            Step::Fetch => {}
            Step::Prepare => self.prepare(&activation.order).await?,
            Step::Drain => return self.drain(&work).await,
            Step::HandOver => return self.hand_over(&work).await,
            Step::Stop => return self.stop(&work).await,
            Step::Switch => self.switch(&work).await?,
            Step::Start => self.start(&work).await?,
            Step::Check => self.check(&work).await?,
            Step::WarmUp => self.warm_up(&work).await?,
            Step::Undo => return Err(surroundings("an undo is not a step of an order")),
        }
        Ok(None)
    }

    /// Unpacks the release next to the running one and validates its `cohort.toml`.
    async fn prepare(&self, order: &ActivationOrder) -> Result<(), Interrupt> {
        let Some(release) = &order.release else { return Ok(()) };
        self.cuts.point()?;
        let artifact = self.config.state_dir.join("artifacts").join(release.artifact.as_str());
        let (releases, wanted) = (self.releases.clone(), release.clone());
        let reader = self.config.run_as;
        tokio::task::spawn_blocking(move || releases.unpack(&artifact, &wanted, reader))
            .await
            .map_err(|error| surroundings(format!("unpacking stopped: {error}")))??;
        self.cuts.point()?;
        let (inside, signed) = (self.service_file(release)?.rollback, release.rollback);
        if inside.is_some_and(|inside| inside != signed) {
            let reason = format!("cohort.toml says rollback {inside:?}, the manifest {signed:?}");
            return Err(failure(Blame::Release, reason).into());
        }
        // What cannot run here is detected while the old release still runs.
        self.service_of(release, "prepare")?;
        self.own_env()?;
        self.own_files()?;
        // The way back does not wait for a program that the server no longer lists.
        if order.purpose != Purpose::Wave {
            return Ok(());
        }
        let context = self.check_context_of(Some(release));
        let named = order.checks.iter().filter_map(|check| match &check.probe {
            Probe::Exec { name } => Some(name),
            Probe::Tcp(_) | Probe::Http(_) | Probe::Grpc(_) => None,
        });
        for name in named {
            let known = context.check_known(name);
            known.map_err(|missing| failure(missing.blame(), missing.to_string()))?;
        }
        Ok(())
    }

    async fn drain(&self, work: &Work<'_>) -> Result<Option<Failure>, Interrupt> {
        let Some(current) = &self.record.local.current else {
            self.tell(Traffic::Out { reason: NoTraffic::Installing });
            return Ok(None);
        };
        if self.record.blocked {
            self.tell(Traffic::Draining);
            return Ok(None);
        }
        let before = self.leaving_hook(Hook::BeforeBlockTraffic, current, work).await?;
        self.tell(Traffic::Draining);
        self.cuts.point()?;
        tokio::time::sleep(Duration::from_millis(work.activation.order.drain_ms)).await;
        let after = self.leaving_hook(Hook::AfterBlockTraffic, current, work).await?;
        Ok(after.or(before))
    }

    async fn hand_over(&self, work: &Work<'_>) -> Result<Option<Failure>, Interrupt> {
        match &self.record.local.current {
            Some(current) => self.leaving_hook(Hook::HandOver, current, work).await,
            None => Ok(None),
        }
    }

    async fn stop(&self, work: &Work<'_>) -> Result<Option<Failure>, Interrupt> {
        self.tell(Traffic::Out { reason: NoTraffic::Installing });
        let current = self.record.local.current.as_ref();
        let ignored = match current {
            // Without a service that the host stops, only the hook can. One whose file cannot be
            // read is stopped by what the host knows.
            Some(current)
                if self.service_file(current).is_ok_and(|file| file.service.is_none()) =>
            {
                self.hook(Hook::ApplicationStop, current, work).await?;
                None
            }
            Some(current) => self.leaving_hook(Hook::ApplicationStop, current, work).await?,
            None => None,
        };
        self.cuts.point()?;
        self.stop_service(current).await?;
        self.cuts.point()?;
        Ok(ignored)
    }

    async fn switch(&self, work: &Work<'_>) -> Result<(), Interrupt> {
        let release = work.activation.order.release.as_ref();
        if let Some(release) = release {
            self.hook(Hook::BeforeInstall, release, work).await?;
        }
        self.cuts.point()?;
        self.releases.switch(release)?;
        self.cuts.point()?;
        match release {
            Some(release) => self.hook(Hook::AfterInstall, release, work).await,
            None => Ok(()),
        }
    }

    async fn start(&self, work: &Work<'_>) -> Result<(), Interrupt> {
        let Some(release) = &work.activation.order.release else { return Ok(()) };
        self.cuts.point()?;
        if let Some(service) = self.service_of(release, &work.fence())? {
            self.start_service(service).await?;
        }
        self.cuts.point()?;
        self.hook(Hook::ApplicationStart, release, work).await
    }

    async fn check(&self, work: &Work<'_>) -> Result<(), Interrupt> {
        let order = &work.activation.order;
        let Some(release) = &order.release else { return Ok(()) };
        let service = self.service_of(release, &work.fence())?;
        let context = self.check_context_of(Some(release));
        let pre_flight = |check: &&Check| check.phase.contains(&CheckPhase::PreFlight);
        let preflight = Preflight {
            checks: order.checks.iter().filter(pre_flight).collect(),
            context: &context,
            service: service.as_ref().map(|s| (&*s.control, s.spec.name.as_str())),
            min_healthy: Duration::from_millis(order.min_healthy_ms),
            deadline: Duration::from_millis(order.healthy_deadline_ms),
            seen: &self.not_yet,
        };
        preflight.run().await?;
        self.hook(Hook::ValidateService, release, work).await
    }

    /// Returns traffic in growing shares.
    async fn warm_up(&self, work: &Work<'_>) -> Result<(), Interrupt> {
        let order = &work.activation.order;
        let Some(release) = &order.release else { return Ok(()) };
        let service = self.service_of(release, &work.fence())?;
        let exits = still_runs(service.as_ref(), None).await?;
        self.hook(Hook::BeforeAllowTraffic, release, work).await?;
        let warm_up = Duration::from_millis(order.warm_up_ms);
        let since = tokio::time::Instant::now();
        while since.elapsed() < warm_up {
            let share = since.elapsed().as_millis() * 100 / warm_up.as_millis();
            let percent = u8::try_from(share.clamp(1, 99)).unwrap_or(99);
            self.tell(Traffic::WarmingUp { percent });
            tokio::time::sleep(WARM_UP_EVERY.min(warm_up.saturating_sub(since.elapsed()))).await;
            still_runs(service.as_ref(), exits).await?;
        }
        self.cuts.point()?;
        self.tell(Traffic::Ready);
        self.hook(Hook::AfterAllowTraffic, release, work).await
    }

    pub(crate) fn service_file(&self, release: &Release) -> Result<ServiceFile, ServiceFileError> {
        self.releases.service_file(release)
    }

    /// Runs a hook of the release that is being stopped. If the order says so, its failure is only
    /// returned: not even one that asks to be retried for ever keeps the release running.
    async fn leaving_hook(
        &self,
        hook: Hook,
        release: &Release,
        work: &Work<'_>,
    ) -> Result<Option<Failure>, Interrupt> {
        let despite = work.activation.order.stop_despite_hooks;
        match self.hook(hook, release, work).await {
            Ok(()) => Ok(None),
            Err(Interrupt::Failed(failure)) if despite => Ok(Some(*failure)),
            Err(Interrupt::Later(_)) if despite && work.attempt >= ATTEMPTS_MAX => {
                Ok(Some(self.record.given_up(work.attempt)))
            }
            Err(interrupt) => Err(interrupt),
        }
    }

    /// Runs a hook of `release`; succeeds if the release does not have it.
    pub(crate) async fn hook(
        &self,
        hook: Hook,
        release: &Release,
        work: &Work<'_>,
    ) -> Result<(), Interrupt> {
        let folder = self.releases.path_of(release);
        // One whose file is lost is left all the same.
        let file = match self.service_file(release) {
            Err(ServiceFileError::Absent) => ServiceFile::default(),
            file => file?,
        };
        let mut variables = self.own_env()?;
        variables.extend(self.hook_variables(hook, release, work));
        let run = HookRun {
            hook,
            folder: &folder,
            limit: file.limit_of(hook),
            variables: &variables,
            programs: &self.config.programs,
            run_as: self.config.run_as,
            home: self.config.home.as_deref(),
            isolation: self.isolation_of(&file),
            limits: file.limits(),
            kept_in: &self.folder.join("hooks"),
        };
        self.cuts.point()?;
        let end = run.run().await?;
        self.cuts.point()?;
        match end {
            HookEnd::Absent | HookEnd::Passed => Ok(()),
            HookEnd::Later { output } => {
                tracing::info!(app = %self.app, hook = hook.name(), output, "hook will be retried");
                Err(Interrupt::Later(hook))
            }
            HookEnd::Failed { why, output } => {
                let reason = format!("hook {} {why}", hook.name());
                Err(Failure { blame: Blame::Release, reason, output }.into())
            }
        }
    }

    /// Variables for a hook of `release`.
    ///
    /// `COHORT_VERSION` is the version being installed, even for a hook of the old release;
    /// `COHORT_RELEASE_DIR` is the directory of the hook's own release.
    fn hook_variables(
        &self,
        hook: Hook,
        release: &Release,
        work: &Work<'_>,
    ) -> BTreeMap<String, String> {
        let LocalActivation { order, previous, progress, .. } = work.activation;
        let mut variables = self.service_variables(release);
        let mut set = |name: &str, value: String| variables.insert(name.to_owned(), value);
        let version = |release: Option<&Release>| {
            release.map(|release| release.version.to_string()).unwrap_or_default()
        };
        set("COHORT_VERSION", version(order.release.as_ref()));
        set("COHORT_PREVIOUS_VERSION", version(previous.as_ref()));
        let step = match progress {
            Progress::Begun { step, .. }
            | Progress::Done { step, .. }
            | Progress::Failed { step, .. } => step.name(),
            Progress::Undone { .. } | Progress::GivenBack | Progress::Complete => "",
        };
        set("COHORT_STEP", step.to_owned());
        set("COHORT_FENCE", work.fence());
        set("COHORT_ATTEMPT", work.attempt.to_string());
        if hook == Hook::HandOver {
            let avoid: Vec<&str> = order.avoid.iter().map(|server| server.as_str()).collect();
            set("COHORT_AVOID", avoid.join(","));
        }
        variables
    }
}

fn surroundings(reason: impl Into<String>) -> Interrupt {
    failure(Blame::Surroundings, reason).into()
}

/// Fails if the service has exited since its checks passed. Returns how often it had exited by now;
/// `exits_before` is an earlier result.
async fn still_runs(
    service: Option<&RunningService>,
    exits_before: Option<u64>,
) -> Result<Option<u64>, Interrupt> {
    let Some(RunningService { control, spec }) = service else { return Ok(None) };
    let status = control.status(&spec.name).await?;
    if status.is_running() && exits_before.is_none_or(|before| before == status.exits) {
        return Ok(Some(status.exits));
    }
    let ServiceStatus { last_exit, output, .. } = status;
    let exit = last_exit.map_or_else(|| "it is not running".to_owned(), |exit| exit.to_string());
    let reason = format!("the service ended after its checks had passed ({exit})");
    Err(Failure { blame: Blame::Release, reason, output }.into())
}
