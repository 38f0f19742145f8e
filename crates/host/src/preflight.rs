//! Pre-flight: the service is healthy without interruption for long enough, or it fails.

use std::time::Duration;

use cohort_base::chain;
use cohort_base::retry::Schedule;
use cohort_core::policy::Check;
use cohort_core::report::Blame;
use cohort_core::steps::Failure;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::check::{CheckContext, CheckFailure, check_name, look};
use crate::process::Exit;
use crate::service::{ServiceControl, ServiceError, ServiceState, ServiceStatus};

/// Pauses after unhealthy results, while a service comes up. Up to 500 ms: delays a slow service
/// little.
const LOOK_AGAIN: Schedule = Schedule::new(Duration::from_millis(20), Duration::from_millis(500));

/// How often the guard is asked for a healthy service's status.
const STATUS_EVERY: Duration = Duration::from_millis(200);

/// This many crashes are a crash loop, regardless of the deadline.
const CRASHES_MAX: u64 = 3;

#[derive(Debug)]
pub(crate) struct Preflight<'a> {
    pub(crate) checks: Vec<&'a Check>,
    pub(crate) context: &'a CheckContext,
    /// The manager that runs the service, and the service's name there; `None` if the release has
    /// none.
    pub(crate) service: Option<(&'a dyn ServiceControl, &'a str)>,
    pub(crate) min_healthy: Duration,
    pub(crate) deadline: Duration,
    /// What is seen while it does not pass.
    pub(crate) seen: &'a watch::Sender<Option<NotYet>>,
}

/// What the checks of a release that has started saw last: not a healthy service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotYet {
    pub saw: String,
    /// When it counts as failed.
    pub deadline: Instant,
}

/// Why a check did not see a healthy service.
enum Unhealthy<'a> {
    Check(&'a Check, CheckFailure),
    NotRunning(ServiceStatus),
    NoAnswer(ServiceError),
}

/// How long every check has passed.
#[derive(Debug, Default)]
struct Streak {
    /// Its start, and how often the service had exited by then.
    since: Option<(Instant, u64)>,
}

impl Streak {
    fn is_unbroken_for(&self, time: Duration, now: Instant) -> bool {
        self.since.is_some_and(|(since, _)| now - since >= time)
    }

    /// A healthy result. A service that crashed and came back between two results starts a new
    /// streak.
    fn healthy(&mut self, now: Instant, exits: u64) {
        if self.since.is_none_or(|(_, exits_then)| exits_then != exits) {
            self.since = Some((now, exits));
        }
    }

    fn left(&self, time: Duration, now: Instant) -> Duration {
        self.since.map_or(time, |(since, _)| time.saturating_sub(now - since))
    }
}

impl<'a> Preflight<'a> {
    /// Checks until the service was healthy for `min_healthy` without interruption, or has failed.
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        let ended = self.look_until_healthy().await;
        self.tell(None);
        ended
    }

    fn tell(&self, not_yet: Option<NotYet>) {
        self.seen.send_if_modified(|seen| {
            let changed = *seen != not_yet;
            *seen = not_yet;
            changed
        });
    }

    async fn look_until_healthy(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + self.deadline;
        let mut pauses = LOOK_AGAIN.pauses();
        let mut due = vec![Instant::now(); self.checks.len()];
        let mut streak = Streak::default();
        loop {
            // The first round and the deciding one run every check.
            let decides = streak.is_unbroken_for(self.min_healthy, Instant::now());
            let all = decides || streak.since.is_none();
            match self.look(&mut due, all, deadline).await {
                Ok(exits) => {
                    let now = Instant::now();
                    streak.healthy(now, exits);
                    self.tell(None);
                    if all && streak.is_unbroken_for(self.min_healthy, now) {
                        return Ok(());
                    }
                    pauses.reset();
                    let next = due.iter().map(|due| due.saturating_duration_since(now)).min();
                    let left = streak.left(self.min_healthy, now);
                    tokio::time::sleep(next.unwrap_or(STATUS_EVERY).min(STATUS_EVERY).min(left))
                        .await;
                }
                Err(unhealthy) => {
                    streak = Streak::default();
                    if let Unhealthy::NotRunning(status) = &unhealthy
                        && will_stay_down(status)
                    {
                        return Err(crashed(status));
                    }
                    let pause = pauses.next_pause();
                    let saw = self.in_words(&unhealthy).1;
                    self.tell(Some(NotYet { saw, deadline }));
                    if Instant::now() + pause >= deadline {
                        return Err(self.too_late(unhealthy).await);
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Gets the service's status and runs the checks that are due (or all). Returns how often the
    /// service has exited.
    async fn look(
        &self,
        due: &mut [Instant],
        all: bool,
        deadline: Instant,
    ) -> Result<u64, Unhealthy<'a>> {
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
        for (check, due) in self.checks.iter().zip(due) {
            let now = Instant::now();
            if !all && *due > now {
                continue;
            }
            *due = now + Duration::from_millis(check.interval.ms);
            let looked = tokio::time::timeout_at(deadline, look(check, self.context)).await;
            looked
                .unwrap_or(Err(CheckFailure::TimedOut))
                .map_err(|failure| Unhealthy::Check(check, failure))?;
        }
        Ok(exits)
    }

    fn in_words(&self, unhealthy: &Unhealthy<'_>) -> (Blame, String) {
        match unhealthy {
            Unhealthy::Check(check, failure) => {
                (failure.blame(), format!("{}: {failure}", check_name(check, self.context)))
            }
            Unhealthy::NotRunning(status) => (Blame::Release, status.not_running()),
            Unhealthy::NoAnswer(error) => (error.blame(), chain(error)),
        }
    }

    async fn too_late(&self, unhealthy: Unhealthy<'a>) -> Failure {
        let output = match self.service {
            Some((control, name)) => {
                control.status(name).await.map(|status| status.output).unwrap_or_default()
            }
            None => String::new(),
        };
        let (blame, why) = self.in_words(&unhealthy);
        let ms = self.deadline.as_millis();
        Failure { blame, reason: format!("not healthy within {ms} ms: {why}"), output }
    }
}

/// It is in a crash loop, or it exited and will not be restarted (a failed unit).
fn will_stay_down(status: &ServiceStatus) -> bool {
    let stopped = status.exits > 0 && status.state == ServiceState::Stopped;
    status.exits >= CRASHES_MAX || stopped
}

fn crashed(status: &ServiceStatus) -> Failure {
    let (times, exit) = (status.exits, status.last_exit.as_ref().unwrap_or(&Exit::Unknown));
    Failure {
        blame: Blame::Release,
        reason: format!("the service crashed {times} times after its start ({exit})"),
        output: status.output.clone(),
    }
}

#[cfg(test)]
#[path = "preflight_test.rs"]
mod preflight_test;
