//! Which servers carry the group's log: those an operator named, then the first that joined, up to
//! five.

use std::collections::BTreeSet;

use crate::ids::{MemberId, ServerId};
use crate::state::State;

/// Most voters of a group. Five survive two failures; more slow every decision down.
pub const VOTERS_MAX: usize = 5;

/// The membership as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placed {
    /// The members that vote.
    pub voters: BTreeSet<MemberId>,
    /// The members that only replicate.
    pub standbys: BTreeSet<MemberId>,
    /// Standbys whose log has caught up.
    pub caught_up: BTreeSet<MemberId>,
    /// A membership change is in progress.
    pub changing: bool,
}

/// The next step towards the wanted membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Give this server a member number.
    Allocate(ServerId),
    /// Take this server's number away: the member is neither voter nor standby any more.
    Retire(ServerId, MemberId),
    /// Change the membership in one atomic step.
    Change {
        /// The new voters.
        voters: BTreeSet<MemberId>,
        /// The new standbys.
        standbys: BTreeSet<MemberId>,
    },
}

/// The next step; none if the membership is as wanted, or is being changed.
#[must_use]
pub fn placement(state: &State, placed: &Placed) -> Option<Placement> {
    if placed.changing {
        return None;
    }
    let mut by_joining: Vec<(&ServerId, &crate::state::Server)> = state.servers.iter().collect();
    by_joining.retain(|(_, server)| server.placed != Some(false));
    by_joining.sort_by_key(|(_, server)| (server.placed != Some(true), server.joined));
    by_joining.truncate(VOTERS_MAX);
    if let Some((server, _)) = by_joining.iter().find(|(_, server)| server.member.is_none()) {
        return Some(Placement::Allocate((*server).clone()));
    }
    let wanted: BTreeSet<MemberId> =
        by_joining.iter().filter_map(|(_, server)| server.member).collect();
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
    // An unwanted voter stays until a replacement has caught up, unless its server has left.
    let spare: Vec<MemberId> = placed.voters.difference(&wanted).filter(known).copied().collect();
    let missing = wanted.len().saturating_sub(voters.len());
    voters.extend(spare.into_iter().take(missing));
    let standbys: BTreeSet<MemberId> = wanted.difference(&voters).copied().collect();
    if voters.is_empty() || (voters == placed.voters && standbys == placed.standbys) {
        return None;
    }
    Some(Placement::Change { voters, standbys })
}
