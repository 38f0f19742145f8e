//! Going by what the leader says: links to those it names, and of the mirrors only what is leased.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cohort_core::ids::ServerId;
use cohort_core::orders::Source;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::debug;

use super::Fetch;
use super::requests::What;
use crate::guidance::{self, Guidance};
use crate::plan::{FetchWait, Plan, SourceId, SourceKind, SourceView};
use crate::request::{Heard, Measured, RequestError};
use crate::unit_set::{UnitRun, UnitSet};

/// How often links are looked after, in milliseconds: a fraction of what counts as silence.
const LINK_LOOK_MS: u64 = 50;

/// A server that did not look after its links for this long, in milliseconds, was held up itself (a
/// machine that is overloaded, or was suspended): what it did not hear is nobody's silence.
const DEAF_MS: u64 = 4 * LINK_LOOK_MS;

/// By what a fetch goes.
pub(super) enum Mode {
    /// Its order alone.
    Alone,
    /// The leader; nothing at all while it has said nothing yet.
    Guided(Guidance),
}

/// A subscription that is under way.
pub(super) struct Link {
    pub(super) task: AbortHandle,
    pub(super) heard: Arc<Heard>,
    pub(super) begun_ms: u64,
}

impl Fetch<'_> {
    /// Whether this fetch goes by its order alone, or by what the leader says.
    pub(super) fn mode(&self) -> Mode {
        let Some(guides) = &self.guides else { return Mode::Alone };
        let heard = guides.borrow();
        let silent = heard.at.max(self.begun).elapsed();
        let no_leader = silent >= Duration::from_millis(self.context.limits.no_leader_ms);
        match heard.guidance.get(&self.order.release.artifact) {
            // One goes on, never all.
            Some(guidance) if no_leader && guidance.heir => {
                let count = self.part.as_ref().map_or(u32::MAX, |part| part.hashes().count());
                let lease = vec![UnitRun { first: 0, count }];
                Mode::Guided(Guidance { lease, ..guidance.clone() })
            }
            // The first head, whose leases have come to an end, is fed by that one.
            Some(guidance) if no_leader && guidance.feeds.is_empty() => {
                let feeds = guidance.heir_at.clone().into_iter().collect();
                Mode::Guided(Guidance { feeds, ..guidance.clone() })
            }
            Some(guidance) => Mode::Guided(guidance.clone()),
            None if no_leader => Mode::Alone,
            None => Mode::Guided(Guidance::default()),
        }
    }

    /// Obeys the leader: links to those it names, and of the mirrors only what is leased.
    pub(super) fn step_guided(&mut self, guidance: &Guidance) -> Plan {
        self.mirror_budget.set(guidance.mirror_rate_max);
        self.patient = guidance.lease.is_empty();
        let (now_ms, views) = (self.now_ms(), self.sources.views());
        let by = |keep: &dyn Fn(&SourceId) -> bool| -> BTreeMap<SourceId, SourceView> {
            let kept = views.iter().filter(|(id, _)| keep(id));
            kept.map(|(id, view)| (id.clone(), view.clone())).collect()
        };
        let leased = !guidance.lease.is_empty();
        let named = |id: &SourceId, names: &[Source]| match id {
            SourceId::Peer(server) => names.iter().any(|source| source.server == *server),
            SourceId::Mirror(_) => false,
        };
        let Some(part) = self.part.clone() else {
            // A head asks its mirror, the others those above them.
            let above = by(&|id| named(id, &guidance.feeds) || named(id, &guidance.spares));
            let mirrors = by(&|id| id.kind() == SourceKind::Mirror);
            let from = if leased { &mirrors } else { &above };
            return self.plan_with(leased, &UnitSet::empty(0), from);
        };
        self.keep_links(guidance, &views, now_ms);
        let missing = self.missing();
        let mut plan = if leased {
            let mut lease = UnitSet::from_runs(part.hashes().count(), &guidance.lease);
            lease.intersect(&missing);
            self.plan_with(true, &lease, &by(&|id| id.kind() == SourceKind::Mirror))
        } else if now_ms.saturating_sub(self.moved_at_ms) >= self.context.limits.pull_after_ms {
            // Those that are said to hold it do not give it: a mirror then, where the group allows.
            let holders = &self.order.sources;
            let mirrors = self.order.from_mirror && !holders.is_empty();
            let from = by(&|id| named(id, holders) || (mirrors && id.kind() == SourceKind::Mirror));
            self.plan_with(mirrors, &missing, &from)
        } else {
            Plan { actions: Vec::new(), wake_at_ms: None, waiting_on: None }
        };
        if plan.actions.is_empty() && !leased {
            let linked = !self.links.is_empty();
            plan.waiting_on = Some(if linked { FetchWait::Answers } else { FetchWait::Holder });
        }
        if !self.links.is_empty() {
            let look = now_ms + LINK_LOOK_MS;
            plan.wake_at_ms = Some(plan.wake_at_ms.map_or(look, |wake| wake.min(look)));
        }
        plan
    }

    /// Ends links that say nothing, and begins those that are wanted instead.
    fn keep_links(
        &mut self,
        guidance: &Guidance,
        views: &BTreeMap<SourceId, SourceView>,
        now_ms: u64,
    ) {
        let limits = Arc::clone(&self.context.limits);
        if now_ms.saturating_sub(self.looked_at_ms) > DEAF_MS && !self.links.is_empty() {
            self.deaf_until_ms = now_ms + limits.silence_ms_max;
        }
        self.looked_at_ms = now_ms;
        let listened = now_ms >= self.deaf_until_ms;
        let silent: Vec<(ServerId, u64)> = self
            .links
            .iter()
            .filter_map(|(server, link)| {
                let heard_ms = link.heard.at_ms();
                let (since, ms) = if heard_ms > link.begun_ms {
                    (heard_ms, limits.silence_ms_max)
                } else {
                    (link.begun_ms, limits.link_begin_ms_max)
                };
                (listened && now_ms.saturating_sub(since) > ms).then(|| (server.clone(), ms))
            })
            .collect();
        let mut out: BTreeSet<ServerId> = BTreeSet::new();
        for (server, ms) in silent {
            debug!(%server, "a parent says nothing");
            self.unlink(&server, Some(&RequestError::Stalled { what: "sign of life", ms }));
            out.insert(server);
        }
        let usable = |server: &ServerId| {
            let view = views.get(&SourceId::Peer(server.clone()));
            !out.contains(server)
                && view.is_some_and(|view| view.out_until_ms.is_none_or(|until| until <= now_ms))
        };
        let mut desired: Vec<&Source> = Vec::new();
        for feed in &guidance.feeds {
            let mut instead = std::iter::once(feed).chain(&guidance.spares);
            let found = instead.find(|source| {
                usable(&source.server) && !desired.iter().any(|d| d.server == source.server)
            });
            desired.extend(found);
        }
        for source in &desired {
            if !self.links.contains_key(&source.server) {
                self.start(&SourceId::Peer(source.server.clone()), What::Link);
            }
        }
        // The old parent sends until the new one does.
        let settled = desired.iter().all(|source| {
            self.links.get(&source.server).is_some_and(|l| l.heard.at_ms() > l.begun_ms)
        });
        let others =
            self.links.keys().filter(|server| !desired.iter().any(|d| d.server == **server));
        let others: Vec<ServerId> = others.cloned().collect();
        if settled && !desired.is_empty() {
            for server in others {
                self.unlink(&server, None);
            }
        }
    }

    fn unlink(&mut self, server: &ServerId, failure: Option<&RequestError>) {
        let Some(link) = self.links.remove(server) else { return };
        link.task.abort();
        if let Some(request) = self.under_way.remove(&link.task.id()) {
            let (began, now_ms) = (request.began.into_std(), self.now_ms());
            let measured = Measured::default();
            let limits = &self.context.limits;
            self.sources.ended(&request.source, began, &measured, failure, now_ms, limits);
        }
    }
}

/// Waits until the leader says something else.
pub(super) async fn guided(guides: Option<&mut watch::Receiver<guidance::Heard>>) {
    let changed = match guides {
        Some(guides) => guides.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}
