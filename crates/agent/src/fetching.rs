//! Ordered artifacts: signature verified first, then fetched, and announced once whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use cohort_artifact::Delta;
use cohort_base::chain;
use cohort_core::ids::{AppId, Digest};
use cohort_core::orders::Orders;
use cohort_core::release::Release;
use cohort_distribute::FetchStatus;
use cohort_server::fetching::Fetching as Decisions;

use crate::contacts::monotonic_ms;
use crate::deltas::Deltas;
use crate::reporter::Reporter;
use crate::shared::Shared;
use crate::trust::verify_release;

/// Keeps a server's fetches in step with its orders.
pub(crate) struct Fetching {
    pub shared: Arc<Shared>,
    pub reporter: Reporter,
}

impl Fetching {
    pub(crate) async fn run(self) {
        let shared = &self.shared;
        let mut orders = shared.orders.subscribe();
        let mut decisions = Decisions::default();
        let mut deltas = Deltas::new(
            Arc::clone(&shared.downloads),
            Arc::clone(&shared.metrics),
            shared.tasks.stop.clone(),
        );
        let mut statuses = shared.downloads.statuses();
        loop {
            let received = orders.borrow_and_update().clone();
            statuses.mark_unchanged();
            if let Some(received) = received {
                // For all apps at once: one may be in a long step while another collects.
                for app in &received.orders.apps {
                    shared.keep(&app.app, app.keep.iter().cloned().collect());
                }
                self.fetch(&received.orders, &mut decisions, &mut deltas).await;
                if self.reporter.room().0 {
                    self.announce(&received.orders, &mut decisions);
                }
            }
            tokio::select! {
                changed = orders.changed() => if changed.is_err() { return },
                _ = statuses.changed() => {}
                () = deltas.changed() => {}
            }
        }
    }

    /// Fetches what is signed and nothing else, no matter who orders it.
    async fn fetch(&self, orders: &Orders, decisions: &mut Decisions, deltas: &mut Deltas) {
        let shared = &self.shared;
        let leader = shared.leader().filter(|leader| leader.server != *shared.server());
        for (app, asked) in decisions.to_verify(monotonic_ms(), orders, leader.as_ref()) {
            let checked = verify_release(shared, &app, &asked).await;
            let release = &asked.release;
            if let Err(error) = &checked {
                let error = chain(error);
                tracing::warn!(%app, version = %release.version, error,
                    "release not verified, not fetching it");
            }
            decisions.checked(monotonic_ms(), release, checked.is_ok());
        }
        let mut wanted = Vec::new();
        let mut artifacts = BTreeSet::new();
        for (app, fetch) in decisions.verified(orders) {
            let artifact = &fetch.release.artifact;
            if !deltas.knows(artifact) {
                let signed = self.signed_deltas(&app.app, &fetch.release).await;
                deltas.choose(app, &fetch.release, &signed).await;
            }
            artifacts.insert(artifact.clone());
            wanted.extend(deltas.order(fetch));
        }
        wanted.extend(deltas.retain(&artifacts));
        shared.downloads.set_orders(&wanted);
    }

    /// The deltas in the manifest of a verified release.
    async fn signed_deltas(&self, app: &AppId, release: &Release) -> Vec<Delta> {
        let Some(repository) = self.shared.repository.as_deref() else { return Vec::new() };
        let manifest = repository.manifest(app, &release.version, &release.platform).await;
        let signed = manifest.ok().filter(|manifest| manifest.release() == *release);
        signed.map_or_else(Vec::new, |manifest| manifest.into_inner().deltas)
    }

    /// Reports ordered artifacts that are whole here (signature and every byte verified), and those
    /// that the group believes to be here and that are not.
    fn announce(&self, orders: &Orders, decisions: &mut Decisions) {
        let statuses = self.shared.downloads.statuses().borrow().clone();
        let whole = |artifact: &Digest| {
            matches!(statuses.get(artifact), Some(FetchStatus::Held))
                || self.shared.downloads.context().store.is_whole(artifact)
        };
        for (app, artifact) in decisions.lost(orders, whole) {
            tracing::warn!(%app, %artifact, "artifact lost from this disk, telling the group");
            self.reporter.lacks(&app, artifact);
        }
        for (app, artifact) in decisions.announce(orders, whole) {
            self.reporter.holds(&app, artifact);
        }
    }
}

#[cfg(test)]
mod fetching_test {
    use cohort_core::orders::{AppOrders, FetchOrder};

    use super::*;
    use crate::testing::{Lab, order, received, web_runs};

    #[tokio::test]
    async fn an_artifact_that_differs_from_the_signed_one_is_not_fetched() {
        let lab = Lab::new().await;
        lab.publish("1.0.0").await;
        let shared = lab.agent("s1", Some(lab.repository.dir())).await;
        let signed = order(&shared).await;
        let artifact = "aa".repeat(32).parse().unwrap();
        let forged = Release { artifact, ..signed.release.clone() };
        let forged = FetchOrder { release: forged, ..signed.clone() };
        let app = AppOrders { fetch: vec![forged, signed.clone()], ..web_runs(None) };
        let stop = shared.tasks.stop.clone();
        let mut deltas =
            Deltas::new(Arc::clone(&shared.downloads), Arc::clone(&shared.metrics), stop);
        let reporter = Reporter::spawn(&shared);
        let fetching = Fetching { shared: Arc::clone(&shared), reporter };
        let orders = received(vec![app], None).orders;
        fetching.fetch(&orders, &mut Decisions::default(), &mut deltas).await;
        let transfers = shared.downloads.transfers();
        let fetched: Vec<_> = transfers.iter().map(|(order, _)| &order.release).collect();
        assert_eq!(fetched, [&signed.release]);
    }
}
