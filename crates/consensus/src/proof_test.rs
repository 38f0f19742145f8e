//! A member whose disk went back, or that runs twice, is found out before it acts.

use cohort_store::{Disk, FaultyStore, Index, RaftId, Term};

use crate::testing::{Group, ids};
use crate::*;

/// A disk in the state of a member's.
fn image(group: &mut Group, id: u64) -> FaultyStore {
    FaultyStore::open(&group.node(id).store().disk().image()).unwrap()
}

fn other(leader: u64) -> u64 {
    (1..=3).find(|id| *id != leader).unwrap()
}

fn restart(group: &mut Group, id: u64, store: FaultyStore, life: u64) {
    let config = Config { life, ..group.config(RaftId(id), 2) };
    group.open(store, config);
}

/// Why a member has stopped, after some ticks.
fn ended(group: &mut Group, id: u64) -> Option<NodeError> {
    for _ in 0..60 {
        for node in group.nodes.values_mut() {
            node.tick();
        }
        let mut mail = Vec::new();
        for (at, node) in &mut group.nodes {
            match node.drain() {
                Ok(effects) => mail.extend(effects.messages),
                Err(error) if at.0 == id => return Some(error),
                Err(error) => panic!("{at}: {error}"),
            }
        }
        for envelope in mail {
            let cut = [envelope.from, envelope.to].iter().any(|id| group.cut_off.contains(id));
            if let Some(node) = group.nodes.get_mut(&envelope.to).filter(|_| !cut) {
                node.receive(&envelope);
            }
        }
    }
    None
}

#[test]
fn a_disk_that_went_back_is_found_out_before_the_member_acts() {
    for taken_while_it_ran in [false, true] {
        let mut group = Group::of(&[1, 2, 3]);
        let restored = other(group.leader());
        if taken_while_it_ran {
            group.propose("a");
        }
        let store = image(&mut group, restored);
        group.propose("b");
        group.ticks(3);
        restart(&mut group, restored, store, 2);
        let error = ended(&mut group, restored);
        assert!(matches!(error, Some(NodeError::WentBack { .. })), "{error:?}");
    }
}

#[test]
fn those_that_come_back_with_their_own_disks_go_on() {
    let mut group = Group::of(&[1, 2, 3]);
    group.propose("a");
    for id in 1..=3 {
        let store = group.node(id).store().clone();
        group.nodes.remove(&RaftId(id));
        restart(&mut group, id, store, 2);
    }
    group.propose("b");
    group.ticks(3);
    assert!((1..=3).all(|id| group.texts(id).ends_with(&["b".to_owned()])));
}

/// A leader that never heard a peer itself knows that its number was used.
#[test]
fn a_number_that_was_used_is_known_to_every_member() {
    let mut group = Group::of(&[1, 2, 3]);
    group.ticks(80);
    let store = group.node(1).store().clone();
    group.nodes.clear();
    restart(&mut group, 1, store, 2);
    let met: Vec<u64> = (1..=4).filter(|id| group.node(1).has_met(RaftId(*id))).collect();
    assert_eq!(met, [2, 3]);
}

/// Two acknowledge a command; one of them is restored to before it and the other dies. The third,
/// which was away, has heard of the restored one's disk and does not decide with it.
#[test]
fn an_acknowledged_command_is_not_lost_with_a_restored_disk() {
    let mut group = Group::of(&[1, 2, 3]);
    let leader = group.leader();
    let restored = other(leader);
    let away = 6 - leader - restored;
    let store = image(&mut group, restored);
    let own = group.node(restored).store().clone();
    restart(&mut group, restored, own, 2);
    // The leader forwards what it hears, and the others store it, within some ticks.
    group.ticks(80);
    let kept = group.node(away).store().clone();
    group.nodes.remove(&RaftId(away));
    let leader = group.leader();
    group.propose("acknowledged");
    group.nodes.remove(&RaftId(leader));
    group.nodes.remove(&RaftId(restored));
    restart(&mut group, restored, store, 3);
    restart(&mut group, away, kept, 2);
    let error = ended(&mut group, restored);
    assert!(matches!(error, Some(NodeError::WentBack { .. })), "{error:?}");
}

#[test]
fn a_copy_is_refused_while_the_original_works_on() {
    let mut group = Group::of(&[1, 2, 3]);
    let leader = group.leader();
    let copied = other(leader);
    let config = Config { life: 77, ..group.config(RaftId(copied), 2) };
    let mut copy = Node::open(image(&mut group, copied), config).unwrap();
    let mut error = None;
    for round in 0..400 {
        group.tick();
        if round == 200 {
            group.propose("a");
        }
        copy.tick();
        match copy.drain() {
            Ok(effects) => {
                for envelope in effects.messages {
                    // Their answers go to both.
                    let to = envelope.to.0;
                    group.node(to).receive(&envelope);
                    for answer in group.drain(RaftId(to)).messages {
                        if answer.to.0 == copied {
                            copy.receive(&answer);
                        }
                    }
                }
            }
            Err(reason) => {
                error = Some(reason);
                break;
            }
        }
    }
    assert!(matches!(error, Some(NodeError::Copied { .. })), "{error:?}");
    assert_eq!(group.texts(copied), ["a"]);
}

#[test]
fn without_the_proof_a_restored_disk_stops_in_the_library() {
    let mut group = Group::tuned(&[1, 2, 3], |config| config.weaken.no_proof = true);
    let restored = other(group.leader());
    let store = image(&mut group, restored);
    group.propose("a");
    group.ticks(3);
    restart(&mut group, restored, store, 2);
    let error = ended(&mut group, restored);
    assert!(matches!(error, Some(NodeError::Library(_))), "{error:?}");
}

#[test]
fn an_unproven_member_takes_no_snapshot() {
    let disk = Disk::new();
    let store = FaultyStore::open(&disk).unwrap();
    let mut node = Node::open(store, Config::new("test", 7, RaftId(1))).unwrap();
    node.drain().unwrap();
    assert_eq!(node.compact(Index(0), Vec::new()), Err(CompactError::Unproven));
}

/// Each start of a restored disk would be newer than the one before, and one of them new enough.
#[test]
fn a_start_that_nobody_vouches_for_writes_nothing() {
    let mut group = Group::of(&[1, 2, 3]);
    let leader = group.leader();
    let changed = group.node(leader).change_membership(&ids(&[1, 2, 3]), &ids(&[4]));
    assert_eq!(changed, Ok(()));
    group.ticks(10);
    let id = other(leader);
    let store = image(&mut group, id);
    let written = store.image().written();
    let config = Config { life: 77, ..group.config(RaftId(id), 2) };
    let mut node = Node::open(store, config).unwrap();
    for _ in 0..20 {
        node.tick();
        node.drain().unwrap();
    }
    assert_eq!(node.store().image().written(), written);
}

/// Restarts a follower of `group`, which is to judge messages in the name of the leader.
fn judge(group: &mut Group) -> (u64, Node<FaultyStore>) {
    let leader = group.leader();
    let id = other(leader);
    let store = group.node(id).store().clone();
    let config = Config { life: 2, ..group.config(RaftId(id), 2) };
    (leader, Node::open(store, config).unwrap())
}

/// What a member answers to a message of a peer's life.
fn verdict_on(
    node: &mut Node<FaultyStore>,
    from: u64,
    life: u64,
    message: Message,
) -> Option<Verdict> {
    let (session, written) = (2 << 24, 1 << 20);
    let (from, to) = (RaftId(from), node.config.id);
    let (group, incarnation) = (node.config.group.clone(), node.config.incarnation);
    let envelope =
        Envelope { group, incarnation, from, to, life, written, session, sequence: 1, message };
    node.receive(&envelope);
    let messages = node.drain().unwrap().messages.into_iter();
    let mut verdicts = messages.filter_map(|envelope| match envelope.message {
        Message::Vouch { life: of, verdict, .. } if of == life => Some(verdict),
        _ => None,
    });
    verdicts.next()
}

const PRESENT: Message = Message::Present { found: 1 << 20 };

#[test]
fn a_member_that_has_just_started_vouches_for_no_copy_of_one_that_it_hears() {
    let (leader, mut node) = judge(&mut Group::of(&[1, 2, 3]));
    let heartbeat = Message::Heartbeat { term: Term(9), commit: Index(0), read: None };
    let verdict = verdict_on(&mut node, leader, 5, heartbeat);
    assert_eq!(verdict, Some(Verdict::Unknown), "it has to introduce itself");
    assert_eq!(verdict_on(&mut node, leader, 6, PRESENT), Some(Verdict::Elsewhere));
    assert_eq!(verdict_on(&mut node, leader, 5, PRESENT), Some(Verdict::Fine));
}

/// Two machines of one member come back with the network, the copy first.
#[test]
fn a_member_listens_before_it_vouches_for_a_life_that_it_has_not_met() {
    let mut group = Group::of(&[1, 2, 3]);
    group.ticks(80);
    let (leader, mut node) = judge(&mut group);
    let original = group.config(RaftId(leader), 1).life;
    assert_eq!(verdict_on(&mut node, leader, 77, PRESENT), Some(Verdict::Unknown));
    assert_eq!(verdict_on(&mut node, leader, original, PRESENT), Some(Verdict::Fine));
    for _ in 0..20 {
        node.tick();
        assert_eq!(verdict_on(&mut node, leader, 77, PRESENT), Some(Verdict::Elsewhere));
    }
}

#[test]
fn a_life_that_goes_on_introducing_itself_is_vouched_for() {
    let mut group = Group::of(&[1, 2, 3]);
    group.ticks(80);
    let (leader, mut node) = judge(&mut group);
    let mut verdicts = Vec::new();
    for _ in 0..31 {
        verdicts.extend(verdict_on(&mut node, leader, 77, PRESENT));
        node.tick();
    }
    assert_eq!(verdicts.pop(), Some(Verdict::Fine));
    assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Unknown));
}
