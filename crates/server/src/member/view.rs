//! What a member shows.

use std::collections::BTreeSet;
use std::sync::Arc;

use cohort_consensus::{RaftId, Status};
use cohort_core::State;
use cohort_core::ids::{ClockMs, MemberId, ServerId};
use cohort_core::orders::Orders;
use cohort_core::refused::Refused;
use cohort_core::shared::Shared;
use cohort_core::survey::Survey;
use cohort_core::waiting::{Placing, Waiting};

use crate::copies::Copies;
use crate::errands::Errands;

/// The published view: consistent, as of `raft.applied`.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub state: Arc<State>,
    /// Of `state`.
    pub survey: Arc<Survey>,
    pub raft: Status,
    /// Why things are waiting, by the last plan; empty unless this member is the leader.
    pub waiting: Shared<Vec<Waiting>>,
    /// What the next change of the voters is waiting for, and since when, on the member's monotonic
    /// clock; `None` unless this member is the leader.
    pub placing: Option<(Placing, u64)>,
    /// Servers whose members the leader has not heard lately ([`Leading::mute`]); empty elsewhere.
    pub mute: BTreeSet<ServerId>,
    /// Whether the registry responds; `None` unless this member is the leader.
    pub registry: Option<bool>,
    /// The errands of the leader at the hub that fail; none unless this member is the leader.
    pub errands: Errands,
    /// Mirrors and releases refused recently, for people.
    pub refusals: Vec<Refused>,
    /// Agents refused lately because another one runs as their server.
    pub copies: Copies,
    /// Why everything is stopped, while the kill switch is on.
    pub killed: Option<String>,
    /// What the group clock would read if an entry had advanced it at `clock_at_ms`; in an idle
    /// group's log it stands still.
    pub clock: ClockMs,
    /// On the member's monotonic clock, in milliseconds; `None` before its first tick.
    pub clock_at_ms: Option<u64>,
    /// Since when it has listened as the leader, on its monotonic clock; `None` on other members.
    pub listens_since_ms: Option<u64>,
    /// Whether the leader asks its voters what they reach: it lacks something itself.
    pub asks_voters: bool,
}

impl View {
    /// The group clock now; it stands still while the kill switch is on.
    #[must_use]
    pub fn clock(&self, now_ms: u64) -> ClockMs {
        let at_ms = self.clock_at_ms.filter(|_| self.killed.is_none()).unwrap_or(now_ms);
        self.clock.plus(now_ms.saturating_sub(at_ms))
    }

    /// The leader's server, as far as this member knows.
    #[must_use]
    pub fn leader(&self) -> Option<&ServerId> {
        self.survey.server_of(&self.state, MemberId(self.raft.leader?.0))
    }

    /// The servers whose members vote.
    #[must_use]
    pub fn voters(&self) -> BTreeSet<ServerId> {
        let votes = |member: &MemberId| self.raft.configuration.is_voter(RaftId(member.0));
        let servers = self.state.servers.iter();
        let voters = servers.filter(|(_, server)| server.member.as_ref().is_some_and(votes));
        voters.map(|(id, _)| id.clone()).collect()
    }

    /// The orders of a server; `None` if it is not in the group.
    #[must_use]
    pub fn orders(&self, server: &ServerId) -> Option<Orders> {
        self.state.orders_by(&self.survey, server, self.killed.is_some())
    }

    /// Whether this member is the leader and has committed in its term.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.raft.is_leader() && self.raft.ready
    }
}
