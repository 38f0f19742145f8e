//! Pre-flight: healthy without a break for long enough, or not in time.

use std::time::Duration;

use cohort_core::policy::Check;
use cohort_core::report::Blame;
use tokio::time::Instant;

use crate::check::{CheckContext, CheckFailure, check_name, look};
use crate::service::{ServiceControl, ServiceError, ServiceStatus};

/// The first wait after an unhealthy look, while a service comes up; doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(20);

/// The longest wait after an unhealthy look. 500 ms: costs a service that is slow to start little.
const RETRY_MAX: Duration = Duration::from_millis(500);

/// How often the guard is asked while a service is healthy.
const STATUS_EVERY: Duration = Duration::from_millis(200);

/// So many crashes are a loop, whatever the deadline says.
const CRASHES_MAX: u64 = 3;

/// What has to be seen.
#[derive(Debug)]
pub(crate) struct Preflight<'a> {
    pub(crate) checks: &'a [Check],
    pub(crate) context: &'a CheckContext,
    /// Who runs the service, and under which name; `None` when the release has none.
    pub(crate) service: Option<(&'a dyn ServiceControl, &'a str)>,
    pub(crate) min_healthy: Duration,
    pub(crate) deadline: Duration,
}

/// Why the pre-flight checks were not passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotHealthy {
    pub(crate) blame: Blame,
    pub(crate) reason: String,
    pub(crate) output: String,
}

/// Why a look saw no health.
enum Unhealthy {
    Check(usize, CheckFailure),
    NotRunning(ServiceStatus),
    NoAnswer(ServiceError),
}

impl Preflight<'_> {
    /// Looks until it was healthy for `min_healthy` without a break, or the deadline has passed.
    pub(crate) async fn run(&self) -> Result<(), NotHealthy> {
        let deadline = Instant::now() + self.deadline;
        let mut retry = RETRY_FIRST;
        let mut due: Vec<Instant> = vec![Instant::now(); self.checks.len()];
        let mut healthy_since: Option<(Instant, u64)> = None;
        loop {
            let last = healthy_since.is_some_and(|(since, _)| since.elapsed() >= self.min_healthy);
            match self.look(&mut due, last || healthy_since.is_none(), deadline).await {
                Ok(exits) => {
                    let (since, exits_then) = *healthy_since.get_or_insert((Instant::now(), exits));
                    if exits != exits_then {
                        // It crashed and came back between two looks: a break.
                        healthy_since = Some((Instant::now(), exits));
                    } else if last || self.min_healthy.is_zero() {
                        return Ok(());
                    }
                    retry = RETRY_FIRST;
                    let left = self.min_healthy.saturating_sub(since.elapsed());
                    let next = due.iter().min().map_or(STATUS_EVERY, |next| {
                        next.saturating_duration_since(Instant::now()).min(STATUS_EVERY)
                    });
                    tokio::time::sleep(next.min(left)).await;
                }
                Err(unhealthy) => {
                    healthy_since = None;
                    if let Unhealthy::NotRunning(status) = &unhealthy
                        && (status.exits >= CRASHES_MAX || given_up(status))
                    {
                        return Err(crash_loop(status));
                    }
                    if Instant::now() + retry >= deadline {
                        return Err(self.too_late(unhealthy).await);
                    }
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// One look at the service and at the checks that are due (or all); how often it had ended.
    async fn look(
        &self,
        due: &mut [Instant],
        all: bool,
        deadline: Instant,
    ) -> Result<u64, Unhealthy> {
        let exits = match self.service {
            Some((control, name)) => {
                let status = control.status(name).await.map_err(Unhealthy::NoAnswer)?;
                if !status.is_running() || status.exits >= CRASHES_MAX {
                    return Err(Unhealthy::NotRunning(status));
                }
                status.exits
            }
            None => 0,
        };
        for (index, check) in self.checks.iter().enumerate() {
            let now = Instant::now();
            if !all && due[index] > now {
                continue;
            }
            due[index] = now + Duration::from_millis(check.interval.ms);
            let looked = tokio::time::timeout_at(deadline, look(check, self.context)).await;
            looked
                .unwrap_or(Err(CheckFailure::TimedOut))
                .map_err(|failure| Unhealthy::Check(index, failure))?;
        }
        Ok(exits)
    }

    async fn too_late(&self, unhealthy: Unhealthy) -> NotHealthy {
        let ms = self.deadline.as_millis();
        let output = match self.service {
            Some((control, name)) => {
                control.status(name).await.map(|status| status.output).unwrap_or_default()
            }
            None => String::new(),
        };
        let (blame, why) = match unhealthy {
            Unhealthy::Check(index, failure) => {
                let blame = match &failure {
                    CheckFailure::CannotCheck(_) => Blame::Surroundings,
                    _ => Blame::Release,
                };
                (blame, format!("{}: {failure}", check_name(&self.checks[index])))
            }
            Unhealthy::NotRunning(status) => (Blame::Release, not_running(&status)),
            Unhealthy::NoAnswer(error) => (error.blame(), error.to_string()),
        };
        NotHealthy { blame, reason: format!("not healthy within {ms} ms: {why}"), output }
    }
}

fn not_running(status: &ServiceStatus) -> String {
    match &status.last_exit {
        Some(exit) => format!("the service does not run ({exit})"),
        None => "the service does not run".to_owned(),
    }
}

fn crash_loop(status: &ServiceStatus) -> NotHealthy {
    let exit = status.last_exit.as_deref().unwrap_or("it ended");
    NotHealthy {
        blame: Blame::Release,
        reason: format!("the service crashed {} times after its start ({exit})", status.exits),
        output: status.output.clone(),
    }
}

/// It ended and will not be started again (a failed unit).
fn given_up(status: &ServiceStatus) -> bool {
    status.exits > 0 && status.state == crate::service::ServiceState::Stopped
}
