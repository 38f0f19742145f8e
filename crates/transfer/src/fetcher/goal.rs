//! What a fetch should do: by the leader's guidance, or by its order.

use cohort_core::ids::ServerId;

use super::{Fetcher, servers};
use crate::source::SourceId;
use crate::unit_set::{UnitRun, UnitSet};

/// The servers to subscribe to, and what to take from a mirror.
#[derive(Debug, Default)]
pub(super) struct Goal {
    pub(super) feeds: Vec<ServerId>,
    pub(super) spares: Vec<ServerId>,
    pub(super) lease: Lease,
    /// Whether the leader decided this, rather than this server.
    pub(super) by_leader: bool,
}

/// The units to take from a mirror.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Lease {
    /// No contact with a mirror.
    #[default]
    Nothing,
    Runs(Vec<UnitRun>),
    /// All that are missing.
    All,
}

impl Lease {
    /// Reduces a set of units to the leased ones.
    pub(super) fn restrict(&self, units: &mut UnitSet) {
        match self {
            Lease::All => {}
            Lease::Nothing => *units = UnitSet::empty(units.count()),
            Lease::Runs(runs) => units.intersect(&UnitSet::from_runs(units.count(), runs)),
        }
    }
}

impl Fetcher {
    pub(super) fn goal(&mut self, now_ms: u64) -> Goal {
        let no_leader = now_ms.saturating_sub(self.heard_ms) >= self.limits.no_leader_ms;
        let Some(said) = &self.said else {
            let own = if no_leader { self.by_order(now_ms) } else { None };
            return own.unwrap_or(Goal { by_leader: !no_leader, ..Goal::default() });
        };
        let mut goal = Goal {
            feeds: servers(&said.feeds),
            spares: servers(&said.spares),
            lease: match &said.lease[..] {
                [] => Lease::Nothing,
                runs => Lease::Runs(runs.to_vec()),
            },
            by_leader: true,
        };
        if no_leader && said.heir {
            // Only one server takes the rest from a mirror.
            goal.lease = Lease::All;
        } else if no_leader && said.feeds.is_empty() {
            // The first head, whose lease has run out, is fed by the heir.
            goal.feeds.extend(said.heir_at.iter().map(|source| source.server.clone()));
        }
        if goal.lease != Lease::Nothing {
            return goal;
        }
        if now_ms.saturating_sub(self.feeds_since_ms) >= self.limits.pull_after_ms {
            self.let_down = true;
        }
        // If no server is known to hold it, waiting for the leader is right: a mirror's bytes are
        // for the heads.
        let own = self.let_down && !self.order.sources.is_empty();
        if own && let Some(own) = self.by_order(now_ms) { own } else { goal }
    }

    /// The holder in the order with the fewest failures; a mirror if none is usable and the order
    /// permits it.
    fn by_order(&self, now_ms: u64) -> Option<Goal> {
        let holders = self.order.sources.iter().map(|source| &source.server);
        let usable = holders.filter_map(|server| {
            let id = SourceId::Server(server.clone());
            self.sources.is_usable(&id, now_ms).then(|| (self.sources.failures(&id), server))
        });
        match usable.min_by_key(|(failures, _)| *failures) {
            Some((_, holder)) => Some(Goal { feeds: vec![holder.clone()], ..Goal::default() }),
            None if self.order.from_mirror => Some(Goal { lease: Lease::All, ..Goal::default() }),
            None => None,
        }
    }
}
