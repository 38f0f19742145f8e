//! Messages between servers and their leader about transfers, as sent on the wire.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Debug;
use std::path::Path;

use cohort_core::ids::{Digest, ServerId};
use cohort_core::orders::Source;
use cohort_transfer::tracker::{Accusation, Told, TransferAnswer, TransferReport, TransferRequest};
use cohort_transfer::{Guidance, Offence, SourceName, UnitRun};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn hold<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, values: &[T]) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    cohort_base::golden::hold(&golden.join(name), values);
}

fn digest(letter: &str) -> Digest {
    letter.repeat(64).parse().unwrap()
}

fn server(name: &str) -> ServerId {
    name.parse().unwrap()
}

fn source(name: &str) -> Source {
    Source { server: server(name), address: format!("{name}.example:7417") }
}

fn request(transfers: Vec<TransferReport>) -> TransferRequest {
    TransferRequest { transfers }
}

#[test]
fn requests() {
    let mirror = SourceName::mirror("https://mirror.example/");
    let blamed = [
        (SourceName::Server(server("web-2")), Offence::WrongBytes),
        (SourceName::Server(server("web-3")), Offence::WrongLength),
        (mirror.clone(), Offence::Silent),
        (mirror, Offence::Slow),
    ];
    let accuse = |(source, what)| Accusation { source, what, count: 2 };
    let full = TransferReport {
        have: vec![UnitRun { first: 0, count: 3 }, UnitRun { first: 8, count: 1 }],
        mirror_bytes: 196_608,
        peer_bytes: 65_536,
        mirror_failed: true,
        mirror_busy: true,
        told: Some(Told {
            feeds: vec![server("web-2")],
            lease: vec![UnitRun { first: 4, count: 4 }],
        }),
        holders: vec![source("web-4")],
        silent: vec![server("web-3")],
        wrong: vec![server("web-2")],
        offences: blamed.into_iter().map(accuse).collect(),
        ..TransferReport::new(digest("a"), 1_000_000)
    };
    let first = TransferReport::new(digest("b"), 70_000);
    hold("transfer-requests.jsonl", &[request(vec![]), request(vec![full, first])]);
}

#[test]
fn answers() {
    let full = Guidance {
        feeds: vec![source("web-2")],
        spares: vec![source("web-3")],
        lease: vec![UnitRun { first: 4, count: 4 }],
        heir: true,
        heir_at: Some(source("web-4")),
        mirror_rate_max: Some(1_000_000),
    };
    let answers = [
        TransferAnswer { again_ms: 4_000, guidance: vec![], downlink_rate: None },
        TransferAnswer {
            again_ms: 200,
            guidance: vec![(digest("a"), full), (digest("b"), Guidance::default())],
            downlink_rate: Some(12_500_000),
        },
    ];
    hold("transfer-answers.jsonl", &answers);
}
