//! Growing, replacing, shrinking; and what the leader refuses.

use std::collections::BTreeSet;

use cohort_store::FaultyStore;

use crate::testing::{Group, ids};
use crate::*;

fn change(group: &mut Group, voters: &[u64], standbys: &[u64]) -> Result<(), MembershipError> {
    let leader = group.leader();
    let result = group.node(leader).change_membership(&ids(voters), &ids(standbys));
    group.settle();
    result
}

/// Starts a change, and ticks until the configuration is in effect and not joint.
fn change_done(group: &mut Group, voters: &[u64], standbys: &[u64]) {
    change(group, voters, standbys).unwrap();
    let wanted = Configuration::of(ids(voters), ids(standbys));
    for _ in 0..100 {
        group.tick();
        let leader = group.leader();
        if group.node(leader).status().configuration == wanted {
            return;
        }
    }
    panic!("{wanted} was never reached");
}

/// A group that members joined one after the other, each as a standby first.
fn grown(size: u64) -> Group {
    let mut group = Group::of(&[1]);
    group.propose("a");
    for id in 2..=size {
        group.join(id);
        let voters: Vec<u64> = (1..id).collect();
        change_done(&mut group, &voters, &[id]);
        let leader = group.leader();
        let applied = group.drain(RaftId(leader)).applied;
        // The founding snapshot lacks the new member, so the leader requests a fresh one.
        let _ = group.node(leader).compact(applied, b"a".to_vec());
        group.ticks(10);
        let voters: Vec<u64> = (1..=id).collect();
        change_done(&mut group, &voters, &[]);
    }
    group
}

#[test]
fn a_group_grows_from_one_to_five() {
    let mut group = grown(5);
    group.propose("b");
    group.ticks(3);
    for id in 2..=5 {
        assert_eq!(group.texts(id).last().unwrap(), "b", "member {id}");
        assert!(!group.states[&RaftId(id)].is_empty());
    }
}

/// Members that joined one after the other have only ever talked to the leader.
#[test]
fn members_that_never_met_elect_the_one_that_leadership_is_handed_to() {
    let mut group = grown(5);
    let leader = group.leader();
    let term = group.node(leader).status().term;
    let next = if leader == 4 { 3 } else { 4 };
    group.node(leader).transfer_leadership(RaftId(next)).unwrap();
    // Without a tick: no request for a vote is repeated.
    group.settle();
    let status = group.node(next).status();
    assert!(status.is_leader());
    assert_eq!(status.term.0, term.0 + 1);
}

#[test]
fn a_group_does_not_shrink_to_voters_without_a_majority() {
    let mut group = Group::of(&[1, 2, 3]);
    let leader = group.leader();
    let silent = if leader == 3 { 2 } else { 3 };
    group.cut_off.insert(RaftId(silent));
    group.ticks(20);
    let refused = change(&mut group, &[leader, silent], &[]);
    assert_eq!(refused, Err(MembershipError::NoMajority { heard: 1, voters: 2 }));
    change_done(&mut group, &[leader], &[]);
}

#[test]
fn a_snapshot_without_the_new_member_is_not_served_but_asked_for() {
    let mut group = Group::of(&[1]);
    group.leader();
    group.join(2);
    change(&mut group, &[1], &[2]).unwrap();
    let wanted = (0..10).any(|_| {
        group.nodes.values_mut().for_each(Node::tick);
        let wanted = group.drain(RaftId(1)).snapshot_wanted;
        group.settle();
        wanted
    });
    assert!(wanted);
    assert!(group.node(2).status().configuration.voters.is_empty());
    let applied = group.node(1).status().applied;
    group.node(1).compact(applied, b"state".to_vec()).unwrap();
    group.ticks(5);
    assert_eq!(group.states[&RaftId(2)], b"state");
    assert!(group.node(2).status().configuration.standbys.contains(&RaftId(2)));
}

#[test]
fn a_leader_that_is_removed_hands_over_first() {
    let mut group = Group::of(&[1, 2, 3]);
    let leader = group.leader();
    let rest: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    change_done(&mut group, &rest, &[]);
    assert_ne!(group.leader(), leader);
    assert!(!group.node(leader).status().is_leader());
    group.propose("after");
    group.ticks(3);
    assert_eq!(group.texts(rest[0]), ["after"]);
}

#[test]
fn all_voters_are_replaced_at_once() {
    let mut group = Group::of(&[1, 2, 3]);
    group.propose("a");
    for id in 4..=6 {
        group.join(id);
    }
    change_done(&mut group, &[1, 2, 3], &[4, 5, 6]);
    let leader = group.leader();
    let applied = group.node(leader).status().applied;
    group.node(leader).compact(applied, b"a".to_vec()).unwrap();
    group.ticks(10);
    change_done(&mut group, &[4, 5, 6], &[]);
    assert!(group.leader() >= 4);
    group.propose("b");
    group.ticks(3);
    assert_eq!(group.texts(5), ["b"]);
}

#[test]
fn a_voter_that_restarts_does_not_wait_for_one_that_has_left() {
    let mut group = Group::of(&[1, 2]);
    let leader = group.leader();
    change_done(&mut group, &[leader], &[]);
    // The other one is switched off for good; the leader's process ends.
    let disk = group.node(leader).store().disk().clone();
    group.nodes.clear();
    let config = group.config(RaftId(leader), 2);
    group.open(FaultyStore::open(&disk).unwrap(), config);
    assert_eq!(group.leader(), leader);
}

#[test]
fn voters_must_be_standbys_that_caught_up() {
    let mut group = Group::tuned(&[1], |config| config.limits.promote_lag_entries_max = 0);
    group.join(2);
    assert_eq!(
        change(&mut group, &[1, 2], &[]),
        Err(MembershipError::NotAStandby { id: RaftId(2) })
    );
    change(&mut group, &[1], &[2]).unwrap();
    group.ticks(3);
    let refused = change(&mut group, &[1, 2], &[]);
    assert!(matches!(refused, Err(MembershipError::Behind { id: RaftId(2), .. })), "{refused:?}");
    group.cut_off.insert(RaftId(2));
    group.ticks(12);
    assert_eq!(change(&mut group, &[1, 2], &[]), Err(MembershipError::Silent { id: RaftId(2) }));
}

#[test]
fn impossible_and_second_changes_are_refused() {
    let mut group = Group::of(&[1, 2, 3]);
    let leader = group.leader();
    let invalid = |result| assert!(matches!(result, Err(MembershipError::Invalid(_))));
    invalid(change(&mut group, &[], &[]));
    invalid(change(&mut group, &[1, 2, 3], &[3]));
    invalid(change(&mut group, &[0, 1], &[]));
    let node = group.node(leader);
    let many: BTreeSet<RaftId> = (1..=8).map(RaftId).collect();
    invalid(node.change_membership(&many, &ids(&[])));
    assert_eq!(node.change_membership(&ids(&[1, 2, 3]), &ids(&[])), Ok(()), "nothing to do");
    assert_eq!(node.change_membership(&ids(&[1, 2, 3]), &ids(&[4])), Ok(()));
    assert_eq!(
        node.change_membership(&ids(&[1, 2, 3]), &ids(&[5])),
        Err(MembershipError::InProgress)
    );
}

#[test]
fn a_lost_snapshot_is_sent_again() {
    let mut group = Group::tuned(&[1, 2, 3], |config| {
        config.limits.retained_entries = 0;
        config.limits.snapshot_ticks_max = 30;
    });
    let leader = group.leader();
    let late = (1..=3).find(|id| *id != leader).unwrap();
    group.cut_off.insert(RaftId(late));
    for text in ["a", "b", "c"] {
        group.propose(text);
    }
    let applied = group.node(leader).status().applied;
    group.node(leader).compact(applied, b"abc".to_vec()).unwrap();
    // The member answers one heartbeat, so the leader sends the snapshot; the snapshot itself is
    // lost.
    group.cut_off.clear();
    for _ in 0..20 {
        group.nodes.values_mut().for_each(Node::tick);
        loop {
            let all: Vec<RaftId> = group.nodes.keys().copied().collect();
            all.into_iter().for_each(|id| drop(group.drain(id)));
            if group.mail.is_empty() {
                break;
            }
            for envelope in std::mem::take(&mut group.mail) {
                if !matches!(envelope.message, Message::Snapshot { .. }) {
                    group.node(envelope.to.0).receive(&envelope);
                }
            }
        }
    }
    let progress = group.node(leader).status().peers[&RaftId(late)];
    assert_eq!(progress.replication, Replication::Snapshot);
    group.ticks(40);
    assert_eq!(group.states[&RaftId(late)], b"abc");
}
