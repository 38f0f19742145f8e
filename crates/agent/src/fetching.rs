//! Ordered bytes: verified by signature first, fetched then, announced when they are whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_artifact::{Delta, TrustedRepository};
use cohort_core::ids::AppId;
use cohort_core::orders::{FetchOrder, Orders};
use cohort_core::release::Release;
use cohort_distribute::{Downloads, FetchStatus};
use cohort_server::app::Announced;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::deltas::Deltas;
use crate::reporter::Reporter;
use crate::shared::Shared;
use crate::trust::verify_release;
use cohort_server::asking::Received;

/// How long a release that could not be verified is left alone.
const VERIFY_AGAIN: Duration = Duration::from_secs(2);

/// Keeps the fetches of a server in step with its orders.
pub(crate) struct Fetching {
    pub shared: Arc<Shared>,
    pub downloads: Arc<Downloads>,
    pub repository: Option<Arc<TrustedRepository>>,
    pub reporter: Reporter,
}

/// What is remembered between two orders.
struct Memory {
    verified: BTreeSet<Release>,
    refused: BTreeMap<Release, Instant>,
    announced: Announced,
    deltas: Deltas,
}

impl Fetching {
    pub(crate) async fn run(
        self,
        mut orders: watch::Receiver<Option<Arc<Received>>>,
        stop: CancellationToken,
    ) {
        let mut memory = Memory {
            verified: BTreeSet::new(),
            refused: BTreeMap::new(),
            announced: Announced::default(),
            deltas: Deltas::new(
                Arc::clone(&self.downloads),
                Arc::clone(&self.shared.metrics),
                stop.clone(),
            ),
        };
        let mut statuses = self.downloads.statuses();
        loop {
            let received = orders.borrow_and_update().clone();
            statuses.mark_unchanged();
            if let Some(received) = received {
                // At once, for all apps: one may be in a long step while another one collects.
                for app in &received.orders.apps {
                    self.shared.keep(&app.app, app.keep.iter().cloned().collect());
                }
                self.fetch(&received.orders, &mut memory).await;
                self.announce(&received.orders, &mut memory);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = orders.changed() => if changed.is_err() { return },
                _ = statuses.changed() => {}
                () = memory.deltas.changed() => {}
            }
        }
    }

    /// Orders what is signed; what is not, this server does not fetch, whoever says so.
    async fn fetch(&self, orders: &Orders, memory: &mut Memory) {
        let mut wanted: Vec<FetchOrder> = Vec::new();
        let mut ordered: BTreeSet<Release> = BTreeSet::new();
        for app in &orders.apps {
            for fetch in &app.fetch {
                let release = &fetch.release;
                if !memory.verified.contains(release) {
                    if memory.refused.get(release).is_some_and(|at| at.elapsed() < VERIFY_AGAIN) {
                        continue;
                    }
                    let repository = self.repository.as_deref();
                    // The leader decided by the signed manifest, so it has it.
                    let mut asked = fetch.clone();
                    let leader = self.shared.leader();
                    let leader = leader.filter(|leader| leader.server != *self.shared.server());
                    asked.sources.extend(leader.filter(|_| fetch.sources.is_empty()));
                    match verify_release(&self.shared, repository, &app.app, &asked).await {
                        Ok(()) => {
                            memory.verified.insert(release.clone());
                            memory.refused.remove(release);
                        }
                        Err(reason) => {
                            tracing::warn!(app = %app.app, version = %release.version, reason,
                                "a release is not fetched");
                            memory.refused.insert(release.clone(), Instant::now());
                            continue;
                        }
                    }
                }
                if !memory.deltas.knows(&release.artifact) {
                    let deltas = self.signed_deltas(&app.app, release).await;
                    memory.deltas.choose(app, release, &deltas).await;
                }
                ordered.insert(release.clone());
                wanted.extend(memory.deltas.order(fetch));
            }
        }
        memory.verified.retain(|known| ordered.contains(known));
        let artifacts = ordered.into_iter().map(|release| release.artifact).collect();
        wanted.extend(memory.deltas.retain(&artifacts));
        self.downloads.set_orders(&wanted);
    }

    /// The deltas in the manifest of a release that was just verified.
    async fn signed_deltas(&self, app: &AppId, release: &Release) -> Vec<Delta> {
        let Some(repository) = self.repository.as_deref() else { return Vec::new() };
        let manifest = repository.manifest(app, &release.version, &release.platform).await;
        let signed = manifest.ok().filter(|manifest| manifest.release() == *release);
        signed.map_or_else(Vec::new, |manifest| manifest.into_inner().deltas)
    }

    /// Tells the group which ordered artifacts are whole here: verified by signature and by byte.
    fn announce(&self, orders: &Orders, memory: &mut Memory) {
        let statuses = self.downloads.statuses().borrow().clone();
        let verified = &memory.verified;
        let whole = |release: &Release| {
            let artifact = &release.artifact;
            verified.contains(release)
                && (matches!(statuses.get(artifact), Some(FetchStatus::Held))
                    || self.downloads.context().store.is_whole(artifact))
        };
        for (app, artifact) in memory.announced.look(&orders.apps, whole) {
            self.reporter.holds(&app, artifact);
        }
    }
}
