//! One app on this server: the pure step logic, fed with orders, done by the host.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_core::ids::{AppId, Digest};
use cohort_core::orders::{AppOrders, Fence, FetchOrder, Purpose};
use cohort_core::policy::Check;
use cohort_core::report::{Outcome, Step};
use cohort_core::steps::{Progress, StepAction, StepWait, next_action};
use cohort_distribute::{Downloads, FetchStatus};
use cohort_host::{AppHost, Health, HostError, RunningChecks, boot_time_ms};
use cohort_wire::agent::Doing;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::fetch_text::{Surroundings, fetch_text};
use crate::probe::Readiness;
use crate::reporter::Reporter;
use crate::runner::{DoingBoard, Received};
use crate::shared::Shared;

/// How often an app that waits looks at its clocks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is seen to that the guard and the service are there.
const LOOK_AFTER_EVERY: Duration = Duration::from_secs(5);
/// How often old releases are collected from disk.
const COLLECT_EVERY: Duration = Duration::from_secs(60);

/// How often the group is told what runs here while it believes something else.
const FOUND_EVERY: Duration = Duration::from_secs(5);

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
    pub downloads: Arc<Downloads>,
    pub board: Arc<DoingBoard>,
    pub reporter: Reporter,
    pub readiness: Arc<Readiness>,
    pub stop: CancellationToken,
}

/// What is remembered between two looks.
#[derive(Default)]
struct Memory {
    /// What was told last about the activation.
    told: Option<(Fence, Outcome)>,
    took_traffic: bool,
    running: Option<(Vec<Check>, Option<Digest>, RunningChecks)>,
    health: Option<Health>,
    collected: Option<Instant>,
    found: Option<Instant>,
    /// What the start found, until the group has been told.
    boot: Option<Outcome>,
    /// The service ran when the agent started, or an activation has started it since.
    booted: bool,
    looked_after: Option<Instant>,
}

impl Memory {
    /// Whether what runs is fit for traffic, as far as is known.
    fn fit(&self) -> bool {
        self.health.as_ref().map_or(self.booted, |health| health.in_service)
    }
}

impl AppTask {
    pub(crate) async fn run(mut self, mut changes: Changes) -> Result<(), HostError> {
        let found = self.host.boot().await?;
        let started = Instant::now();
        let up = matches!(found, Outcome::Found { in_service: true, .. });
        let mut memory = Memory { booted: up, boot: Some(found), ..Memory::default() };
        loop {
            if self.stop.is_cancelled() {
                return self.host.write_down();
            }
            let received = changes.orders.borrow_and_update().clone();
            let orders = received
                .as_ref()
                .and_then(|received| received.orders.apps.iter().find(|o| o.app == self.app));
            self.tell_boot(orders.is_some(), &mut memory).await;
            self.tell(&mut memory).await;
            let held = self.held();
            let confirmed = self.confirmed(&mut changes);
            let fresh = received.as_ref().is_some_and(|received| received.fresh());
            let killed = changes.killed.borrow_and_update().is_some();
            let moment = self.host.moment(fresh, killed, confirmed);
            let next = next_action(orders, self.host.local(), &held, moment);
            match next.step {
                StepAction::Settled | StepAction::Wait(_) => {
                    self.host.write_down()?;
                    if next.step == StepAction::Wait(StepWait::KillSwitch) {
                        self.undrain(orders, &changes).await?;
                    }
                    self.rest(&next.step, orders, started, &mut memory, &mut changes).await;
                }
                action => {
                    memory.running = None;
                    memory.health = None;
                    memory.booted = true;
                    self.readiness.fit(&self.app, None);
                    self.act(action, &mut changes).await?;
                }
            }
        }
    }

    /// Serves while the kill switch is on, if what runs was drained and nothing more. An order that
    /// comes meanwhile ends the hooks of that.
    async fn undrain(
        &mut self,
        orders: Option<&AppOrders>,
        changes: &Changes,
    ) -> Result<(), HostError> {
        let known = self.host.local().activation.as_ref().map(|a| a.order.fence);
        let waiting = orders.and_then(|orders| orders.activation.as_ref()).map(|order| order.fence);
        let newer = interrupted(
            self.app.clone(),
            known.max(waiting).unwrap_or_default(),
            None,
            changes.orders.clone(),
            self.stop.clone(),
        );
        tokio::select! {
            undrained = self.host.undrain_for_wait() => undrained,
            () = newer => Ok(()),
        }
    }

    fn held(&self) -> Vec<Digest> {
        let mut held = self.downloads.context().store.held();
        held.extend(self.host.held());
        held
    }

    fn confirmed(&self, changes: &mut Changes) -> bool {
        let fence = self.host.local().activation.as_ref().map(|a| a.order.fence);
        let confirmed = changes.confirmed.borrow_and_update();
        fence.is_some() && confirmed.get(&self.app).copied() == fence
    }

    /// Tells the group what is written down here and not told yet.
    async fn tell(&self, memory: &mut Memory) {
        let Some(activation) = &self.host.local().activation else { return };
        let Some((attempt, outcome)) = activation.outcome() else { return };
        let fence = activation.order.fence;
        let told = memory.told.as_ref().is_some_and(|(f, o)| *f == fence && *o == outcome);
        if !told {
            self.reporter.tell(&self.app, fence, attempt, outcome.clone()).await;
            memory.told = Some((fence, outcome));
        }
    }

    /// Does one step; a newer order, or a group out of reach for too long, interrupts its waits.
    async fn act(&mut self, action: StepAction, changes: &mut Changes) -> Result<(), HostError> {
        let step = match &action {
            StepAction::Accept { step, .. }
            | StepAction::Run { step, .. }
            | StepAction::GiveUp { step, .. } => Some(*step),
            StepAction::Undo { .. } => Some(Step::Undo),
            StepAction::Complete | StepAction::Settled | StepAction::Wait(_) => None,
        };
        let fence = match &action {
            StepAction::Accept { order, .. } => order.fence,
            StepAction::Run { .. }
            | StepAction::GiveUp { .. }
            | StepAction::Undo { .. }
            | StepAction::Complete
            | StepAction::Settled
            | StepAction::Wait(_) => {
                self.host.local().activation.as_ref().map_or(Fence::default(), |a| a.order.fence)
            }
        };
        let doing = step.map(|step| Doing { step, detail: String::new() });
        self.board.set(&self.app, doing);
        let begun = Instant::now();
        let cancel = CancellationToken::new();
        // Only a wait that the host may end by going back is worth interrupting.
        let undoing = matches!(action, StepAction::Undo { .. });
        let undo_left = self.host.undo_left_ms().filter(|_| !undoing);
        let interrupt = interrupted(
            self.app.clone(),
            fence,
            undo_left.map(|left_ms| (left_ms, self.host.reached_counts_ms())),
            changes.orders.clone(),
            self.stop.clone(),
        );
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
        self.board.set(&self.app, None);
        if let Some(step) = step {
            if step == Step::Check {
                let progress = self.host.local().activation.as_ref().map(|a| &a.progress);
                let result = match progress {
                    Some(Progress::Done { step: Step::Check, .. }) => Some("passed"),
                    Some(Progress::Failed { step: Step::Check, .. }) => Some("failed"),
                    _ => None,
                };
                if let Some(result) = result {
                    let labels = [("check", "pre-flight"), ("result", result)];
                    self.shared.metrics.add("cohort_check_total", &labels, 1.0);
                }
            }
            let labels = [("step", step.name())];
            let seconds = begun.elapsed().as_secs_f64();
            self.shared.metrics.add("cohort_server_step_seconds_sum", &labels, seconds);
            self.shared.metrics.add("cohort_server_step_seconds_count", &labels, 1.0);
        }
        Ok(())
    }

    /// Nothing to do now: traffic, running checks, old releases; until something changes.
    async fn rest(
        &mut self,
        step: &StepAction,
        orders: Option<&AppOrders>,
        started: Instant,
        memory: &mut Memory,
        changes: &mut Changes,
    ) {
        let doing = match step {
            StepAction::Wait(StepWait::Fetching) => {
                Some(Doing { step: Step::Fetch, detail: self.fetching(orders) })
            }
            StepAction::Wait(StepWait::Confirmation) => {
                Some(Doing { step: Step::Check, detail: "passed; the group is told".into() })
            }
            _ if orders.is_some_and(|orders| !orders.fetch.is_empty()) => {
                Some(Doing { step: Step::Fetch, detail: self.fetching(orders) })
            }
            _ => None,
        };
        self.board.set(&self.app, doing);
        self.tell_found(step, orders, memory).await;
        self.traffic(step, orders, started, memory);
        self.watch_health(orders, memory);
        if memory.looked_after.is_none_or(|at| at.elapsed() >= LOOK_AFTER_EVERY) {
            memory.looked_after = Some(Instant::now());
            self.host.ensure_running().await;
        }
        self.collect(orders, memory).await;
        let wait = match self.host.confirm_left_ms() {
            Some(left_ms) if left_ms > 0 => LOOK_EVERY.min(Duration::from_millis(left_ms.max(10))),
            Some(_) | None => LOOK_EVERY,
        };
        let mut health = memory.running.as_ref().map(|(_, _, checks)| checks.health());
        let mut health_changed = false;
        tokio::select! {
            () = self.stop.cancelled() => {}
            _ = changes.orders.changed() => {}
            _ = changes.fetched.changed() => {}
            _ = changes.killed.changed() => {}
            _ = changes.confirmed.changed() => {}
            () = async {
                match &mut health {
                    // Checks that have ended have no news any more.
                    Some(health) => if health.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    },
                    None => std::future::pending().await,
                }
            } => health_changed = true,
            () = tokio::time::sleep(wait) => {}
        }
        if let Some(health) = health {
            let now = health.borrow().clone();
            if health_changed || memory.health.as_ref() != Some(&now) {
                self.report_health(now, memory).await;
            }
        }
    }

    /// The first that a group hears of an app on this server is what was found here. A group that
    /// forgot the app, or this server, is told anew.
    async fn tell_boot(&self, known: bool, memory: &mut Memory) {
        if !known {
            let release = self.host.local().current.clone();
            let in_service = release.is_some() && memory.fit();
            memory.boot.get_or_insert(Outcome::Found { release, in_service });
        } else if let Some(found) = memory.boot.take() {
            self.reporter.tell(&self.app, Fence::default(), 1, found).await;
        }
    }

    /// A group that does not know what runs here (it took this server in again, or lives anew) is
    /// told once more what was found.
    async fn tell_found(&self, step: &StepAction, orders: Option<&AppOrders>, memory: &mut Memory) {
        let local = self.host.local();
        let at_rest = *step == StepAction::Settled
            && local.activation.as_ref().is_none_or(|a| a.progress == Progress::Complete);
        let differs =
            orders.is_some_and(|orders| orders.activation.is_none() && orders.run != local.current);
        let told_lately = memory.found.is_some_and(|at| at.elapsed() < FOUND_EVERY);
        if !at_rest || !differs || told_lately {
            return;
        }
        memory.found = Some(Instant::now());
        let in_service = memory.fit() && local.current.is_some();
        let found = Outcome::Found { release: local.current.clone(), in_service };
        self.reporter.tell(&self.app, Fence::default(), 1, found).await;
    }

    fn fetching(&self, orders: Option<&AppOrders>) -> String {
        // By version: what is on its way may be the difference to what is here.
        let transfers = self.downloads.transfers();
        let mut fetches = orders.into_iter().flat_map(|orders| &orders.fetch);
        let first = fetches.find_map(|fetch| {
            let of_it = |order: &FetchOrder| {
                order.release.artifact == fetch.release.artifact
                    || order.release.manifest == fetch.release.manifest
            };
            transfers.iter().find(|(order, status)| of_it(order) && status.is_some())
        });
        let Some((order, status)) = first else {
            return fetch_text(None, &Surroundings::default());
        };
        let context = self.downloads.context();
        let guides = context.guides.as_ref();
        let around = Surroundings {
            guidance: guides.and_then(|guides| guides.of(&order.release.artifact)),
            leader_silent: guides.map_or(Duration::ZERO, |guides| guides.silent_for()),
            download_limit: context.download.limit(),
        };
        fetch_text(status.as_ref(), &around)
    }

    /// After a start: traffic only when nothing is owed, or when the group could not be asked for
    /// as long as the configuration says.
    fn traffic(
        &self,
        step: &StepAction,
        orders: Option<&AppOrders>,
        started: Instant,
        memory: &mut Memory,
    ) {
        if memory.took_traffic {
            return;
        }
        let patience = Duration::from_millis(self.shared.config.ready_without_orders_after.ms);
        let activation = self.host.local().activation.as_ref();
        let settled = match orders {
            // What is owed comes before traffic.
            Some(orders) if orders.owes => false,
            Some(orders) => match &orders.activation {
                None => *step == StepAction::Settled,
                // Its turn has come and it may not begin yet: until then it serves.
                Some(order) => {
                    order.purpose == Purpose::Wave
                        && activation.is_none_or(|known| known.order.fence < order.fence)
                }
            },
            None => started.elapsed() >= patience,
        } && memory.fit();
        let busy = activation.filter(|activation| activation.progress != Progress::Complete);
        // An agent that restarted in the middle of an activation that has drained nothing yet still
        // serves; what is owed comes before traffic.
        let owes = busy.is_some_and(|activation| activation.order.purpose == Purpose::Debt);
        if settled || (busy.is_some() && orders.is_some()) {
            if !owes {
                self.host.take_traffic();
            }
            memory.took_traffic = true;
        }
    }

    /// Running checks, begun anew when the release or the checks change.
    fn watch_health(&self, orders: Option<&AppOrders>, memory: &mut Memory) {
        let local = self.host.local();
        let complete = local
            .activation
            .as_ref()
            .is_none_or(|activation| matches!(activation.progress, Progress::Complete));
        let Some(orders) = orders.filter(|_| complete && local.current.is_some()) else {
            memory.running = None;
            return;
        };
        let release = local.current.as_ref().map(|release| release.artifact.clone());
        let same = memory
            .running
            .as_ref()
            .is_some_and(|(checks, of, _)| *checks == orders.checks && *of == release);
        if !same {
            let reason = if memory.booted { "" } else { "the service did not come up" };
            let first = Health { in_service: memory.booted, reason: reason.into() };
            let checks = RunningChecks::spawn(
                &orders.checks,
                self.host.check_context(),
                self.host.running_service(),
                first.clone(),
            );
            memory.health = Some(first);
            memory.running = Some((orders.checks.clone(), release, checks));
        }
    }

    async fn report_health(&self, now: Health, memory: &mut Memory) {
        self.readiness.fit(&self.app, (!now.in_service).then(|| now.reason.clone()));
        memory.booted |= now.in_service;
        let result = if now.in_service { "passed" } else { "failed" };
        let labels = [("check", "running"), ("result", result)];
        self.shared.metrics.add("cohort_check_total", &labels, 1.0);
        let outcome = Outcome::Health { in_service: now.in_service, reason: now.reason.clone() };
        if self.reporter.tell_health(&self.app, outcome).await {
            memory.health = Some(now);
        }
    }

    /// Removes what no order wants kept any more.
    async fn collect(&self, orders: Option<&AppOrders>, memory: &mut Memory) {
        let Some(orders) = orders else { return };
        if memory.collected.is_some_and(|at| at.elapsed() < COLLECT_EVERY) {
            return;
        }
        memory.collected = Some(Instant::now());
        if orders.activation.is_some() || !orders.fetch.is_empty() {
            return;
        }
        if let Err(error) = self.host.collect(&orders.keep) {
            tracing::warn!(app = %self.app, %error, "old releases were not collected");
        }
        let others: BTreeSet<Digest> = orders.keep.iter().cloned().collect();
        self.shared.keep(&self.app, others);
        if let Some(keep) = self.shared.keep_of_all() {
            let store = Arc::clone(&self.downloads.context().store);
            let collected = tokio::task::spawn_blocking(move || store.collect(&keep)).await;
            if let Ok(Err(error)) = collected {
                tracing::warn!(%error, "old artifacts were not collected");
            }
        }
    }
}

/// Until a newer order for the app is there, the group was not reached in time, or the agent ends.
///
/// `undo` are the milliseconds until the host goes back by itself, and for how many an answer puts
/// that off; `None` when it does not go back.
async fn interrupted(
    app: AppId,
    fence: Fence,
    undo: Option<(u64, u64)>,
    mut orders: watch::Receiver<Option<Arc<Received>>>,
    stop: CancellationToken,
) {
    let begun_ms = boot_time_ms();
    loop {
        let left_ms = {
            let received = orders.borrow_and_update();
            let newer = received.as_ref().is_some_and(|received| {
                received
                    .orders
                    .apps
                    .iter()
                    .find(|orders| orders.app == app)
                    .and_then(|orders| orders.activation.as_ref())
                    .is_some_and(|activation| activation.fence > fence)
            });
            if newer {
                return;
            }
            let asked_ms = received
                .as_ref()
                .map(|received| received.asked_boot_ms)
                .filter(|asked_ms| *asked_ms >= begun_ms);
            undo.map(|(left_ms, counts_ms)| {
                let put_off_to_ms = asked_ms.map_or(0, |asked_ms| asked_ms + counts_ms);
                (begun_ms + left_ms).max(put_off_to_ms).saturating_sub(boot_time_ms())
            })
        };
        if left_ms == Some(0) {
            return;
        }
        let expired = async {
            match left_ms {
                Some(left_ms) => tokio::time::sleep(Duration::from_millis(left_ms)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = expired => {}
            changed = orders.changed() => if changed.is_err() { return },
        }
    }
}
