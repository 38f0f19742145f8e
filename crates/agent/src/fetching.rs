//! Ordered artifacts: signature verified first, then fetched, and announced once whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_artifact::Delta;
use cohort_core::ids::AppId;
use cohort_core::orders::{FetchOrder, Orders};
use cohort_core::release::Release;
use cohort_distribute::FetchStatus;
use cohort_server::app::Announced;

use crate::deltas::Deltas;
use crate::reporter::Reporter;
use crate::shared::Shared;
use crate::trust::verify_release;

/// Pause before the signature of a refused release is checked again.
const VERIFY_AGAIN: Duration = Duration::from_secs(2);

/// Keeps a server's fetches in step with its orders.
pub(crate) struct Fetching {
    pub shared: Arc<Shared>,
    pub reporter: Reporter,
}

/// State between two orders.
struct Memory {
    verified: BTreeSet<Release>,
    refused: BTreeMap<Release, Instant>,
    announced: Announced,
    deltas: Deltas,
}

impl Fetching {
    pub(crate) async fn run(self) {
        let shared = &self.shared;
        let mut orders = shared.orders.subscribe();
        let mut memory = Memory {
            verified: BTreeSet::new(),
            refused: BTreeMap::new(),
            announced: Announced::default(),
            deltas: Deltas::new(
                Arc::clone(&shared.downloads),
                Arc::clone(&shared.metrics),
                shared.tasks.stop.clone(),
            ),
        };
        let mut statuses = shared.downloads.statuses();
        loop {
            let received = orders.borrow_and_update().clone();
            statuses.mark_unchanged();
            if let Some(received) = received {
                // For all apps at once: one may be in a long step while another collects.
                for app in &received.orders.apps {
                    shared.keep(&app.app, app.keep.iter().cloned().collect());
                }
                self.fetch(&received.orders, &mut memory).await;
                if self.reporter.room().0 {
                    self.announce(&received.orders, &mut memory);
                }
            }
            tokio::select! {
                changed = orders.changed() => if changed.is_err() { return },
                _ = statuses.changed() => {}
                () = memory.deltas.changed() => {}
            }
        }
    }

    /// Fetches what is signed; nothing else, whoever orders it.
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
                    // The leader decided on the signed manifest, so it has it.
                    let mut asked = fetch.clone();
                    let leader = self.shared.leader();
                    let leader = leader.filter(|leader| leader.server != *self.shared.server());
                    asked.sources.extend(leader.filter(|_| fetch.sources.is_empty()));
                    match verify_release(&self.shared, &app.app, &asked).await {
                        Ok(()) => {
                            memory.verified.insert(release.clone());
                            memory.refused.remove(release);
                        }
                        Err(reason) => {
                            tracing::warn!(app = %app.app, version = %release.version, reason,
                                "release not verified, not fetching it");
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
        self.shared.downloads.set_orders(&wanted);
    }

    /// The deltas in the manifest of a verified release.
    async fn signed_deltas(&self, app: &AppId, release: &Release) -> Vec<Delta> {
        let Some(repository) = self.shared.repository.as_deref() else { return Vec::new() };
        let manifest = repository.manifest(app, &release.version, &release.platform).await;
        let signed = manifest.ok().filter(|manifest| manifest.release() == *release);
        signed.map_or_else(Vec::new, |manifest| manifest.into_inner().deltas)
    }

    /// Reports ordered artifacts that are whole here: signature and every byte verified.
    fn announce(&self, orders: &Orders, memory: &mut Memory) {
        let statuses = self.shared.downloads.statuses().borrow().clone();
        let verified = &memory.verified;
        let whole = |release: &Release| {
            let artifact = &release.artifact;
            verified.contains(release)
                && (matches!(statuses.get(artifact), Some(FetchStatus::Held))
                    || self.shared.downloads.context().store.is_whole(artifact))
        };
        for (app, artifact) in memory.announced.look(&orders.apps, whole) {
            self.reporter.holds(&app, artifact);
        }
    }
}
