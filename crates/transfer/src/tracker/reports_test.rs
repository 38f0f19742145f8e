//! False reports: the leader survives them, and still serves all others.

use std::time::Duration;

use cohort_core::ids::{Digest, ServerId};
use cohort_core::orders::Source;

use super::{
    Participant, REPORTS_MAX, Told, Tracker, TrackerError, TransferAnswer, TransferReport,
    TransferRequest,
};
use crate::unit_set::UnitRun;
use crate::{ARTIFACT_BYTES_MAX, Moment, UNIT_BYTES};

const UNITS: u32 = 1_000;

fn digest(n: usize) -> Digest {
    format!("{n:064x}").parse().unwrap()
}

fn id(name: &str) -> ServerId {
    name.parse().unwrap()
}

fn report(have: &[(u32, u32)]) -> TransferReport {
    TransferReport {
        have: have.iter().map(|&(first, count)| UnitRun { first, count }).collect(),
        ..TransferReport::new(digest(1), u64::from(UNITS) * UNIT_BYTES)
    }
}

fn say(
    tracker: &mut Tracker,
    name: &str,
    report: &TransferReport,
    now: Moment,
) -> Result<TransferAnswer, TrackerError> {
    let from = Participant {
        server: id(name),
        address: format!("{name}:1"),
        rack: None,
        leads: name == "leader",
    };
    let transfers = vec![report.clone()];
    tracker.report(&from, &TransferRequest { transfers }, now)
}

#[test]
fn whatever_is_larger_than_it_may_be_is_refused_and_leaves_nothing_behind() {
    let (mut tracker, now) = (Tracker::default(), Moment::ZERO);
    let good = report(&[]);
    let many = (0..257).map(|n| UnitRun { first: 2 * n, count: 1 }).collect::<Vec<_>>();
    let names: Vec<ServerId> = (0..257).map(|n| id(&format!("x{n}"))).collect();
    let source = |n: usize| Source { server: id(&format!("x{n}")), address: "x:1".to_owned() };
    let told = |lease: Vec<UnitRun>, feeds: Vec<ServerId>| Some(Told { feeds, lease });
    let bad = [
        TransferReport { length: ARTIFACT_BYTES_MAX + 1, ..good.clone() },
        TransferReport { length: u64::MAX, ..good.clone() },
        TransferReport { have: many.clone(), ..good.clone() },
        TransferReport { silent: names.clone(), ..good.clone() },
        TransferReport { wrong: names.clone(), ..good.clone() },
        TransferReport { told: told(many, Vec::new()), ..good.clone() },
        TransferReport { told: told(Vec::new(), names), ..good.clone() },
        TransferReport { holders: (0..9).map(source).collect(), ..good.clone() },
        TransferReport { mirror_bytes: u64::MAX, ..good.clone() },
        TransferReport { peer_bytes: u64::MAX, ..good.clone() },
        // Out of order, overlapping, empty, beyond the end, beyond the range of numbers.
        report(&[(10, 1), (5, 1)]),
        report(&[(0, 10), (5, 10)]),
        report(&[(0, 0)]),
        report(&[(999, 2)]),
        report(&[(u32::MAX, u32::MAX)]),
        TransferReport {
            told: told(vec![UnitRun { first: 0, count: u32::MAX }], Vec::new()),
            ..good.clone()
        },
    ];
    for bad in bad {
        assert!(say(&mut tracker, "liar", &bad, now).is_err(), "{bad:?}");
        let request = TransferRequest { transfers: vec![good.clone(), bad] };
        assert!(request.check().is_err(), "{request:?}");
    }
    assert_eq!(TransferRequest { transfers: vec![good; REPORTS_MAX] }.check(), Ok(()));
    assert!(tracker.view(now).is_empty());
}

#[test]
fn a_wrong_length_stops_only_the_one_that_says_it() {
    let (mut tracker, now) = (Tracker::default(), Moment::ZERO);
    let wrong = TransferReport { length: UNIT_BYTES, have: Vec::new(), ..report(&[]) };
    say(&mut tracker, "liar", &wrong, now).unwrap();
    let refused = say(&mut tracker, "a", &report(&[]), now).unwrap_err();
    assert!(matches!(refused, TrackerError::Length { .. }));
    // The leader's own server follows the log.
    say(&mut tracker, "leader", &report(&[]), now).unwrap();
    let answer = say(&mut tracker, "a", &report(&[]), now).unwrap();
    assert_eq!(answer.guidance.len(), 1);
    assert!(say(&mut tracker, "liar", &wrong, now).is_err());
}

#[test]
fn what_the_log_contradicts_is_left_out() {
    let holder = |name: &str| Source { server: id(name), address: "elsewhere:1".to_owned() };
    let good = TransferReport { holders: vec![holder("ghost"), holder("b")], ..report(&[]) };
    let wrong = TransferReport { length: 7, ..report(&[]) };
    let unknown = TransferReport { artifact: digest(2), ..report(&[]) };
    let transfers = vec![good, wrong, unknown];
    let mut request = TransferRequest { transfers };
    request.keep_known(
        |artifact| (*artifact == digest(1)).then_some(u64::from(UNITS) * UNIT_BYTES),
        |_, server| (server.as_str() == "b").then(|| "b:1".to_owned()),
    );
    assert_eq!(request.transfers.len(), 2, "the log knows no deltas");
    let holders = &request.transfers[0].holders;
    assert_eq!(holders[..], [Source { server: id("b"), address: "b:1".to_owned() }]);
}

#[test]
fn made_up_transfers_do_not_push_out_the_one_that_many_fetch() {
    let (mut tracker, now) = (Tracker::default(), Moment::ZERO);
    for name in ["a", "b", "c"] {
        say(&mut tracker, name, &report(&[]), now).unwrap();
    }
    for n in 0..1_000 {
        let made_up = TransferReport { artifact: digest(n + 2), ..report(&[]) };
        let now = now + Duration::from_millis(n as u64);
        say(&mut tracker, "liar", &made_up, now).unwrap();
    }
    let views = tracker.view(now);
    assert!(views.len() <= 64, "{}", views.len());
    assert!(views.iter().any(|view| view.artifact == digest(1) && view.servers.len() == 3));
}

#[test]
fn rates_beyond_belief_bend_no_plan() {
    let (mut tracker, begun) = (Tracker::default(), Moment::ZERO);
    let at = |ms| begun + Duration::from_millis(ms);
    let mut told = Vec::new();
    for round in 0..40_u64 {
        let now = at(round * 200);
        let bytes = round * 12_000 * UNIT_BYTES;
        let liar = TransferReport {
            mirror_bytes: bytes,
            peer_bytes: bytes,
            have: vec![UnitRun { first: 0, count: 500 }],
            ..report(&[])
        };
        say(&mut tracker, "liar", &liar, now).unwrap();
        for name in ["a", "b", "c", "d"] {
            let honest = report(&[(0, u32::try_from(round).unwrap() * 12 + 1)]);
            told = say(&mut tracker, name, &honest, now).unwrap().guidance;
        }
    }
    let view = &tracker.view(at(8_000))[0];
    let slow: Vec<_> = view.servers.iter().filter(|server| server.slow).collect();
    assert!(slow.len() < 4 && !told.is_empty(), "{view:?}");
}

#[test]
fn a_server_that_storms_the_leader_is_answered_from_what_it_said_before() {
    let (mut tracker, begun) = (Tracker::default(), Moment::ZERO);
    say(&mut tracker, "a", &report(&[]), begun).unwrap();
    for us in 1..1_000 {
        let now = begun + Duration::from_micros(us);
        say(&mut tracker, "a", &report(&[(0, 500)]), now).unwrap();
    }
    let held = |tracker: &Tracker, now| tracker.view(now)[0].servers[0].held;
    assert_eq!(held(&tracker, begun), 0);
    let later = begun + Duration::from_millis(50);
    say(&mut tracker, "a", &report(&[(0, 500)]), later).unwrap();
    assert_eq!(held(&tracker, later), 500);
}
