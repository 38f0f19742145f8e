//! Fetching one artifact: decide, request, verify, write, until it is whole.
//!
//! [`Fetcher`] decides what to request from which source; this is the shell that does it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cohort_artifact::UnitHashes;
use cohort_core::orders::FetchOrder;
use cohort_core::release::Release;
use cohort_transfer::{
    Effect, FetchWait, Fetcher, Limits, RequestId, Target, UNIT_BYTES, UnitRun, UnitSet, What,
    span_of,
};
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::budget::Budget;
use crate::guides::{self, Guides};
use crate::mirrors::MirrorList;
use crate::part::Part;
use crate::peers::WirePeers;
use crate::progress::{ByteCounters, Progress};
use crate::request::{Ended, Heard};
use crate::store::{ArtifactStore, Claim};
use crate::store_error::StoreError;

mod requests;

/// How often progress is published while requests are in flight, in milliseconds: twice per redraw
/// of a live view.
const PROGRESS_MS: u64 = 250;

/// Shared by all fetches of a server.
#[derive(Clone)]
pub struct FetchContext {
    pub store: Arc<ArtifactStore>,
    pub mirrors: Arc<MirrorList>,
    pub peers: WirePeers,
    pub limits: Arc<Limits>,
    pub counters: Arc<ByteCounters>,
    /// Limit for everything received, over all fetches.
    pub download: Arc<Budget>,
    pub guides: Arc<Guides>,
}

/// Why an artifact was not fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "artifact {artifact} of {version}: no new unit for {ms} ms ({held} of {count} units are \
         here): {complaints}"
    )]
    GaveUp {
        artifact: String,
        version: String,
        ms: u64,
        /// Units verified on disk; kept for the next try.
        held: u32,
        /// Total units; 0 if not even the unit hashes arrived.
        count: u32,
        complaints: String,
    },
    #[error("artifact {artifact} is no longer ordered")]
    Cancelled { artifact: String },
    #[error("a task of the fetch panicked")]
    Task(#[source] JoinError),
}

/// Fetches the artifact of an order and verifies it; returns when it is whole and durable.
///
/// The order may change its sources while the fetch runs, but not its artifact. To cancel, drop the
/// sender of orders, use the token, or drop the future. What is verified stays on disk for the next
/// try.
///
/// Failed sources are retried here with back-off; [`FetchError::GaveUp`] only if no source sent
/// anything for [`Limits::give_up_ms`].
pub(crate) async fn fetch(
    context: &FetchContext,
    orders: watch::Receiver<FetchOrder>,
    progress: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<(), FetchError> {
    let artifact = orders.borrow().release.artifact.to_string();
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(FetchError::Cancelled { artifact }),
        result = run(context, orders, progress) => result,
    }
}

async fn run(
    context: &FetchContext,
    mut orders: watch::Receiver<FetchOrder>,
    progress: &watch::Sender<Progress>,
) -> Result<(), FetchError> {
    let order = orders.borrow_and_update().clone();
    let release = order.release.clone();
    let claim = Arc::new(context.store.claim(&release.artifact, release.length)?);
    if claim.is_whole() {
        let (bytes_total, bytes_held) = (release.length, release.length);
        progress.send_replace(Progress { bytes_total, bytes_held, ..Progress::default() });
        return Ok(());
    }
    let mut fetch = Fetch::new(context, order, claim);
    fetch.resume().await?;
    loop {
        let wake_at = fetch.step();
        fetch.show(progress);
        if fetch.part.as_ref().is_some_and(|part| part.have().is_full()) {
            break;
        }
        fetch.give_up_when_late()?;
        tokio::select! {
            changed = orders.changed() => {
                let order = orders.borrow_and_update().clone();
                // Another release with identical bytes is the same fetch.
                let same = order.release.artifact == release.artifact
                    && order.release.length == release.length;
                if changed.is_err() || !same {
                    return Err(FetchError::Cancelled { artifact: release.artifact.to_string() });
                }
                fetch.fetcher.follow(order);
            }
            Some(ended) = fetch.tasks.join_next_with_id() => fetch.ended(ended).await?,
            claimed = claimed(&mut fetch.claiming) => claimed?,
            Ok(()) = fetch.guides.changed() => {}
            () = tokio::time::sleep_until(wake_at) => {}
        }
    }
    fetch.finish().await?;
    fetch.show(progress);
    Ok(())
}

struct Fetch<'a> {
    context: &'a FetchContext,
    fetcher: Fetcher,
    claim: Arc<Claim>,
    part: Option<Arc<Part>>,
    /// Claims the disk space of the part, until it is claimed.
    claiming: Option<JoinHandle<Result<(), StoreError>>>,
    tasks: JoinSet<Ended>,
    running: BTreeMap<RequestId, Running>,
    guides: watch::Receiver<guides::Heard>,
    /// The limit of this fetch for mirrors: its share of the zone's limit.
    mirror_budget: Arc<Budget>,
    begun: Instant,
    waiting_on: Option<FetchWait>,
    /// Units found verified on disk at start.
    resumed: u32,
    from_mirrors: Arc<AtomicU64>,
    from_peers: Arc<AtomicU64>,
}

/// A request in flight.
struct Running {
    task: AbortHandle,
    target: Target,
    what: What,
    begun: Instant,
    heard: Arc<Heard>,
}

impl<'a> Fetch<'a> {
    fn new(context: &'a FetchContext, order: FetchOrder, claim: Arc<Claim>) -> Self {
        let mirrors: Vec<(usize, String)> = context
            .mirrors
            .ranked()
            .into_iter()
            .map(|index| (index, context.mirrors.name(index)))
            .collect();
        Self {
            context,
            fetcher: Fetcher::new(order, &mirrors, Arc::clone(&context.limits)),
            claim,
            part: None,
            claiming: None,
            tasks: JoinSet::new(),
            running: BTreeMap::new(),
            guides: context.guides.subscribe(),
            mirror_budget: Arc::new(Budget::within(Arc::clone(&context.download))),
            begun: Instant::now(),
            waiting_on: None,
            resumed: 0,
            from_mirrors: Arc::default(),
            from_peers: Arc::default(),
        }
    }

    /// Checks the disk, and resumes from what an earlier try left on it.
    async fn resume(&mut self) -> Result<(), FetchError> {
        let (claim, reserve) = (Arc::clone(&self.claim), self.context.limits.reserve_bytes);
        let hashes = blocking(move || {
            claim.check_space(reserve)?;
            claim.hashes()
        })
        .await?;
        if let Some(hashes) = hashes {
            self.begin(hashes).await?;
        }
        // No source could have delivered anything while the disk was hashed.
        self.begun = Instant::now();
        Ok(())
    }

    async fn begin(&mut self, hashes: Arc<UnitHashes>) -> Result<(), FetchError> {
        let (claim, reserve) = (Arc::clone(&self.claim), self.context.limits.reserve_bytes);
        let part = blocking(move || claim.begin(hashes, reserve)).await?;
        let claimed = Arc::downgrade(&part);
        self.claiming = Some(tokio::task::spawn_blocking(move || Part::claim_space(&claimed)));
        self.resumed = part.held();
        let release = self.release();
        info!(
            artifact = %release.artifact, version = %release.version,
            units = part.hashes().count(), resumed = self.resumed, "fetching"
        );
        self.part = Some(part);
        self.fetcher.begin(self.now_ms());
        Ok(())
    }

    /// Does what is due now, and returns the latest time for the next step.
    fn step(&mut self) -> Instant {
        let now_ms = self.now_ms();
        {
            let heard = self.guides.borrow_and_update();
            let said = heard.guidance.get(&self.fetcher.order().release.artifact);
            let at_ms = ms(heard.at.saturating_duration_since(self.begun));
            self.fetcher.hear(said, at_ms, now_ms);
        }
        for (id, running) in &self.running {
            self.fetcher.heard_from(*id, running.heard.at_ms());
        }
        let have = self.part.as_ref().map(|part| part.have());
        let step = self.fetcher.step(now_ms, have.as_ref(), random());
        self.mirror_budget.set(step.mirror_rate_max);
        for (source, offence) in step.offences {
            self.context.counters.count_offence(source, offence);
        }
        for effect in step.effects {
            match effect {
                Effect::Ask { id, target, what } => self.ask(id, target, what),
                Effect::Cancel { id } => {
                    if let Some(running) = self.running.remove(&id) {
                        running.task.abort();
                    }
                }
            }
        }
        self.waiting_on = step.waiting_on;
        let tick = now_ms + PROGRESS_MS;
        let wake_at_ms = step.wake_at_ms.unwrap_or(tick).clamp(now_ms + 1, tick);
        self.begun + Duration::from_millis(wake_at_ms)
    }

    fn give_up_when_late(&self) -> Result<(), FetchError> {
        if !self.fetcher.is_late(self.now_ms()) {
            return Ok(());
        }
        let complaints: Vec<_> = self.fetcher.complaints().into_iter().collect();
        let complaints = match (&self.waiting_on, complaints.is_empty()) {
            (Some(FetchWait::Mirror), _) => {
                "no mirror is configured, and no server holds it; set mirrors in the configuration"
                    .to_owned()
            }
            (_, true) => "sources are too slow".to_owned(),
            (_, false) => complaints.join("; "),
        };
        Err(FetchError::GaveUp {
            artifact: self.release().artifact.to_string(),
            version: self.release().version.to_string(),
            ms: self.context.limits.give_up_ms,
            held: self.part.as_ref().map_or(0, |part| part.held()),
            count: self.part.as_ref().map_or(0, |part| part.hashes().count()),
            complaints,
        })
    }

    /// Syncs the file and renames it.
    async fn finish(&mut self) -> Result<(), FetchError> {
        self.tasks.abort_all();
        let Some(part) = self.part.clone() else { return Ok(()) };
        let claim = Arc::clone(&self.claim);
        blocking(move || claim.finish(&part)).await?;
        let release = self.release();
        info!(
            artifact = %release.artifact, version = %release.version,
            bytes_from_mirrors = self.from_mirrors.load(Ordering::Relaxed),
            bytes_from_peers = self.from_peers.load(Ordering::Relaxed), "whole and durable"
        );
        Ok(())
    }

    fn show(&self, progress: &watch::Sender<Progress>) {
        let bytes_total = self.release().length;
        let bytes_of = |have: &UnitSet| -> u64 {
            let Some(last) = have.count().checked_sub(1) else { return 0 };
            let (_, tail) = span_of(bytes_total, UnitRun { first: last, count: 1 });
            let short = if have.contains(last) { UNIT_BYTES - tail } else { 0 };
            u64::from(have.held()) * UNIT_BYTES - short
        };
        progress.send_replace(Progress {
            bytes_total,
            bytes_held: self.part.as_ref().map_or(0, |part| bytes_of(&part.have())),
            bytes_resumed: (u64::from(self.resumed) * UNIT_BYTES).min(bytes_total),
            bytes_from_mirrors: self.from_mirrors.load(Ordering::Relaxed),
            bytes_from_peers: self.from_peers.load(Ordering::Relaxed),
            waiting_on: self.waiting_on.clone(),
            sources: self.fetcher.reports(),
        });
    }

    fn now_ms(&self) -> u64 {
        ms(self.begun.elapsed())
    }

    fn release(&self) -> &Release {
        &self.fetcher.order().release
    }
}

fn ms(over: Duration) -> u64 {
    u64::try_from(over.as_millis()).unwrap_or(u64::MAX)
}

/// Spreads retries; 0 if the operating system has no random number.
fn random() -> u64 {
    OsRng.try_next_u64().unwrap_or(0)
}

/// Waits until the disk space is claimed, once.
async fn claimed(
    claiming: &mut Option<JoinHandle<Result<(), StoreError>>>,
) -> Result<(), FetchError> {
    let Some(task) = claiming else { return std::future::pending().await };
    let result = task.await;
    *claiming = None;
    result.map_err(FetchError::Task)?.map_err(FetchError::Store)
}

/// Runs disk work on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, FetchError> {
    tokio::task::spawn_blocking(work).await.map_err(FetchError::Task)?.map_err(FetchError::Store)
}
