//! Which servers make up a wave.

use std::collections::BTreeSet;

use crate::capacity::{self, Standing};
use crate::ids::ServerId;
use crate::state::State;

/// The servers of a wave: those out of service first, then so that members spread over the
/// waves (a bad release may take its host with it), the leader's server last of all.
pub(crate) fn choose(
    state: &State,
    lead: &ServerId,
    ready: &[ServerId],
    size: u32,
) -> BTreeSet<ServerId> {
    let size = size as usize;
    let is_member =
        |server: &&ServerId| state.servers.get(*server).is_some_and(|s| s.member.is_some());
    let out = |server: &ServerId| capacity::standing(state, server) == Standing::Out;
    let mut order: Vec<&ServerId> = ready.iter().collect();
    order.sort_by_key(|server| (!out(server), *server == lead, (*server).clone()));
    // Those take nothing away, and would hold up the others for as long as they are out.
    let broken = order.iter().take_while(|server| out(server)).count().min(size);
    let mut chosen: BTreeSet<ServerId> = order.drain(..broken).cloned().collect();
    let size = size - broken;
    let left = order.len();
    let (members, others): (Vec<&ServerId>, Vec<&ServerId>) =
        order.into_iter().partition(is_member);
    // As many of the members as of all: they are spread over the rollout.
    let all = state.servers.len().max(1);
    let are_members = state.servers.values().filter(|s| s.member.is_some()).count();
    let due = (all.saturating_sub(left) + size) * are_members / all;
    let share = due.saturating_sub(are_members.saturating_sub(members.len()));
    let margin = (are_members.saturating_sub(1) / 2).max(1);
    let from_members = share.min(margin).min(members.len());
    let from_others = (size - from_members.min(size)).min(others.len());
    chosen.extend(members.iter().take(from_members).map(|server| (*server).clone()));
    chosen.extend(others.iter().take(from_others).map(|server| (*server).clone()));
    // A wave as large as asked for, where there are no others left.
    for server in members.iter().skip(from_members) {
        if chosen.len() < size + broken {
            chosen.insert((*server).clone());
        }
    }
    chosen
}
