use std::collections::BTreeMap;
use std::sync::Arc;

use cohort_consensus::{ProposeError, RaftId, Role, StoreError, TransferError};
use cohort_core::Body;
use cohort_core::command::COMMAND_VERSION;
use cohort_core::gate::RegistryView;
use cohort_core::ids::MemberId;
use cohort_core::refused::WhyRefused;
use cohort_core::state::Process;
use cohort_store::WriteFault;

use crate::contacts::Contacts;
use crate::member::{
    Input, MemberError, Note, Output, Proposed, TransferFailure, Unreadable, serialized,
};
use crate::testing::{ENTRIES_BEFORE_SNAPSHOT, Group, TICK_MS, add, command, server};

#[test]
fn a_proposal_is_answered_where_it_was_made_once_it_is_applied() {
    let (mut group, leader) = Group::led(3);
    let ticket = group.propose(leader, add(9));
    let applied = group.views[&leader].raft.applied.0;
    let outcome = group.outcome(leader, ticket).unwrap();
    assert!(
        matches!(outcome, Proposed::Done { index, rejection: None } if *index <= applied),
        "{outcome:?}"
    );
    assert!(group.views[&leader].state.servers.contains_key(&server(9)));
    let refused = group.propose(leader, Body::RemoveServer { server: server(77) });
    let outcome = group.outcome(leader, refused).unwrap();
    assert!(matches!(outcome, Proposed::Done { rejection: Some(_), .. }), "{outcome:?}");
}

#[test]
fn a_member_that_does_not_lead_names_who_does() {
    let (mut group, leader) = Group::led(3);
    let follower = group.follower();
    let ticket = group.propose(follower, add(9));
    let expected = Proposed::NotLeader { leader: Some(RaftId(leader)) };
    assert_eq!(group.outcome(follower, ticket), Some(&expected));
}

#[test]
fn a_leader_without_a_majority_does_not_know_what_came_of_a_proposal() {
    let (mut group, leader) = Group::led(3);
    group.cut.insert(leader);
    let ticket = group.propose(leader, add(9));
    assert_eq!(group.outcome(leader, ticket), None);
    group.run_ms(3_000);
    assert_eq!(group.outcome(leader, ticket), Some(&Proposed::Unknown));
    assert!(group.views[&leader].waiting.is_empty());
}

#[test]
fn a_command_that_is_too_large_is_refused_for_good() {
    let (mut group, leader) = Group::led(1);
    let body = Body::AddServer {
        server: server(9),
        address: "x".repeat(2 * 1024 * 1024),
        rack: None,
        process: Process::default(),
    };
    let ticket = group.propose(leader, body.clone());
    let bytes = serde_json::to_vec(&command(body)).unwrap().len();
    let expected = ProposeError::TooLarge { bytes, limit: 1024 * 1024 };
    let outcome = group.outcome(leader, ticket).unwrap();
    let ProposeError::TooLarge { limit, .. } = expected else { unreachable!() };
    let rejection = cohort_core::Rejection::Limit {
        what: cohort_core::command::Limited::CommandBytes,
        max: limit as u64,
    };
    assert_eq!(*outcome, Proposed::Done { index: 0, rejection: Some(rejection) });
}

#[test]
fn a_read_on_a_follower_shows_what_was_acknowledged_before() {
    let (mut group, leader) = Group::led(3);
    let follower = group.follower();
    let ticket = group.propose(leader, add(9));
    assert!(group.outcome(leader, ticket).is_some());
    let read = group.read(follower);
    assert_eq!(group.fresh(follower, read), Some(true));
    assert!(group.views[&follower].state.servers.contains_key(&server(9)));
}

#[test]
fn a_read_that_got_lost_is_begun_again() {
    let (mut group, _) = Group::led(3);
    let follower = group.follower();
    group.cut.insert(follower);
    let read = group.read(follower);
    assert_eq!(group.fresh(follower, read), None);
    group.run_ms(400);
    group.cut.clear();
    group.run_ms(400);
    assert_eq!(group.fresh(follower, read), Some(true));
}

#[test]
fn a_read_survives_a_leader_that_dies_without_waiting_for_a_timeout() {
    let (mut group, leader) = Group::led(3);
    let follower = group.follower();
    group.members.remove(&leader);
    let read = group.read(follower);
    for n in [1, 2, 3].into_iter().filter(|n| *n != leader) {
        group.step(n, vec![Input::Disconnected(RaftId(leader))]);
    }
    group.run_ms(200);
    assert!(group.leader().is_some_and(|now| now != leader));
    assert_eq!(group.fresh(follower, read), Some(true));
}

#[test]
fn a_read_without_a_majority_is_given_up() {
    let (mut group, leader) = Group::led(3);
    group.cut.insert(leader);
    let read = group.read(leader);
    group.run_ms(1_400);
    assert_eq!(group.fresh(leader, read), None);
    group.run_ms(1_000);
    assert_eq!(group.fresh(leader, read), Some(false));
}

#[test]
fn a_number_that_had_a_log_is_not_given_to_an_empty_disk() {
    let (mut group, leader) = Group::led(3);
    let other = group.follower();
    assert_eq!(group.claim(other, other, other), None, "only the leader knows");
    assert_eq!(group.claim(leader, other, other), Some(false));
    let known = &group.views[&leader].state.servers[&server(other)];
    assert_ne!(known.member, Some(MemberId(other)), "the number is retired");
}

#[test]
fn a_number_that_was_never_used_is_granted_to_its_own_server_only() {
    let (mut group, leader) = Group::led(3);
    group.propose(leader, add(4));
    group.run_ms(1_000);
    let known = group.views[&leader].state.servers[&server(4)].member;
    assert_eq!(known, Some(MemberId(4)), "the placement has allocated it");
    assert_eq!(group.claim(leader, 3, 4), Some(false));
    assert_eq!(group.claim(leader, 4, 4), Some(true));
}

/// The clock of an idle group lags by hours. If the leader dies between an entry that advances it
/// and its commit, the next one commits that entry, and must not advance the clock again.
#[test]
fn a_new_leader_counts_no_time_twice() {
    let (mut group, leader) = Group::led(3);
    let begun_ms = group.now_ms;
    group.run_ms(600_000);
    // The followers get the entries, but their responses never reach the leader.
    let ticket = group.ticket();
    let body = add(9);
    let input = Input::Propose { ticket, command: Box::new(command(body)) };
    group.try_step(leader, vec![input]).unwrap();
    for envelope in std::mem::take(&mut group.mail) {
        let to = envelope.to.0;
        group.try_step(to, vec![Input::Received(Box::new(envelope))]).unwrap();
    }
    group.cut.insert(leader);
    group.mail.clear();
    group.run_ms(5_000);
    let next = group.leader().expect("another leader");
    group.propose(next, add(10));
    group.run_ms(1_000);
    let state = &group.views[&next].state;
    assert!(state.servers.contains_key(&server(9)), "it committed what the old one had proposed");
    let (clock_ms, lived_ms) = (state.clock.0, group.now_ms - begun_ms + 3_000);
    assert!((600_000..=lived_ms).contains(&clock_ms), "{clock_ms} of {lived_ms} ms");
}

#[test]
fn a_server_is_unknown_that_has_not_asked_for_long_or_never_under_this_leader() {
    let (group, leader) = Group::led(3);
    let view = &group.views[&leader];
    let since_ms = view.listens_since_ms.expect("it leads");
    let mut contacts = Contacts::default();
    let other = server(group.follower());
    let unknown = |contacts: &Contacts, ms: u64| view.is_unknown(&other, contacts, since_ms + ms);
    assert!(!unknown(&contacts, 9_000), "it may be about to ask");
    assert!(unknown(&contacts, 10_001), "it would have asked");
    contacts.heard(since_ms - 1, &other, 0, BTreeMap::new());
    assert!(unknown(&contacts, 10_001), "what was before this leadership proves nothing");
    contacts.heard(since_ms + 6_500, &other, 0, BTreeMap::new());
    assert!(!unknown(&contacts, 36_500), "the bound of a group without apps is the default");
    assert!(unknown(&contacts, 36_501));
    assert!(!view.is_unknown(&server(leader), &contacts, since_ms + 90_000));
    assert_eq!(view.unknown_servers(&contacts, since_ms + 90_000), 2);
}

#[test]
fn a_member_that_does_not_lead_knows_nothing_of_servers() {
    let (mut group, leader) = Group::led(3);
    let (follower, mut contacts) = (group.follower(), Contacts::default());
    contacts.heard(group.now_ms, &server(leader), 0, BTreeMap::new());
    let view = Arc::clone(&group.views[&follower]);
    assert!(view.is_unknown(&server(leader), &contacts, group.now_ms));
    assert_eq!(view.silent_ms(&server(leader), &contacts, group.now_ms), None);
    assert_eq!(view.unknown_servers(&contacts, group.now_ms), 0, "its leader counts them");
    group.cut.extend([1, 2, 3]);
    group.run_ms(3_000);
    for (member, view) in &group.views {
        assert_eq!(view.unknown_servers(&contacts, group.now_ms), 3, "{member} has no quorum");
    }
}

#[test]
fn leadership_is_transferred_to_the_member_that_was_named() {
    let (mut group, leader) = Group::led(3);
    let to = group.follower();
    let transfer = group.transfer(leader, Some(to));
    group.run_ms(100);
    assert_eq!(group.transferred(leader, transfer), Some(&Ok(RaftId(to))));
    assert_eq!(group.leader(), Some(to));
}

#[test]
fn a_transfer_to_the_member_that_leads_has_nothing_to_do() {
    let (mut group, leader) = Group::led(3);
    let transfer = group.transfer(leader, Some(leader));
    assert_eq!(group.transferred(leader, transfer), Some(&Ok(RaftId(leader))));
}

#[test]
fn a_transfer_that_nobody_takes_up_times_out() {
    let (mut group, leader) = Group::led(3);
    let to = group.follower();
    group.cut.insert(to);
    let transfer = group.transfer(leader, Some(to));
    let second = group.transfer(leader, None);
    assert_eq!(group.transferred(leader, second), Some(&Err(TransferFailure::Underway)));
    group.run_ms(2_900);
    assert_eq!(group.transferred(leader, transfer), None);
    group.run_ms(200);
    assert_eq!(group.transferred(leader, transfer), Some(&Err(TransferFailure::TimedOut)));
    let refused = group.transfer(leader, Some(to));
    let silent = TransferFailure::Refused(TransferError::Silent(RaftId(to)));
    assert_eq!(group.transferred(leader, refused), Some(&Err(silent)));
}

#[test]
fn a_leader_whose_server_has_left_hands_over_though_its_vote_is_wanted() {
    let (mut group, leader) = Group::led(3);
    let silent = group.follower();
    let other = 6 - leader - silent;
    group.cut.insert(silent);
    group.run_ms(600);
    group.propose(leader, Body::RemoveServer { server: server(leader) });
    group.run_ms(600);
    assert_eq!(group.leader(), Some(other));
    assert_eq!(group.views[&other].raft.configuration.voters.len(), 3);
    group.propose(other, Body::RemoveServer { server: server(other) });
    group.run_ms(600);
    assert_eq!(group.leader(), Some(other), "not back to one that has left, too");
}

#[test]
fn a_leader_that_is_elected_again_has_not_handed_over() {
    let (mut group, leader) = Group::led(3);
    let to = group.follower();
    group.cut.extend([leader, to]);
    // Only the old leader has this entry: no other member can be elected.
    group.propose(leader, add(9));
    let transfer = group.transfer(leader, Some(to));
    while group.views[&leader].leads() {
        group.run_ms(TICK_MS);
    }
    group.cut.remove(&leader);
    while group.leader() != Some(leader) {
        assert_eq!(group.transferred(leader, transfer), None);
        group.run_ms(TICK_MS);
    }
    assert_eq!(group.transferred(leader, transfer), Some(&Err(TransferFailure::TimedOut)));
}

#[test]
fn observations_of_an_earlier_leadership_are_forgotten() {
    let (mut group, leader) = Group::led(3);
    let offers = Input::Offers {
        offers: BTreeMap::new(),
        refusals: vec![WhyRefused::NoMirror.into()],
        refreshed: Ok(()),
    };
    group.step(leader, vec![Input::Registry(Some(RegistryView::default())), offers]);
    group.propose(leader, add(9));
    assert_eq!(group.views[&leader].registry, Some(true));
    let to = group.follower();
    group.transfer(leader, Some(to));
    group.run_ms(200);
    assert_eq!(group.views[&leader].registry, None);
    group.transfer(to, Some(leader));
    group.run_ms(200);
    let view = &group.views[&leader];
    assert!(view.leads());
    assert_eq!((view.registry, &view.refusals), (Some(false), &Vec::new()));
}

#[test]
fn a_member_that_is_stopped_hands_over_first() {
    let (mut group, leader) = Group::led(3);
    group.step(leader, vec![Input::Stop]);
    group.run_ms(200);
    assert_eq!(group.said[&leader].last(), Some(&Output::Stopped));
    assert!(group.leader().is_some(), "nobody had to wait for an election timeout");
}

#[test]
fn the_only_member_leads_at_once_and_stops_at_once() {
    let mut group = Group::of(1);
    group.settle();
    assert!(group.views[&1].leads());
    group.step(1, vec![Input::Stop]);
    assert_eq!(group.said[&1].last(), Some(&Output::Stopped));
}

#[test]
fn an_entry_of_another_version_stops_the_member_before_it_is_applied() {
    let (mut group, leader) = Group::led(1);
    let mut newer = command(add(9));
    newer.version = COMMAND_VERSION + 1;
    let ticket = group.ticket();
    let input = Input::Propose { ticket, command: Box::new(newer) };
    let error = group.try_step(leader, vec![input]).unwrap_err();
    assert!(
        matches!(
            error,
            MemberError::UnknownEntry { source: Unreadable::Version(version), .. }
                if version == COMMAND_VERSION + 1
        ),
        "{error:?}"
    );
    assert_eq!(group.outcome(leader, ticket), None);
}

#[test]
fn a_disk_that_fails_stops_the_member() {
    let (mut group, leader) = Group::led(1);
    group.disks[&leader].set_fault(WriteFault::FailLost);
    let ticket = group.ticket();
    let input = Input::Propose { ticket, command: Box::new(command(add(9))) };
    let error = group.try_step(leader, vec![input]).unwrap_err();
    let MemberError::Node(cohort_consensus::NodeError::Store(StoreError::Write { .. })) = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(group.outcome(leader, ticket), None);
}

#[test]
fn a_member_that_restarts_has_the_state_it_had() {
    let (mut group, leader) = Group::led(3);
    for n in 10..20 {
        group.propose(leader, add(n));
    }
    group.run_ms(200);
    let follower = group.follower();
    group.members.remove(&follower);
    group.disks[&follower].crash();
    group.start(follower);
    group.run_ms(500);
    assert_eq!(group.views[&follower].state, group.views[&leader].state);
}

#[test]
fn ticks_missed_in_a_long_pause_start_no_election() {
    let (mut group, _) = Group::led(3);
    let follower = group.follower();
    group.now_ms += 3_600_000;
    group.try_step(follower, Vec::new()).unwrap();
    let role = |output: &Output| {
        matches!(output, Output::Noted(Note::Role { role, .. })
        if *role != Role::Follower)
    };
    let said = &group.said[&follower];
    assert!(!said.iter().any(role), "{said:?}");
    assert!(group.members[&follower].wake_ms(group.now_ms) > group.now_ms);
}

#[test]
fn what_is_sent_comes_before_what_it_leads_to() {
    let (mut group, leader) = Group::led(1);
    let ticket = group.ticket();
    let input = Input::Propose { ticket, command: Box::new(command(add(9))) };
    let member = group.members.get_mut(&leader).unwrap();
    let outputs = member.step(group.now_ms, &group.contacts, [input]).unwrap();
    let at = |wanted: fn(&Output) -> bool| outputs.iter().position(wanted);
    let happened = at(|output| matches!(output, Output::Happened { .. }));
    let answer = at(|output| matches!(output, Output::Answer { .. }));
    let view = at(|output| matches!(output, Output::View(_)));
    assert!(happened < answer && answer < view && happened.is_some(), "{outputs:?}");
}

#[test]
fn a_snapshot_is_requested_once_and_taken_though_entries_have_come_since() {
    let (mut group, leader) = Group::led(1);
    for n in 0..2 * ENTRIES_BEFORE_SNAPSHOT {
        group.propose(leader, add(10 + n % 2));
    }
    let requested = group.said[&leader].iter().filter_map(|output| match output {
        Output::Compact { index, state } => Some((*index, serialized(state))),
        _ => None,
    });
    let requested: Vec<(u64, Vec<u8>)> = requested.collect();
    let [(index, data)] = &requested[..] else { panic!("{} snapshots", requested.len()) };
    assert!(group.views[&leader].raft.applied.0 > *index);
    group.step(leader, vec![Input::Snapshot { index: *index, data: data.clone() }]);
    let snapshot = group.members[&leader].log().snapshot().unwrap();
    assert_eq!((snapshot.index.0, &snapshot.data), (*index, data));
}
