//! Who fetches from a mirror, and who sends to whom: pure, over plain data.
//!
//! Rules, in order:
//! 1. Only heads touch a mirror, and only what is leased to them: units that nobody holds and nobody
//!    else has leased, earliest first. That alone bounds what crosses the zone's downlink.
//! 2. Every other server has one parent, which sends it everything. Further heads are children of
//!    the first head, and the first head is fed by them in return; no unit goes back to its sender.
//! 3. A parent that is still good is kept: changing costs more than a better shape wins.
//! 4. A small group is one chain. In a larger one fan-out follows the measured ratio of a server's
//!    link to what the mirrors give: a chain when they are alike or not known, else small trees.
//! 5. Slow servers have no children, except slow ones.
//! 6. Where racks are known, each is entered once: its first server has a parent elsewhere, the
//!    others inside.
//! 7. A server that refuses another (it sent wrong bytes) never gets it as parent.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::ServerId;

use crate::unit_set::{UnitRun, UnitSet};

const UNIT_BYTES: u64 = cohort_artifact::UNIT_BYTES as u64;

/// Most heads. Four downlinks' worth of patience: more only spread the work thinner.
pub const HEADS_MAX: usize = 4;

/// Most children of one server, whatever its link: every child costs a connection and a cursor.
pub const FAN_OUT_MAX: usize = 4;

/// Servers up to which one chain is as good as a tree: its depth costs two milliseconds a server, a
/// wrong guess about the links far more.
const CHAIN_SERVERS_MAX: usize = 24;

/// How far ahead leases go, in milliseconds of the downlink's rate: four rounds of the leader, so
/// that the downlink does not idle when an answer is late.
const LEASE_AHEAD_MS: u64 = 2_000;

/// Smallest lease, in units (4 MiB), while the rate is not known.
const LEASE_UNITS_MIN: u32 = 64;

/// Largest lease, in units (1 GiB).
const LEASE_UNITS_MAX: u32 = 16_384;

/// Smallest lease at the very end, when several heads share what is left.
const LEASE_UNITS_LAST: u32 = 4;

/// Servers that send to the first head, at most.
const ROOT_FEEDS_MAX: usize = 8;

/// Spare parents that are named to a server: its parent may be gone together with the one above.
const SPARES_MAX: usize = 3;

/// What is known of one server that takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its failure domain, if known.
    pub rack: Option<String>,
    /// The units that it holds.
    pub have: UnitSet,
    /// It cannot keep up with the others.
    pub slow: bool,
    /// Its agent leads the group: the last that should go on without a leader.
    pub leads: bool,
    /// It may ask mirrors: its mirrors did not fail it lately.
    pub may_lease: bool,
    /// What it gets from mirrors, in bytes per second; 0: not known.
    pub mirror_rate: u64,
    /// Servers that it takes nothing from.
    pub refuses: BTreeSet<ServerId>,
}

/// Everything that a plan depends on. Only servers that can be reached are in it.
#[derive(Debug, Clone)]
pub struct Situation<'a> {
    /// Units of the artifact.
    pub units: u32,
    /// The servers.
    pub members: &'a BTreeMap<ServerId, Member>,
    /// What a server's link carries, in bytes per second; 0: not known.
    pub link_rate: u64,
    /// The fan-out at which servers fell behind, if they did: stay below.
    pub fan_out_failed: Option<usize>,
    /// The plan in force.
    pub previous: &'a Layout,
}

/// Who leases what, and who sends to whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// Those that may ask mirrors; the first is the root.
    pub heads: Vec<ServerId>,
    /// What they may ask for, and lack.
    pub leases: BTreeMap<ServerId, UnitSet>,
    /// Who sends to whom: child → parent.
    pub parents: BTreeMap<ServerId, ServerId>,
    /// Who sends to the first head: the other heads, and those that hold what it lacks.
    pub root_feeds: Vec<ServerId>,
    /// Children that a server may have.
    pub fan_out: usize,
}

/// Plans a transfer.
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
    /// Servers that a server is to be subscribed to.
    #[must_use]
    pub fn feeds(&self, server: &ServerId) -> Vec<ServerId> {
        let mut feeds: Vec<ServerId> = self.parents.get(server).cloned().into_iter().collect();
        if self.heads.first() == Some(server) {
            feeds.extend(self.root_feeds.iter().cloned());
        }
        feeds
    }

    /// Whom a server may go to when its parent says nothing: those above, then the first head. Never
    /// one below it, so that no circle can arise.
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

    /// Links between the first source of the bytes and a server; 0 for those without a parent.
    #[must_use]
    pub fn depth(&self, server: &ServerId) -> usize {
        let mut depth = 0;
        let mut at = server;
        while let Some(parent) = self.parents.get(at) {
            depth += 1;
            at = parent;
            if depth > self.parents.len() {
                break;
            }
        }
        depth
    }

    /// The one that goes on when there is no leader: the first head that is not the leader itself.
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

/// What all heads get from mirrors.
fn mirror_rate(situation: &Situation<'_>) -> u64 {
    let heads = situation.previous.heads.iter();
    heads.filter_map(|id| Some(situation.members.get(id)?.mirror_rate)).sum()
}

/// How often a server's link carries what the mirrors give, in tenths; nothing when not known.
fn ratio_tenths(situation: &Situation<'_>) -> Option<u64> {
    let mirrors = mirror_rate(situation);
    (mirrors > 0 && situation.link_rate > 0)
        .then(|| situation.link_rate.saturating_mul(10) / mirrors)
}

fn fan_out(situation: &Situation<'_>) -> usize {
    if situation.members.len() <= CHAIN_SERVERS_MAX {
        return 1;
    }
    // One part in seven of a link is left for headers, heads among each other, and the service.
    let by_ratio = ratio_tenths(situation).map_or(1, |tenths| tenths * 6 / 70);
    let most = situation.fan_out_failed.map_or(FAN_OUT_MAX, |failed| (failed / 2).max(1));
    usize::try_from(by_ratio).unwrap_or(FAN_OUT_MAX).clamp(1, FAN_OUT_MAX).min(most)
}

fn heads(situation: &Situation<'_>) -> Vec<ServerId> {
    let members = situation.members;
    let mut held = UnitSet::empty(situation.units);
    for member in members.values() {
        held.union(&member.have);
    }
    if members.values().any(|member| member.have.is_full()) {
        return Vec::new();
    }
    // Where all units are there, but nobody holds all of them, the head leases nothing.
    let mirrors_needed = !held.is_full();
    let fits = |id: &ServerId| {
        members.get(id).is_some_and(|m| m.may_lease && !m.slow && !m.have.is_full())
    };
    // A second head costs its root half a downlink more of its link.
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
    // The root's own children can be heads without another link. Then: who holds most.
    let near = |id: &ServerId| {
        let parent = situation.previous.parents.get(id);
        parent.is_some() && parent == heads.first()
    };
    others.sort_by_key(|(id, member)| (Reverse(near(id)), Reverse(member.have.held()), *id));
    let more = wanted.saturating_sub(heads.len());
    let others: Vec<ServerId> = others.into_iter().take(more).map(|(id, _)| id.clone()).collect();
    heads.extend(others);
    if heads.is_empty() {
        // Everybody is slow, or was failed by its mirrors: better one of those than none.
        let lacking = members.iter().filter(|(_, member)| !member.have.is_full());
        let best =
            lacking.min_by_key(|(id, m)| (!m.may_lease, m.slow, Reverse(m.have.held()), *id));
        heads.extend(best.map(|(id, _)| id.clone()));
    }
    heads
}

fn leases(situation: &Situation<'_>, heads: &[ServerId]) -> BTreeMap<ServerId, UnitSet> {
    let mut free = UnitSet::full(situation.units);
    for member in situation.members.values() {
        free.subtract(&member.have);
    }
    let mut leases: BTreeMap<ServerId, UnitSet> = BTreeMap::new();
    for head in heads {
        let before = situation.previous.leases.get(head).cloned();
        let mut lease = before.unwrap_or_else(|| UnitSet::empty(situation.units));
        // What others have of it by now came from this head, which just has not said so yet.
        if let Some(member) = situation.members.get(head) {
            lease.subtract(&member.have);
        }
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
            // What is left is shared by rate, so that all heads end together.
            let left = u64::from(free.held());
            let heads = u64::try_from(heads.len()).unwrap_or(1);
            let share = if all_rates == 0 { left / heads } else { left * rate / all_rates };
            let share = u32::try_from(share).unwrap_or(u32::MAX);
            window = window.min(share.max(LEASE_UNITS_LAST));
        }
        let Some(lease) = leases.get_mut(head) else { continue };
        let outstanding = lease.held();
        // Topped up by halves: longer runs make fewer requests.
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

/// The other heads; and where servers hold units that no head holds or leases (left by an earlier
/// try), as few of those as have them all.
fn root_feeds(
    situation: &Situation<'_>,
    heads: &[ServerId],
    leases: &BTreeMap<ServerId, UnitSet>,
) -> Vec<ServerId> {
    let Some(root) = heads.first() else { return Vec::new() };
    let mut feeds: Vec<ServerId> = heads[1..].to_vec();
    let mut elsewhere = UnitSet::empty(situation.units);
    for member in situation.members.values() {
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
        let usable = members.filter(|(id, _)| {
            *id != root && !feeds.contains(id) && !refused.is_some_and(|r| r.contains(*id))
        });
        let best = usable.map(|(id, member)| (holds(member), id, member)).max_by_key(|(n, ..)| *n);
        let Some((1.., id, member)) = best else { break };
        feeds.push(id.clone());
        elsewhere.subtract(&member.have);
    }
    feeds
}

/// A lease as runs.
#[must_use]
pub fn lease_runs(lease: Option<&UnitSet>, runs_max: usize) -> Vec<UnitRun> {
    lease.map_or_else(Vec::new, |lease| lease.runs(runs_max))
}

/// The parents while they are being found.
struct Tree<'a> {
    situation: &'a Situation<'a>,
    heads: &'a [ServerId],
    fan_out: usize,
    /// Placed servers: parent (none for roots), depth, children.
    placed: BTreeMap<&'a ServerId, Placed<'a>>,
    /// Racks with a server that can have children.
    racks: BTreeSet<&'a str>,
    /// Children in the plan in force.
    before: BTreeMap<&'a ServerId, Vec<&'a ServerId>>,
}

#[derive(Debug, Clone, Copy)]
struct Placed<'a> {
    parent: Option<&'a ServerId>,
    depth: usize,
    children: usize,
}

impl<'a> Tree<'a> {
    fn new(situation: &'a Situation<'a>, heads: &'a [ServerId], fan_out: usize) -> Self {
        let mut before: BTreeMap<&ServerId, Vec<&ServerId>> = BTreeMap::new();
        for (child, parent) in &situation.previous.parents {
            if let (Some((child, _)), Some((parent, _))) =
                (situation.members.get_key_value(child), situation.members.get_key_value(parent))
            {
                before.entry(parent).or_default().push(child);
            }
        }
        let (placed, racks) = (BTreeMap::new(), BTreeSet::new());
        Self { situation, heads, fan_out, placed, racks, before }
    }

    fn grow(mut self) -> BTreeMap<ServerId, ServerId> {
        let members = self.situation.members;
        for (id, member) in members {
            if member.have.is_full() {
                self.place(id, None);
            }
        }
        let mut heads = self.heads.iter().filter_map(|id| members.get_key_value(id));
        if let Some((root, _)) = heads.next() {
            self.place(root, None);
            for (head, _) in heads {
                self.place(head, Some(root));
            }
        }
        for slow in [false, true] {
            self.keep(slow, self.placed.keys().copied().collect());
            while let Some(next) = self.next(slow) {
                let parent = self.parent_for(next);
                match self.insertion(next, parent) {
                    Some((above, below)) => self.insert(next, above, below),
                    None => self.place(next, parent),
                }
                // Whoever was below it stays there.
                self.keep(slow, vec![next]);
            }
        }
        let placed = self.placed.into_iter();
        placed.filter_map(|(id, placed)| Some((id.clone(), placed.parent?.clone()))).collect()
    }

    fn place(&mut self, id: &'a ServerId, parent: Option<&'a ServerId>) {
        let mut depth = 0;
        if let Some(parent) = parent.and_then(|parent| self.placed.get_mut(parent)) {
            parent.children += 1;
            depth = parent.depth + 1;
        }
        self.placed.insert(id, Placed { parent, depth, children: 0 });
        let member = &self.situation.members[id];
        if let Some(rack) = member.rack.as_deref().filter(|_| !member.slow) {
            self.racks.insert(rack);
        }
    }

    /// Keeps the parents that are still good, below those that were placed, from the roots down.
    fn keep(&mut self, slow: bool, mut below: Vec<&'a ServerId>) {
        while let Some(parent) = below.pop() {
            for child in self.before.get(parent).cloned().unwrap_or_default() {
                let wanted = self.situation.members[child].slow == slow;
                if wanted
                    && !self.placed.contains_key(child)
                    && self.may_feed(parent, child)
                    && self.has_room(parent)
                    && self.rack_fits(parent, child)
                {
                    self.place(child, Some(parent));
                    below.push(child);
                }
            }
        }
    }

    /// The next one to be placed: rack by rack, those that are in use first, and in them the one
    /// that holds most.
    fn next(&self, slow: bool) -> Option<&'a ServerId> {
        let members = self.situation.members.iter();
        let left = members.filter(|(id, m)| m.slow == slow && !self.placed.contains_key(id));
        left.min_by_key(|(id, member)| {
            let rack = member.rack.as_deref();
            let entered = rack.is_some_and(|rack| self.racks.contains(rack));
            (Reverse(entered), rack, Reverse(member.have.held()), *id)
        })
        .map(|(id, _)| id)
    }

    /// The best parent: with room, in the same rack, near the root.
    fn parent_for(&self, child: &ServerId) -> Option<&'a ServerId> {
        let candidates = self.placed.iter().filter(|(id, _)| self.may_feed(id, child));
        candidates
            .min_by_key(|(id, placed)| {
                let outside = !self.rack_fits(id, child);
                let full = !self.has_room(id);
                let crowd = if full { placed.children } else { 0 };
                (full, outside, crowd, placed.depth, **id)
            })
            .map(|(id, _)| *id)
    }

    /// Where a server can be put between two of which only the upper is in its rack, when it would
    /// have to enter its rack a second time otherwise.
    fn insertion(
        &self,
        child: &ServerId,
        parent: Option<&ServerId>,
    ) -> Option<(&'a ServerId, &'a ServerId)> {
        if parent.is_none_or(|parent| self.rack_fits(parent, child)) {
            return None;
        }
        let mut links = self.placed.iter().filter_map(|(id, placed)| Some((placed.parent?, *id)));
        links.find(|(above, below)| {
            self.rack_fits(above, child)
                && !self.rack_fits(above, below)
                && !self.heads.contains(below)
                && self.may_feed(above, child)
                && self.may_feed(child, below)
        })
    }

    fn insert(&mut self, id: &'a ServerId, above: &'a ServerId, below: &'a ServerId) {
        self.place(id, Some(above));
        if let Some(above) = self.placed.get_mut(above) {
            above.children -= 1;
        }
        if let Some(placed) = self.placed.get_mut(id) {
            placed.children += 1;
        }
        if let Some(below) = self.placed.get_mut(below) {
            below.parent = Some(id);
        }
    }

    fn may_feed(&self, parent: &ServerId, child: &ServerId) -> bool {
        let (above, below) = (&self.situation.members[parent], &self.situation.members[child]);
        !below.refuses.contains(parent) && (!above.slow || below.slow)
    }

    fn has_room(&self, parent: &ServerId) -> bool {
        self.placed[parent].children < self.fan_out
    }

    /// In the same rack; or the first of its rack; or one of no known rack.
    fn rack_fits(&self, parent: &ServerId, child: &ServerId) -> bool {
        let rack = |id: &ServerId| self.situation.members[id].rack.as_deref();
        let Some(own) = rack(child) else { return true };
        rack(parent) == Some(own) || !self.racks.contains(own)
    }
}
