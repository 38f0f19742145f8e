//! Which servers fetch from a mirror, and which server feeds which.
//!
//! Rules, in order:
//! 1. Only heads contact a mirror, and only for what is leased to them: units that no server holds
//!    or has leased, earliest first. That alone bounds what crosses the zone's downlink.
//! 2. Every other server has one parent, which sends it everything. Further heads are children of
//!    the first head and feed it in return; no unit goes back to its sender.
//! 3. A parent that is still good stays: a change costs more than a better shape gains.
//! 4. A small group is one chain. In a larger one, fan-out follows the measured ratio of a server's
//!    link to the rate of the mirrors: a chain while they are similar or unknown, else small trees.
//!    A chain of a thousand adds some seconds at the end; a tree on links too slow for it
//!    multiplies the whole time.
//! 5. Slow servers feed only slow ones.
//! 6. Each known rack is entered once: its first server has a parent elsewhere, the others inside.
//! 7. A server does not get a parent that it refuses (for wrong bytes, or none) if there is any
//!    other.
//! 8. A barred server, which several others refuse, feeds no server, and its claims do not count.
//!    It is fed at the tail.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::ServerId;

use super::tree::Tree;
use crate::UNIT_BYTES;
use crate::unit_set::UnitSet;

/// Most heads: more would only spread the work thinner.
const HEADS_MAX: usize = 4;

/// Most children of one server, even with a fast link: every child costs a connection and a cursor.
const FAN_OUT_MAX: usize = 4;

/// Largest group in which a chain is as good as a tree: a link adds two milliseconds; a wrong guess
/// about the links costs far more.
const CHAIN_SERVERS_MAX: usize = 24;

/// How far ahead leases reach, in milliseconds at the downlink's rate, so that the downlink does
/// not idle if a response is late.
const LEASE_AHEAD_MS: u64 = 2_000;

/// Smallest lease, in units (4 MiB), and the first one, while the rate is unknown.
const LEASE_UNITS_MIN: u32 = 64;

/// Largest lease, in units (1 GiB).
const LEASE_UNITS_MAX: u32 = 16_384;

/// Smallest lease at the end, in units, when several heads share the rest.
const LEASE_UNITS_LAST: u32 = 4;

/// Most servers that feed the first head.
const ROOT_FEEDS_MAX: usize = 8;

/// Most spare parents of a server: its parent may be lost together with the next one up.
const SPARES_MAX: usize = 3;

/// A plan's input about one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its failure domain, if known.
    pub rack: Option<String>,
    pub have: UnitSet,
    pub slow: bool,
    /// Its agent is the leader's, which makes it the worst choice of heir.
    pub leads: bool,
    /// It may lease: its mirrors did not fail it recently.
    pub may_lease: bool,
    /// Its rate from mirrors, in bytes per second; 0 while unknown.
    pub mirror_rate: u64,
    /// Servers that it refuses as parents.
    pub refuses: BTreeSet<ServerId>,
    /// Parents under which it recently fell behind: any other with room is better.
    pub fell_behind: BTreeSet<ServerId>,
    /// Several others refuse it: its claims do not count, and it feeds no server.
    pub barred: bool,
}

impl Member {
    /// Whether it credibly holds everything.
    pub(super) fn holds_all(&self) -> bool {
        self.have.is_full() && !self.barred
    }
}

/// All inputs of a plan.
#[derive(Debug, Clone)]
pub struct Situation<'a> {
    pub units: u32,
    pub members: &'a BTreeMap<ServerId, Member>,
    /// The rate of a server's link, in bytes per second; 0 while unknown.
    pub link_rate: u64,
    /// The fan-out at which servers fell behind, if they did: an upper bound.
    pub fan_out_failed: Option<usize>,
    pub previous: &'a Layout,
}

/// Which servers lease what, and which server sends to which.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// Servers that may ask mirrors; the first is the root.
    pub heads: Vec<ServerId>,
    /// The units each head may ask for and lacks.
    pub leases: BTreeMap<ServerId, UnitSet>,
    /// Who feeds whom: child → parent.
    pub parents: BTreeMap<ServerId, ServerId>,
    /// Who feeds the first head: the other heads, and servers that hold what it lacks.
    pub root_feeds: Vec<ServerId>,
    /// Most children per server.
    pub fan_out: usize,
}

/// Plans a transfer: heads, leases, then the tree of parents.
#[must_use]
pub fn plan(situation: &Situation<'_>) -> Layout {
    let heads = heads(situation);
    let fan_out = fan_out(situation);
    let parents = Tree::new(situation, &heads, fan_out).grow();
    let leases = leases(situation, &heads);
    let root_feeds = root_feeds(situation, &heads, &leases);
    Layout { heads, leases, parents, root_feeds, fan_out }
}

impl Layout {
    /// The servers that a server subscribes to.
    #[must_use]
    pub fn feeds(&self, server: &ServerId) -> Vec<ServerId> {
        let mut feeds: Vec<ServerId> = self.parents.get(server).cloned().into_iter().collect();
        if self.heads.first() == Some(server) {
            feeds.extend(self.root_feeds.iter().cloned());
        }
        feeds
    }

    /// Replacements for a silent parent: those above it, then the first head. Never a server below,
    /// so that no cycle can arise.
    #[must_use]
    pub fn spares(&self, server: &ServerId) -> Vec<ServerId> {
        let mut spares = Vec::new();
        let mut at = self.parents.get(server);
        while let Some(above) = at.and_then(|at| self.parents.get(at)) {
            if above == server || spares.contains(above) || spares.len() >= SPARES_MAX {
                break;
            }
            spares.push(above.clone());
            at = Some(above);
        }
        if let Some(root) = self.heads.first()
            && spares.len() < SPARES_MAX
            && root != server
            && self.parents.get(server) != Some(root)
            && !spares.contains(root)
        {
            spares.push(root.clone());
        }
        spares
    }

    /// The server that continues without a leader: the first head that is not the leader itself.
    #[must_use]
    pub fn heir(&self, members: &BTreeMap<ServerId, Member>) -> Option<ServerId> {
        let leads = |id: &&ServerId| members.get(*id).is_some_and(|member| member.leads);
        let heads = || self.heads.iter();
        let lacking = members.iter().filter(|(_, member)| !member.have.is_full());
        heads()
            .find(|id| !leads(id))
            .or_else(|| lacking.map(|(id, _)| id).find(|id| !leads(id)))
            .or_else(|| heads().next())
            .cloned()
    }
}

/// Members whose claims count.
fn believed(members: &BTreeMap<ServerId, Member>) -> impl Iterator<Item = &Member> {
    members.values().filter(|member| !member.barred)
}

/// The rate of all heads from mirrors.
fn mirror_rate(situation: &Situation<'_>) -> u64 {
    let heads = situation.previous.heads.iter();
    heads.filter_map(|id| Some(situation.members.get(id)?.mirror_rate)).sum()
}

/// A server's link rate ÷ the rate of the mirrors, in tenths; `None` while unknown.
fn ratio_tenths(situation: &Situation<'_>) -> Option<u64> {
    let mirrors = mirror_rate(situation);
    (mirrors > 0 && situation.link_rate > 0)
        .then(|| situation.link_rate.saturating_mul(10) / mirrors)
}

fn fan_out(situation: &Situation<'_>) -> usize {
    if situation.members.len() <= CHAIN_SERVERS_MAX {
        return 1;
    }
    // A seventh of the link stays free for headers, traffic among heads, and the service.
    let by_ratio = ratio_tenths(situation).map_or(0, |tenths| tenths * 6 / 70);
    let by_ratio = usize::try_from(by_ratio).unwrap_or(FAN_OUT_MAX);
    let most = situation.fan_out_failed.map_or(FAN_OUT_MAX, |failed| (failed / 2).max(1));
    by_ratio.clamp(1, FAN_OUT_MAX).min(most)
}

fn heads(situation: &Situation<'_>) -> Vec<ServerId> {
    let members = situation.members;
    let mut held = UnitSet::empty(situation.units);
    for member in believed(members) {
        held.union(&member.have);
    }
    if members.values().any(Member::holds_all) {
        return Vec::new();
    }
    // If the group holds all units but no single server does, the head leases nothing.
    let mirrors_needed = !held.is_full();
    let fits = |id: &ServerId| {
        members.get(id).is_some_and(|m| m.may_lease && !m.slow && !m.barred && !m.have.is_full())
    };
    // A second head costs the root's link half a downlink.
    let wanted = match ratio_tenths(situation).filter(|_| mirrors_needed) {
        Some(30..) if members.len() > CHAIN_SERVERS_MAX => 2,
        Some(22..) if situation.previous.heads.len() > 1 => 2,
        Some(_) | None => 1,
    };
    let previous = situation.previous.heads.iter();
    let mut heads: Vec<ServerId> =
        previous.filter(|id| fits(id)).take(HEADS_MAX).cloned().collect();
    heads.truncate(wanted);
    let mut others: Vec<(&ServerId, &Member)> =
        members.iter().filter(|(id, _)| fits(id) && !heads.contains(id)).collect();
    // Children of the root need no further link to become heads. Then by units held.
    let near = |id: &ServerId| {
        let parent = situation.previous.parents.get(id);
        parent.is_some() && parent == heads.first()
    };
    others.sort_by_key(|(id, member)| (Reverse(near(id)), Reverse(member.have.held()), *id));
    let more = wanted.saturating_sub(heads.len());
    let others: Vec<ServerId> = others.into_iter().take(more).map(|(id, _)| id.clone()).collect();
    heads.extend(others);
    if heads.is_empty() {
        // All are slow, barred, or failed by their mirrors: better one of those than none.
        let lacking = members.iter().filter(|(_, member)| !member.have.is_full());
        let best = lacking
            .min_by_key(|(id, m)| (m.barred, !m.may_lease, m.slow, Reverse(m.have.held()), *id));
        heads.extend(best.map(|(id, _)| id.clone()));
    }
    heads
}

fn leases(situation: &Situation<'_>, heads: &[ServerId]) -> BTreeMap<ServerId, UnitSet> {
    let mut free = UnitSet::full(situation.units);
    let mut unleased = free.clone();
    for member in believed(situation.members) {
        free.subtract(&member.have);
    }
    let mut leases: BTreeMap<ServerId, UnitSet> = BTreeMap::new();
    for head in heads {
        let before = situation.previous.leases.get(head).cloned();
        let mut lease = before.unwrap_or_else(|| UnitSet::empty(situation.units));
        // Units of it that others hold came from this head, which has not reported them yet.
        if let Some(member) = situation.members.get(head) {
            lease.subtract(&member.have);
        }
        // Units that earlier leaders leased to two heads stay with the first.
        lease.intersect(&unleased);
        unleased.subtract(&lease);
        free.subtract(&lease);
        leases.insert(head.clone(), lease);
    }
    let rate_of = |id: &ServerId| situation.members.get(id).map_or(0, |m| m.mirror_rate);
    let all_rates: u64 = heads.iter().map(rate_of).sum();
    for head in heads {
        let rate = rate_of(head);
        let ahead = rate.saturating_mul(LEASE_AHEAD_MS) / 1_000 / UNIT_BYTES;
        let mut window = u32::try_from(ahead).unwrap_or(u32::MAX);
        window = window.clamp(LEASE_UNITS_MIN, LEASE_UNITS_MAX);
        if heads.len() > 1 {
            // The rest is shared by rate, so that all heads finish at the same time.
            let left = u64::from(free.held());
            let heads = u64::try_from(heads.len()).unwrap_or(1);
            let share = left.saturating_mul(rate).checked_div(all_rates).unwrap_or(left / heads);
            let share = u32::try_from(share).unwrap_or(u32::MAX);
            window = window.min(share.max(LEASE_UNITS_LAST));
        }
        let Some(lease) = leases.get_mut(head) else { continue };
        let outstanding = lease.held();
        // Topped up by halves: longer runs need fewer requests.
        if outstanding > window / 2 {
            continue;
        }
        let mut wanted = window - outstanding;
        while wanted > 0
            && let Some(run) = free.run_from(0, wanted)
        {
            free.remove_run(run);
            lease.insert_run(run);
            wanted -= run.count;
        }
    }
    leases
}

/// The other heads, and as few servers as possible that hold units, left by an earlier try, that no
/// head holds or leases.
fn root_feeds(
    situation: &Situation<'_>,
    heads: &[ServerId],
    leases: &BTreeMap<ServerId, UnitSet>,
) -> Vec<ServerId> {
    let Some(root) = heads.first() else { return Vec::new() };
    let mut feeds: Vec<ServerId> = heads[1..].to_vec();
    let mut elsewhere = UnitSet::empty(situation.units);
    for member in believed(situation.members) {
        elsewhere.union(&member.have);
    }
    for head in heads {
        if let Some(member) = situation.members.get(head) {
            elsewhere.subtract(&member.have);
        }
        if let Some(lease) = leases.get(head) {
            elsewhere.subtract(lease);
        }
    }
    let refused = situation.members.get(root).map(|member| &member.refuses);
    while !elsewhere.is_empty() && feeds.len() < ROOT_FEEDS_MAX {
        let holds = |member: &Member| {
            let mut both = elsewhere.clone();
            both.intersect(&member.have);
            both.held()
        };
        let members = situation.members.iter();
        let usable = members.filter(|(id, member)| {
            *id != root
                && !member.barred
                && !feeds.contains(id)
                && !refused.is_some_and(|r| r.contains(*id))
        });
        let best = usable.map(|(id, member)| (holds(member), id, member)).max_by_key(|(n, ..)| *n);
        let Some((1.., id, member)) = best else { break };
        feeds.push(id.clone());
        elsewhere.subtract(&member.have);
    }
    feeds
}
