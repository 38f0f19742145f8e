//! Plans of transfers.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::ServerId;

use super::plan::{Layout, Member, Situation, plan};
use crate::unit_set::{UnitRun, UnitSet};

const UNITS: u32 = 1_024;
const MB: u64 = 1_000_000;

struct Group {
    members: BTreeMap<ServerId, Member>,
    layout: Layout,
    link_rate: u64,
    fan_out_failed: Option<usize>,
}

fn id(name: &str) -> ServerId {
    name.parse().unwrap()
}

impl Group {
    fn new(count: usize) -> Self {
        let members = (0..count).map(|n| (id(&format!("s{n:03}")), member())).collect();
        Self { members, layout: Layout::default(), link_rate: 0, fan_out_failed: None }
    }

    fn member(&mut self, name: &str) -> &mut Member {
        self.members.get_mut(&id(name)).unwrap()
    }

    fn plan(&mut self) -> &Layout {
        self.layout = plan(&Situation {
            units: UNITS,
            members: &self.members,
            link_rate: self.link_rate,
            fan_out_failed: self.fan_out_failed,
            previous: &self.layout,
        });
        self.check();
        &self.layout
    }

    /// Properties of every plan.
    fn check(&self) {
        let layout = &self.layout;
        let mut leased = UnitSet::empty(UNITS);
        for (head, lease) in &layout.leases {
            assert!(layout.heads.contains(head), "{head} leases and is no head");
            let mut both = leased.clone();
            both.intersect(lease);
            assert!(both.is_empty(), "leased twice");
            leased.union(lease);
            let mut both = self.members[head].have.clone();
            both.intersect(lease);
            assert!(both.is_empty(), "leased although it is there");
        }
        for (server, member) in &self.members {
            let rooted = member.have.is_full() || layout.heads.first() == Some(server);
            assert_eq!(layout.parents.contains_key(server), !rooted, "{server}");
            assert!(self.depth(server) <= self.members.len(), "a circle at {server}");
            assert!(!layout.spares(server).contains(server));
            if let Some(parent) = layout.parents.get(server) {
                assert!(!self.members[parent].slow || member.slow, "{server} below a slow one");
            }
        }
    }

    fn children(&self, name: &str) -> Vec<String> {
        let parent = id(name);
        let children = self.layout.parents.iter().filter(|(_, above)| **above == parent);
        children.map(|(child, _)| child.to_string()).collect()
    }

    /// Number of links above a server; more than there are servers if there is a cycle.
    fn depth(&self, server: &ServerId) -> usize {
        let above = std::iter::successors(Some(server), |at| self.layout.parents.get(*at));
        above.take(self.members.len() + 2).count() - 1
    }

    fn depths(&self) -> usize {
        self.members.keys().map(|server| self.depth(server)).max().unwrap()
    }

    /// Sets the rate of the mirrors, over all heads.
    fn mirrors_give(&mut self, rate: u64) {
        for head in &self.layout.heads {
            self.members.get_mut(head).unwrap().mirror_rate = rate;
        }
    }
}

fn member() -> Member {
    Member {
        rack: None,
        have: UnitSet::empty(UNITS),
        slow: false,
        leads: false,
        may_lease: true,
        mirror_rate: 0,
        refuses: BTreeSet::new(),
        fell_behind: BTreeSet::new(),
        barred: false,
    }
}

fn some(first: u32, count: u32) -> UnitSet {
    UnitSet::from_runs(UNITS, &[UnitRun { first, count }])
}

#[test]
fn at_first_one_head_and_one_chain() {
    let mut group = Group::new(10);
    let layout = group.plan();
    assert_eq!(layout.heads, [id("s000")]);
    assert_eq!(layout.leases[&id("s000")].runs(9), [UnitRun { first: 0, count: 64 }]);
    assert_eq!(group.depths(), 9);
    assert_eq!(group.children("s003"), ["s004"]);
}

#[test]
fn a_plan_that_is_good_is_kept() {
    let mut group = Group::new(20);
    let first = group.plan().clone();
    assert_eq!(group.plan(), &first);
}

#[test]
fn leases_are_topped_up_by_halves_earliest_first() {
    let mut group = Group::new(3);
    group.plan();
    group.member("s000").have = some(0, 20);
    assert_eq!(group.plan().leases[&id("s000")].runs(9), [UnitRun { first: 20, count: 44 }]);
    group.member("s000").have = some(0, 40);
    assert_eq!(group.plan().leases[&id("s000")].runs(9), [UnitRun { first: 40, count: 64 }]);
    // Two seconds ahead of a faster downlink.
    group.mirrors_give(10 * MB);
    group.member("s000").have = some(0, 80);
    assert_eq!(group.plan().leases[&id("s000")].runs(9), [UnitRun { first: 80, count: 305 }]);
}

#[test]
fn links_that_are_much_faster_make_trees_and_a_second_head() {
    let mut group = Group::new(40);
    group.plan();
    group.mirrors_give(6 * MB);
    group.link_rate = 30 * MB;
    group.member("s000").have = some(0, 60);
    let layout = group.plan();
    assert_eq!(layout.heads.len(), 2);
    assert_eq!(layout.fan_out, 4);
    // The running chain is unchanged; new servers are placed near the root.
    group.layout.parents.clear();
    group.plan();
    assert!(group.depths() <= 4, "{}", group.depths());
    let (root, second) = (group.layout.heads[0].clone(), group.layout.heads[1].clone());
    assert_eq!(group.layout.parents[&second], root);
    assert_eq!(group.layout.feeds(&root), [second]);
}

#[test]
fn a_fan_out_that_failed_is_not_tried_again() {
    let mut group = Group::new(40);
    group.plan();
    group.mirrors_give(6 * MB);
    group.link_rate = 30 * MB;
    group.fan_out_failed = Some(2);
    assert_eq!(group.plan().fan_out, 1);
}

#[test]
fn who_is_gone_is_skipped_and_the_rest_stays() {
    let mut group = Group::new(6);
    group.plan();
    group.members.remove(&id("s002"));
    group.plan();
    assert_eq!(group.children("s001"), ["s003"]);
    assert_eq!(group.children("s003"), ["s004"]);
    assert_eq!(group.children("s004"), ["s005"]);
}

#[test]
fn when_the_head_is_gone_its_child_takes_what_is_left() {
    let mut group = Group::new(4);
    group.plan();
    group.member("s000").have = some(0, 50);
    group.member("s001").have = some(0, 48);
    assert!(group.plan().root_feeds.is_empty());
    group.members.remove(&id("s000"));
    let layout = group.plan();
    assert_eq!(layout.heads, [id("s001")]);
    assert_eq!(layout.leases[&id("s001")].runs(9), [UnitRun { first: 48, count: 64 }]);
    assert_eq!(group.children("s001"), ["s002"]);
}

#[test]
fn slow_ones_go_to_the_tail() {
    let mut group = Group::new(5);
    group.plan();
    group.member("s001").slow = true;
    group.plan();
    assert_eq!(group.children("s000"), ["s002"]);
    assert_eq!(group.children("s004"), ["s001"]);
    // And a slow head is replaced.
    group.member("s000").slow = true;
    assert_ne!(group.plan().heads, [id("s000")]);
}

#[test]
fn racks_are_entered_once() {
    let mut group = Group::new(12);
    for (n, member) in group.members.values_mut().enumerate() {
        member.rack = Some(format!("rack-{}", n % 3));
    }
    let layout = group.plan().clone();
    let rack = |server: &ServerId| group.members[server].rack.clone();
    let crossings = layout.parents.iter().filter(|(child, parent)| rack(child) != rack(parent));
    assert_eq!(crossings.count(), 2);
}

#[test]
fn nobody_gets_a_parent_that_it_refuses() {
    let mut group = Group::new(5);
    group.plan();
    group.member("s002").refuses = BTreeSet::from([id("s001")]);
    group.plan();
    assert_ne!(group.layout.parents[&id("s002")], id("s001"));
}

#[test]
fn where_somebody_holds_it_no_mirror_is_asked() {
    let mut group = Group::new(5);
    group.member("s003").have = UnitSet::full(UNITS);
    let layout = group.plan();
    assert!(layout.heads.is_empty() && layout.leases.is_empty());
    assert_eq!(group.children("s003").len(), 1);
    // Their sum is enough.
    let mut group = Group::new(2);
    group.member("s000").have = some(0, 600);
    group.member("s001").have = some(500, 524);
    let layout = group.plan();
    assert!(layout.leases.values().all(UnitSet::is_empty));
    let root = layout.heads[0].clone();
    assert_eq!(layout.feeds(&root).len(), 1, "the root gets what the other one has");
}

#[test]
fn a_head_that_its_mirrors_fail_is_replaced_when_there_is_another() {
    let mut group = Group::new(3);
    group.plan();
    group.member("s000").may_lease = false;
    assert_eq!(group.plan().heads, [id("s001")]);
    for member in group.members.values_mut() {
        member.may_lease = false;
    }
    assert_eq!(group.plan().heads.len(), 1);
}

#[test]
fn the_heir_is_not_the_leader_when_there_is_another() {
    let mut group = Group::new(3);
    group.member("s000").leads = true;
    let layout = group.plan().clone();
    assert_eq!(layout.heir(&group.members), Some(id("s001")));
}

#[test]
fn spares_are_above_never_below() {
    let mut group = Group::new(6);
    let layout = group.plan();
    assert_eq!(layout.spares(&id("s004")), [id("s002"), id("s001"), id("s000")]);
    assert_eq!(layout.spares(&id("s001")), []);
}
