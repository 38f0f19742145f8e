//! Which ordered artifacts a server fetches: those whose signature it has verified itself.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::{AppId, Digest};
use cohort_core::orders::{AppOrders, FetchOrder, Orders, Source};
use cohort_core::release::Release;

use crate::announced::Announced;

/// Pause before the signature of a refused release is verified again, in milliseconds.
pub const VERIFY_AGAIN_MS: u64 = 2_000;

/// What is known about the ordered releases. Times are on the caller's monotonic clock.
#[derive(Debug, Clone, Default)]
pub struct Fetching {
    verified: BTreeSet<Release>,
    refused_at_ms: BTreeMap<Release, u64>,
    announced: Announced,
}

impl Fetching {
    /// The orders whose signature to verify now. `leader` is another server: it decided on the
    /// signed manifest, so it has it, and is asked if an order names no source.
    pub fn to_verify(
        &mut self,
        now_ms: u64,
        orders: &Orders,
        leader: Option<&Source>,
    ) -> Vec<(AppId, FetchOrder)> {
        let ordered: BTreeSet<&Release> =
            fetches(orders).map(|(_, fetch)| &fetch.release).collect();
        self.verified.retain(|known| ordered.contains(known));
        self.refused_at_ms.retain(|known, _| ordered.contains(known));
        let is_due = |release: &Release| {
            let refused = self.refused_at_ms.get(release);
            let waits =
                refused.is_some_and(|at_ms| now_ms.saturating_sub(*at_ms) < VERIFY_AGAIN_MS);
            !waits && !self.verified.contains(release)
        };
        let due = fetches(orders).filter(|(_, fetch)| is_due(&fetch.release));
        due.map(|(app, fetch)| {
            let mut fetch = fetch.clone();
            if fetch.sources.is_empty() {
                fetch.sources.extend(leader.cloned());
            }
            (app.app.clone(), fetch)
        })
        .collect()
    }

    /// Records the outcome of a verification.
    pub fn checked(&mut self, now_ms: u64, release: &Release, signed: bool) {
        if signed {
            self.refused_at_ms.remove(release);
            self.verified.insert(release.clone());
        } else {
            self.refused_at_ms.insert(release.clone(), now_ms);
        }
    }

    /// The orders to carry out.
    pub fn verified<'a>(
        &self,
        orders: &'a Orders,
    ) -> impl Iterator<Item = (&'a AppOrders, &'a FetchOrder)> {
        fetches(orders).filter(|(_, fetch)| self.verified.contains(&fetch.release))
    }

    /// Verified artifacts that became whole here, each once; `whole` says whether an artifact's
    /// bytes are.
    pub fn announce(
        &mut self,
        orders: &Orders,
        whole: impl Fn(&Digest) -> bool,
    ) -> Vec<(AppId, Digest)> {
        let verified = &self.verified;
        self.announced
            .look(&orders.apps, |release| verified.contains(release) && whole(&release.artifact))
    }

    /// Artifacts that the group believes to be whole here and that are not, each once.
    pub fn lost(
        &mut self,
        orders: &Orders,
        whole: impl Fn(&Digest) -> bool,
    ) -> Vec<(AppId, Digest)> {
        self.announced.lost(&orders.apps, whole)
    }
}

/// The transfer to show for an app: the one for its most important artifact that has started. `S`
/// is its state.
///
/// Bytes of the same version count, whatever the artifact: they may be its delta.
#[must_use]
pub fn shown<'a, S>(
    orders: &AppOrders,
    transfers: &'a [(FetchOrder, Option<S>)],
) -> Option<(&'a FetchOrder, &'a S)> {
    let started = |ordered: &Release| {
        transfers.iter().find_map(|(order, state)| {
            let same = order.release.artifact == ordered.artifact
                || order.release.manifest == ordered.manifest;
            state.as_ref().filter(|_| same).map(|state| (order, state))
        })
    };
    orders.fetch.iter().find_map(|fetch| started(&fetch.release))
}

fn fetches(orders: &Orders) -> impl Iterator<Item = (&AppOrders, &FetchOrder)> {
    orders.apps.iter().flat_map(|app| app.fetch.iter().map(move |fetch| (app, fetch)))
}

#[cfg(test)]
#[path = "fetching_test.rs"]
mod fetching_test;
