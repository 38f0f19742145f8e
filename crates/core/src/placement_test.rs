//! Which servers carry the group's log.

use std::collections::BTreeSet;

use crate::command::{Body, COMMAND_VERSION, Command};
use crate::ids::{GroupId, Incarnation, MemberId, ServerId};
use crate::placement::{Placed, Placement, placement};
use crate::state::State;

fn server(number: u64) -> ServerId {
    ServerId::new(format!("s{number}")).unwrap()
}

fn apply(state: &mut State, body: Body) {
    let command = Command {
        version: COMMAND_VERSION,
        incarnation: state.incarnation,
        actor: "test".into(),
        request: None,
        body,
    };
    state.apply(&command).unwrap();
}

fn group(servers: u64) -> State {
    let mut state = State::new(GroupId::new("intel.zone-a").unwrap(), Incarnation(1));
    for number in 1..=servers {
        let (server, address) = (self::server(number), format!("10.0.0.{number}:7417"));
        apply(&mut state, Body::AddServer { server, address, rack: None });
    }
    // The founder carries the first member.
    apply(&mut state, Body::AllocateMember { server: server(1) });
    state
}

fn founded() -> Placed {
    Placed { voters: BTreeSet::from([MemberId(1)]), ..Placed::default() }
}

/// Follows the placement to its end, with standbys that catch up at once.
fn follow(state: &mut State, placed: &mut Placed) -> Vec<BTreeSet<MemberId>> {
    let mut voters_seen = Vec::new();
    for _ in 0..50 {
        placed.caught_up = placed.standbys.clone();
        match placement(state, placed) {
            None => return voters_seen,
            Some(Placement::Allocate(server)) => apply(state, Body::AllocateMember { server }),
            Some(Placement::Retire(server, member)) => {
                apply(state, Body::RetireMember { server, member });
            }
            Some(Placement::Change { voters, standbys }) => {
                placed.voters.clone_from(&voters);
                placed.standbys = standbys;
                voters_seen.push(voters);
            }
        }
    }
    panic!("the placement never comes to rest: {placed:?}");
}

fn carriers(state: &State) -> Vec<String> {
    let carries = state.servers.iter().filter(|(_, server)| server.member.is_some());
    carries.map(|(id, _)| id.to_string()).collect()
}

#[test]
fn the_first_five_carry_the_log() {
    let mut state = group(7);
    let mut placed = founded();
    follow(&mut state, &mut placed);
    assert_eq!(carriers(&state), ["s1", "s2", "s3", "s4", "s5"]);
    assert_eq!(placed.voters.len(), 5);
}

#[test]
fn a_server_placed_by_an_operator_replaces_a_voter_in_one_step() {
    let mut state = group(7);
    let mut placed = founded();
    follow(&mut state, &mut placed);
    apply(&mut state, Body::PlaceMember { server: server(7), carries: true });
    apply(&mut state, Body::PlaceMember { server: server(2), carries: false });
    let seen = follow(&mut state, &mut placed);
    assert_eq!(carriers(&state), ["s1", "s3", "s4", "s5", "s7"]);
    assert!(seen.iter().all(|voters| voters.len() == 5), "never fewer than five: {seen:?}");
    assert!(placed.standbys.is_empty());
}

#[test]
fn a_group_is_never_left_without_voters() {
    let mut state = group(1);
    let mut placed = founded();
    follow(&mut state, &mut placed);
    apply(&mut state, Body::PlaceMember { server: server(1), carries: false });
    follow(&mut state, &mut placed);
    assert_eq!(placed.voters.len(), 1);
    assert_eq!(carriers(&state), ["s1"]);
}
