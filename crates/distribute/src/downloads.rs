//! All fetches of a server: begins those that are ordered, follows their sources, ends those that
//! are no longer ordered, and tries again those that failed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cohort_core::ids::Digest;
use cohort_core::orders::FetchOrder;
use cohort_core::release::Release;
use cohort_core::report::Blame;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::fetch::{FetchContext, FetchError, fetch};
use crate::progress::Progress;
use crate::store_error::StoreError;

/// Fetches that run at once; the others wait in the order of the orders. Two: a second app's small
/// release need not wait for a large one, and the wire is full either way.
const FETCHES_MAX: usize = 2;

/// Artifacts that may be ordered at once: an app has one fetch, and a server fewer apps than this.
pub const ORDERS_MAX: usize = 256;

/// First pause before a failed fetch is tried again, doubled each time, in milliseconds.
const AGAIN_MS_MIN: u64 = 1_000;

/// Longest such pause, in milliseconds.
const AGAIN_MS_MAX: u64 = 60_000;

/// Pause before a file is tried again that another fetch has not let go of yet, in milliseconds.
const IN_FLIGHT_MS: u64 = 50;

/// Fetches that ended well and are remembered, so that the leader hears what they took from where:
/// two run at once, and a leader that cannot be told for longer is another one by then.
const ENDED_MAX: usize = 16;

/// For how long one is remembered that is not ordered any more while no leader wants to hear of it.
const ENDED_KEPT: Duration = Duration::from_secs(10);

/// A fetch that ended well.
#[derive(Debug, Clone)]
pub struct EndedFetch {
    /// What was fetched.
    pub release: Release,
    /// How it stood in the end.
    pub progress: Progress,
    at: Instant,
    pub(crate) told: bool,
}

/// How an ordered artifact stands.
#[derive(Debug, Clone, PartialEq)]
pub enum FetchStatus {
    /// Waits for its turn, or is under way.
    UnderWay {
        /// How far it is.
        progress: Box<Progress>,
    },
    /// Whole, verified and durable.
    Held,
    /// This try failed; it is tried again for as long as it is ordered.
    Failed {
        /// Whose fault it is.
        blame: Blame,
        /// In words, for people.
        reason: String,
        /// Tries that failed since it was ordered.
        tries: u32,
    },
}

/// All fetches of a server. Call its methods within a tokio runtime; dropping it ends every fetch.
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
    /// No fetch yet.
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

    /// What all fetches share.
    #[must_use]
    pub fn context(&self) -> &FetchContext {
        &self.context
    }

    /// Takes everything that is ordered now, over all apps, in order of importance. Cheap and safe
    /// to repeat with every answer of the group. Orders for one artifact are merged.
    pub fn set_orders(&self, orders: &[FetchOrder]) {
        let merged = merge(orders);
        let mut running = self.lock();
        // Before any of it begins to come: what comes is never collected.
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

    /// How every ordered artifact stands; changes with every step forward.
    #[must_use]
    pub fn statuses(&self) -> watch::Receiver<BTreeMap<Digest, FetchStatus>> {
        self.statuses.subscribe()
    }

    /// Everything that is ordered, and how it stands.
    #[must_use]
    pub fn transfers(&self) -> Vec<(FetchOrder, Option<FetchStatus>)> {
        let running = self.lock();
        let statuses = self.statuses.borrow();
        running
            .iter()
            .map(|(digest, fetch)| (fetch.order.borrow().clone(), statuses.get(digest).cloned()))
            .collect()
    }

    /// Fetches that ended well: those that no leader has heard of yet, and those still ordered.
    #[must_use]
    pub fn ended(&self) -> Vec<EndedFetch> {
        let running = self.lock();
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.retain(|fetch| {
            let news = !fetch.told && fetch.at.elapsed() < ENDED_KEPT;
            news || running.contains_key(&fetch.release.artifact)
        });
        ended.clone()
    }

    /// A leader has heard of these.
    pub(crate) fn told(&self, told: &[Digest]) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        for fetch in ended.iter_mut().filter(|fetch| told.contains(&fetch.release.artifact)) {
            fetch.told = true;
        }
    }

    /// Ends every fetch, and waits until each has let go of its file. What was verified stays.
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
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
        loop {
            let error = match self.once(&orders).await {
                Ok(progress) => {
                    self.remember(orders.borrow().release.clone(), progress);
                    return self.tell(FetchStatus::Held);
                }
                Err(FetchError::Cancelled { .. }) => return,
                Err(FetchError::Store(StoreError::InFlight { .. })) => {
                    // Ordered again while the one that was cancelled still lets go of its file.
                    tokio::time::sleep(Duration::from_millis(IN_FLIGHT_MS)).await;
                    continue;
                }
                Err(error) => error,
            };
            tries += 1;
            let reason = flat(&error);
            warn!(artifact = %self.digest, reason, tries, "fetch failed");
            self.tell(FetchStatus::Failed { blame: error.blame(), reason, tries });
            let pause = (AGAIN_MS_MIN << (tries - 1).min(16)).min(AGAIN_MS_MAX);
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(pause)) => {}
            }
        }
    }

    /// One try; shows its progress meanwhile, and gives back how it stood in the end.
    async fn once(&self, orders: &watch::Receiver<FetchOrder>) -> Result<Progress, FetchError> {
        let cancelled = || FetchError::Cancelled { artifact: self.digest.to_string() };
        let turn = tokio::select! {
            () = self.cancel.cancelled() => return Err(cancelled()),
            turn = self.turns.acquire() => turn.map_err(|_| cancelled())?,
        };
        let (progress, mut shown) = watch::channel(Progress::default());
        let mut before = Progress::default();
        let mut fetching = Box::pin(fetch(&self.context, orders.clone(), &progress, &self.cancel));
        let result = loop {
            tokio::select! {
                result = &mut fetching => break result,
                changed = shown.changed() => {
                    if changed.is_ok() {
                        let progress = shown.borrow_and_update().clone();
                        self.context.counters.count_offences(&before, &progress);
                        before = progress.clone();
                        self.tell(FetchStatus::UnderWay { progress: Box::new(progress) });
                    }
                }
            }
        };
        drop(turn);
        let last = shown.borrow().clone();
        self.context.counters.count_offences(&before, &last);
        result.map(|()| last)
    }

    /// What was found whole on the disk took nothing from anybody: there is nothing to tell.
    fn remember(&self, release: Release, progress: Progress) {
        if progress.bytes_from_mirrors + progress.bytes_from_peers == 0 {
            return;
        }
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.retain(|fetch| fetch.release.artifact != release.artifact);
        if ended.len() >= ENDED_MAX {
            ended.remove(0);
        }
        ended.push(EndedFetch { release, progress, at: Instant::now(), told: false });
    }

    fn tell(&self, status: FetchStatus) {
        self.statuses.send_if_modified(|all| {
            // An order that was dropped, and perhaps given again to another, has no say any more.
            if self.cancel.is_cancelled() || all.get(&self.digest) == Some(&status) {
                return false;
            }
            all.insert(self.digest.clone(), status);
            true
        });
    }
}

/// One order per artifact, at the place of the first.
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

/// An error and its causes in one line.
fn flat(error: &FetchError) -> String {
    use std::error::Error as _;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
