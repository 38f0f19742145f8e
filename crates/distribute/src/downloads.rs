//! All fetches of a server: starts the ordered ones, cancels those no longer ordered, and retries
//! those that failed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_base::chain;
use cohort_base::retry::Schedule;
use cohort_core::ids::Digest;
use cohort_core::orders::FetchOrder;
use cohort_core::release::Release;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::fetch::{FetchContext, FetchError, fetch};
use crate::progress::Progress;
use crate::store_error::StoreError;

/// Concurrent fetches; the others queue, in the sequence of the orders. Two, so that a second app's
/// small release need not wait for a large one; the wire is full either way.
const FETCHES_MAX: usize = 2;

/// Most artifacts ordered at a time: an app has one fetch, and a server has fewer apps than this.
pub const ORDERS_MAX: usize = 256;

/// Pauses between the tries of a fetch. Each try has already given every source its own retries.
const AGAIN: Schedule = Schedule::new(Duration::from_secs(1), Duration::from_secs(60));

/// Pause before retrying a file that a cancelled fetch has not yet released, in milliseconds.
const IN_FLIGHT_MS: u64 = 50;

/// Finished fetches that are remembered until a leader knows what they took from which source. Two
/// run at a time, and a leader unreachable for longer than these last has been replaced.
const ENDED_MAX: usize = 16;

/// How long a fetch that is no longer ordered is remembered while no leader is reachable.
const ENDED_KEPT: Duration = Duration::from_secs(10);

/// A fetch that finished.
#[derive(Debug, Clone)]
pub struct EndedFetch {
    pub release: Release,
    /// The last progress, with the totals of the whole fetch.
    pub progress: Progress,
    at: Instant,
    pub(crate) told: bool,
}

/// The state of an ordered artifact.
#[derive(Debug, Clone, PartialEq)]
pub enum FetchStatus {
    /// Queued, or being fetched.
    UnderWay { progress: Box<Progress> },
    /// Whole, verified and durable.
    Held,
    /// The last try failed; it is retried as long as the artifact is ordered.
    Failed {
        /// The error with its causes, human-readable.
        reason: String,
        /// Failed tries since it was ordered.
        tries: u32,
    },
}

/// All fetches of a server. Use it within a tokio runtime; dropping it cancels every fetch.
pub struct Downloads {
    context: FetchContext,
    running: Mutex<BTreeMap<Digest, Running>>,
    statuses: Arc<watch::Sender<BTreeMap<Digest, FetchStatus>>>,
    ended: Arc<Mutex<Vec<EndedFetch>>>,
    turns: Arc<Semaphore>,
    tasks: TaskTracker,
    all: CancellationToken,
}

struct Running {
    order: watch::Sender<FetchOrder>,
    cancel: CancellationToken,
}

impl Downloads {
    /// A server's fetches; none starts before the first orders.
    #[must_use]
    pub fn new(context: FetchContext) -> Self {
        Self {
            context,
            running: Mutex::default(),
            statuses: Arc::new(watch::Sender::default()),
            ended: Arc::default(),
            turns: Arc::new(Semaphore::new(FETCHES_MAX)),
            tasks: TaskTracker::new(),
            all: CancellationToken::new(),
        }
    }

    /// Shared by all fetches.
    #[must_use]
    pub fn context(&self) -> &FetchContext {
        &self.context
    }

    /// Sets all orders of all apps, most important first. Cheap and idempotent: call it with every
    /// response of the group. Orders for the same artifact are merged.
    pub fn set_orders(&self, orders: &[FetchOrder]) {
        let merged = merge(orders);
        let mut running = self.running.lock();
        // Before the first byte: what is being fetched is never collected.
        let store = &self.context.store;
        store.set_ordered(merged.iter().map(|order| order.release.artifact.clone()).collect());
        running.retain(|digest, fetch| {
            let length = fetch.order.borrow().release.length;
            let stays = merged
                .iter()
                .any(|order| order.release.artifact == *digest && order.release.length == length);
            if !stays {
                fetch.cancel.cancel();
                self.statuses.send_if_modified(|all| all.remove(digest).is_some());
            }
            stays
        });
        for order in merged {
            let digest = order.release.artifact.clone();
            if let Some(fetch) = running.get(&digest) {
                fetch.order.send_if_modified(|current| {
                    let changed = *current != order;
                    if changed {
                        *current = order;
                    }
                    changed
                });
                continue;
            }
            let cancel = self.all.child_token();
            let (sender, receiver) = watch::channel(order);
            running.insert(digest, Running { order: sender, cancel: cancel.clone() });
            self.start(receiver, cancel);
        }
    }

    /// The state of every ordered artifact; changes with any progress.
    #[must_use]
    pub fn statuses(&self) -> watch::Receiver<BTreeMap<Digest, FetchStatus>> {
        self.statuses.subscribe()
    }

    /// Every order, with the state of its artifact.
    #[must_use]
    pub fn transfers(&self) -> Vec<(FetchOrder, Option<FetchStatus>)> {
        let running = self.running.lock();
        let statuses = self.statuses.borrow();
        running
            .iter()
            .map(|(digest, fetch)| (fetch.order.borrow().clone(), statuses.get(digest).cloned()))
            .collect()
    }

    /// Finished fetches: those not yet reported to a leader, and those still ordered.
    #[must_use]
    pub fn ended(&self) -> Vec<EndedFetch> {
        let running = self.running.lock();
        let mut ended = self.ended.lock();
        ended.retain(|fetch| {
            let news = !fetch.told && fetch.at.elapsed() < ENDED_KEPT;
            news || running.contains_key(&fetch.release.artifact)
        });
        ended.clone()
    }

    /// Records that a leader knows of these.
    pub(crate) fn told(&self, told: &[Digest]) {
        let mut ended = self.ended.lock();
        for fetch in ended.iter_mut().filter(|fetch| told.contains(&fetch.release.artifact)) {
            fetch.told = true;
        }
    }

    /// Cancels every fetch, and waits until each has released its file. What is verified stays.
    pub async fn stop(&self) {
        self.all.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn start(&self, orders: watch::Receiver<FetchOrder>, cancel: CancellationToken) {
        let one = OneFetch {
            context: self.context.clone(),
            digest: orders.borrow().release.artifact.clone(),
            statuses: Arc::clone(&self.statuses),
            ended: Arc::clone(&self.ended),
            turns: Arc::clone(&self.turns),
            cancel,
        };
        self.tasks.spawn(one.run(orders));
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        self.all.cancel();
    }
}

struct OneFetch {
    context: FetchContext,
    digest: Digest,
    statuses: Arc<watch::Sender<BTreeMap<Digest, FetchStatus>>>,
    ended: Arc<Mutex<Vec<EndedFetch>>>,
    turns: Arc<Semaphore>,
    cancel: CancellationToken,
}

impl OneFetch {
    async fn run(self, orders: watch::Receiver<FetchOrder>) {
        self.tell(FetchStatus::UnderWay { progress: Box::default() });
        let mut tries = 0;
        let mut pauses = AGAIN.pauses();
        loop {
            let error = match self.once(&orders).await {
                Ok(progress) => {
                    self.remember(orders.borrow().release.clone(), progress);
                    return self.tell(FetchStatus::Held);
                }
                Err(FetchError::Cancelled { .. }) => return,
                Err(FetchError::Store(StoreError::InFlight { .. })) => {
                    // Ordered again while the cancelled fetch still holds the file.
                    tokio::time::sleep(Duration::from_millis(IN_FLIGHT_MS)).await;
                    continue;
                }
                Err(error) => error,
            };
            tries += 1;
            let reason = chain(&error);
            warn!(artifact = %self.digest, reason, tries, "fetch failed");
            self.tell(FetchStatus::Failed { reason, tries });
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(pauses.next_pause()) => {}
            }
        }
    }

    /// One try; publishes its progress and returns the last.
    async fn once(&self, orders: &watch::Receiver<FetchOrder>) -> Result<Progress, FetchError> {
        let cancelled = || FetchError::Cancelled { artifact: self.digest.to_string() };
        let turn = tokio::select! {
            () = self.cancel.cancelled() => return Err(cancelled()),
            turn = self.turns.acquire() => turn.map_err(|_| cancelled())?,
        };
        let (progress, mut shown) = watch::channel(Progress::default());
        let mut fetching = Box::pin(fetch(&self.context, orders.clone(), &progress, &self.cancel));
        let result = loop {
            tokio::select! {
                result = &mut fetching => break result,
                changed = shown.changed() => {
                    if changed.is_ok() {
                        let progress = shown.borrow_and_update().clone();
                        self.tell(FetchStatus::UnderWay { progress: Box::new(progress) });
                    }
                }
            }
        };
        drop(turn);
        let last = shown.borrow().clone();
        result.map(|()| last)
    }

    /// An artifact found whole on disk received no bytes: nothing to report.
    fn remember(&self, release: Release, progress: Progress) {
        if progress.bytes_from_mirrors + progress.bytes_from_peers == 0 {
            return;
        }
        let mut ended = self.ended.lock();
        ended.retain(|fetch| fetch.release.artifact != release.artifact);
        if ended.len() >= ENDED_MAX {
            ended.remove(0);
        }
        ended.push(EndedFetch { release, progress, at: Instant::now(), told: false });
    }

    fn tell(&self, status: FetchStatus) {
        self.statuses.send_if_modified(|all| {
            // A withdrawn order must not overwrite the state of its successor.
            if self.cancel.is_cancelled() || all.get(&self.digest) == Some(&status) {
                return false;
            }
            all.insert(self.digest.clone(), status);
            true
        });
    }
}

/// Merges orders for one artifact, at the position of the first.
fn merge(orders: &[FetchOrder]) -> Vec<FetchOrder> {
    let mut merged: Vec<FetchOrder> = Vec::new();
    for order in orders {
        let same = merged.iter_mut().find(|o| o.release.artifact == order.release.artifact);
        let Some(first) = same else {
            if merged.len() < ORDERS_MAX {
                merged.push(order.clone());
            }
            continue;
        };
        first.from_mirror |= order.from_mirror;
        for source in &order.sources {
            if !first.sources.iter().any(|known| known.server == source.server) {
                first.sources.push(source.clone());
            }
        }
    }
    merged
}
