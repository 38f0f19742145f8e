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

fn judge(
    copies: &Copies,
    state: &State,
    contacts: &Contacts,
    clock: (u64, u64),
    process: &Process,
    member_life: Option<u64>,
) -> Introduction {
    copies.judge(state, contacts, clock, &Introduced { server: &server(2), process, member_life })
}

fn heard(at_ms: u64) -> Contacts {
    let mut contacts = Contacts::default();
    contacts.heard(at_ms, &server(2), 0, BTreeMap::new());
    contacts
}

#[test]
fn of_two_machines_the_one_that_is_heard_works_on() {
    let (group, contacts) = (group(), heard(100_000));
    let copies = Copies::default();
    let judged =
        |now_ms, process| judge(&copies, &group, &contacts, (now_ms, 60_000), &process, None);
    let elsewhere = || Introduction::Elsewhere { host: "a".to_owned() };
    assert_eq!(judged(100_100, process(2, "b")), elsewhere());
    assert_eq!(judged(100_000 + RUNS_MS - 1, process(2, "b")), elsewhere());
    assert_eq!(judged(100_000 + RUNS_MS, process(2, "b")), Introduction::Accepted, "it has ended");
    assert_eq!(judged(100_100, process(2, "a")), Introduction::Accepted, "it has restarted");
    assert_eq!(judged(100_100, process(1, "b")), Introduction::Accepted, "it has moved");
}

#[test]
fn a_copy_does_not_take_the_place_of_a_machine_that_reboots() {
    let (group, mut copies) = (group(), Copies::default());
    assert!(copies.refused(90_000, &server(2), "b"));
    let judged = |heard_ms, now_ms| {
        judge(&copies, &group, &heard(heard_ms), (now_ms, 60_000), &process(2, "b"), None)
    };
    let elsewhere = Introduction::Elsewhere { host: "a".to_owned() };
    assert_eq!(judged(90_100, 90_100 + RUNS_MS), elsewhere, "both have called");
    assert_eq!(judged(90_100, 90_100 + RETURNS_MS), Introduction::Accepted);
    assert_eq!(judged(89_900, 89_900 + RUNS_MS), Introduction::Accepted, "it has moved");
}

/// Its agent is silent, and its member is not: the two would run on different machines.
#[test]
fn a_copy_does_not_take_the_place_of_an_agent_whose_member_is_heard() {
    let (group, contacts) = (group(), heard(100_000));
    let judged = |process, life| {
        let clock = (100_000 + RUNS_MS, 60_000);
        judge(&Copies::default(), &group, &contacts, clock, &process, life)
    };
    let elsewhere = Introduction::Elsewhere { host: "a".to_owned() };
    assert_eq!(judged(process(2, "b"), Some(1)), elsewhere);
    assert_eq!(judged(process(2, "b"), Some(2)), Introduction::Accepted, "it has moved");
    assert_eq!(judged(process(2, "a"), Some(1)), Introduction::Accepted, "it has restarted");
}

/// The group took a copy for a server that was silent, and then heard the first machine's member
/// again: its agent speaks for the server, too.
#[test]
fn the_machine_whose_member_is_heard_is_the_server() {
    let (group, contacts) = (group(), heard(100_000));
    let judged = |life| {
        let clock = (100_100, 60_000);
        judge(&Copies::default(), &group, &contacts, clock, &process(2, "b"), life)
    };
    assert_eq!(judged(Some(2)), Introduction::Accepted);
    assert_eq!(judged(Some(1)), Introduction::Elsewhere { host: "a".to_owned() });
}

#[test]
fn a_leader_that_has_just_begun_does_not_know_yet() {
    let (group, contacts) = (group(), Contacts::default());
    let judged = |listens_ms| {
        let clock = (100_000, listens_ms);
        judge(&Copies::default(), &group, &contacts, clock, &process(2, "b"), None)
    };
    assert_eq!(judged(RUNS_MS - 1), Introduction::TooEarly);
    assert_eq!(judged(RUNS_MS), Introduction::Accepted);
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
    assert!(!copies.accepted(&server(2), "a") && copies.of(&server(2), 20_500).is_some());
    assert!(copies.accepted(&server(2), "b"), "it has moved, and is no copy");
    assert_eq!(copies.of(&server(2), 20_500), None);
}

#[test]
fn agents_that_displace_each_other_pause_longer_and_longer() {
    let pauses: Vec<_> = (1..=6).map(contested_pause_ms).collect();
    let seconds = |s: u64| Some(s * 1_000);
    assert_eq!(pauses, [None, None, seconds(10), seconds(20), seconds(40), seconds(80)]);
    assert_eq!(contested_pause_ms(u32::MAX), seconds(600));
}
