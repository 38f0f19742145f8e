//! The checks that go on while a release runs.

use std::sync::Arc;
use std::time::Duration;

use cohort_core::policy::{Check, CheckPhase};
use cohort_core::report::Health;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::check::{CheckContext, check_name, look};
use crate::service::ServiceControl;

/// So many looks in a row have to agree before a server changes its mind. Two: one lost packet is
/// no outage, and detection costs one interval more.
const AGREE: u32 = 2;

/// How often the guard is asked whether the service runs.
const SERVICE_EVERY: Duration = Duration::from_secs(1);

/// The running checks of one app. They end when this is dropped.
#[derive(Debug)]
pub struct RunningChecks {
    health: watch::Receiver<Health>,
    /// Kept, so that whoever waits for news waits even where nothing is looked at.
    _board: Arc<Board>,
    _looks: JoinSet<()>,
}

impl RunningChecks {
    /// Starts those of `checks` that are asked while a release runs. `service` is who runs the
    /// service and its name there; without checks, that it runs has to do.
    ///
    /// Begins with `first`: what is known at this moment.
    #[must_use]
    pub fn spawn(
        checks: &[Check],
        context: CheckContext,
        service: Option<(Arc<dyn ServiceControl>, String)>,
        first: Health,
    ) -> Self {
        let running = |check: &&Check| check.phase.contains(&CheckPhase::Running);
        let checks: Vec<Check> = checks.iter().filter(running).cloned().collect();
        let count = checks.len() + usize::from(service.is_some());
        let (sender, health) = watch::channel(first.clone());
        let board = Arc::new(Board { opinions: std::sync::Mutex::new(vec![first; count]), sender });
        let context = Arc::new(context);
        let mut looks = JoinSet::new();
        let subjects = checks
            .into_iter()
            .map(|check| Subject::Check { check, context: Arc::clone(&context) })
            .chain(service.map(|(control, name)| Subject::Service { control, name }));
        for (index, subject) in subjects.enumerate() {
            looks.spawn(Arc::clone(&board).watch(index, subject));
        }
        RunningChecks { health, _board: board, _looks: looks }
    }

    /// What they say together: in service when every one of them does.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }
}

/// What is looked at.
#[derive(Debug)]
enum Subject {
    Check { check: Check, context: Arc<CheckContext> },
    Service { control: Arc<dyn ServiceControl>, name: String },
}

impl Subject {
    fn every(&self) -> Duration {
        match self {
            Subject::Check { check, .. } => Duration::from_millis(check.interval.ms),
            Subject::Service { .. } => SERVICE_EVERY,
        }
    }

    async fn look(&self) -> Result<(), String> {
        match self {
            Subject::Check { check, context } => look(check, context)
                .await
                .map_err(|failure| format!("{}: {failure}", check_name(check))),
            Subject::Service { control, name } => match control.status(name).await {
                Ok(status) if status.is_running() => Ok(()),
                Ok(status) => Err(match status.last_exit {
                    Some(exit) => format!("the service does not run ({exit})"),
                    None => "the service does not run".to_owned(),
                }),
                // A guard that does not answer says nothing about the service.
                Err(error) => {
                    tracing::debug!(%error, "the guard was not asked");
                    Ok(())
                }
            },
        }
    }
}

/// What each check thinks, and what they say together.
#[derive(Debug)]
struct Board {
    opinions: std::sync::Mutex<Vec<Health>>,
    sender: watch::Sender<Health>,
}

impl Board {
    async fn watch(self: Arc<Self>, index: usize, subject: Subject) {
        let mut in_a_row = 0;
        let mut interval = tokio::time::interval(subject.every());
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let seen = subject.look().await;
            let opinion = crate::lock(&self.opinions)[index].in_service;
            if seen.is_ok() == opinion {
                in_a_row = 0;
                continue;
            }
            in_a_row += 1;
            if in_a_row >= AGREE {
                in_a_row = 0;
                let reason = seen.err().unwrap_or_default();
                self.say(index, Health { in_service: reason.is_empty(), reason });
            }
        }
    }

    fn say(&self, index: usize, opinion: Health) {
        let mut opinions = crate::lock(&self.opinions);
        opinions[index] = opinion;
        let against: Vec<&str> = opinions
            .iter()
            .filter(|opinion| !opinion.in_service)
            .map(|opinion| opinion.reason.as_str())
            .collect();
        let reason = crate::output::first_text(&against.join("; "));
        let together = Health { in_service: against.is_empty(), reason };
        self.sender.send_if_modified(|health| {
            let changed = *health != together;
            *health = together;
            changed
        });
    }
}

#[cfg(test)]
#[path = "health_test.rs"]
mod health_test;
