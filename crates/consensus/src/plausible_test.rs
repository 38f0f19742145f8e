use cohort_store::Entry;

use super::*;
use crate::testing::ids;

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
