//! What a member does while it leads: observe, plan, propose, and place the voters.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cohort_consensus::{RaftId, Status};
use cohort_core::ids::MemberId;
use cohort_core::placement::{Placed, Placement, placement};
use cohort_core::{Body, Observations, plan};

use super::Member;

/// How often the leader plans when nothing happens.
const PLAN_EVERY: Duration = Duration::from_millis(250);

/// How far a standby's log may be behind to count as caught up, in entries.
const CAUGHT_UP_LAG_MAX: u64 = 64;

/// What the leader sees, and since when it leads.
#[derive(Debug, Default)]
pub(super) struct Leading {
    pub(super) since: Option<Instant>,
    pub(super) clock_mark: Option<Instant>,
    /// The last of its own proposals that is not applied yet.
    pub(super) planned_up_to: u64,
    pub(super) planned_at: Option<Instant>,
    /// Whether it was told that this member leads.
    pub(super) told: bool,
    pub(super) placed_at: Option<Instant>,
}

impl Member {
    /// Plans and proposes, if this member leads. True when something was proposed.
    pub(super) fn lead(&mut self) -> bool {
        let status = self.node.status();
        if !status.is_leader()
            || !status.ready
            || self.stopping.is_some()
            || self.transfer.is_some()
        {
            return false;
        }
        if !self.leading.told {
            self.leading.told = true;
            tracing::info!(term = status.term.0, "leads the group");
        }
        let applied = status.applied.0;
        if self.leading.planned_up_to > applied {
            return false;
        }
        let now = Instant::now();
        let due = self.leading.planned_at.is_none_or(|at| now - at >= PLAN_EVERY);
        if !self.dirty && !due {
            return false;
        }
        self.dirty = false;
        self.leading.planned_at = Some(now);
        let placed = self.place(&status, now);
        let seen = self.observe(now);
        let plan = plan(&self.state, &seen);
        if plan.waiting != self.waiting {
            self.waiting = plan.waiting;
            self.changed = true;
        }
        let mut proposed = placed;
        for body in plan.commands {
            let advance = match &body {
                Body::AdvanceClock { from, to } => Some(to.since(*from)),
                _ => None,
            };
            let index = self.propose_own(body);
            if index == 0 {
                break;
            }
            if let (Some(ms), Some(mark)) = (advance, &mut self.leading.clock_mark) {
                // What was cut off (a long sleep) is not made up for: deadlines may only be late.
                *mark = if seen.elapsed_ms > ms { now } else { *mark + Duration::from_millis(ms) };
            }
            self.leading.planned_up_to = index;
            proposed = true;
        }
        proposed
    }

    fn observe(&mut self, now: Instant) -> Observations {
        let mark = *self.leading.clock_mark.get_or_insert(now);
        if self.killed.is_some() {
            // Deadlines freeze.
            self.leading.clock_mark = Some(now);
        }
        let since = self.leading.since.unwrap_or(now);
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let contacts = self.contacts.all();
        let doing = contacts.iter().flat_map(|(server, contact)| {
            contact.doing.iter().map(|(app, doing)| ((app.clone(), server.clone()), doing.step))
        });
        Observations {
            leader: Some(self.server.clone()),
            elapsed_ms: ms(now - mark),
            leading_for_ms: ms(now - since),
            killed: self.killed.clone(),
            registry: self.registry.clone(),
            offers: self.offers.clone(),
            refusals: self.refusals.clone(),
            contact_age_ms: contacts
                .iter()
                .map(|(server, contact)| {
                    (server.clone(), ms(now.saturating_duration_since(contact.at)))
                })
                .collect(),
            doing: doing.collect(),
        }
    }

    /// Takes the next step towards the wanted placement. True when something was proposed.
    fn place(&mut self, status: &Status, now: Instant) -> bool {
        let rested = self.leading.placed_at.is_none_or(|at| now - at >= Duration::from_millis(200));
        if !rested {
            return false;
        }
        let ids = |ids: &BTreeSet<RaftId>| ids.iter().map(|id| MemberId(id.0)).collect();
        let placed = Placed {
            voters: ids(&status.configuration.voters),
            standbys: ids(&status.configuration.standbys),
            caught_up: status
                .peers
                .iter()
                .filter(|(_, peer)| {
                    peer.matched.0 > 0 && peer.matched.0 + CAUGHT_UP_LAG_MAX >= status.commit.0
                })
                .map(|(id, _)| MemberId(id.0))
                .collect(),
            changing: status.change_pending || status.configuration.is_joint(),
        };
        let Some(next) = placement(&self.state, &placed) else { return false };
        self.leading.placed_at = Some(now);
        match next {
            Placement::Allocate(server) => {
                let index = self.propose_own(Body::AllocateMember { server });
                self.leading.planned_up_to = self.leading.planned_up_to.max(index);
                index > 0
            }
            Placement::Retire(server, member) => {
                let index = self.propose_own(Body::RetireMember { server, member });
                self.leading.planned_up_to = self.leading.planned_up_to.max(index);
                index > 0
            }
            Placement::Change { voters, standbys } => {
                let ids = |ids: &BTreeSet<MemberId>| ids.iter().map(|id| RaftId(id.0)).collect();
                let (voters, standbys): (BTreeSet<RaftId>, BTreeSet<RaftId>) =
                    (ids(&voters), ids(&standbys));
                match self.node.change_membership(&voters, &standbys) {
                    Ok(()) => {
                        tracing::info!(?voters, ?standbys, "membership change begun");
                        true
                    }
                    Err(error) => {
                        tracing::debug!(%error, "membership change not begun");
                        false
                    }
                }
            }
        }
    }
}
