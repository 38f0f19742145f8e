//! Which servers make up the next wave: its size and order; the rest of the policy is not used.

use std::collections::BTreeSet;

use crate::capacity;
use crate::ids::ServerId;
use crate::orders::Purpose;
use crate::state::{App, Rollout, State};

/// The servers of the next wave, chosen from those that are ready, which come in order of their
/// ids.
///
/// Servers on which the app is out of service come first: they take no capacity, and would delay
/// the others.
/// Members spread over the waves, because a bad release may take its host down. The leader's server
/// comes last.
pub(crate) fn choose(
    state: &State,
    app: &App,
    rollout: &Rollout,
    lead: &ServerId,
    ready: &[ServerId],
) -> BTreeSet<ServerId> {
    let sizes = &rollout.policy.update.max_parallel;
    let size = sizes.of_wave(rollout.waves + 1, state.size()) as usize;
    let is_member =
        |server: &&ServerId| state.servers.get(*server).is_some_and(|s| s.member.is_some());
    let serves =
        |server: &ServerId| app.servers.get(server).is_some_and(|here| here.takes_traffic());
    let mut out = capacity::out_servers(state);
    out.retain(|server| !serves(server));
    let mut order: Vec<&ServerId> = ready.iter().collect();
    order.sort_by_cached_key(|server| (!out.contains(*server), *server == lead));
    let broken = order.iter().take_while(|server| out.contains(**server)).count().min(size);
    let mut chosen: BTreeSet<ServerId> = order.drain(..broken).cloned().collect();
    let size = size - broken;
    let left = order.len();
    let (members, others): (Vec<&ServerId>, Vec<&ServerId>) =
        order.into_iter().partition(is_member);
    // By the end of this wave, the share of members done should equal the share of servers done.
    let all = state.servers.len().max(1);
    let are_members = state.servers.values().filter(|s| s.member.is_some()).count();
    let due = (all.saturating_sub(left) + size) * are_members / all;
    let share = due.saturating_sub(are_members.saturating_sub(members.len()));
    let margin = margin(are_members);
    let from_members = share.min(margin).min(members.len());
    let from_others = (size - from_members.min(size)).min(others.len());
    chosen.extend(members.iter().take(from_members).map(|server| (*server).clone()));
    chosen.extend(others.iter().take(from_others).map(|server| (*server).clone()));
    // Fill up with members if no other server is left.
    for server in members.iter().skip(from_members) {
        if chosen.len() < size + broken {
            chosen.insert((*server).clone());
        }
    }
    chosen
}

/// The voters whose hosts a new release may be taking down: a group that loses its majority to a
/// release cannot roll it back. One that was lost counts against the failures allowed instead.
pub(crate) fn at_risk(state: &State, voters: &BTreeSet<ServerId>) -> BTreeSet<ServerId> {
    let is_at_risk = |server: &&ServerId| {
        let mut here = state.apps.values().filter_map(|app| app.servers.get(*server));
        here.any(|here| here.in_flight().is_some_and(|it| it.purpose == Purpose::Wave))
    };
    voters.iter().filter(is_at_risk).cloned().collect()
}

/// Whether a release may go to this server next to those voters that already have one.
pub(crate) fn spares_majority(
    state: &State,
    voters: &BTreeSet<ServerId>,
    server: &ServerId,
) -> bool {
    let others = at_risk(state, voters).iter().filter(|other| *other != server).count();
    !voters.contains(server) || others < margin(voters.len())
}

/// How many of so many voters may change at once: as many as the group can lose, and one.
pub(crate) fn margin(voters: usize) -> usize {
    (voters.saturating_sub(1) / 2).max(1)
}
