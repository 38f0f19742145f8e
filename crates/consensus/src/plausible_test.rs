use std::collections::BTreeSet;

use cohort_store::Entry;
use proptest::prelude::*;

use super::*;
use crate::testing::{Group, ids};
use crate::{Envelope, ReadContext, VoteReply, VoteRequest};

const OWN: Own = Own {
    term: Term(7),
    terms: 1_000,
    last: Index(40),
    committed: Index(30),
    committed_term: Term(6),
    leads: false,
    leader: Some(RaftId(2)),
};

fn heartbeat(term: u64) -> Message {
    Message::Heartbeat { term: Term(term), commit: Index(30), read: None }
}

fn reply(index: u64, commit: u64, rejected: Option<u64>) -> Message {
    let rejected = rejected.map(|hint| (Index(hint), Term(6)));
    Message::AppendReply(AppendReply {
        term: Term(7),
        index: Index(index),
        commit: Index(commit),
        rejected,
    })
}

fn append(previous: u64, previous_term: u64, terms: &[u64]) -> Message {
    let entries = terms.iter().enumerate().map(|(at, term)| Entry {
        index: Index(previous + 1 + at as u64),
        term: Term(*term),
        kind: EntryKind::Data,
        data: b"x".to_vec(),
    });
    Message::Append {
        term: Term(7),
        previous: Index(previous),
        previous_term: Term(previous_term),
        commit: Index(30),
        entries: entries.collect(),
    }
}

#[test]
fn terms_rise_no_faster_than_elections_can_explain() {
    let finds = |own: Own, term| own.finds_plausible(RaftId(2), &heartbeat(term));
    assert!(finds(OWN, 1_000) && !finds(OWN, 1_001));
    // One that a liar has raised so far is no stranger to one that it has not, nor the other way.
    let raised = Own { term: Term(1_000), ..OWN };
    assert!(finds(OWN, 1_000) && finds(raised, 1_001));
    let new = Own { term: Term(0), last: Index(0), leader: None, ..OWN };
    assert!(finds(new, 1_000) && !finds(new, u64::MAX));
    let without_a_clock = Own { terms: 0, ..OWN };
    assert!(finds(without_a_clock, 7 + TERMS_AHEAD_MAX));
    assert!(!finds(without_a_clock, 8 + TERMS_AHEAD_MAX));
    assert_eq!((terms_by(0), terms_by(FIRST_S + 10)), (0, 80));
}

#[test]
fn a_term_has_one_leader() {
    let finds = |own: Own, from, term| own.finds_plausible(RaftId(from), &heartbeat(term));
    assert!(finds(OWN, 2, 7));
    assert!(!finds(OWN, 3, 7), "another leads in this term");
    assert!(finds(OWN, 3, 8));
    assert!(!finds(Own { leads: true, leader: Some(RaftId(1)), ..OWN }, 3, 7));
}

#[test]
fn nobody_has_what_its_leader_did_not_send() {
    let own = Own { leads: true, leader: Some(RaftId(1)), ..OWN };
    let finds = |message: Message| own.finds_plausible(RaftId(3), &message);
    assert!(finds(reply(40, 30, None)) && finds(reply(40, 30, Some(12))));
    assert!(!finds(reply(41, 30, None)), "an entry that it does not have");
    assert!(!finds(reply(40, 41, None)), "committed, and not in its log");
    assert!(!finds(reply(40, 30, Some(u64::MAX))));
}

#[test]
fn a_log_has_rising_terms_and_keeps_what_is_committed() {
    let finds = |message: Message| OWN.finds_plausible(RaftId(2), &message);
    assert!(finds(append(40, 6, &[6, 7])) && finds(append(40, 7, &[])));
    assert!(!finds(append(40, 6, &[7, 6])));
    assert!(!finds(append(40, 6, &[8])), "later than its own term");
    assert!(!finds(append(35, 5, &[])), "earlier than what is committed before it");
    let snapshot = |index, term, configuration| {
        let (index, term, data) = (Index(index), Term(term), Vec::new());
        let snapshot = Snapshot { index, term, configuration, data };
        finds(Message::Snapshot { term: Term(7), snapshot })
    };
    let group = Configuration::of(ids(&[1, 2, 3]), ids(&[4]));
    assert!(snapshot(50, 7, group.clone()));
    assert!(!snapshot(50, 5, group.clone()) && !snapshot(u64::MAX, 7, group.clone()));
    for broken in [
        Configuration::default(),
        Configuration::of(ids(&[1, 2]), ids(&[2])),
        Configuration { standbys_next: ids(&[9]), ..group.clone() },
        Configuration { outgoing: ids(&[4, 5]), ..group },
    ] {
        assert!(!snapshot(50, 7, broken.clone()), "{broken:?}");
    }
}

/// A number that is likely to be just right, or at an end of its range.
fn number() -> impl Strategy<Value = u64> {
    let far = (1 << 20)..(1_u64 << 21);
    prop_oneof![8 => 0..12_u64, 1 => far, 1 => Just(u64::MAX), 1 => any::<u64>()]
}

fn members() -> impl Strategy<Value = BTreeSet<RaftId>> {
    proptest::collection::btree_set((0..6_u64).prop_map(RaftId), 0..4)
}

fn entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![Just(EntryKind::Data), Just(EntryKind::Membership)];
    let steps = proptest::collection::vec((0..3_u8, 0..6_u64), 0..4);
    (number(), number(), kind, steps).prop_map(|(index, term, kind, steps)| {
        let part = |part| {
            [
                crate::convert::Part::Voter,
                crate::convert::Part::Standby,
                crate::convert::Part::Removed,
            ][usize::from(part)]
        };
        let steps = steps.into_iter().map(|(to, id)| (part(to), RaftId(id))).collect();
        let data = match kind {
            EntryKind::Membership => Change::Enter(steps).encode(),
            EntryKind::Data => b"x".to_vec(),
        };
        Entry { index: Index(index), term: Term(term), kind, data }
    })
}

fn message() -> impl Strategy<Value = Message> {
    let numbers = [(); 5].map(|()| number());
    let sets = [(); 4].map(|()| members());
    let entries = proptest::collection::vec(entry(), 0..3);
    (0..14_u8, numbers, sets, entries, any::<bool>(), any::<bool>()).prop_map(
        |(
            kind,
            [a, b, c, d, e],
            [voters, outgoing, standbys, standbys_next],
            mut entries,
            no,
            follow,
        )| {
            let term = Term(a);
            let read = ReadContext { member: RaftId(b % 6), boot_epoch: c, counter: d };
            let request = VoteRequest {
                term,
                last: Index(b),
                last_term: Term(c),
                commit: Index(d),
                commit_term: Term(e),
                handed_over: no,
            };
            let vote = VoteReply { term, refused: no, commit: Index(b), commit_term: Term(c) };
            if follow {
                for (at, entry) in entries.iter_mut().enumerate() {
                    entry.index = Index(b.wrapping_add(1 + at as u64));
                }
            }
            let rejected = no.then_some((Index(d), Term(e)));
            let configuration = Configuration { voters, outgoing, standbys, standbys_next };
            let snapshot =
                Snapshot { index: Index(b), term: Term(c), configuration, data: Vec::new() };
            match kind {
                0..=2 => Message::Append {
                    term,
                    previous: Index(b),
                    previous_term: Term(c),
                    commit: Index(d),
                    entries,
                },
                3 | 4 => Message::AppendReply(AppendReply {
                    term,
                    index: Index(b),
                    commit: Index(c),
                    rejected,
                }),
                5 => Message::PreVote(request),
                6 => Message::Vote(request),
                7 => Message::PreVoteReply(vote),
                8 => Message::VoteReply(vote),
                9 => Message::Snapshot { term, snapshot },
                10 => Message::Heartbeat { term, commit: Index(b), read: no.then_some(read) },
                11 => Message::HeartbeatReply { term, commit: Index(b), read: Some(read) },
                12 => Message::TakeOver { term },
                _ => Message::ReadReply { term, index: Index(b), read },
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever two of five members send to the others, in any role: the library never panics. A
    /// member may find that its log is an old one, which is one of the lies.
    #[test]
    fn no_message_of_a_hostile_peer_stops_a_member(
        turns in proptest::collection::vec((1..4_u64, 4..6_u64, message(), 0..3_u8), 1..60),
    ) {
        let mut group = Group::of(&[1, 2, 3, 4, 5]);
        group.propose("first");
        for (sequence, (to, from, message, then)) in (1_000_000..).zip(turns) {
            let (to, from) = (RaftId(to), RaftId(from));
            let Some(node) = group.nodes.get_mut(&to) else { continue };
            node.receive(&Envelope {
                group: "test".to_owned(),
                incarnation: 7,
                from,
                to,
                life: 1,
                written: 100,
                // The last connection of its first start.
                session: (1 << 25) - 1,
                sequence,
                message,
            });
            match then {
                0 => node.tick(),
                // Refused where it does not lead.
                1 => drop(node.propose(b"y".to_vec())),
                _ => {}
            }
            match node.drain() {
                Ok(_) => {}
                Err(error) if error.is_of_an_old_log() => {
                    group.nodes.remove(&to);
                }
                Err(error) => panic!("{to}: {}", cohort_base::chain(&error)),
            }
        }
    }
}
