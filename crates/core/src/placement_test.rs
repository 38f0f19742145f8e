//! Which servers carry the group's log.

use std::collections::BTreeSet;

use crate::command::{Body, COMMAND_VERSION, Command};
use crate::ids::{AppId, Channel, GroupId, Incarnation, MemberId, Revision, ServerId};
use crate::placement::{Carriers, Next, Placed, Placement, Unheard, placement, voters_of};
use crate::policy::{Policy, Update};
use crate::state::Process;
use crate::state::{App, ServerApp, State};
use crate::waiting::Placing;

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
    let (rack, process) = (rack.map(Into::into), Process::default());
    apply(state, Body::AddServer { server, address, rack, process });
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
    follow_by(state, placed, &unheard(silent), Carriers::default()).0
}

fn unheard(silent: &[u64]) -> Unheard {
    let silent: BTreeSet<ServerId> = silent.iter().map(|number| server(*number)).collect();
    Unheard { lately: silent.clone(), silent }
}

/// The same; also returns what the placement is waiting for in the end.
fn follow_by(
    state: &mut State,
    placed: &mut Placed,
    unheard: &Unheard,
    wanted: Carriers,
) -> (Vec<BTreeSet<MemberId>>, Option<Placing>) {
    let mut voters_seen = Vec::new();
    for _ in 0..50 {
        let heard =
            |id: &&MemberId| state.server_of(**id).is_none_or(|id| !unheard.lately.contains(id));
        placed.caught_up = placed.standbys.iter().filter(heard).copied().collect();
        match placement(state, placed, unheard, wanted) {
            Next::Settled => return (voters_seen, None),
            Next::Waits(on) => return (voters_seen, Some(on)),
            Next::Step(step) => take(state, placed, step, &mut voters_seen),
        }
    }
    panic!("the placement never comes to rest: {placed:?}");
}

fn take(
    state: &mut State,
    placed: &mut Placed,
    step: Placement,
    seen: &mut Vec<BTreeSet<MemberId>>,
) {
    match step {
        Placement::Allocate(server) => apply(state, Body::AllocateMember { server }),
        Placement::Retire(server, member) => {
            apply(state, Body::RetireMember { server, member });
        }
        Placement::Change { voters, standbys } => {
            let stay = voters.intersection(&placed.voters).count();
            let grows = placed.voters.len() <= voters.len() / 2;
            assert!(grows || stay > voters.len() / 2, "newcomers alone decide: {voters:?}");
            placed.voters.clone_from(&voters);
            placed.standbys = standbys;
            seen.push(voters);
        }
    }
}

fn policy() -> Policy {
    Policy {
        app: AppId::new("web").unwrap(),
        channel: Channel::new("stable").unwrap(),
        update: Update::default(),
        checks: Vec::new(),
        stages: Vec::new(),
    }
}

fn voters(state: &State, placed: &Placed) -> Vec<String> {
    let names = placed.voters.iter().filter_map(|member| state.server_of(*member));
    let mut names: Vec<String> = names.map(ToString::to_string).collect();
    names.sort();
    names
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
fn an_odd_number_votes_and_the_others_stand_by() {
    for (servers, vote) in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (50, 5)] {
        let mut state = group(servers);
        let mut placed = founded();
        let seen = follow(&mut state, &mut placed);
        assert_eq!((placed.voters.len(), vote), (vote, voters_of(servers as usize, 5)));
        assert_eq!(carriers(&state).len() as u64, servers.min(5));
        assert!(seen.iter().all(|voters| voters.len() % 2 == 1), "{seen:?}");
    }
}

#[test]
fn a_group_has_as_many_voters_and_standbys_as_wanted() {
    let mut state = group(12);
    let mut placed = founded();
    let wanted = Carriers { voters: 7, standbys: 2 };
    follow_by(&mut state, &mut placed, &Unheard::default(), wanted);
    assert_eq!((placed.voters.len(), placed.standbys.len()), (7, 2));
    let wanted = Carriers { voters: 3, standbys: 0 };
    follow_by(&mut state, &mut placed, &Unheard::default(), wanted);
    assert_eq!((placed.voters.len(), placed.standbys.len()), (3, 0));
    assert_eq!(carriers(&state).len(), 3);
}

#[test]
fn a_group_that_shrinks_keeps_an_odd_number_of_voters() {
    let mut state = group(7);
    let mut placed = founded();
    follow(&mut state, &mut placed);
    for (leaves, left) in [(7, 5), (1, 5), (2, 3), (3, 3), (4, 1)] {
        apply(&mut state, Body::RemoveServer { server: server(leaves) });
        follow(&mut state, &mut placed);
        assert_eq!(placed.voters.len(), left, "after s{leaves}");
        assert!(placed.voters.iter().all(|member| state.server_of(*member).is_some()));
    }
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
fn without_another_server_one_of_three_silent_voters_stays_and_that_is_named() {
    let mut state = group(3);
    let mut placed = founded();
    follow(&mut state, &mut placed);
    let (seen, waits) = follow_by(&mut state, &mut placed, &unheard(&[2]), Carriers::default());
    assert!(seen.is_empty());
    assert_eq!(waits, Some(Placing::Replacement { silent: [server(2)].into() }));
    assert_eq!(voters(&state, &placed), ["s1", "s2", "s3"]);
}

#[test]
fn without_another_server_five_voters_become_three_that_are_heard() {
    let mut state = group(5);
    let mut placed = founded();
    follow(&mut state, &mut placed);
    follow_without(&mut state, &mut placed, &[2]);
    assert_eq!(voters(&state, &placed), ["s1", "s3", "s4"]);
    // It comes back: it has its number, and votes again.
    follow(&mut state, &mut placed);
    assert_eq!(voters(&state, &placed), ["s1", "s2", "s3", "s4", "s5"]);
}

#[test]
fn neither_an_unheard_server_nor_one_in_a_change_replaces_a_voter() {
    let mut state = group(8);
    let mut placed = founded();
    follow(&mut state, &mut placed);
    let mut app = App::new(Revision(1), policy());
    let lost = ServerApp { unsure: true, ..ServerApp::default() };
    app.servers.extend(state.servers.keys().map(|id| (id.clone(), ServerApp::default().into())));
    app.servers.insert(server(6), lost.into());
    state.apps.insert(AppId::new("web").unwrap(), app);
    let mut unheard = unheard(&[1]);
    unheard.lately.insert(server(7));
    follow_by(&mut state, &mut placed, &unheard, Carriers::default());
    assert_eq!(voters(&state, &placed), ["s2", "s3", "s4", "s5", "s8"]);
}

#[test]
fn a_standby_that_is_not_heard_makes_room_for_another() {
    let mut state = group(6);
    let mut placed = founded();
    let mut unheard = Unheard::default();
    unheard.lately.insert(server(3));
    let (_, waits) = follow_by(&mut state, &mut placed, &unheard, Carriers::default());
    assert_eq!(
        (voters(&state, &placed), waits),
        (vec!["s1".into(), "s2".into(), "s4".into(), "s5".into(), "s6".into(),], None)
    );
}

#[test]
fn a_change_that_has_started_is_waited_for() {
    let placed = Placed { changing: true, ..founded() };
    let next = placement(&group(3), &placed, &Unheard::default(), Carriers::default());
    assert_eq!(next, Next::Waits(Placing::Joint));
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

#[test]
fn no_rack_gets_a_second_voter_on_the_way() {
    let [a, b, c] = [Some("a"), Some("b"), Some("c")];
    // One voter per rack; the voters of b and c move at once, and that of c catches up first.
    let mut state = spread(&[a, b, c, b, c]);
    let mut placed = founded();
    let three = Carriers { voters: 3, standbys: 0 };
    follow_by(&mut state, &mut placed, &Unheard::default(), three);
    assert_eq!(voters(&state, &placed), ["s1", "s2", "s3"]);
    for (number, carries) in [(2, false), (3, false), (4, true), (5, true)] {
        apply(&mut state, Body::PlaceMember { server: server(number), carries });
    }
    for late in [5, 4] {
        let (mut state, mut placed) = (state.clone(), placed.clone());
        let mut unheard = Unheard::default();
        let mut seen = Vec::new();
        // Both stand by before either has caught up.
        while let Next::Step(step) = placement(&state, &placed, &unheard, three) {
            take(&mut state, &mut placed, step, &mut seen);
        }
        unheard.lately.insert(server(late));
        let (halfway, _) = follow_by(&mut state, &mut placed, &unheard, three);
        let (rest, _) = follow_by(&mut state, &mut placed, &Unheard::default(), three);
        for voters in halfway.iter().chain(&rest) {
            // The servers were given their numbers in joining order.
            let rack = |member: &MemberId| state.servers[&server(member.0)].rack.clone();
            let racks: BTreeSet<_> = voters.iter().map(rack).collect();
            assert_eq!(racks.len(), 3, "{voters:?}");
        }
        assert_eq!(voters(&state, &placed), ["s1", "s4", "s5"]);
    }
}

#[test]
fn zones_count_before_racks() {
    let racks = ["x/1", "x/1", "x/2", "x/3", "y/1", "y/1", "z"].map(Some);
    let mut state = spread(&racks);
    let mut placed = founded();
    follow(&mut state, &mut placed);
    // Two of x and y each, one of z; those of x in different racks.
    assert_eq!(voters(&state, &placed), ["s1", "s3", "s5", "s6", "s7"]);
}
