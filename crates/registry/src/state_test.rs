use proptest::prelude::*;

use crate::api::{
    Compare, Event, KEY_BYTES_MAX, Op, RangeRequest, RegistryError, Selector, TXN_OPS_MAX, Txn,
    VALUE_BYTES_MAX, WATCH_EVENTS_MAX,
};
use crate::state::{HISTORY_EVENTS_MAX, State};

fn run(state: &mut State, txn: &Txn) -> (bool, u64) {
    let decision = state.decide(txn).expect("within limits");
    state.accept(decision.changes);
    state.check().expect("invariants");
    (decision.answer.succeeded, decision.answer.revision)
}

fn put(state: &mut State, key: &str, value: &str) -> u64 {
    run(state, &Txn { then: vec![Op::put(key, value)], ..Txn::default() }).1
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

fn prefix(text: &str) -> Selector {
    Selector::Prefix(text.into())
}

fn keys_below(state: &State, text: &str, limit: u32) -> (Vec<String>, bool) {
    let request = RangeRequest { select: prefix(text), after: None, limit };
    let answer = state.range(&request).expect("range");
    (answer.items.into_iter().map(|pair| pair.key).collect(), answer.more)
}

#[test]
fn a_key_knows_its_revision() {
    let mut state = State::new();
    assert_eq!(state.revision(), 1);
    assert_eq!(put(&mut state, "/a", "1"), 2);
    assert_eq!(put(&mut state, "/a", "2"), 3);
    assert_eq!(state.get("/a").expect("there").mod_revision, 3);
    run(&mut state, &Txn { then: vec![delete("/a")], ..Txn::default() });
    assert_eq!(put(&mut state, "/a", "3"), 5);
    assert_eq!(state.get("/a").expect("there again").mod_revision, 5);
}

#[test]
fn a_transaction_that_changes_nothing_takes_no_revision() {
    let mut state = State::new();
    let nothing = Txn { then: vec![delete("/missing")], ..Txn::default() };
    assert_eq!(run(&mut state, &nothing), (true, 1));
}

#[test]
fn a_transaction_does_all_or_nothing() {
    let mut state = State::new();
    let txn = |compare: Compare| Txn {
        compare: vec![compare],
        then: vec![Op::put("/lock", "a"), Op::put("/x", "then")],
        ..Txn::default()
    };
    assert_eq!(run(&mut state, &txn(Compare::absent("/lock"))), (true, 2));
    assert_eq!(run(&mut state, &txn(Compare::absent("/lock"))), (false, 2));
    assert_eq!(run(&mut state, &txn(Compare::unchanged_since("/lock", 1))), (false, 2));
    assert_eq!(state.get("/x").map(|pair| pair.mod_revision), Some(2));
    assert_eq!(state.get("/lock").map(|pair| pair.mod_revision), Some(2));
    assert_eq!(run(&mut state, &txn(Compare::unchanged_since("/lock", 2))), (true, 3));
    let both = Txn {
        compare: vec![Compare::unchanged_since("/lock", 3), Compare::absent("/x")],
        then: vec![delete("/lock")],
        ..Txn::default()
    };
    assert_eq!(run(&mut state, &both), (false, 3), "every comparison has to hold");
}

#[test]
fn ranges_are_ordered_cut_and_continued() {
    let mut state = State::new();
    for key in ["/b/2", "/a", "/b/1", "/b/3", "/c"] {
        put(&mut state, key, "");
    }
    assert_eq!(
        keys_below(&state, "/b/", 0),
        (vec!["/b/1".into(), "/b/2".into(), "/b/3".into()], false)
    );
    assert_eq!(keys_below(&state, "/b/", 2), (vec!["/b/1".into(), "/b/2".into()], true));
    let rest = RangeRequest { select: prefix("/b/"), after: Some("/b/2".into()), limit: 2 };
    let rest = state.range(&rest).expect("range");
    assert_eq!((rest.items.len(), rest.items[0].key.as_str(), rest.more), (1, "/b/3", false));
    let one = RangeRequest { select: Selector::Key("/b".into()), after: None, limit: 0 };
    assert!(state.range(&one).expect("range").items.is_empty(), "a key is no prefix");
}

#[test]
fn limits_are_kept() {
    let state = State::new();
    let refused = |txn: Txn| matches!(state.decide(&txn), Err(RegistryError::Invalid { .. }));
    let puts = |ops: Vec<Op>| Txn { then: ops, ..Txn::default() };
    assert!(refused(puts(vec![Op::put("k".repeat(KEY_BYTES_MAX + 1), "")])));
    assert!(refused(puts(vec![Op::put("", "")])));
    assert!(refused(puts(vec![Op::put("/a", "v".repeat(VALUE_BYTES_MAX + 1))])));
    assert!(refused(puts(vec![Op::put("/a", "1"), delete("/a")])), "one key twice");
    let many = (0..=TXN_OPS_MAX).map(|n| Op::put(format!("/{n}"), "")).collect();
    assert!(refused(puts(many)));
    let heavy = (0..5).map(|n| Op::put(format!("/{n}"), "v".repeat(VALUE_BYTES_MAX))).collect();
    assert!(refused(puts(heavy)));
    let compare = (0..=TXN_OPS_MAX).map(|n| Compare::absent(format!("/{n}"))).collect();
    assert!(refused(Txn { compare, ..Txn::default() }));
    assert!(!refused(puts(vec![Op::put("k".repeat(KEY_BYTES_MAX), "v".repeat(VALUE_BYTES_MAX))])));
}

#[test]
fn events_are_told_from_any_known_revision() {
    let mut state = State::new();
    put(&mut state, "/a", "1");
    put(&mut state, "/b", "1");
    run(&mut state, &Txn { then: vec![delete("/a"), Op::put("/c", "1")], ..Txn::default() });
    let told = state.events_since(&prefix("/"), 3).expect("known");
    let told_keys: Vec<&str> = told.events.iter().map(Event::key).collect();
    assert_eq!((told_keys, told.revision), (vec!["/b", "/a", "/c"], 4));
    let told = state.events_since(&Selector::Key("/a".into()), 2).expect("known");
    assert!(matches!(told.events[1], Event::Deleted { revision: 4, .. }));
    assert!(state.events_since(&prefix("/"), 5).expect("the next one").events.is_empty());
}

#[test]
fn a_revision_from_the_future_means_the_registry_went_back() {
    let state = State::new();
    let error = state.events_since(&prefix("/"), 9).expect_err("future");
    assert!(matches!(error, RegistryError::WentBack { asked: 8, revision: 1 }), "{error}");
}

#[test]
fn old_events_are_compacted_by_whole_revisions_and_it_is_said() {
    let mut state = State::new();
    let two = Txn { then: vec![Op::put("/a", "1"), Op::put("/b", "1")], ..Txn::default() };
    for _ in 0..HISTORY_EVENTS_MAX {
        let decision = state.decide(&two).expect("valid");
        state.accept(decision.changes);
    }
    state.check().expect("invariants");
    let error = state.events_since(&prefix("/"), 2).expect_err("compacted");
    let RegistryError::Compacted { compacted, revision } = error else { panic!("{error}") };
    assert_eq!(revision, state.revision());
    let told = state.events_since(&prefix("/"), compacted + 1).expect("the first that is known");
    assert_eq!(told.events[0].revision(), compacted + 1);
    assert_eq!(told.events[1].revision(), compacted + 1);
    // A long answer is cut between revisions, and the next goes on where it ended.
    assert_eq!(told.events.len(), WATCH_EVENTS_MAX);
    let next = state.events_since(&prefix("/"), told.revision + 1).expect("known");
    assert_eq!(next.events[0].revision(), told.revision + 1);
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    PutIfUnchanged(u8, u64, u8),
    Reload,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0u8..6, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        (0u8..6).prop_map(Step::Delete),
        (0u8..6, 0u64..40, any::<u8>()).prop_map(|(k, r, v)| Step::PutIfUnchanged(k, r, v)),
        Just(Step::Reload),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// A watcher that starts anywhere and applies what it is told ends with what a reader sees.
    #[test]
    fn a_watcher_ends_with_what_a_reader_sees(steps in steps(), start in 0usize..60) {
        let mut state = State::new();
        let mut seen = std::collections::BTreeMap::new();
        let mut next = None;
        for (nth, step) in steps.iter().enumerate() {
            if nth == start.min(steps.len() - 1) {
                let all = RangeRequest { select: prefix("/"), after: None, limit: 0 };
                let all = state.range(&all).expect("range");
                next = Some(all.revision + 1);
                seen = all.items.into_iter().map(|pair| (pair.key, pair.value)).collect();
            }
            match step {
                Step::Put(key, value) => {
                    put(&mut state, &format!("/{key}"), &value.to_string());
                }
                Step::Delete(key) => {
                    let then = vec![delete(&format!("/{key}"))];
                    run(&mut state, &Txn { then, ..Txn::default() });
                }
                Step::PutIfUnchanged(key, revision, value) => {
                    let key = format!("/{key}");
                    let there = state.get(&key).map_or(0, |pair| pair.mod_revision);
                    let txn = Txn {
                        compare: vec![Compare::unchanged_since(&key, *revision)],
                        then: vec![Op::put(&key, value.to_string())], ..Txn::default() };
                    let (succeeded, _) = run(&mut state, &txn);
                    prop_assert_eq!(succeeded, there == *revision);
                }
                Step::Reload => {
                    let all = RangeRequest { select: prefix(""), after: None, limit: 0 };
                    let pairs = state.range(&all).expect("range").items;
                    let from = state.compacted() + 1;
                    let events = state.events_since(&prefix(""), from).expect("all");
                    let again = State::from_parts(
                        state.revision(), state.compacted(), pairs, events.events,
                    ).expect("consistent");
                    prop_assert_eq!(&again, &state);
                    state = again;
                }
            }
        }
        let told = state.events_since(&prefix("/"), next.expect("started")).expect("known");
        for event in told.events {
            match event {
                Event::Put(pair) => { seen.insert(pair.key, pair.value); }
                Event::Deleted { key, .. } => { seen.remove(&key); }
            }
        }
        let all = RangeRequest { select: prefix("/"), after: None, limit: 0 };
        let there: std::collections::BTreeMap<_, _> = state
            .range(&all).expect("range").items.into_iter().map(|p| (p.key, p.value)).collect();
        prop_assert_eq!(seen, there);
    }
}
