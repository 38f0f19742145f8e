//! What a server reports of its artifacts, each once.

use std::collections::BTreeSet;

use cohort_core::ids::{AppId, Digest};
use cohort_core::orders::AppOrders;
use cohort_core::release::Release;

/// Ordered artifacts that became whole here, and those that the group believes to be here and that
/// are not, each reported once per app.
#[derive(Debug, Clone, Default)]
pub struct Announced {
    whole: BTreeSet<(AppId, Digest)>,
    lost: BTreeSet<(AppId, Digest)>,
}

impl Announced {
    /// The artifacts to report as held now; `whole` says whether an artifact's bytes and signature
    /// have been verified here. One no longer ordered is forgotten, and announced when ordered
    /// again.
    pub fn look<'a>(
        &mut self,
        orders: impl IntoIterator<Item = &'a AppOrders>,
        whole: impl Fn(&Release) -> bool,
    ) -> Vec<(AppId, Digest)> {
        let (mut ordered, mut news) = (BTreeSet::new(), Vec::new());
        for app in orders {
            for fetch in &app.fetch {
                let key = (app.app.clone(), fetch.release.artifact.clone());
                if whole(&fetch.release) && self.whole.insert(key.clone()) {
                    news.push(key.clone());
                }
                ordered.insert(key);
            }
        }
        self.whole.retain(|key| ordered.contains(key));
        news
    }

    /// The artifacts to report as lost now; `whole` says whether an artifact's bytes are here. One
    /// that comes again is announced again.
    pub fn lost<'a>(
        &mut self,
        orders: impl IntoIterator<Item = &'a AppOrders>,
        whole: impl Fn(&Digest) -> bool,
    ) -> Vec<(AppId, Digest)> {
        let (mut believed, mut news) = (BTreeSet::new(), Vec::new());
        for app in orders {
            for artifact in &app.holds {
                let key = (app.app.clone(), artifact.clone());
                if !whole(artifact) && self.lost.insert(key.clone()) {
                    self.whole.remove(&key);
                    news.push(key.clone());
                }
                believed.insert(key);
            }
        }
        self.lost.retain(|key| believed.contains(key));
        news
    }
}
