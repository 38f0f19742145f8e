//! Whether an artifact is fetched as a delta against what is here, or whole.
//!
//! A delta is fetched like any artifact, by its own root, so servers pass it on to each other too.
//! Once it is here the artifact is built from it and counts as held. A server without a base waits
//! briefly for one that builds the artifact and fetches the whole from there, so a release crosses
//! the zone's downlink as a delta even for a new server. If anything goes wrong with a delta, the
//! whole artifact is fetched and that delta is not tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_artifact::Delta;
use cohort_base::chain::chain;
use cohort_core::ids::Digest;
use cohort_core::orders::{AppOrders, FetchOrder};
use cohort_core::release::Release;
use cohort_distribute::{ApplyError, Downloads, FetchStatus};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, OfDelta};

/// A delta without progress for this long is given up for the whole artifact. Longer than a change
/// of leader takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long an applied delta is kept to serve servers of the group that are behind.
const SERVED_FOR: Duration = Duration::from_secs(600);

/// How long a server without a base waits for one that has built the artifact: this long at least,
const AWAITED_MIN: Duration = Duration::from_secs(3);

/// a second more per 16 MiB (a second at 17 MB/s): the wait must not cost more than it saves,
const AWAITED_PER: u64 = 16 << 20;

/// and never longer than this.
const AWAITED_MAX: Duration = Duration::from_secs(60);

/// Applied deltas kept for serving: of some releases of every app.
const SERVED_MAX: usize = 16;

/// How an artifact gets here.
#[derive(Debug)]
enum Way {
    /// All of its bytes are fetched, or it is here.
    Whole,
    /// Another server of the group builds it; nothing is fetched until it has, or until then.
    Awaits { until: Instant },
    /// Its delta is being fetched; `held` bytes of it have been here since `since`.
    Fetches { delta: Delta, held: u64, since: Instant },
    /// It is being built from the delta.
    Applies { delta: Delta },
}

type Outcomes = Arc<Mutex<BTreeMap<Digest, Result<(), ApplyError>>>>;

fn whole(fetch: &FetchOrder) -> (Way, Option<FetchOrder>) {
    (Way::Whole, Some(fetch.clone()))
}

/// The way of every artifact ordered here.
pub(crate) struct Deltas {
    downloads: Arc<Downloads>,
    ways: BTreeMap<Digest, Way>,
    served: BTreeMap<Digest, (FetchOrder, Instant)>,
    outcomes: Outcomes,
    applied: Arc<Notify>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

impl Deltas {
    pub(crate) fn new(
        downloads: Arc<Downloads>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            downloads,
            ways: BTreeMap::new(),
            served: BTreeMap::new(),
            outcomes: Outcomes::default(),
            applied: Arc::default(),
            metrics,
            stop,
        }
    }

    /// Whether the way of an artifact has been chosen.
    pub(crate) fn knows(&self, artifact: &Digest) -> bool {
        self.ways.contains_key(artifact)
    }

    /// Chooses a way, once the release's signature is verified. `deltas` come from its manifest.
    pub(crate) async fn choose(&mut self, app: &AppOrders, release: &Release, deltas: &[Delta]) {
        let store = Arc::clone(&self.downloads.context().store);
        let (artifact, length) = (release.artifact.clone(), release.length);
        let offered = deltas.to_vec();
        // Hashing what an interrupted download left can take a while.
        let chosen = tokio::task::spawn_blocking(move || {
            let whole = store.is_whole(&artifact);
            (whole, store.choose_delta(&artifact, length, &offered))
        });
        let way = match chosen.await {
            Ok((false, Some(delta))) => {
                tracing::info!(
                    version = %release.version, artifact = %release.artifact, bytes = delta.length,
                    whole = length, "fetching a delta"
                );
                Way::Fetches { delta, held: 0, since: Instant::now() }
            }
            // The rest of the group runs the base of a delta.
            Ok((false, None)) if deltas.iter().any(|delta| app.keep.contains(&delta.from)) => {
                let long = AWAITED_MIN + Duration::from_secs(length / AWAITED_PER);
                Way::Awaits { until: Instant::now() + long.min(AWAITED_MAX) }
            }
            Ok(_) | Err(_) => Way::Whole,
        };
        self.ways.insert(release.artifact.clone(), way);
    }

    /// What to fetch now for an order; `None` while waiting for another server.
    pub(crate) fn order(&mut self, fetch: &FetchOrder) -> Option<FetchOrder> {
        let artifact = &fetch.release.artifact;
        let way = self.ways.remove(artifact).unwrap_or(Way::Whole);
        let (way, order) = self.next(way, fetch);
        self.ways.insert(artifact.clone(), way);
        order
    }

    fn next(&mut self, way: Way, fetch: &FetchOrder) -> (Way, Option<FetchOrder>) {
        match way {
            Way::Whole => whole(fetch),
            Way::Awaits { until } => {
                let store = &self.downloads.context().store;
                let here = store.is_whole(&fetch.release.artifact);
                if fetch.sources.is_empty() && Instant::now() < until && !here {
                    (Way::Awaits { until }, None)
                } else {
                    whole(fetch)
                }
            }
            Way::Fetches { delta, held, since } => self.fetches(delta, held, since, fetch),
            Way::Applies { delta } => self.applies(delta, fetch),
        }
    }

    fn fetches(
        &self,
        delta: Delta,
        held: u64,
        since: Instant,
        fetch: &FetchOrder,
    ) -> (Way, Option<FetchOrder>) {
        let order = order_of(&delta, fetch);
        if self.downloads.context().store.is_whole(&delta.root) {
            self.apply(&fetch.release, &delta);
            return (Way::Applies { delta }, Some(order));
        }
        let status = self.downloads.statuses().borrow().get(&delta.root).cloned();
        let now_held = match status {
            Some(FetchStatus::Failed { reason, .. }) => {
                tracing::warn!(version = %fetch.release.version, reason,
                    "delta not fetched, fetching the whole artifact");
                self.count("given-up");
                return whole(fetch);
            }
            Some(FetchStatus::UnderWay { progress }) => progress.bytes_held,
            Some(FetchStatus::Held) | None => held,
        };
        let since = if now_held == held { since } else { Instant::now() };
        if since.elapsed() > PATIENCE {
            tracing::warn!(version = %fetch.release.version,
                "delta makes no progress, fetching the whole artifact");
            self.count("given-up");
            return whole(fetch);
        }
        (Way::Fetches { delta, held: now_held, since }, Some(order))
    }

    fn applies(&mut self, delta: Delta, fetch: &FetchOrder) -> (Way, Option<FetchOrder>) {
        let artifact = &fetch.release.artifact;
        let order = order_of(&delta, fetch);
        let Some(outcome) = self.outcomes.lock().remove(artifact) else {
            return (Way::Applies { delta }, Some(order));
        };
        match outcome {
            Ok(()) => {
                tracing::info!(version = %fetch.release.version, %artifact,
                    bytes = delta.length, "built from a delta");
                self.count("applied");
                self.serve(order);
            }
            Err(error) => {
                tracing::warn!(version = %fetch.release.version, error = chain(&error),
                    "delta not applied, fetching the whole artifact");
                self.count("failed");
            }
        }
        whole(fetch)
    }

    fn apply(&self, release: &Release, delta: &Delta) {
        let context = self.downloads.context();
        let (store, reserve) = (Arc::clone(&context.store), context.limits.reserve_bytes);
        let (artifact, length) = (release.artifact.clone(), release.length);
        let (outcomes, applied) = (Arc::clone(&self.outcomes), Arc::clone(&self.applied));
        let (delta, stop) = (delta.clone(), self.stop.clone());
        tokio::task::spawn_blocking(move || {
            let stopped = || stop.is_cancelled();
            let outcome = store.apply_delta(&artifact, length, &delta, reserve, &stopped);
            outcomes.lock().insert(artifact, outcome);
            applied.notify_one();
        });
    }

    fn count(&self, result: &'static str) {
        self.metrics.deltas.get_or_create(&OfDelta { result }).inc();
    }

    fn serve(&mut self, order: FetchOrder) {
        let until = Instant::now() + SERVED_FOR;
        if self.served.len() < SERVED_MAX {
            self.served.insert(order.release.artifact.clone(), (order, until));
        }
    }

    /// Forgets what is no longer ordered; returns the deltas kept for other servers.
    pub(crate) fn retain(&mut self, ordered: &BTreeSet<Digest>) -> Vec<FetchOrder> {
        self.ways.retain(|artifact, _| ordered.contains(artifact));
        self.outcomes.lock().retain(|artifact, _| ordered.contains(artifact));
        self.served.retain(|_, (_, until)| Instant::now() < *until);
        self.served.values().map(|(order, _)| order.clone()).collect()
    }

    /// Returns when a delta was applied, or when it is time to look again.
    pub(crate) async fn changed(&self) {
        let waits = self.ways.values().any(|way| !matches!(way, Way::Whole));
        let look = if waits { Duration::from_millis(500) } else { Duration::from_secs(10) };
        tokio::select! {
            () = self.applied.notified() => {}
            () = tokio::time::sleep(look), if waits || !self.served.is_empty() => {}
        }
    }
}

/// An order for a delta in place of its artifact. Holders of the artifact need not hold the delta.
fn order_of(delta: &Delta, fetch: &FetchOrder) -> FetchOrder {
    let release =
        Release { artifact: delta.root.clone(), length: delta.length, ..fetch.release.clone() };
    FetchOrder { release, from_mirror: fetch.from_mirror, sources: Vec::new() }
}

#[cfg(test)]
#[path = "deltas_test.rs"]
mod deltas_test;
