//! Who carries the group's log: those that a person named, then the first that joined, up to five.
//!
//! Spreading voters over failure domains comes later; the shape of the answer is the same then.

use std::collections::BTreeSet;

use crate::ids::{MemberId, ServerId};
use crate::state::State;

/// Voters of a group. Five survive two failures; more make every decision slower.
pub const VOTERS_MAX: usize = 5;

/// The membership as it is, and as far as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placed {
    /// Voters.
    pub voters: BTreeSet<MemberId>,
    /// Standbys.
    pub standbys: BTreeSet<MemberId>,
    /// Standbys whose log has caught up.
    pub caught_up: BTreeSet<MemberId>,
    /// A change is under way.
    pub changing: bool,
}

/// The next step towards the placement that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Give this server the next member number.
    Allocate(ServerId),
    /// This server's number is over: it is in no half of the membership any more.
    Retire(ServerId, MemberId),
    /// Change the membership, atomically.
    Change {
        /// To these voters
        voters: BTreeSet<MemberId>,
        /// and these standbys.
        standbys: BTreeSet<MemberId>,
    },
}

/// What to do next; none when the placement is as wanted, or a change is under way.
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
    // A voter that is no longer wanted stays until another one has caught up in its place; one
    // whose server left goes at once.
    let spare: Vec<MemberId> = placed.voters.difference(&wanted).filter(known).copied().collect();
    let missing = wanted.len().saturating_sub(voters.len());
    voters.extend(spare.into_iter().take(missing));
    let standbys: BTreeSet<MemberId> = wanted.difference(&voters).copied().collect();
    if voters.is_empty() || (voters == placed.voters && standbys == placed.standbys) {
        return None;
    }
    Some(Placement::Change { voters, standbys })
}
