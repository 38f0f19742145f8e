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
    spread(&vec![None; servers as usize])
}

/// One server in each of these racks, in joining order.
fn spread(racks: &[Option<&str>]) -> State {
    let mut state = State::new(GroupId::new("intel.zone-a").unwrap(), Incarnation(1));
    for (number, rack) in (1..).zip(racks) {
        join(&mut state, number, *rack);
    }
    // The founder carries the first member.
    apply(&mut state, Body::AllocateMember { server: server(1) });
    state
}

fn join(state: &mut State, number: u64, rack: Option<&str>) {
    let (server, address) = (server(number), format!("10.0.0.{number}:7417"));
    apply(state, Body::AddServer { server, address, rack: rack.map(Into::into) });
}

fn founded() -> Placed {
    Placed { voters: BTreeSet::from([MemberId(1)]), ..Placed::default() }
}

fn follow(state: &mut State, placed: &mut Placed) -> Vec<BTreeSet<MemberId>> {
    follow_without(state, placed, &[])
}

/// Follows the placement to its end, with standbys that catch up immediately unless they are
/// silent. Returns the voters after each change.
fn follow_without(
    state: &mut State,
    placed: &mut Placed,
    silent: &[u64],
) -> Vec<BTreeSet<MemberId>> {
    let silent: BTreeSet<ServerId> = silent.iter().map(|number| server(*number)).collect();
    let mut voters_seen = Vec::new();
    for _ in 0..50 {
        let heard = |id: &&MemberId| state.server_of(**id).is_none_or(|id| !silent.contains(id));
        placed.caught_up = placed.standbys.iter().filter(heard).copied().collect();
        match placement(state, placed, &silent) {
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

#[test]
fn a_silent_voter_is_replaced_in_one_step_and_does_not_come_back_by_itself() {
    let mut state = group(7);
    let mut placed = founded();
    follow(&mut state, &mut placed);
    let seen = follow_without(&mut state, &mut placed, &[1, 6]);
    assert_eq!(seen.iter().filter(|voters| **voters != placed.voters).count(), 1, "{seen:?}");
    assert!(seen.iter().all(|voters| voters.len() == 5), "never fewer than five: {seen:?}");
    assert_eq!(carriers(&state), ["s2", "s3", "s4", "s5", "s7"]);
    // It is heard again: nothing moves because of that.
    assert!(follow(&mut state, &mut placed).is_empty());
}

#[test]
fn without_another_server_a_silent_voter_stays() {
    let mut state = group(3);
    let mut placed = founded();
    follow(&mut state, &mut placed);
    assert!(follow_without(&mut state, &mut placed, &[2]).is_empty());
    assert_eq!(carriers(&state), ["s1", "s2", "s3"]);
}

#[test]
fn voters_are_spread_over_racks() {
    let a = Some("a");
    let mut state = spread(&[a, a, a, a, Some("b"), Some("b"), Some("c")]);
    let mut placed = founded();
    follow(&mut state, &mut placed);
    assert_eq!(carriers(&state), ["s1", "s2", "s5", "s6", "s7"]);
    // A rack added later gets its voter, from the rack with the most.
    join(&mut state, 8, Some("d"));
    follow(&mut state, &mut placed);
    assert_eq!(placed.voters.len(), 5);
    let carriers = carriers(&state);
    assert!(carriers.contains(&"s8".into()) && carriers.contains(&"s7".into()), "{carriers:?}");
}

#[test]
fn a_voter_moves_within_its_rack() {
    let mut state = spread(&[Some("a"), Some("b"), Some("c"), Some("a"), Some("b")]);
    let mut placed = founded();
    follow(&mut state, &mut placed);
    apply(&mut state, Body::PlaceMember { server: server(4), carries: true });
    apply(&mut state, Body::PlaceMember { server: server(1), carries: false });
    follow(&mut state, &mut placed);
    assert_eq!(carriers(&state), ["s2", "s3", "s4", "s5"]);
}
