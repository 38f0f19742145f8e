//! Which server feeds which: the tree of parents, grown from the roots down.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::ServerId;

use super::plan::Situation;

/// How often a server waits for others to be placed: first for its own tier, then for all.
const WAITS_MAX: u8 = 2;

/// The tree while it grows.
pub(super) struct Tree<'a> {
    situation: &'a Situation<'a>,
    heads: &'a [ServerId],
    fan_out: usize,
    /// Servers with a place in the tree.
    placed: BTreeMap<&'a ServerId, Placed<'a>>,
    /// Racks with a server that can have children.
    racks: BTreeSet<&'a str>,
    /// Servers for which no parent was found, with the number of attempts.
    waiting: BTreeMap<&'a ServerId, u8>,
    /// Children by parent in the plan in force.
    before: BTreeMap<&'a ServerId, Vec<&'a ServerId>>,
}

/// The order in which servers are placed: those that may have children first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    Good,
    Slow,
    Barred,
}

#[derive(Debug, Clone, Copy)]
struct Placed<'a> {
    parent: Option<&'a ServerId>,
    depth: usize,
    children: usize,
}

impl<'a> Tree<'a> {
    pub(super) fn new(situation: &'a Situation<'a>, heads: &'a [ServerId], fan_out: usize) -> Self {
        let mut before: BTreeMap<&ServerId, Vec<&ServerId>> = BTreeMap::new();
        for (child, parent) in &situation.previous.parents {
            if let (Some((child, _)), Some((parent, _))) =
                (situation.members.get_key_value(child), situation.members.get_key_value(parent))
            {
                before.entry(parent).or_default().push(child);
            }
        }
        let (placed, racks, waiting) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Self { situation, heads, fan_out, placed, racks, waiting, before }
    }

    pub(super) fn grow(mut self) -> BTreeMap<ServerId, ServerId> {
        let members = self.situation.members;
        for (id, member) in members {
            if member.holds_all() {
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
        for tier in [Tier::Good, Tier::Slow, Tier::Barred] {
            self.keep(tier, self.placed.keys().copied().collect());
            while let Some(next) = self.next(tier) {
                let parent = self.parent_for(next);
                // A server that refuses all those placed so far waits, first for its own tier.
                if parent.is_none_or(|parent| !self.may_feed(parent, next)) {
                    let times = self.waiting.entry(next).or_default();
                    *times += 1;
                    continue;
                }
                self.settle(next, parent, tier);
            }
        }
        // No server is left out, even if its parent is a bad one.
        let mut last: Vec<&ServerId> = self.waiting.keys().copied().collect();
        last.retain(|id| !self.placed.contains_key(id));
        for id in last {
            let parent = self.parent_for(id);
            self.settle(id, parent, self.tier(id));
        }
        let placed = self.placed.into_iter();
        placed.filter_map(|(id, placed)| Some((id.clone(), placed.parent?.clone()))).collect()
    }

    fn settle(&mut self, id: &'a ServerId, parent: Option<&'a ServerId>, tier: Tier) {
        if self.placed.contains_key(id) {
            return;
        }
        match self.insertion(id, parent) {
            Some((above, below)) => self.insert(id, above, below),
            None => self.place(id, parent),
        }
        // Its previous children stay below it.
        self.keep(tier, vec![id]);
    }

    fn place(&mut self, id: &'a ServerId, parent: Option<&'a ServerId>) {
        let mut depth = 0;
        if let Some(parent) = parent.and_then(|parent| self.placed.get_mut(parent)) {
            parent.children += 1;
            depth = parent.depth + 1;
        }
        self.placed.insert(id, Placed { parent, depth, children: 0 });
        let member = &self.situation.members[id];
        if let Some(rack) = member.rack.as_deref().filter(|_| !member.slow && !member.barred) {
            self.racks.insert(rack);
        }
    }

    /// Keeps the links of the plan in force that are still good, downwards from some placed
    /// servers.
    fn keep(&mut self, tier: Tier, mut below: Vec<&'a ServerId>) {
        while let Some(parent) = below.pop() {
            for child in self.before.get(parent).cloned().unwrap_or_default() {
                if self.tier(child) == tier
                    && !self.placed.contains_key(child)
                    && self.may_feed(parent, child)
                    && !self.fell_behind(child, parent)
                    && self.has_room(parent)
                    && self.rack_fits(parent, child)
                {
                    self.place(child, Some(parent));
                    below.push(child);
                }
            }
        }
    }

    /// The next server to place: rack by rack, racks already entered first, and within a rack the
    /// server that holds most.
    fn next(&self, tier: Tier) -> Option<&'a ServerId> {
        let members = self.situation.members.iter();
        // A barred server that claims to hold everything needs no parent.
        let left = members.filter(|(id, m)| {
            let waits = self.waiting.get(id).is_some_and(|times| *times >= WAITS_MAX);
            self.tier(id) == tier && !m.have.is_full() && !self.placed.contains_key(id) && !waits
        });
        left.min_by_key(|(id, member)| {
            let rack = member.rack.as_deref();
            let entered = rack.is_some_and(|rack| self.racks.contains(rack));
            (
                self.waiting.contains_key(*id),
                Reverse(entered),
                rack,
                Reverse(member.have.held()),
                *id,
            )
        })
        .map(|(id, _)| id)
    }

    /// The best parent: one that may feed it, with room, in the same rack, near the root.
    fn parent_for(&self, child: &ServerId) -> Option<&'a ServerId> {
        let best = self.placed.iter().min_by_key(|(id, placed)| {
            // If no server may feed it, one must: preferably a slow one, or one that it refuses.
            let above = &self.situation.members[**id];
            let unfit = (!self.may_feed(id, child))
                .then(|| (above.barred, self.refuses(child, id), above.slow));
            let outside = !self.rack_fits(id, child);
            let full = !self.has_room(id);
            let crowd = if full { placed.children } else { 0 };
            (unfit, full, self.fell_behind(child, id), outside, crowd, placed.depth, **id)
        });
        best.map(|(id, _)| *id)
    }

    /// A link into which a server can be inserted because only the upper end is in its rack, if the
    /// rack would otherwise be entered a second time.
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
        let above = &self.situation.members[parent];
        !above.barred
            && !self.refuses(child, parent)
            && (!above.slow || self.tier(child) != Tier::Good)
    }

    fn refuses(&self, child: &ServerId, parent: &ServerId) -> bool {
        self.situation.members[child].refuses.contains(parent)
    }

    fn fell_behind(&self, child: &ServerId, parent: &ServerId) -> bool {
        self.situation.members[child].fell_behind.contains(parent)
    }

    fn tier(&self, id: &ServerId) -> Tier {
        let member = &self.situation.members[id];
        match (member.barred, member.slow) {
            (true, _) => Tier::Barred,
            (false, true) => Tier::Slow,
            (false, false) => Tier::Good,
        }
    }

    fn has_room(&self, parent: &ServerId) -> bool {
        self.placed[parent].children < self.fan_out
    }

    /// Whether a link stays within a rack, is the first into one, or leads to a server of unknown
    /// rack.
    fn rack_fits(&self, parent: &ServerId, child: &ServerId) -> bool {
        let rack = |id: &ServerId| self.situation.members[id].rack.as_deref();
        let Some(own) = rack(child) else { return true };
        rack(parent) == Some(own) || !self.racks.contains(own)
    }
}
