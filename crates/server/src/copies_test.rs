use std::collections::BTreeMap;

use cohort_core::State;
use cohort_core::state::Process;

use super::*;
use crate::testing::{command, server, state};

fn process(life: u64, host: &str) -> Process {
    Process { life, host: host.to_owned() }
}

/// `s2` runs on `a` with life 1.
fn group() -> State {
    let mut state = state(2);
    let (address, rack) = ("s2:1".to_owned(), None);
    let process = process(1, "a");
    let body = cohort_core::Body::AddServer { server: server(2), address, rack, process };
    state.apply(&command(body)).unwrap();
    state
}

fn heard(at_ms: u64) -> Contacts {
    let mut contacts = Contacts::default();
    contacts.heard(at_ms, &server(2), 0, BTreeMap::new());
    contacts
}

#[test]
fn of_two_machines_the_one_that_is_heard_works_on() {
    let (group, contacts) = (group(), heard(100_000));
    let judge = |now_ms, process| judge(&group, &contacts, (now_ms, 60_000), &server(2), &process);
    let elsewhere = || Introduction::Elsewhere { host: "a".to_owned() };
    assert_eq!(judge(100_100, process(2, "b")), elsewhere());
    assert_eq!(judge(100_000 + RUNS_MS - 1, process(2, "b")), elsewhere());
    assert_eq!(judge(100_000 + RUNS_MS, process(2, "b")), Introduction::Accepted, "it has ended");
    assert_eq!(judge(100_100, process(2, "a")), Introduction::Accepted, "it has restarted");
    assert_eq!(judge(100_100, process(1, "b")), Introduction::Accepted, "it has moved");
}

#[test]
fn a_leader_that_has_just_begun_does_not_know_yet() {
    let (group, contacts) = (group(), Contacts::default());
    let judge =
        |listens_ms| judge(&group, &contacts, (100_000, listens_ms), &server(2), &process(2, "b"));
    assert_eq!(judge(RUNS_MS - 1), Introduction::TooEarly);
    assert_eq!(judge(RUNS_MS), Introduction::Accepted);
}

#[test]
fn a_copy_is_reported_while_it_calls() {
    let mut copies = Copies::default();
    assert!(copies.refused(1_000, &server(2), "b"));
    assert!(!copies.refused(2_000, &server(2), "b"), "nothing new");
    assert!(copies.refused(20_000, &server(2), "b"));
    let of = copies.of(&server(2), 20_500).unwrap();
    assert_eq!((of.host.as_str(), of.since_ms, of.at_ms), ("b", 1_000, 20_000));
    assert_eq!(copies.of(&server(2), 20_000 + REPORTED_MS + NEWS_MS), None);
    assert_eq!(copies.of(&server(1), 20_500), None);
}
