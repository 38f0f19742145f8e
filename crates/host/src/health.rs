//! The checks that run while a release is in use.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_core::policy::{Check, CheckPhase};
use cohort_core::report::Health;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::check::{CheckContext, check_name, look};
use crate::output::first_text;
use crate::service::ServiceControl;

/// How many results in a row have to agree before a server's health changes. Two: one lost packet
/// is not an outage, and detection takes only one more interval.
const AGREE: u32 = 2;

/// How often the guard is asked whether the service is running.
const SERVICE_EVERY: Duration = Duration::from_secs(1);

/// A service that exited so often within [`CRASHES_WITHIN`] crashes again and again: what its
/// checks see between two crashes is not health.
const CRASHES: usize = 3;
const CRASHES_WITHIN: Duration = Duration::from_secs(60);

/// The running checks of one app. Dropping this stops them.
#[derive(Debug)]
pub struct RunningChecks {
    health: watch::Receiver<Health>,
    /// Keeps the sender alive if nothing is checked.
    _board: Arc<Board>,
    _looks: JoinSet<()>,
}

impl RunningChecks {
    /// Starts those of `checks` that run while a release is in use. `service` is the manager that
    /// runs the service, and the service's name there; its state is checked too.
    ///
    /// `first` is the health known now.
    #[must_use]
    pub fn spawn(
        checks: &[Check],
        context: CheckContext,
        service: Option<(Arc<dyn ServiceControl>, String)>,
        first: &Health,
    ) -> Self {
        let context = Arc::new(context);
        let running = |check: &&Check| check.phase.contains(&CheckPhase::Running);
        let subjects: Vec<Subject> = checks
            .iter()
            .filter(running)
            .map(|check| Subject::Check { check: check.clone(), context: Arc::clone(&context) })
            .chain(service.map(|(control, name)| {
                let crashes = Mutex::new(Crashes::default());
                Subject::Service { control, name, crashes }
            }))
            .collect();
        let opinions = Opinions::new(subjects.len(), first);
        let (sender, health) = watch::channel(opinions.together());
        let opinions = Mutex::new(opinions);
        let board = Arc::new(Board { opinions, sender });
        let mut looks = JoinSet::new();
        for (index, subject) in subjects.into_iter().enumerate() {
            looks.spawn(Arc::clone(&board).watch(index, subject));
        }
        RunningChecks { health, _board: board, _looks: looks }
    }

    /// Starts the running ones of `checks` without any effect; [`Self::result`] is `None` until all
    /// have passed, or one has failed.
    #[must_use]
    pub fn try_out(checks: &[Check], context: CheckContext) -> Self {
        let unknown = Health { in_service: false, reason: String::new() };
        Self::spawn(checks, context, None, &unknown)
    }

    /// The health, if the checks have said anything yet; seen from now on.
    pub fn result(&mut self) -> Option<Health> {
        Some(self.health()).filter(|health| health.in_service || !health.reason.is_empty())
    }

    /// The health as all checks and the service's state show it together; seen from now on.
    pub fn health(&mut self) -> Health {
        self.health.borrow_and_update().clone()
    }

    /// Waits until the health changes again after it was seen.
    pub async fn changed(&mut self) {
        self.health.changed().await.expect("its sender is on the board, which is kept here");
    }
}

#[derive(Debug)]
enum Subject {
    Check { check: Check, context: Arc<CheckContext> },
    Service { control: Arc<dyn ServiceControl>, name: String, crashes: Mutex<Crashes> },
}

/// When a service exited on its own, the last times.
#[derive(Debug, Default)]
struct Crashes {
    exits: Option<u64>,
    at: VecDeque<Instant>,
}

impl Crashes {
    /// Takes the number of exits so far. Returns whether the service crashes again and again.
    fn saw(&mut self, exits: u64, now: Instant) -> bool {
        let new = exits.saturating_sub(self.exits.replace(exits).unwrap_or(exits));
        for _ in 0..new.min(CRASHES as u64) {
            self.at.push_back(now);
        }
        let lately = |at: &Instant| now.duration_since(*at) < CRASHES_WITHIN;
        while self.at.len() > CRASHES || self.at.front().is_some_and(|at| !lately(at)) {
            self.at.pop_front();
        }
        self.at.len() >= CRASHES
    }
}

impl Subject {
    fn every(&self) -> Duration {
        match self {
            Subject::Check { check, .. } => Duration::from_millis(check.interval.ms),
            Subject::Service { .. } => SERVICE_EVERY,
        }
    }

    /// Runs one check; the error says what is wrong, for people.
    async fn look(&self) -> Result<(), String> {
        match self {
            Subject::Check { check, context } => look(check, context)
                .await
                .map_err(|failure| format!("{}: {failure}", check_name(check, context))),
            Subject::Service { control, name, crashes } => match control.status(name).await {
                Ok(status) => match (crashes.lock().saw(status.exits, Instant::now()), &status) {
                    (true, status) => Err(status.crashes_on()),
                    (false, status) if status.is_running() => Ok(()),
                    (false, status) => Err(status.not_running()),
                },
                // A guard that does not respond says nothing about the service.
                Err(error) => {
                    tracing::debug!(reason = cohort_base::chain(&error), "cannot ask the guard");
                    Ok(())
                }
            },
        }
    }
}

/// Each check's current opinion.
#[derive(Debug)]
struct Opinions(Vec<Opinion>);

#[derive(Debug, Clone)]
struct Opinion {
    /// What is wrong with the service, by this check; empty while it is unknown.
    against: Option<String>,
    /// How many results in a row have disagreed with that.
    disagreed: u32,
}

impl Opinions {
    fn new(count: usize, first: &Health) -> Self {
        let against = (!first.in_service).then(|| first.reason.clone());
        Opinions(vec![Opinion { against, disagreed: 0 }; count])
    }

    /// Takes one result of one check. True if that changed the check's opinion.
    fn saw(&mut self, index: usize, seen: Result<(), String>) -> bool {
        let opinion = &mut self.0[index];
        let unknown = opinion.against.as_ref().is_some_and(String::is_empty);
        if unknown && seen.is_err() {
            *opinion = Opinion { against: seen.err(), disagreed: 0 };
            return true;
        }
        if seen.is_ok() == opinion.against.is_none() {
            opinion.disagreed = 0;
            return false;
        }
        opinion.disagreed += 1;
        if opinion.disagreed < AGREE {
            return false;
        }
        *opinion = Opinion { against: seen.err(), disagreed: 0 };
        true
    }

    fn together(&self) -> Health {
        let against: Vec<&str> =
            self.0.iter().filter_map(|opinion| opinion.against.as_deref()).collect();
        let in_service = against.is_empty();
        let known: Vec<&str> = against.into_iter().filter(|why| !why.is_empty()).collect();
        Health { in_service, reason: first_text(&known.join("; ")) }
    }
}

#[derive(Debug)]
struct Board {
    opinions: Mutex<Opinions>,
    sender: watch::Sender<Health>,
}

impl Board {
    async fn watch(self: Arc<Self>, index: usize, subject: Subject) {
        let mut interval = tokio::time::interval(subject.every());
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let seen = subject.look().await;
            let mut opinions = self.opinions.lock();
            if opinions.saw(index, seen) {
                let together = opinions.together();
                self.sender.send_if_modified(|health| {
                    let changed = *health != together;
                    *health = together;
                    changed
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_crashes_within_a_minute_are_one_after_the_other() {
        let begin = Instant::now();
        let at = |s: u64| begin + Duration::from_secs(s);
        let mut crashes = Crashes::default();
        // What was before the checks is not known to be of now.
        assert!(!crashes.saw(7, at(0)));
        assert!(!crashes.saw(8, at(10)));
        assert!(!crashes.saw(9, at(20)));
        assert!(crashes.saw(10, at(30)));
        assert!(crashes.saw(10, at(69)));
        assert!(!crashes.saw(10, at(71)), "the first was more than a minute ago");
        // Another start counts from the beginning.
        assert!(!crashes.saw(0, at(72)));
        assert!(crashes.saw(5, at(73)));
    }
}

#[cfg(test)]
#[path = "health_test.rs"]
mod health_test;
