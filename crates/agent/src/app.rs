//! One app on this server: the shell that sees for [`App`] and does what it says.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_base::chain;
use cohort_core::doing::{Doing, Download};
use cohort_core::ids::{AppId, Digest};
use cohort_core::orders::AppOrders;
use cohort_core::policy::Check;
use cohort_core::report::{Health, Outcome, Step};
use cohort_core::steps::{BootTime, StepAction};
use cohort_host::{AppHost, Boot, HostError, NotYet, RunningChecks};
use cohort_server::app::{
    App, Booted, Doing as What, Effect, LOOK_MS_MAX, Running, Sight, preflight_result, step_of,
};
use cohort_server::fetching::shown;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::download::{Environment, download};
use crate::reporter::Reporter;
use crate::shared::Shared;

mod changes;

pub(crate) use changes::Changes;
use changes::Seen;

/// How often what a check sees is told while it does not pass: its time runs out.
const SEEN_EVERY: Duration = Duration::from_secs(1);

/// One app on this server.
pub(crate) struct AppTask {
    pub shared: Arc<Shared>,
    pub app: AppId,
    pub host: AppHost,
    pub reporter: Reporter,
    pub changes: Changes,
}

impl AppTask {
    pub(crate) async fn run(mut self) -> Result<(), HostError> {
        let mut app = self.boot().await?;
        let mut checks = Checks::default();
        while !self.changes.stopped() {
            if self.turn(&mut app, &mut checks).await? == Turned::Retired {
                return Ok(());
            }
        }
        self.host.write_down()
    }

    pub(crate) async fn boot(&mut self) -> Result<App, HostError> {
        let Boot { in_service, started } = self.host.boot().await?;
        let patience_ms = self.shared.config.ready_without_orders_after.ms;
        Ok(App::new((self.changes.clock)(), patience_ms, Booted { in_service, started }))
    }

    /// One look and what follows from it: a step, or a rest until there is a reason to look again.
    async fn turn(&mut self, app: &mut App, checks: &mut Checks) -> Result<Turned, HostError> {
        let seen = self.changes.seen();
        let received = seen.received.as_deref();
        if let Some(received) = received {
            self.host.heard(received.asked_ms);
        }
        let orders = received.and_then(|received| received.of(&self.app));
        let health = checks.running.as_mut().map(RunningChecks::health);
        let trial = checks.trial.as_mut().and_then(RunningChecks::result);
        let health = (health.as_ref(), trial.as_ref());
        let (effects, next) = self.look(app, &seen, orders, health);
        let mut acted = false;
        for effect in effects {
            acted |= matches!(effect, Effect::Act { .. });
            if self.perform(app, effect, orders, checks).await? == Turned::Retired {
                return Ok(Turned::Retired);
            }
        }
        if !acted {
            tokio::select! {
                () = self.changes.next() => {}
                () = changed(checks.running.as_mut()) => {}
                () = changed(checks.trial.as_mut()) => {}
                () = tokio::time::sleep(next) => {}
            }
        }
        Ok(Turned::Looked)
    }

    /// What to do now, and how long until the next look if nothing changes.
    fn look(
        &self,
        app: &mut App,
        seen: &Seen,
        orders: Option<&AppOrders>,
        (health, trial): (Option<&Health>, Option<&Health>),
    ) -> (Vec<Effect>, Duration) {
        let mut held = self.shared.downloads.context().store.held();
        held.extend(self.host.held());
        let (room, room_for_health) = self.reporter.room();
        let now = BootTime { ms: (self.changes.clock)(), ..self.host.now() };
        let sight = Sight {
            now,
            orders,
            orders_fresh: seen.received.as_ref().is_some_and(|r| r.fresh(now.ms)),
            refused: self.shared.is_refused(),
            killed: seen.killed,
            confirmed: seen.confirmed,
            record: self.host.record(),
            reached: self.host.reached(),
            held: &held,
            health,
            trial,
            room,
            room_for_health,
        };
        let effects = app.look(&sight);
        (effects, Duration::from_millis(App::look_in_ms(&sight)))
    }

    async fn perform(
        &mut self,
        app: &mut App,
        effect: Effect,
        orders: Option<&AppOrders>,
        checks: &mut Checks,
    ) -> Result<Turned, HostError> {
        match effect {
            Effect::WriteDown => self.host.write_down()?,
            Effect::Act { action, running } => self.act(app, checks, action, running).await?,
            Effect::Undrain { running } => tokio::select! {
                undrained = self.host.undrain_for_wait() => undrained?,
                () = self.changes.interrupt(running) => {}
            },
            Effect::Doing(what) => {
                let doing = what.map(|what| match what {
                    What::Fetching => Doing::Download(self.fetching(orders)),
                    What::Confirming => Doing::Confirming,
                });
                self.shared.does(&self.app, doing);
            }
            Effect::TakeTraffic => self.host.take_traffic(),
            effect @ (Effect::Report { .. } | Effect::Unfit(_)) => {
                tell(&self.shared, &self.reporter, &self.app, effect);
            }
            Effect::Watch { checks: which, first } => {
                checks.running = Some(self.watch(&which, &first));
            }
            Effect::Unwatch => {
                checks.running = None;
                self.shared.check_contexts.lock().remove(&self.app);
            }
            Effect::Try { checks: which } => {
                checks.trial = Some(RunningChecks::try_out(&which, self.host.check_context()));
            }
            Effect::EndTrial => checks.trial = None,
            Effect::EnsureRunning => self.host.ensure_running().await,
            Effect::Collect(keep) => self.collect(&keep).await,
            Effect::Retire if self.retire().await => return Ok(Turned::Retired),
            Effect::Retire => {}
        }
        Ok(Turned::Looked)
    }

    /// Takes one step; a newer order, or a group out of reach for too long, interrupts its waits.
    /// The health of what runs meanwhile is looked at next to it.
    async fn act(
        &mut self,
        app: &mut App,
        checks: &mut Checks,
        action: StepAction,
        running: Running,
    ) -> Result<(), HostError> {
        let step = step_of(&action);
        self.shared.does(&self.app, step.map(|step| Doing::Step { step }));
        let mut not_yet = self.host.not_yet();
        let begun = Instant::now();
        let cancel = CancellationToken::new();
        {
            let act = self.host.act(action, &cancel);
            let interrupt = self.changes.interrupt(running);
            tokio::pin!(act, interrupt);
            loop {
                tokio::select! {
                    acted = &mut act => {
                        acted?;
                        break;
                    }
                    () = &mut interrupt => {
                        cancel.cancel();
                        act.await?;
                        break;
                    }
                    seen = next_seen(&mut not_yet) => {
                        self.shared.does(&self.app, step.map(|step| checking(step, seen)));
                    }
                    health = beside(checks.running.as_mut()) => {
                        let (now_ms, (_, room)) = ((self.changes.clock)(), self.reporter.room());
                        for effect in app.look_beside(now_ms, Some(&health), room) {
                            tell(&self.shared, &self.reporter, &self.app, effect);
                        }
                    }
                }
            }
        }
        self.shared.does(&self.app, None);
        if let Some(step) = step {
            self.measure(step, begun.elapsed());
        }
        Ok(())
    }

    fn measure(&self, step: Step, took: Duration) {
        if let Some(passed) = preflight_result(step, self.host.local()) {
            self.shared.metrics.count_check("pre-flight", passed);
        }
        self.shared.metrics.step_took(step.name(), took);
    }

    fn fetching(&self, orders: Option<&AppOrders>) -> Download {
        let transfers = self.shared.downloads.transfers();
        let Some((order, status)) = orders.and_then(|orders| shown(orders, &transfers)) else {
            return Download::Queued;
        };
        let context = self.shared.downloads.context();
        let around = Environment {
            guidance: context.guides.of(&order.release.artifact),
            leader_silent: context.guides.silent_for(),
            download_limit: context.download.limit(),
        };
        download(status, &around)
    }

    fn watch(&self, checks: &[Check], first: &Health) -> RunningChecks {
        let (context, service) = (self.host.check_context(), self.host.running_service());
        self.shared.check_contexts.lock().insert(self.app.clone(), context.clone());
        RunningChecks::spawn(checks, context, service, first)
    }

    /// Removes what no order wants kept any more.
    async fn collect(&self, keep: &[Digest]) {
        if let Err(error) = self.host.collect(keep) {
            tracing::warn!(app = %self.app, error = chain(&error), "cannot collect old releases");
        }
        self.shared.keep(&self.app, keep.iter().cloned().collect::<BTreeSet<_>>());
        if let Some(keep) = self.shared.keep_of_all() {
            self.collect_artifacts(keep).await;
        }
    }

    async fn collect_artifacts(&self, keep: BTreeSet<Digest>) {
        let store = Arc::clone(&self.shared.downloads.context().store);
        let collected = tokio::task::spawn_blocking(move || store.collect(&keep)).await;
        if let Ok(Err(error)) = collected {
            tracing::warn!(error = chain(&error), "cannot collect old artifacts");
        }
    }

    /// Removes everything of the app from this server; returns whether nothing is left.
    async fn retire(&self) -> bool {
        if let Err(error) = self.host.remove() {
            tracing::warn!(app = %self.app, error = chain(&error), "cannot remove a removed app");
            return false;
        }
        self.shared.does(&self.app, None);
        if let Some(keep) = self.shared.retire(&self.app) {
            self.collect_artifacts(keep).await;
        }
        tracing::info!(app = %self.app, "removed: the group no longer has the app");
        true
    }
}

/// What came of one look.
#[derive(Debug, PartialEq, Eq)]
enum Turned {
    Looked,
    /// Nothing of the app is left on this server.
    Retired,
}

/// The checks that decide about traffic, and those on trial.
#[derive(Debug, Default)]
struct Checks {
    running: Option<RunningChecks>,
    trial: Option<RunningChecks>,
}

/// The health while a step runs, if the running checks stay in force.
async fn beside(checks: Option<&mut RunningChecks>) -> Health {
    let Some(checks) = checks else { return std::future::pending().await };
    // News may have to wait for its turn.
    let every = Duration::from_millis(LOOK_MS_MAX);
    let _ = tokio::time::timeout(every, checks.changed()).await;
    checks.health()
}

/// What the checks of a release that has started see: when that changes, and as time passes.
async fn next_seen(not_yet: &mut watch::Receiver<Option<NotYet>>) -> Option<NotYet> {
    let waits = not_yet.borrow().is_some();
    if waits {
        let _ = tokio::time::timeout(SEEN_EVERY, not_yet.changed()).await;
    } else if not_yet.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    not_yet.borrow_and_update().clone()
}

fn checking(step: Step, seen: Option<NotYet>) -> Doing {
    let Some(NotYet { saw, deadline }) = seen else { return Doing::Step { step } };
    let left = deadline.saturating_duration_since(tokio::time::Instant::now());
    Doing::Checking { saw, left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX) }
}

/// Tells the group, or load balancers: the effects that do not touch the host.
fn tell(shared: &Shared, reporter: &Reporter, app: &AppId, effect: Effect) {
    match effect {
        Effect::Report { fence, attempt, outcome } => {
            if let Outcome::Health { in_service, .. } = outcome {
                shared.metrics.count_check("running", in_service);
            }
            reporter.report(app, fence, attempt, outcome);
        }
        Effect::Unfit(reason) => shared.readiness.fit(app, reason),
        _ => {}
    }
}

/// Waits for news of the running checks, if there are any.
async fn changed(checks: Option<&mut RunningChecks>) {
    match checks {
        Some(checks) => checks.changed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "app_test.rs"]
mod app_test;
