//! Which servers are barred because of others' complaints.

use std::collections::BTreeSet;
use std::time::Duration;

use cohort_core::ids::ServerId;

use super::trust::{LEFT_OUT, Trust};
use crate::Moment;

fn ids(names: &[&str]) -> Vec<ServerId> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn id(name: &str) -> ServerId {
    name.parse().unwrap()
}

fn barred(trust: &Trust, lacking: &[ServerId], now: Moment) -> Vec<String> {
    let lacking: BTreeSet<&ServerId> = lacking.iter().collect();
    trust.barred(&lacking, now).iter().map(ToString::to_string).collect()
}

#[test]
fn one_that_complains_moves_only_itself_and_two_bar() {
    let (mut trust, now) = (Trust::default(), Moment::ZERO);
    let all = ids(&["a", "b", "c", "bad"]);
    trust.wrong(&id("a"), &id("bad"), now);
    assert_eq!(trust.refuses(&id("a"), now), BTreeSet::from([id("bad")]));
    assert!(barred(&trust, &all, now).is_empty());
    trust.nothing(&id("b"), &id("bad"), now);
    assert_eq!(barred(&trust, &all, now), ["bad"]);
    // Not forever.
    let later = now + LEFT_OUT + Duration::from_secs(1);
    assert!(barred(&trust, &all, later).is_empty() && trust.refuses(&id("a"), later).is_empty());
}

#[test]
fn who_complains_about_everybody_is_not_believed() {
    let (mut trust, now) = (Trust::default(), Moment::ZERO);
    let all = ids(&["a", "b", "c", "d", "e"]);
    for liar in ["a", "b"] {
        for other in ["c", "d", "e"] {
            trust.wrong(&id(liar), &id(other), now);
        }
    }
    assert!(barred(&trust, &all, now).is_empty());
    trust.wrong(&id("d"), &id("e"), now);
    trust.wrong(&id("c"), &id("e"), now);
    assert_eq!(barred(&trust, &all, now), ["e"]);
}

#[test]
fn silence_counts_when_it_lasts() {
    let (mut trust, now) = (Trust::default(), Moment::ZERO);
    let at = |ms| now + Duration::from_millis(ms);
    let (a, dead) = (id("a"), id("dead"));
    let silent = BTreeSet::from([&dead]);
    trust.silent(&a, &silent, now);
    trust.silent(&a, &silent, at(1_900));
    assert!(trust.refuses(&a, at(1_900)).is_empty());
    // It was heard again: counting starts over.
    trust.silent(&a, &BTreeSet::new(), at(1_950));
    trust.silent(&a, &silent, at(2_000));
    assert!(trust.refuses(&a, at(3_900)).is_empty());
    trust.silent(&a, &silent, at(4_000));
    assert_eq!(trust.refuses(&a, at(4_000)), BTreeSet::from([dead.clone()]));
}

#[test]
fn where_only_one_could_complain_wrong_bytes_count_at_once_and_the_rest_when_it_lasts() {
    let (mut trust, now) = (Trust::default(), Moment::ZERO);
    let at = |s| now + Duration::from_secs(s);
    let alone = ids(&["a"]);
    trust.nothing(&id("a"), &id("empty"), now);
    assert!(barred(&trust, &alone, now).is_empty());
    trust.nothing(&id("a"), &id("empty"), at(15));
    assert_eq!(barred(&trust, &alone, at(15)), ["empty"]);
    trust.wrong(&id("a"), &id("rotten"), at(15));
    assert_eq!(barred(&trust, &alone, at(15)), ["empty", "rotten"]);
}

#[test]
fn who_takes_back_what_it_said_again_and_again_is_barred() {
    let (mut trust, now) = (Trust::default(), Moment::ZERO);
    let all = ids(&["a", "b"]);
    trust.took_back(&id("b"), now);
    trust.took_back(&id("b"), now);
    assert!(barred(&trust, &all, now).is_empty());
    trust.took_back(&id("b"), now);
    assert_eq!(barred(&trust, &all, now), ["b"]);
}

#[test]
fn what_is_kept_is_bounded() {
    let (mut trust, now) = (Trust::default(), Moment::ZERO);
    for n in 0..5_000 {
        trust.wrong(&id("a"), &id(&format!("s{n}")), now);
    }
    assert!(trust.refuses(&id("a"), now).len() <= 16);
}
