//! Messages survive a round trip, and corrupt bytes are refused.

use std::path::Path;

use cohort_base::golden::hold;
use cohort_store::encoding::DecodeError;
use cohort_store::{Configuration, Entry, EntryKind, Snapshot};
use serde::{Deserialize, Serialize};

use crate::convert::{Change, Part};

use crate::*;

fn samples() -> Vec<Message> {
    let (term, index) = (Term(3), Index(9));
    let read = ReadContext { member: RaftId(2), boot_epoch: 5, counter: 77 };
    let request = VoteRequest {
        term,
        last: index,
        last_term: Term(2),
        commit: Index(7),
        commit_term: Term(1),
        handed_over: true,
    };
    let reply = VoteReply { term, refused: true, commit: index, commit_term: Term(2) };
    let entry = Entry { index: Index(10), term, kind: EntryKind::Data, data: b"x".to_vec() };
    let configuration = Configuration {
        voters: [RaftId(1), RaftId(2)].into(),
        outgoing: [RaftId(2)].into(),
        standbys: [RaftId(4)].into(),
        standbys_next: [RaftId(3)].into(),
    };
    let append_reply = AppendReply { term, index, commit: index, rejected: None };
    vec![
        Message::Append {
            term,
            previous: index,
            previous_term: Term(2),
            commit: index,
            entries: vec![entry],
        },
        Message::AppendReply(append_reply),
        Message::AppendReply(AppendReply { rejected: Some((index, term)), ..append_reply }),
        Message::PreVote(request),
        Message::PreVoteReply(reply),
        Message::Vote(request),
        Message::VoteReply(reply),
        Message::Snapshot {
            term,
            snapshot: Snapshot { index, term, configuration, data: vec![1, 2, 3] },
        },
        Message::Heartbeat { term, commit: index, read: Some(read) },
        Message::Heartbeat { term, commit: index, read: None },
        Message::HeartbeatReply { term, commit: index, read: Some(read) },
        Message::TakeOver { term },
        Message::ReadRequest { read },
        Message::ReadReply { term, index, read },
    ]
}

/// Messages of this crate, which the library does not know.
fn own_samples() -> Vec<Message> {
    let vouch = |verdict, leader| Message::Vouch {
        life: 6,
        verdict,
        leader,
        configured: Index(4),
        voters: [RaftId(1), RaftId(2)].into(),
    };
    let mark = Mark { boot_epoch: 5, life: 6, written: 7 };
    vec![
        Message::Present { found: 3 },
        vouch(Verdict::Fine, Some(RaftId(2))),
        vouch(Verdict::Older { written: 8 }, None),
        vouch(Verdict::Elsewhere, None),
        vouch(Verdict::Unknown, None),
        Message::Marks { marks: [(RaftId(2), mark)].into() },
    ]
}

fn envelope(message: Message) -> Envelope {
    Envelope {
        group: "web".to_owned(),
        incarnation: 4,
        from: RaftId(1),
        to: RaftId(2),
        life: 11,
        written: 12,
        session: 1 << 24,
        sequence: 12,
        message,
    }
}

#[test]
fn every_message_survives() {
    for message in samples() {
        let sent = envelope(message);
        assert_eq!(Envelope::decode(&sent.encode()).unwrap(), sent);
    }
}

#[test]
fn every_message_survives_the_library() {
    for message in samples() {
        let library = convert::message_in(RaftId(1), RaftId(2), &message).unwrap();
        assert_eq!(convert::message_out(&library).unwrap(), message);
    }
}

#[test]
fn a_message_cut_short_or_too_long_is_refused() {
    for message in samples().into_iter().chain(own_samples()) {
        let bytes = envelope(message).encode();
        for end in 0..bytes.len() {
            assert!(Envelope::decode(&bytes[..end]).is_err());
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(Envelope::decode(&longer).is_err());
    }
}

#[test]
fn an_unknown_version_is_refused() {
    let mut bytes = envelope(Message::TakeOver { term: Term(1) }).encode();
    bytes[0] = 2;
    let refused = Envelope::decode(&bytes);
    assert!(matches!(refused, Err(EnvelopeError::Malformed(DecodeError::Version(2)))));
}

#[test]
fn entries_that_do_not_follow_each_other_never_reach_the_library() {
    let entry =
        |index| Entry { index: Index(index), term: Term(1), kind: EntryKind::Data, data: vec![] };
    let append = |previous, entries| Message::Append {
        term: Term(1),
        previous: Index(previous),
        previous_term: Term(1),
        commit: Index(0),
        entries,
    };
    let into = |message| convert::message_in(RaftId(1), RaftId(2), &message);
    assert!(into(append(1, vec![entry(2), entry(3)])).is_ok());
    assert!(into(append(1, vec![entry(3)])).is_err());
    assert!(into(append(1, vec![entry(2), entry(4)])).is_err());
    assert!(into(Message::TakeOver { term: Term(0) }).is_err());
}

/// Bytes of `cohort-raft/1` and of the log, in hexadecimal; both start with a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Hex", into = "Hex")]
enum Sent {
    Envelope(Envelope),
    Change(Change),
}

#[derive(Debug, Serialize, Deserialize)]
enum Hex {
    Envelope(String),
    Change(String),
}

impl From<Sent> for Hex {
    fn from(sent: Sent) -> Self {
        match sent {
            Sent::Envelope(envelope) => Hex::Envelope(hex::encode(envelope.encode())),
            Sent::Change(change) => Hex::Change(hex::encode(change.encode())),
        }
    }
}

impl From<Hex> for Sent {
    fn from(text: Hex) -> Self {
        match text {
            Hex::Envelope(text) => {
                Sent::Envelope(Envelope::decode(&hex::decode(text).unwrap()).unwrap())
            }
            Hex::Change(text) => Sent::Change(Change::decode(&hex::decode(text).unwrap()).unwrap()),
        }
    }
}

#[test]
fn golden() {
    let steps = [(Part::Voter, RaftId(3)), (Part::Standby, RaftId(4)), (Part::Removed, RaftId(1))];
    let changes = [Change::Leave, Change::Enter(steps.into())];
    let messages =
        samples().into_iter().chain(own_samples()).map(|message| Sent::Envelope(envelope(message)));
    let all: Vec<Sent> = messages.chain(changes.map(Sent::Change)).collect();
    hold(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/messages.jsonl"), &all);
}
