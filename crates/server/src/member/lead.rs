//! What a member does while it is the leader: plan, propose, and place the voters.

use std::collections::{BTreeMap, BTreeSet};

use cohort_consensus::{LogStore, MembershipError, RaftId};
use cohort_core::Body;
use cohort_core::ids::{MemberId, ServerId};
use cohort_core::placement::{Placed, Placement};
use cohort_core::waiting::Placing;

use super::clock::TICK_MS;
use super::{Member, Note, Output};
use crate::contacts::Contacts;
use crate::leading::Heard;

impl<S: LogStore> Member<S> {
    /// Whether it is the leader, and a plan is worth making now.
    pub(super) fn may_plan(&self, now_ms: u64) -> bool {
        self.stopping.is_none()
            && self.transfer.is_none()
            && self.node.leads()
            && self.leading.due(now_ms, self.node.applied().0)
    }

    pub(super) fn lead(&mut self, now_ms: u64, contacts: &Contacts) {
        self.hand_over_to_an_heir(now_ms);
        let asks = self.leading.asks_voters();
        self.changed |= std::mem::replace(&mut self.asks, asks) != asks;
        let may_write = self.leading.may_write();
        if may_write && self.leading.may_place(now_ms) {
            let before = (self.leading.placing().cloned(), self.leading.mute().clone());
            self.place(now_ms, contacts);
            let now = (self.leading.placing(), self.leading.mute());
            self.changed |= now != (before.0.as_ref(), &before.1);
        }
        if may_write && !self.state.servers.contains_key(self.leading.server()) {
            self.hand_over_to_the_group();
        }
        let voters = self.node.configuration().voters.iter();
        let (survey, state) = (&self.survey, &self.state);
        let servers = voters.filter_map(|id| survey.server_of(state, MemberId(id.0)));
        self.leading.voters(servers.cloned().collect());
        let mut plan = self.leading.plan(now_ms, &self.state, contacts);
        if !may_write {
            plan.commands.clear();
            plan.waiting = self.leading.waiting_for_space(now_ms, &self.state);
        }
        if plan.waiting != *self.waiting {
            self.waiting = plan.waiting.into();
            self.changed = true;
        }
        for body in plan.commands {
            let Some(index) = self.propose_own(body.clone()) else { break };
            self.leading.proposed(now_ms, index, &body);
        }
    }

    /// The leader's server has left, but its vote is still needed. Only a member whose server
    /// belongs to the group can plan for it.
    fn hand_over_to_the_group(&mut self) {
        let voters = self.node.status().configuration.voters;
        let mut heirs = voters.iter().filter(|id| self.state.server_of(MemberId(id.0)).is_some());
        self.changed |= heirs.any(|id| self.node.transfer_leadership(*id).is_ok());
    }

    /// The leader's server cannot do a leader's work, and another voter's can.
    fn hand_over_to_an_heir(&mut self, now_ms: u64) {
        let voters = &self.node.configuration().voters;
        let member = |server: &ServerId| {
            let member = self.state.servers.get(server)?.member?;
            voters.get(&RaftId(member.0)).copied()
        };
        let heir = self.leading.heir(now_ms, |server| member(server).is_some());
        let Some((to, id)) = heir.and_then(|to| member(&to).map(|id| (to, id))) else { return };
        if self.node.transfer_leadership(id).is_ok() {
            let reaches = self.leading.reaches();
            self.outputs.push(Output::Noted(Note::HandsOver { to, reaches }));
            self.changed = true;
        }
    }

    /// Takes the next step towards the desired placement of voters.
    fn place(&mut self, now_ms: u64, contacts: &Contacts) {
        let status = self.node.status();
        let members = |ids: &BTreeSet<RaftId>| ids.iter().map(|id| MemberId(id.0)).collect();
        let placed = Placed {
            voters: members(&status.configuration.voters),
            standbys: members(&status.configuration.standbys),
            caught_up: members(&self.node.caught_up()),
            changing: status.change_pending || status.configuration.is_joint(),
        };
        let heard = Heard { contacts, members: self.heard_members(now_ms) };
        let body = match self.leading.place(now_ms, &self.state, placed, &heard) {
            None => return,
            Some(Placement::Allocate(server)) => Body::AllocateMember { server },
            Some(Placement::Retire(server, member)) => Body::RetireMember { server, member },
            Some(Placement::Change { voters, standbys }) => {
                return self.change_membership(now_ms, &voters, &standbys);
            }
        };
        if let Some(index) = self.propose_own(body.clone()) {
            self.leading.proposed(now_ms, index, &body);
        }
    }

    /// When the members on other servers were last heard. A standby that never was may still be
    /// starting; a voter was heard by an earlier leader.
    fn heard_members(&self, now_ms: u64) -> BTreeMap<ServerId, u64> {
        let (own, configuration) = (self.node.id(), self.node.configuration());
        let members = configuration.members().into_iter().filter(|member| *member != own);
        let heard = members.filter_map(|member| {
            let heard_ms = match self.node.heard_ticks_ago(member) {
                Some(ticks) => now_ms.saturating_sub(ticks * TICK_MS),
                None if configuration.is_voter(member) => 0,
                None => return None,
            };
            Some((self.state.server_of(MemberId(member.0))?.clone(), heard_ms))
        });
        heard.collect()
    }

    /// If the change does not start, the next plan tries again.
    fn change_membership(
        &mut self,
        now_ms: u64,
        voters: &BTreeSet<MemberId>,
        standbys: &BTreeSet<MemberId>,
    ) {
        let ids = |members: &BTreeSet<MemberId>| members.iter().map(|id| RaftId(id.0)).collect();
        let (voters, standbys): (BTreeSet<RaftId>, BTreeSet<RaftId>) = (ids(voters), ids(standbys));
        let begun = self.node.change_membership(&voters, &standbys);
        if let Err(MembershipError::NoMajority { heard, voters }) = begun {
            self.leading.place_waits(now_ms, Placing::Majority { heard, voters });
        }
        let (voters, standbys) = (voters.into_iter().collect(), standbys.into_iter().collect());
        self.outputs.push(Output::Noted(Note::Membership { voters, standbys, begun }));
    }
}
