//! One app on this server: the shell that sees for [`App`] and does what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_base::chain;
use cohort_core::doing::{Doing, Download};
use cohort_core::ids::{AppId, Digest};
use cohort_core::orders::{AppOrders, Fence, FetchOrder};
use cohort_core::policy::Check;
use cohort_core::report::{Health, Outcome, Step};
use cohort_core::steps::{Progress, StepAction};
use cohort_distribute::FetchStatus;
use cohort_host::{AppHost, HostError, RunningChecks, boot_time_ms};
use cohort_server::app::{App, Doing as What, Effect, Running, Sight, step_of};
use cohort_server::asking::Received;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::download::{Environment, download};
use crate::reporter::Reporter;
use crate::shared::Shared;

/// What makes an app look again.
pub(crate) struct Changes {
    pub orders: watch::Receiver<Option<Arc<Received>>>,
    pub fetched: watch::Receiver<BTreeMap<Digest, FetchStatus>>,
    pub killed: watch::Receiver<Option<String>>,
    pub confirmed: watch::Receiver<BTreeMap<AppId, Fence>>,
}

/// One app on this server.
pub(crate) struct AppTask {
    pub shared: Arc<Shared>,
    pub app: AppId,
    pub host: AppHost,
    pub reporter: Reporter,
}

/// What came of one look.
struct Looked {
    effects: Vec<Effect>,
    /// When the action, or giving traffic back, is interrupted.
    running: Option<Running>,
    next: Duration,
}

impl AppTask {
    pub(crate) async fn run(mut self, mut changes: Changes) -> Result<(), HostError> {
        let found = self.host.boot().await?;
        let patience_ms = self.shared.config.ready_without_orders_after.ms;
        let mut app = App::new(boot_time_ms(), patience_ms, found);
        let mut checks: Option<RunningChecks> = None;
        while !self.shared.tasks.stop.is_cancelled() {
            let received = changes.orders.borrow_and_update().clone();
            if let Some(received) = &received {
                self.host.heard(received.asked_ms);
            }
            let orders = received.as_deref().and_then(|received| orders_of(received, &self.app));
            let mut health = checks.as_ref().map(RunningChecks::health);
            let opinion = health.as_mut().map(|health| health.borrow_and_update().clone());
            let fresh = received.as_ref().is_some_and(|r| r.fresh(boot_time_ms()));
            let Looked { effects, running, next } =
                self.look(&mut app, orders, fresh, opinion.as_ref(), &mut changes);
            let mut acted = false;
            let watches = effects.iter().any(|effect| matches!(effect, Effect::Watch { .. }));
            for effect in effects {
                acted |= matches!(effect, Effect::Act(_));
                self.perform(effect, orders, running, &mut checks, &changes).await?;
            }
            if !acted {
                if watches {
                    health = checks.as_ref().map(RunningChecks::health);
                }
                self.rest(next, health, &mut changes).await;
            }
        }
        self.host.write_down()
    }

    fn look(
        &self,
        app: &mut App,
        orders: Option<&AppOrders>,
        orders_fresh: bool,
        health: Option<&Health>,
        changes: &mut Changes,
    ) -> Looked {
        let mut held = self.shared.downloads.context().store.held();
        held.extend(self.host.held());
        let (room, room_for_health) = self.reporter.room();
        let sight = Sight {
            now: self.host.now(),
            orders,
            orders_fresh,
            killed: changes.killed.borrow_and_update().is_some(),
            confirmed: changes.confirmed.borrow_and_update().get(&self.app).copied(),
            record: self.host.record(),
            reached: self.host.reached(),
            held: &held,
            health,
            room,
            room_for_health,
        };
        let effects = app.look(&sight);
        let running = effects.iter().find_map(|effect| match effect {
            Effect::Act(action) => Some(Running::new(action, &sight)),
            Effect::Undrain => Some(Running::undraining(&sight)),
            _ => None,
        });
        Looked { effects, running, next: Duration::from_millis(App::look_in_ms(&sight)) }
    }

    async fn perform(
        &mut self,
        effect: Effect,
        orders: Option<&AppOrders>,
        running: Option<Running>,
        checks: &mut Option<RunningChecks>,
        changes: &Changes,
    ) -> Result<(), HostError> {
        match effect {
            Effect::Report { fence, attempt, outcome } => {
                if let Outcome::Health { in_service, .. } = outcome {
                    self.shared.metrics.count_check("running", in_service);
                }
                self.reporter.report(&self.app, fence, attempt, outcome);
            }
            Effect::WriteDown => self.host.write_down()?,
            Effect::Act(action) => self.act(action, running, changes).await?,
            Effect::Undrain => {
                let interrupt = self.interrupted(running, changes);
                tokio::select! {
                    undrained = self.host.undrain_for_wait() => undrained?,
                    () = interrupt => {}
                }
            }
            Effect::Doing(what) => {
                let doing = what.map(|what| match what {
                    What::Fetching => Doing::Download(self.fetching(orders)),
                    What::Confirming => Doing::Confirming,
                });
                self.doing(doing);
            }
            Effect::TakeTraffic => self.host.take_traffic(),
            Effect::Unfit(reason) => self.shared.readiness.fit(&self.app, reason),
            Effect::Watch { checks: which, first } => *checks = Some(self.watch(&which, &first)),
            Effect::Unwatch => *checks = None,
            Effect::EnsureRunning => self.host.ensure_running().await,
            Effect::Collect(keep) => self.collect(&keep).await,
        }
        Ok(())
    }

    /// Waits until something changes, or it is time to look again.
    async fn rest(
        &self,
        next: Duration,
        mut health: Option<watch::Receiver<Health>>,
        changes: &mut Changes,
    ) {
        let news = async {
            // Checks that have ended have no news any more.
            let changed = match &mut health {
                Some(health) => health.changed().await.is_ok(),
                None => false,
            };
            if !changed {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = self.shared.tasks.stop.cancelled() => {}
            _ = changes.orders.changed() => {}
            _ = changes.fetched.changed() => {}
            _ = changes.killed.changed() => {}
            _ = changes.confirmed.changed() => {}
            () = news => {}
            () = tokio::time::sleep(next) => {}
        }
    }

    /// Takes one step; a newer order, or a group out of reach for too long, interrupts its waits.
    async fn act(
        &mut self,
        action: StepAction,
        running: Option<Running>,
        changes: &Changes,
    ) -> Result<(), HostError> {
        let step = step_of(&action);
        self.doing(step.map(|step| Doing::Step { step }));
        let begun = Instant::now();
        let cancel = CancellationToken::new();
        let interrupt = self.interrupted(running, changes);
        {
            let act = self.host.act(action, &cancel);
            tokio::pin!(act);
            tokio::select! {
                acted = &mut act => { acted?; }
                () = interrupt => {
                    cancel.cancel();
                    act.await?;
                }
            }
        }
        self.doing(None);
        if let Some(step) = step {
            self.measure(step, begun.elapsed());
        }
        Ok(())
    }

    fn measure(&self, step: Step, took: Duration) {
        if step == Step::Check {
            let progress = self.host.local().activation.as_ref().map(|a| &a.progress);
            let passed = match progress {
                Some(Progress::Done { step: Step::Check, .. }) => Some(true),
                Some(Progress::Failed { step: Step::Check, .. }) => Some(false),
                _ => None,
            };
            if let Some(passed) = passed {
                self.shared.metrics.count_check("pre-flight", passed);
            }
        }
        self.shared.metrics.step_took(step.name(), took);
    }

    /// Until [`Running`] says so, or the agent stops.
    fn interrupted(
        &self,
        running: Option<Running>,
        changes: &Changes,
    ) -> impl Future<Output = ()> + use<> {
        let (app, mut orders) = (self.app.clone(), changes.orders.clone());
        let stop = self.shared.tasks.stop.clone();
        async move {
            let Some(running) = running else { return stop.cancelled().await };
            loop {
                let at_ms = {
                    let received = orders.borrow_and_update();
                    let received = received.as_deref();
                    let ordered = received.and_then(|received| orders_of(received, &app));
                    running.interrupted_at_ms(ordered, received.map_or(0, |r| r.asked_ms))
                };
                let left_ms = at_ms.map(|at_ms| at_ms.saturating_sub(boot_time_ms()));
                let expired = async {
                    match left_ms {
                        Some(left_ms) => tokio::time::sleep(Duration::from_millis(left_ms)).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = expired => return,
                    changed = orders.changed() => if changed.is_err() { return },
                }
            }
        }
    }

    fn doing(&self, doing: Option<Doing>) {
        let mut board = self.shared.doing.lock();
        match doing {
            Some(doing) => board.insert(self.app.clone(), doing),
            None => board.remove(&self.app),
        };
    }

    fn fetching(&self, orders: Option<&AppOrders>) -> Download {
        // By version: what is on its way may be the difference to what is here.
        let transfers = self.shared.downloads.transfers();
        let mut fetches = orders.into_iter().flat_map(|orders| &orders.fetch);
        let first = fetches.find_map(|fetch| {
            let of_it = |order: &FetchOrder| {
                order.release.artifact == fetch.release.artifact
                    || order.release.manifest == fetch.release.manifest
            };
            transfers.iter().find(|(order, status)| of_it(order) && status.is_some())
        });
        let Some((order, status)) = first else {
            return Download::Queued;
        };
        let context = self.shared.downloads.context();
        let around = Environment {
            guidance: context.guides.of(&order.release.artifact),
            leader_silent: context.guides.silent_for(),
            download_limit: context.download.limit(),
        };
        download(status.as_ref(), &around)
    }

    fn watch(&self, checks: &[Check], first: &Health) -> RunningChecks {
        let (context, service) = (self.host.check_context(), self.host.running_service());
        RunningChecks::spawn(checks, context, service, first)
    }

    /// Removes what no order wants kept any more.
    async fn collect(&self, keep: &[Digest]) {
        if let Err(error) = self.host.collect(keep) {
            tracing::warn!(app = %self.app, error = chain(&error), "cannot collect old releases");
        }
        self.shared.keep(&self.app, keep.iter().cloned().collect::<BTreeSet<_>>());
        if let Some(keep) = self.shared.keep_of_all() {
            let store = Arc::clone(&self.shared.downloads.context().store);
            let collected = tokio::task::spawn_blocking(move || store.collect(&keep)).await;
            if let Ok(Err(error)) = collected {
                tracing::warn!(error = chain(&error), "cannot collect old artifacts");
            }
        }
    }
}

fn orders_of<'a>(received: &'a Received, app: &AppId) -> Option<&'a AppOrders> {
    received.orders.apps.iter().find(|orders| orders.app == *app)
}
