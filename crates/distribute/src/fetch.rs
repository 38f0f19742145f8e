//! One artifact comes to this server: plan, ask, verify, write, and again, until it is whole.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cohort_artifact::UnitHashes;
use cohort_core::ids::ServerId;
use cohort_core::orders::{FetchOrder, Source};
use cohort_core::release::Release;
use cohort_core::report::Blame;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::budget::Budget;
use crate::guidance::{self, Guides};
use crate::limits::Limits;
use crate::mirrors::MirrorList;
use crate::part::Part;
use crate::plan::{Action, FetchWait, Hashes, Plan, Situation, SourceId, SourceView, plan};
use crate::progress::{ByteCounters, Progress};
use crate::request::{Asked, span_of};
use crate::sources::Sources;
use crate::store::{ArtifactStore, Claim};
use crate::store_error::StoreError;
use crate::transport::PeerTransport;
use crate::unit_set::{UnitRun, UnitSet};

mod guided;
mod requests;

use guided::{Link, Mode, guided};
use requests::{Ended, UnderWay, What};

/// How often progress is shown while requests are under way, in milliseconds: twice per redraw of a
/// live view.
const PROGRESS_MS: u64 = 250;

/// What all fetches of a server share.
#[derive(Clone)]
pub struct FetchContext {
    /// Where artifacts lie.
    pub store: Arc<ArtifactStore>,
    /// The mirrors of the repository.
    pub mirrors: Arc<MirrorList>,
    /// The way to other servers.
    pub peers: Arc<dyn PeerTransport>,
    /// The limits.
    pub limits: Arc<Limits>,
    /// What is counted for metrics.
    pub counters: Arc<ByteCounters>,
    /// How fast everything together may be received.
    pub download: Arc<Budget>,
    /// What the group's leader says; without it, orders alone are obeyed.
    pub guides: Option<Arc<Guides>>,
}

/// Why an artifact did not come.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The disk is too full, or fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No source gave anything for too long.
    #[error(
        "artifact {artifact} of {version}: no new unit for {ms} ms ({held} of {count} units are \
         here): {complaints}"
    )]
    GaveUp {
        /// Root of the artifact.
        artifact: String,
        /// The version.
        version: String,
        /// How long, in milliseconds.
        ms: u64,
        /// Units that are verified on disk; they are kept for the next try.
        held: u32,
        /// All units; 0 when not even the unit hashes came.
        count: u32,
        /// Every source that failed, and how.
        complaints: String,
    },
    /// The order was dropped.
    #[error("artifact {artifact} is no longer ordered")]
    Cancelled {
        /// Root of the artifact.
        artifact: String,
    },
    /// A defect of the agent itself.
    #[error("a task of the fetch broke down")]
    Task(#[source] JoinError),
}

impl FetchError {
    /// Whom to blame: never the release, whose bytes nobody has seen.
    #[must_use]
    pub fn blame(&self) -> Blame {
        Blame::Surroundings
    }
}

/// Fetches the artifact of an order and verifies it; returns when it is whole and durable.
///
/// The order may change its sources while the fetch runs, never its artifact; a dropped sender
/// cancels, as does the token, as does dropping the future. What is verified stays on disk for the
/// next try. Memory is bounded by [`Limits::requests_max`] times two units.
///
/// # Errors
/// See [`FetchError`]. Failures of sources are retried here, with back-off, and end in
/// [`FetchError::GaveUp`] only when nothing came from anyone for [`Limits::give_up_ms`].
pub async fn fetch(
    context: &FetchContext,
    orders: watch::Receiver<FetchOrder>,
    progress: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<(), FetchError> {
    let cancelled = |orders: &watch::Receiver<FetchOrder>| FetchError::Cancelled {
        artifact: orders.borrow().release.artifact.to_string(),
    };
    let watched = orders.clone();
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(cancelled(&watched)),
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
    let mut fetch = Fetch::new(context, order, Arc::clone(&claim));
    fetch.resume().await?;
    loop {
        fetch.step();
        fetch.show(progress);
        if fetch.part.as_ref().is_some_and(|part| part.have().is_full()) {
            break;
        }
        fetch.give_up_when_late()?;
        let wake_at = fetch.wake_at();
        tokio::select! {
            changed = orders.changed() => {
                let order = orders.borrow_and_update().clone();
                // Another release of the very same bytes is the same fetch.
                let same = order.release.artifact == release.artifact
                    && order.release.length == release.length;
                if changed.is_err() || !same {
                    return Err(FetchError::Cancelled { artifact: release.artifact.to_string() });
                }
                fetch.follow(order);
            }
            Some(ended) = fetch.tasks.join_next_with_id() => fetch.ended(ended).await?,
            claimed = claimed(&mut fetch.claiming) => claimed?,
            () = guided(fetch.guides.as_mut()) => fetch.list_sources(),
            () = tokio::time::sleep_until(wake_at) => {}
        }
    }
    fetch.finish().await?;
    fetch.show(progress);
    Ok(())
}

struct Fetch<'a> {
    context: &'a FetchContext,
    order: FetchOrder,
    claim: Arc<Claim>,
    part: Option<Arc<Part>>,
    /// Claims the space of the part, until that has ended.
    claiming: Option<JoinHandle<Result<(), StoreError>>>,
    sources: Sources,
    tasks: JoinSet<Ended>,
    under_way: HashMap<Id, UnderWay>,
    guides: Option<watch::Receiver<guidance::Heard>>,
    links: BTreeMap<ServerId, Link>,
    /// When links were last looked after.
    looked_at_ms: u64,
    /// Nobody counts as silent before this: it was this server that did not listen.
    deaf_until_ms: u64,
    /// What this fetch may take from mirrors: its part of the zone's limit.
    mirror_budget: Arc<Budget>,
    begun: Instant,
    plan: Option<Plan>,
    /// Nobody can be blamed here when nothing comes: this server waits for others of the group.
    patient: bool,
    /// When the last new unit was seen, or last there was nobody to ask.
    moved_at_ms: u64,
    held: u32,
    resumed: u32,
    from_mirrors: Arc<AtomicU64>,
    from_peers: Arc<AtomicU64>,
}

impl<'a> Fetch<'a> {
    fn new(context: &'a FetchContext, order: FetchOrder, claim: Arc<Claim>) -> Self {
        let mut sources = Sources::new(&context.mirrors);
        sources.follow(&order.sources);
        let guides = context.guides.as_ref().map(|guides| guides.subscribe());
        let mut fetch = Self {
            context,
            order,
            claim,
            part: None,
            claiming: None,
            sources,
            tasks: JoinSet::new(),
            under_way: HashMap::new(),
            guides,
            links: BTreeMap::new(),
            looked_at_ms: 0,
            deaf_until_ms: 0,
            mirror_budget: Arc::new(Budget::within(Arc::clone(&context.download))),
            begun: Instant::now(),
            plan: None,
            patient: false,
            moved_at_ms: 0,
            held: 0,
            resumed: 0,
            from_mirrors: Arc::default(),
            from_peers: Arc::default(),
        };
        fetch.list_sources();
        fetch
    }

    /// Checks the disk, and takes up what an earlier try left on it.
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
        // Hashing what was left is no time in which a source could have delivered.
        self.begun = Instant::now();
        Ok(())
    }

    async fn begin(&mut self, hashes: Arc<UnitHashes>) -> Result<(), FetchError> {
        let (claim, reserve) = (Arc::clone(&self.claim), self.context.limits.reserve_bytes);
        let part = blocking(move || claim.begin(hashes, reserve)).await?;
        let claimed = Arc::downgrade(&part);
        self.claiming = Some(tokio::task::spawn_blocking(move || Part::claim_space(&claimed)));
        self.resumed = part.held();
        self.held = self.resumed;
        let release = self.release();
        info!(
            artifact = %release.artifact, version = %release.version,
            units = part.hashes().count(), resumed = self.resumed, "fetching"
        );
        self.part = Some(part);
        Ok(())
    }

    fn follow(&mut self, order: FetchOrder) {
        self.order = order;
        self.list_sources();
    }

    /// Plans, and starts what was planned.
    fn step(&mut self) {
        let plan = match self.mode() {
            Mode::Alone => {
                let (missing, views) = (self.missing(), self.sources.views());
                self.plan_with(self.order.from_mirror, &missing, &views)
            }
            Mode::Guided(guidance) => self.step_guided(&guidance),
        };
        for action in &plan.actions {
            match action {
                Action::AskHashes { source } => self.start(source, What::Hashes),
                Action::AskUnits { source, run } => {
                    self.start(source, What::Units(Asked::Run(*run)));
                }
                Action::AskWhole { source } => self.start(source, What::Units(Asked::Whole)),
            }
        }
        self.plan = Some(plan);
    }

    fn plan_with(
        &self,
        mirrors_allowed: bool,
        missing: &UnitSet,
        sources: &BTreeMap<SourceId, SourceView>,
    ) -> Plan {
        let asked = self.under_way.values().any(|request| request.what == What::Hashes);
        let hashes = match (&self.part, asked) {
            (Some(_), _) => Hashes::Held,
            (None, true) => Hashes::Asked,
            (None, false) => Hashes::Missing,
        };
        let (now_ms, limits) = (self.now_ms(), &self.context.limits);
        plan(&Situation { now_ms, hashes, missing, mirrors_allowed, sources, limits })
    }

    /// Everyone who may be asked now.
    fn list_sources(&mut self) {
        let mut servers: Vec<Source> = Vec::new();
        if let Mode::Guided(guidance) = self.mode() {
            servers.extend(guidance.feeds);
            servers.extend(guidance.spares);
            servers.extend(guidance.heir_at);
        }
        for source in &self.order.sources {
            if !servers.iter().any(|known| known.server == source.server) {
                servers.push(source.clone());
            }
        }
        self.sources.follow(&servers);
    }

    /// Units that are neither here nor asked for.
    fn missing(&self) -> UnitSet {
        let Some(part) = &self.part else { return UnitSet::empty(0) };
        let mut missing = part.have().complement();
        for request in self.under_way.values() {
            match request.what {
                What::Units(Asked::Run(run)) => missing.remove_run(run),
                What::Units(Asked::Whole) => return UnitSet::empty(missing.count()),
                // What a parent sends in its own time is still missing.
                What::Hashes | What::Link => {}
            }
        }
        missing
    }

    fn give_up_when_late(&mut self) -> Result<(), FetchError> {
        let now_ms = self.now_ms();
        let held = self.part.as_ref().map_or(0, |part| part.held());
        let waiting_on = self.plan.as_ref().and_then(|plan| plan.waiting_on.as_ref());
        if held > self.held || waiting_on == Some(&FetchWait::Holder) {
            self.held = held;
            self.moved_at_ms = now_ms;
        }
        let late = now_ms.saturating_sub(self.moved_at_ms) >= self.context.limits.give_up_ms;
        if !late || self.patient {
            return Ok(());
        }
        let complaints: Vec<_> = self.sources.complaints().into_iter().collect();
        let complaints = match (waiting_on, complaints.is_empty()) {
            (Some(FetchWait::Mirror), _) => {
                "no mirror is configured, and no server holds it; set mirrors in the \
                 configuration"
                    .to_owned()
            }
            (_, true) => "sources are too slow".to_owned(),
            (_, false) => complaints.join("; "),
        };
        Err(FetchError::GaveUp {
            artifact: self.release().artifact.to_string(),
            version: self.release().version.to_string(),
            ms: self.context.limits.give_up_ms,
            held,
            count: self.part.as_ref().map_or(0, |part| part.hashes().count()),
            complaints,
        })
    }

    /// Syncs and renames.
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
            let full = u64::from(have.held()) * u64::from(cohort_artifact::UNIT_BYTES);
            if have.contains(last) {
                full - (u64::from(cohort_artifact::UNIT_BYTES) - tail)
            } else {
                full
            }
        };
        let bytes_held = self.part.as_ref().map_or(0, |part| bytes_of(&part.have()));
        let resumed = u64::from(self.resumed) * u64::from(cohort_artifact::UNIT_BYTES);
        progress.send_replace(Progress {
            bytes_total,
            bytes_held,
            bytes_resumed: resumed.min(bytes_total),
            bytes_from_mirrors: self.from_mirrors.load(Ordering::Relaxed),
            bytes_from_peers: self.from_peers.load(Ordering::Relaxed),
            waiting_on: self.plan.as_ref().and_then(|plan| plan.waiting_on.clone()),
            sources: self.sources.reports(),
        });
    }

    fn wake_at(&self) -> Instant {
        let now_ms = self.now_ms();
        let tick = now_ms + PROGRESS_MS;
        let planned = self.plan.as_ref().and_then(|plan| plan.wake_at_ms).unwrap_or(tick);
        self.begun + Duration::from_millis(planned.clamp(now_ms + 1, tick))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn release(&self) -> &Release {
        &self.order.release
    }

    fn name(&self, source: &SourceId) -> String {
        match source {
            SourceId::Peer(server) => server.to_string(),
            SourceId::Mirror(index) => self.context.mirrors.name(*index),
        }
    }
}

/// Waits until the space is claimed, once.
async fn claimed(
    claiming: &mut Option<JoinHandle<Result<(), StoreError>>>,
) -> Result<(), FetchError> {
    let Some(task) = claiming else { return std::future::pending().await };
    let result = task.await;
    *claiming = None;
    result.map_err(FetchError::Task)?.map_err(FetchError::Store)
}

/// Runs work on the disk where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, FetchError> {
    tokio::task::spawn_blocking(work).await.map_err(FetchError::Task)?.map_err(FetchError::Store)
}
