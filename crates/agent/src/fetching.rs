//! Ordered bytes: verified by signature first, fetched then, announced when they are whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_artifact::TrustedRepository;
use cohort_core::ids::{AppId, Digest};
use cohort_core::orders::{FetchOrder, Orders};
use cohort_core::release::Release;
use cohort_distribute::{Downloads, FetchStatus};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::reporter::Reporter;
use crate::runner::Received;
use crate::shared::Shared;
use crate::trust::verify_release;

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
#[derive(Default)]
struct Memory {
    verified: BTreeSet<Release>,
    refused: BTreeMap<Release, Instant>,
    announced: BTreeSet<(AppId, Digest)>,
}

impl Fetching {
    pub(crate) async fn run(
        self,
        mut orders: watch::Receiver<Option<Arc<Received>>>,
        stop: CancellationToken,
    ) {
        let mut memory = Memory::default();
        let mut statuses = self.downloads.statuses();
        loop {
            let received = orders.borrow_and_update().clone();
            statuses.mark_unchanged();
            if let Some(received) = received {
                self.fetch(&received.orders, &mut memory).await;
                self.announce(&received.orders, &mut memory).await;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = orders.changed() => if changed.is_err() { return },
                _ = statuses.changed() => {}
            }
        }
    }

    /// Orders what is signed; what is not, this server does not fetch, whoever says so.
    async fn fetch(&self, orders: &Orders, memory: &mut Memory) {
        let mut wanted: Vec<FetchOrder> = Vec::new();
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
                wanted.push(fetch.clone());
            }
        }
        memory.verified.retain(|known| wanted.iter().any(|fetch| fetch.release == *known));
        self.downloads.set_orders(&wanted);
    }

    /// Tells the group which ordered artifacts are whole here: verified by signature and by byte.
    async fn announce(&self, orders: &Orders, memory: &mut Memory) {
        let statuses = self.downloads.statuses().borrow().clone();
        let mut ordered = BTreeSet::new();
        for app in &orders.apps {
            for fetch in &app.fetch {
                let artifact = &fetch.release.artifact;
                let key = (app.app.clone(), artifact.clone());
                let held = matches!(statuses.get(artifact), Some(FetchStatus::Held))
                    || self.downloads.context().store.is_whole(artifact);
                if held && memory.verified.contains(&fetch.release) {
                    if !memory.announced.contains(&key) {
                        self.reporter.holds(&app.app, artifact).await;
                    }
                    memory.announced.insert(key.clone());
                }
                ordered.insert(key);
            }
        }
        memory.announced.retain(|key| ordered.contains(key));
    }
}
