//! Which servers carry the group's log: five reachable ones, spread over racks.

use std::collections::BTreeSet;

use crate::ids::{MemberId, ServerId};
use crate::state::{App, Server, State};

/// Most voters of a group. Five tolerate two failures; more would slow down every decision.
pub const VOTERS_MAX: usize = 5;

/// With at least this many voters, a server in a change does not become one: it may be about to go
/// away.
const VOTERS_SETTLED: usize = 3;

/// The membership as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placed {
    pub voters: BTreeSet<MemberId>,
    pub standbys: BTreeSet<MemberId>,
    /// Standbys whose log has caught up.
    pub caught_up: BTreeSet<MemberId>,
    pub changing: bool,
}

/// The next step towards the desired membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Give this server a member number.
    Allocate(ServerId),
    /// Take this server's number away: the member is no longer a voter or standby.
    Retire(ServerId, MemberId),
    /// Change the membership atomically.
    Change { voters: BTreeSet<MemberId>, standbys: BTreeSet<MemberId> },
}

/// The next step; `None` if the membership is as desired, or is being changed.
///
/// `silent`: servers that the leader has not heard from for so long that they should be replaced.
#[must_use]
pub fn placement(state: &State, placed: &Placed, silent: &BTreeSet<ServerId>) -> Option<Placement> {
    if placed.changing {
        return None;
    }
    let carriers = carriers(state, placed, silent);
    if let Some((server, _)) = carriers.iter().find(|(_, server)| server.member.is_none()) {
        return Some(Placement::Allocate((*server).clone()));
    }
    let wanted: BTreeSet<MemberId> =
        carriers.iter().filter_map(|(_, server)| server.member).collect();
    let over = state.servers.iter().find_map(|(id, server)| {
        let member = server.member?;
        let counted = placed.voters.contains(&member) || placed.standbys.contains(&member);
        (!wanted.contains(&member) && !counted).then(|| (id.clone(), member))
    });
    if let Some((server, member)) = over {
        return Some(Placement::Retire(server, member));
    }
    let known = |member: &&MemberId| state.server_of(**member).is_some();
    let mut voters: BTreeSet<MemberId> = wanted
        .iter()
        .filter(|member| placed.voters.contains(member) || placed.caught_up.contains(member))
        .copied()
        .collect();
    // An unwanted voter stays until its replacement has caught up, unless its server has left.
    let spare: Vec<MemberId> = placed.voters.difference(&wanted).filter(known).copied().collect();
    let missing = wanted.len().saturating_sub(voters.len());
    voters.extend(spare.into_iter().take(missing));
    let standbys: BTreeSet<MemberId> = wanted.difference(&voters).copied().collect();
    if voters.is_empty() || (voters == placed.voters && standbys == placed.standbys) {
        return None;
    }
    Some(Placement::Change { voters, standbys })
}

/// The servers that should carry the log, best first.
///
/// Chosen one by one, preferring in this order: a reachable server, one that an operator placed,
/// one whose rack has the fewest chosen so far, one that already votes, the one that joined first.
/// A server without a rack counts as a rack of its own.
fn carriers<'a>(
    state: &'a State,
    placed: &Placed,
    silent: &BTreeSet<ServerId>,
) -> Vec<(&'a ServerId, &'a Server)> {
    let votes = |server: &Server| server.member.is_some_and(|id| placed.voters.contains(&id));
    let settled = placed.voters.len() >= VOTERS_SETTLED;
    let mut left: Vec<(&ServerId, &Server)> = state
        .servers
        .iter()
        .filter(|(id, server)| {
            let ready = !silent.contains(*id) && (!settled || !is_changing(state, id));
            server.placed != Some(false) && (ready || votes(server))
        })
        .collect();
    let mut chosen: Vec<(&ServerId, &Server)> = Vec::new();
    while chosen.len() < VOTERS_MAX && !left.is_empty() {
        let best = left.iter().enumerate().min_by_key(|(_, (id, server))| {
            let shares = chosen
                .iter()
                .filter(|(_, other)| server.rack.is_some() && server.rack == other.rack)
                .count();
            let named = server.placed == Some(true);
            (silent.contains(*id), !named, shares, !votes(server), server.joined)
        });
        let Some((at, _)) = best else { break };
        chosen.push(left.remove(at));
    }
    chosen
}

fn is_changing(state: &State, server: &ServerId) -> bool {
    let here = |app: &App| app.servers.get(server).is_some_and(|here| here.activation.is_some());
    state.apps.values().any(here)
}
