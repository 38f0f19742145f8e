//! Every format of the registry: what it stores, and what it says on the wire.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cohort_base::golden::hold;
use cohort_core::ids::{Incarnation, MemberId};
use cohort_core::phase::PhaseName;
use cohort_core::reason::Reason;
use cohort_identity::SignedStatement;
use cohort_wire::intent::SignedIntent;
use serde::{Deserialize, Serialize};

use crate::api::{
    Compare, Event, KeyValue, Op, RangeAnswer, RangeRequest, Selector, Txn, TxnAnswer, WatchAnswer,
    WatchReply, WatchRequest,
};
use crate::disk::{decode_event, decode_pair, encode_event, encode_pair};
use crate::records::{
    BootstrapRecord, GroupInfo, GroupRecord, IntentRecord, MemberRecord, MembersRecord, SCHEMA,
    ServerRecord, Stamp, VerdictRecord,
};
use crate::seen::{Answered, Asked, Seen};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn pair() -> KeyValue {
    KeyValue { key: "/a".into(), value: "\u{fc}".into(), mod_revision: 7 }
}

fn deleted() -> Event {
    Event::Deleted { key: "/b".into(), revision: 7 }
}

/// The messages of `cohort-hub/1` about the registry.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Message {
    Range(Asked<RangeRequest>),
    RangeAnswer(Answered<RangeAnswer>),
    Txn(Asked<Txn>),
    TxnAnswer(Answered<TxnAnswer>),
    Watch(Asked<WatchRequest>),
    WatchAnswer(Answered<WatchReply>),
}

#[test]
fn messages() {
    let prefix = Selector::Prefix("/".into());
    let after = Some("/a".to_owned());
    let txn = Txn {
        compare: vec![Compare::unchanged_since("/a", 7), Compare::absent("/c")],
        then: vec![Op::put("/a", "1"), Op::Delete { key: "/b".into() }],
        ..Txn::default()
    };
    let events = vec![Event::Put(pair()), deleted()];
    let seen = Seen { revision: 7, proof: "5e".repeat(32) };
    let first = RangeRequest { select: prefix.clone(), after, limit: 2 };
    let one = RangeRequest { select: Selector::Key("/a".into()), after: None, limit: 0 };
    let watch = WatchRequest { select: prefix, from_revision: 8, wait_ms: 30_000 };
    let read = RangeAnswer { items: vec![pair()], revision: 7, more: true };
    let written = TxnAnswer { succeeded: true, revision: 8 };
    let watched = [
        WatchReply::Changed(WatchAnswer { events, revision: 7 }),
        WatchReply::Compacted { compacted: 5, revision: 7 },
        WatchReply::WentBack { asked: 9, revision: 7 },
    ];
    let mut messages = vec![
        Message::Range(Asked { request: first, seen: None }),
        Message::Range(Asked { request: one, seen: Some(seen.clone()) }),
        Message::RangeAnswer(Answered { answer: read, seen: seen.clone() }),
        Message::Txn(Asked { request: txn, seen: Some(seen.clone()) }),
        Message::TxnAnswer(Answered { answer: written, seen: seen.clone() }),
        Message::Watch(Asked { request: watch, seen: None }),
    ];
    let told = |answer| Message::WatchAnswer(Answered { answer, seen: seen.clone() });
    messages.extend(watched.map(told));
    hold(&file("messages.jsonl"), &messages);
}

/// Values of the registry; each has a schema.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Record {
    Server(ServerRecord),
    GroupInfo(GroupInfo),
    Bootstrap(BootstrapRecord),
    Members(MembersRecord),
    Group(GroupRecord),
    Verdict(VerdictRecord),
    Intent(IntentRecord),
}

#[test]
fn records() {
    let labels = BTreeMap::from([("zone".to_owned(), "zone-a".to_owned())]);
    let stamp = Stamp { incarnation: Incarnation(16), term: 3, index: 42 };
    let group = || "intel.zone-a".parse().expect("valid");
    let app = || "web".parse().expect("valid");
    let version = |text: &str| text.parse().expect("valid");
    let server = || "web-1".parse().expect("valid");
    let bootstrap = |incarnation, recovered_because: Option<&str>| {
        Record::Bootstrap(BootstrapRecord {
            schema: SCHEMA,
            group: group(),
            incarnation,
            first_server: server(),
            recovered_because: recovered_because.map(str::to_owned),
        })
    };
    let reason =
        Reason::Aborted { by: "operator `ada`".into(), text: "errors in the canary".into() };
    let held = GroupRecord {
        schema: SCHEMA,
        group: group(),
        app: app(),
        stamp,
        sequence: 5,
        state: PhaseName::Held,
        running: Some(version("1.0.0")),
        target: Some(version("1.1.0")),
        held_reason: Some(reason.clone()),
        since: 1_795_244_055,
    };
    let running =
        GroupRecord { state: PhaseName::Running, target: None, held_reason: None, ..held.clone() };
    let verdict = |bad| Record::Verdict(VerdictRecord { schema: SCHEMA, bad, stamp });
    let members = ["web-1", "web-2"].map(|name| MemberRecord {
        server: name.parse().expect("valid"),
        address: format!("{name}:7417"),
        member: MemberId(3),
        voter: name == "web-1",
    });
    let joined = ServerRecord {
        schema: SCHEMA,
        server: server(),
        address: "web-1:7417".into(),
        labels: labels.clone(),
        rack: Some("r1".into()),
        group: group(),
    };
    let platform = "linux/amd64".parse().expect("valid");
    let records = [
        Record::Server(ServerRecord { rack: None, ..joined.clone() }),
        Record::Server(joined),
        Record::GroupInfo(GroupInfo { schema: SCHEMA, group: group(), labels, platform }),
        bootstrap(None, None),
        bootstrap(Some(Incarnation(16)), None),
        bootstrap(None, Some("lost its majority")),
        Record::Members(MembersRecord {
            schema: SCHEMA,
            group: group(),
            stamp,
            members: members.into(),
        }),
        Record::Group(running),
        Record::Group(held),
        verdict(None),
        verdict(Some(reason)),
        Record::Intent(IntentRecord {
            schema: SCHEMA,
            signed: SignedIntent(SignedStatement {
                body: b"{}".to_vec(),
                context: "cohort-app/1".into(),
                chain: "PEM".into(),
                signature: vec![1, 2],
            }),
        }),
    ];
    hold(&file("records.jsonl"), &records);
}

/// Bytes of `registry.redb` (schema 1), in hexadecimal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Bytes", into = "Bytes")]
enum Stored {
    Pair(KeyValue),
    Event(u64, Event),
}

#[derive(Debug, Serialize, Deserialize)]
enum Bytes {
    Pair { key: String, bytes: String },
    Event { revision: u64, bytes: String },
}

impl From<Stored> for Bytes {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Pair(pair) => {
                Bytes::Pair { bytes: hex::encode(encode_pair(&pair)), key: pair.key }
            }
            Stored::Event(revision, event) => {
                Bytes::Event { revision, bytes: hex::encode(encode_event(&event)) }
            }
        }
    }
}

impl From<Bytes> for Stored {
    fn from(bytes: Bytes) -> Self {
        let read = |text: String| hex::decode(text).expect("hexadecimal");
        match bytes {
            Bytes::Pair { key, bytes } => {
                Stored::Pair(decode_pair(&key, &read(bytes)).expect("a pair"))
            }
            Bytes::Event { revision, bytes } => {
                let event = decode_event(revision, &read(bytes)).expect("an event");
                Stored::Event(revision, event)
            }
        }
    }
}

#[test]
fn the_file() {
    let stored =
        [Stored::Pair(pair()), Stored::Event(7, Event::Put(pair())), Stored::Event(7, deleted())];
    hold(&file("file.jsonl"), &stored);
}
