//! Which servers carry the group's log: reachable ones, spread over racks. An odd number of them
//! vote, the others stand by.
//!
//! The one place where this is decided. The leader asks for the next step with what it has heard,
//! and takes one step at a time:
//!
//! ```text
//!   a server is to carry the log ─► Allocate ─► Change (stands by) ─► it catches up
//!                                                                        │
//!   Retire ◄─ Change (its number is no longer a member) ◄─ Change (votes, in a joint change)
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{MemberId, ServerId};
use crate::state::{Activation, App, Server, State};
use crate::waiting::Placing;

/// With at least this many voters, a server in a change does not become one: it may be about to go
/// away. Silence alone never leaves a group with fewer.
const VOTERS_SETTLED: usize = 3;

/// How many servers carry the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carriers {
    /// Voters, at most; odd. Five tolerate two failures; more slow down every decision.
    pub voters: usize,
    /// Servers that hold the log in addition, so that they can take a voter's place immediately.
    pub standbys: usize,
}

impl Default for Carriers {
    fn default() -> Self {
        Carriers { voters: 5, standbys: 0 }
    }
}

/// The membership as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placed {
    pub voters: BTreeSet<MemberId>,
    pub standbys: BTreeSet<MemberId>,
    /// Standbys whose log has caught up.
    pub caught_up: BTreeSet<MemberId>,
    pub changing: bool,
}

/// The servers that the leader does not hear.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unheard {
    /// Not for some seconds: they do not become voters now.
    pub lately: BTreeSet<ServerId>,
    /// For so long that they are replaced.
    pub silent: BTreeSet<ServerId>,
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

/// The next step, or what it is waiting for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The membership is as desired.
    Settled,
    Step(Placement),
    Waits(Placing),
}

/// The most voters that a group of this many servers has: an odd number, since one more tolerates
/// no more failures, and stops the group if it is lost.
#[must_use]
pub fn voters_of(servers: usize, most: usize) -> usize {
    let voters = servers.min(most);
    if voters.is_multiple_of(2) { voters.saturating_sub(1) } else { voters }
}

/// A server that carries the log, or could.
struct Candidate<'a> {
    id: &'a ServerId,
    server: &'a Server,
    votes: bool,
    silent: bool,
    /// Whether it may vote after the next change.
    fit: bool,
}

/// The next step.
#[must_use]
pub fn placement(state: &State, placed: &Placed, unheard: &Unheard, wanted: Carriers) -> Next {
    if placed.changing {
        return Next::Waits(Placing::Joint);
    }
    let carriers = carriers(candidates(state, placed, unheard), wanted);
    if let Some(new) = carriers.iter().find(|carrier| carrier.server.member.is_none()) {
        return Next::Step(Placement::Allocate(new.id.clone()));
    }
    let carrying: BTreeSet<MemberId> = carriers.iter().filter_map(|c| c.server.member).collect();
    let over = state.servers.iter().find_map(|(id, server)| {
        let member = server.member.filter(|member| !carrying.contains(member))?;
        let counted = placed.voters.contains(&member) || placed.standbys.contains(&member);
        (!counted).then(|| (id.clone(), member))
    });
    if let Some((server, member)) = over {
        return Next::Step(Placement::Retire(server, member));
    }
    let voting = voting(&carriers, wanted);
    let voters = next_voters(state, placed, unheard, &voting);
    let standbys: BTreeSet<MemberId> = carrying.difference(&voters).copied().collect();
    if !voters.is_empty() && (voters != placed.voters || standbys != placed.standbys) {
        return Next::Step(Placement::Change { voters, standbys });
    }
    let name = |member: &MemberId| state.server_of(*member).cloned();
    let behind: BTreeSet<ServerId> = voting.difference(&voters).filter_map(name).collect();
    let voters: BTreeSet<ServerId> = voters.iter().filter_map(name).collect();
    let silent = &voters & &unheard.silent;
    if !behind.is_empty() {
        Next::Waits(Placing::CatchingUp { servers: behind })
    } else if !silent.is_empty() {
        Next::Waits(Placing::Replacement { silent })
    } else {
        Next::Settled
    }
}

/// The servers that may carry the log after the next change: those that do, and those that may
/// vote. A server that does not vote may start to if the leader hears it, and if it is neither in a
/// change nor lost in one.
fn candidates<'a>(
    state: &'a State,
    placed: &Placed,
    unheard: &Unheard,
) -> impl Iterator<Item = Candidate<'a>> {
    let settled = placed.voters.len() >= VOTERS_SETTLED;
    state.servers.iter().filter(|(_, server)| server.placed != Some(false)).filter_map(
        move |(id, server)| {
            let in_change = |app: &App| {
                app.servers.get(id).is_some_and(|here| {
                    here.unsure || here.activation.as_ref().is_some_and(Activation::open)
                })
            };
            let votes = server.member.is_some_and(|member| placed.voters.contains(&member));
            let silent = unheard.silent.contains(id);
            let may_start =
                || !(unheard.lately.contains(id) || settled && state.apps.values().any(in_change));
            let fit = !silent && (votes || may_start());
            let known = fit || server.member.is_some();
            known.then_some(Candidate { id, server, votes, silent, fit })
        },
    )
}

/// The servers that should carry the log, best first.
///
/// Chosen one by one, preferring in this order: a server that is not silent, one that may vote, one
/// that an operator placed, one whose failure domain has the fewest chosen so far, one that votes,
/// one that stands by, the one that joined first.
fn carriers<'a>(
    candidates: impl Iterator<Item = Candidate<'a>>,
    wanted: Carriers,
) -> Vec<Candidate<'a>> {
    let mut left: Vec<Candidate<'_>> = candidates.collect();
    let mut chosen: Vec<Candidate<'_>> = Vec::new();
    while chosen.len() < wanted.voters + wanted.standbys && !left.is_empty() {
        let best = left.iter().enumerate().min_by_key(
            |(_, Candidate { server, votes, silent, fit, .. })| {
                let named = server.placed == Some(true);
                let shares = shares(server, chosen.iter().map(|other| other.server));
                let stands_by = server.member.is_some();
                (*silent, !fit, !named, shares, !votes, !stands_by, server.joined)
            },
        );
        let Some((at, _)) = best else { break };
        chosen.push(left.remove(at));
    }
    chosen
}

/// How many of `others` share a server's failure domain: its widest part, and all of it. A rack
/// may name nested domains, widest first, such as `zone-a/r7`; a server without one is its own.
fn shares<'a>(server: &Server, others: impl Iterator<Item = &'a Server>) -> (usize, usize) {
    let widest = |rack: &'a str| rack.split('/').next();
    let Some(own) = &server.rack else { return (0, 0) };
    let own_widest = own.split('/').next();
    others.filter_map(|other| other.rack.as_deref()).fold((0, 0), |(wide, whole), rack| {
        (wide + usize::from(widest(rack) == own_widest), whole + usize::from(rack == own))
    })
}

/// The carriers that should vote. Silent ones only if there would be fewer than three without.
fn voting(carriers: &[Candidate<'_>], wanted: Carriers) -> BTreeSet<MemberId> {
    let fit = carriers.iter().filter(|carrier| carrier.fit).count();
    let count = voters_of(fit.max(carriers.len().min(VOTERS_SETTLED)), wanted.voters);
    carriers.iter().filter_map(|carrier| carrier.server.member).take(count).collect()
}

/// The voters after the next change, on the way to `voting`.
///
/// A voter stays until its successor has caught up, unless its server has left. Of those that are
/// to go, the ones stay whose failure domains no other voter is in. The voters that stay are a
/// majority of the new ones if they can be: then newcomers that fail cannot stop the group. Voters
/// are added in pairs, so that their number stays odd.
fn next_voters(
    state: &State,
    placed: &Placed,
    unheard: &Unheard,
    voting: &BTreeSet<MemberId>,
) -> BTreeSet<MemberId> {
    let servers: BTreeMap<MemberId, (&ServerId, &Server)> =
        state.servers.iter().filter_map(|(id, s)| Some((s.member?, (id, &**s)))).collect();
    let known = |member: &&MemberId| servers.contains_key(*member);
    let present: BTreeSet<MemberId> = placed.voters.iter().filter(known).copied().collect();
    let mut voters: BTreeSet<MemberId> = &present & voting;
    let mut newcomers: Vec<MemberId> =
        (&(&placed.caught_up & voting) - &present).into_iter().collect();
    if present.len() > voting.len() / 2 {
        newcomers.truncate(voting.len().saturating_sub(1) / 2);
    }
    let mut left: Vec<MemberId> = present.difference(voting).copied().chain(newcomers).collect();
    let mut last = None;
    while voters.len() < voting.len() && !left.is_empty() {
        let best = left.iter().enumerate().min_by_key(|(_, member)| {
            let (id, server) = servers[*member];
            let others = voters.iter().map(|other| servers[other].1);
            let leaves = present.contains(*member);
            (shares(server, others), leaves, unheard.silent.contains(id), **member)
        });
        let Some((at, _)) = best else { break };
        let member = left.remove(at);
        voters.insert(member);
        last = Some(member);
    }
    if let Some(last) = last
        && voters.len() > present.len()
        && voters.len().is_multiple_of(2)
    {
        voters.remove(&last);
    }
    voters
}
