use std::collections::BTreeMap;

use crate::limits::Limits;
use crate::plan::{Action, FetchWait, Hashes, Plan, Situation, SourceId, SourceView, plan};
use crate::unit_set::{UnitRun, UnitSet};

/// A situation that tests change step by step.
struct Case {
    now_ms: u64,
    hashes: Hashes,
    missing: UnitSet,
    mirrors_allowed: bool,
    sources: BTreeMap<SourceId, SourceView>,
    limits: Limits,
}

impl Case {
    fn new(units: u32, sources: &[SourceId]) -> Self {
        let views = (0..).zip(sources).map(|(rank, id)| {
            let view = SourceView {
                rank,
                requests: 0,
                requests_max: 2,
                failures: 0,
                out_until_ms: None,
                rate: 0,
                ranges: true,
            };
            (id.clone(), view)
        });
        Self {
            now_ms: 1_000,
            hashes: Hashes::Held,
            missing: UnitSet::full(units),
            mirrors_allowed: true,
            sources: views.collect(),
            limits: Limits::default(),
        }
    }

    fn source(&mut self, id: &SourceId) -> &mut SourceView {
        self.sources.get_mut(id).unwrap()
    }

    fn plan(&self) -> Plan {
        plan(&Situation {
            now_ms: self.now_ms,
            hashes: self.hashes,
            missing: &self.missing,
            mirrors_allowed: self.mirrors_allowed,
            sources: &self.sources,
            limits: &self.limits,
        })
    }
}

fn mirror(index: usize) -> SourceId {
    SourceId::Mirror(index)
}

fn peer(name: &str) -> SourceId {
    SourceId::Peer(name.parse().unwrap())
}

fn units(source: SourceId, first: u32, count: u32) -> Action {
    Action::AskUnits { source, run: UnitRun { first, count } }
}

#[test]
fn hashes_come_first_and_are_asked_of_one() {
    let mut case = Case::new(0, &[mirror(0), mirror(1)]);
    case.hashes = Hashes::Missing;
    assert_eq!(case.plan().actions, [Action::AskHashes { source: mirror(0) }]);
    case.hashes = Hashes::Asked;
    assert_eq!(case.plan().actions, []);
    assert_eq!(case.plan().waiting_on, Some(FetchWait::Answers));
}

#[test]
fn one_mirror_at_a_time_earliest_first_two_requests() {
    let case = Case::new(1_000, &[mirror(0), mirror(1)]);
    let expected = [units(mirror(0), 0, 16), units(mirror(0), 16, 16)];
    assert_eq!(case.plan().actions, expected);
}

#[test]
fn a_fast_mirror_gets_longer_requests_up_to_the_limit() {
    let mut case = Case::new(1_000, &[mirror(0)]);
    case.source(&mirror(0)).rate = 2_000_000;
    assert_eq!(case.plan().actions, [units(mirror(0), 0, 30), units(mirror(0), 30, 30)]);
    case.source(&mirror(0)).rate = 2_000_000_000;
    assert_eq!(case.plan().actions, [units(mirror(0), 0, 64), units(mirror(0), 64, 64)]);
    case.source(&mirror(0)).rate = 1;
    assert_eq!(case.plan().actions, [units(mirror(0), 0, 4), units(mirror(0), 4, 4)]);
}

#[test]
fn the_next_mirror_is_asked_only_when_the_first_is_out() {
    let mut case = Case::new(100, &[mirror(0), mirror(1)]);
    case.source(&mirror(0)).requests = 2;
    assert_eq!(case.plan().actions, [], "full, but not out");
    case.source(&mirror(0)).requests = 0;
    case.source(&mirror(0)).failures = 1;
    case.source(&mirror(0)).out_until_ms = Some(1_500);
    assert_eq!(case.plan().actions, [units(mirror(1), 0, 16), units(mirror(1), 16, 16)]);
    assert_eq!(case.plan().wake_at_ms, Some(1_500));
    // Back, it is not preferred while the other has no failure.
    case.now_ms = 1_500;
    assert_eq!(case.plan().actions, [units(mirror(1), 0, 16), units(mirror(1), 16, 16)]);
    assert_eq!(case.plan().wake_at_ms, None);
}

#[test]
fn holders_come_before_mirrors_and_share_the_work() {
    let (a, b) = (peer("a"), peer("b"));
    let case = Case::new(100, &[a.clone(), b.clone(), mirror(0)]);
    let expected =
        [units(a.clone(), 0, 16), units(b.clone(), 16, 16), units(a, 32, 16), units(b, 48, 16)];
    assert_eq!(case.plan().actions, expected);
}

#[test]
fn requests_are_bounded_in_all_and_per_source() {
    let peers: Vec<_> = (0..20).map(|n| peer(&format!("s{n}"))).collect();
    let mut case = Case::new(10_000, &peers);
    assert_eq!(case.plan().actions.len(), 8);
    case.source(&peers[0]).requests = 2;
    case.source(&peers[1]).requests = 2;
    let plan = case.plan();
    assert_eq!(plan.actions.len(), 4);
    for action in &plan.actions {
        let Action::AskUnits { source, .. } = action else { panic!("{action:?}") };
        assert!(source != &peers[0] && source != &peers[1]);
    }
}

#[test]
fn the_end_is_shared_out_in_small_pieces() {
    let peers = [peer("a"), peer("b")];
    let case = Case::new(20, &peers);
    let [a, b] = peers;
    let expected =
        [units(a.clone(), 0, 5), units(b.clone(), 5, 5), units(a, 10, 5), units(b, 15, 5)];
    assert_eq!(case.plan().actions, expected);
}

#[test]
fn without_leave_no_mirror_is_asked_even_when_all_holders_are_out() {
    let mut case = Case::new(100, &[peer("a"), mirror(0)]);
    case.mirrors_allowed = false;
    case.source(&peer("a")).out_until_ms = Some(3_000);
    let plan = case.plan();
    assert_eq!(plan.actions, []);
    assert_eq!(plan.waiting_on, Some(FetchWait::Sources { until_ms: 3_000 }));
    case.sources.remove(&peer("a"));
    assert_eq!(case.plan().waiting_on, Some(FetchWait::Holder));
    case.mirrors_allowed = true;
    assert_eq!(case.plan().actions.len(), 2, "with leave, the mirror");
    case.sources.clear();
    assert_eq!(case.plan().waiting_on, Some(FetchWait::Mirror));
}

#[test]
fn a_holder_that_failed_comes_after_those_that_did_not() {
    let (a, b) = (peer("a"), peer("b"));
    let mut case = Case::new(4, &[a.clone(), b.clone()]);
    case.source(&a).failures = 1;
    assert_eq!(case.plan().actions, [units(b, 0, 4)]);
    case.sources.remove(&peer("b"));
    assert_eq!(case.plan().actions, [units(a, 0, 4)]);
}

#[test]
fn a_much_faster_holder_is_preferred_and_a_new_one_is_tried() {
    let (a, b, c) = (peer("a"), peer("b"), peer("c"));
    let mut case = Case::new(4, &[a.clone(), b.clone()]);
    case.source(&a).rate = 1_000_000;
    case.source(&b).rate = 1_040_000;
    assert_eq!(case.plan().actions, [units(a.clone(), 0, 4)], "alike: the order's own ranking");
    case.source(&b).rate = 9_000_000;
    assert_eq!(case.plan().actions, [units(b, 0, 4)]);
    let unknown = SourceView { rank: 9, rate: 0, ..case.source(&a).clone() };
    case.sources.insert(c.clone(), unknown);
    assert_eq!(case.plan().actions, [units(c, 0, 4)]);
}

#[test]
fn a_very_slow_holder_is_left_alone_while_there_is_a_better_one() {
    let (slow, good) = (peer("a"), peer("b"));
    let mut case = Case::new(100, &[slow.clone(), good.clone()]);
    case.source(&slow).rate = 1_000_000;
    case.source(&good).rate = 8_000_000;
    assert_eq!(case.plan().actions.len(), 4, "an eighth is good enough");
    case.source(&slow).rate = 999_999;
    case.source(&good).requests = 2;
    assert_eq!(case.plan().actions, []);
    case.source(&good).out_until_ms = Some(u64::MAX);
    assert_eq!(case.plan().actions.len(), 2, "better than nobody");
}

#[test]
fn a_source_without_ranges_is_asked_for_everything_and_alone() {
    let mut case = Case::new(50, &[mirror(0)]);
    case.source(&mirror(0)).ranges = false;
    assert_eq!(case.plan().actions, [Action::AskWhole { source: mirror(0) }]);
    case.source(&mirror(0)).requests = 1;
    assert_eq!(case.plan().actions, []);
}

#[test]
fn a_source_that_was_busy_gets_one_request_at_once() {
    let mut case = Case::new(50, &[mirror(0)]);
    case.source(&mirror(0)).requests_max = 1;
    assert_eq!(case.plan().actions, [units(mirror(0), 0, 16)]);
}

#[test]
fn holes_are_filled_and_nothing_is_asked_twice() {
    let mut case = Case::new(30, &[mirror(0)]);
    case.missing.remove_run(UnitRun { first: 3, count: 20 });
    assert_eq!(case.plan().actions, [units(mirror(0), 0, 3), units(mirror(0), 23, 5)]);
    case.missing = UnitSet::empty(30);
    assert_eq!(case.plan(), Plan { actions: vec![], wake_at_ms: None, waiting_on: None });
}
