//! What people see of a transfer.

use std::time::Duration;

use cohort_core::ids::ServerId;

use super::{
    Accusation, OFFENCES_MAX, Participant, Tracker, TrackerError, TransferAnswer, TransferReport,
    TransferRequest, TransferView,
};
use crate::offence::Offence;
use crate::source::SourceName;
use crate::unit_set::UnitRun;
use crate::{Moment, UNIT_BYTES as UNIT};

const UNITS: u32 = 1_024;

struct Zone {
    tracker: Tracker,
    begun: Moment,
}

fn id(name: &str) -> ServerId {
    name.parse().unwrap()
}

/// The report of a server that has the first `held` units.
fn report(held: u32, mirror_bytes: u64, peer_bytes: u64) -> TransferReport {
    TransferReport {
        have: (held > 0).then_some(UnitRun { first: 0, count: held }).into_iter().collect(),
        mirror_bytes,
        peer_bytes,
        ..TransferReport::new("ab".repeat(32).parse().unwrap(), u64::from(UNITS) * UNIT)
    }
}

impl Zone {
    fn new() -> Self {
        Self { tracker: Tracker::default(), begun: Moment::ZERO }
    }

    fn at(&self, ms: u64) -> Moment {
        self.begun + Duration::from_millis(ms)
    }

    fn say(
        &mut self,
        ms: u64,
        server: &str,
        report: TransferReport,
    ) -> Result<TransferAnswer, TrackerError> {
        let from = Participant {
            server: id(server),
            address: "10.0.0.1:7417".to_owned(),
            rack: None,
            leads: server == "s0",
        };
        let request = TransferRequest { transfers: vec![report] };
        let now = self.at(ms);
        self.tracker.report(&from, &request, now)
    }

    fn view(&self, ms: u64) -> TransferView {
        self.tracker.view(self.at(ms)).pop().unwrap()
    }
}

#[test]
fn bytes_rates_and_the_time_left_are_added_up_over_all_servers() {
    let mut zone = Zone::new();
    for server in ["s0", "s1", "s2"] {
        zone.say(0, server, report(0, 0, 0)).unwrap();
    }
    // One unit a millisecond from the mirror, and as much from the head to each of the others.
    for step in 1..=8 {
        let (ms, held) = (step * 50, u32::try_from(step * 50).unwrap());
        zone.say(ms, "s0", report(held, u64::from(held) * UNIT, 0)).unwrap();
        zone.say(ms, "s1", report(held, 0, u64::from(held) * UNIT)).unwrap();
        zone.say(ms, "s2", report(held, 0, u64::from(held) * UNIT)).unwrap();
    }
    let view = zone.view(400);
    assert!(view.under_way);
    assert_eq!((view.mirror_bytes, view.peer_bytes), (400 * UNIT, 800 * UNIT));
    assert_eq!((view.whole, view.took_ms, view.idle_ms), (0, None, 0));
    assert_eq!(view.heads.len(), 1);
    assert_eq!(view.mirror_rate, UNIT * 1_000);
    assert_eq!(view.left_ms, Some(624), "624 units are missing");
    let mut depths: Vec<usize> = view.servers.iter().map(|server| server.depth).collect();
    depths.sort_unstable();
    assert_eq!(depths, [0, 1, 2], "one chain: {view:?}");
}

#[test]
fn what_a_fetch_that_began_anew_received_before_still_counts() {
    let mut zone = Zone::new();
    zone.say(0, "s0", report(100, 100 * UNIT, 0)).unwrap();
    zone.say(1_000, "s0", report(100, 10 * UNIT, 0)).unwrap();
    zone.say(2_000, "s0", report(150, 50 * UNIT, 3 * UNIT)).unwrap();
    let view = zone.view(2_000);
    assert_eq!((view.mirror_bytes, view.peer_bytes), (150 * UNIT, 3 * UNIT));
}

#[test]
fn when_all_have_it_the_view_says_how_long_it_took_and_what_the_downlink_gave() {
    let mut zone = Zone::new();
    let length = u64::from(UNITS) * UNIT;
    zone.say(0, "s0", report(0, 0, 0)).unwrap();
    zone.say(0, "s1", report(0, 0, 0)).unwrap();
    zone.say(1_000, "s0", report(512, length / 2, 0)).unwrap();
    assert!(zone.view(1_000).under_way);
    zone.say(2_000, "s0", report(UNITS, length, 0)).unwrap();
    let last = zone.say(2_300, "s1", report(UNITS, 0, length)).unwrap();
    assert_eq!(last.downlink_rate, Some(length / 2), "so that all remember it");
    // Later their fetches have ended, and they only report that they have it.
    zone.say(5_000, "s0", report(UNITS, 0, 0)).unwrap();
    let view = zone.view(6_000);
    assert!(!view.under_way);
    assert_eq!((view.took_ms, view.left_ms), (Some(2_300), None));
    assert_eq!((view.mirror_bytes, view.peer_bytes), (length, length));
    assert_eq!(view.downlink_rate, Some(length / 2), "two seconds for all of it");
    assert_eq!((view.whole, view.idle_ms), (2, 1_000));
    assert!(view.heads.is_empty(), "nobody asks mirrors any more");
}

#[test]
fn too_little_from_mirrors_says_nothing_about_the_downlink() {
    let mut zone = Zone::new();
    zone.say(0, "s0", report(0, 0, 0)).unwrap();
    zone.say(3_000, "s0", report(8, 8 * UNIT, 0)).unwrap();
    assert_eq!(zone.view(3_000).downlink_rate, None);
}

#[test]
fn offenders_are_named_by_those_who_met_them() {
    let mut zone = Zone::new();
    zone.say(0, "s1", report(10, 0, 0)).unwrap();
    let accusation =
        Accusation { source: SourceName::Server(id("s1")), what: Offence::WrongBytes, count: 2 };
    let told = TransferReport { offences: vec![accusation.clone()], ..report(4, 0, 4 * UNIT) };
    zone.say(10, "s0", told).unwrap();
    let view = zone.view(20);
    let told: Vec<_> = view.servers.iter().map(|server| server.accusations.clone()).collect();
    assert_eq!(told, [vec![accusation.clone()], vec![]]);

    let many = vec![accusation; OFFENCES_MAX + 1];
    let refused = zone.say(40, "s0", TransferReport { offences: many, ..report(4, 0, 0) });
    assert!(matches!(refused, Err(TrackerError::TooMany { what: "offences", .. })), "{refused:?}");
    let long = Accusation {
        source: SourceName::Mirror("x".repeat(9_000)),
        what: Offence::Silent,
        count: 1,
    };
    zone.say(60, "s0", TransferReport { offences: vec![long], ..report(4, 0, 4 * UNIT) }).unwrap();
    let view = zone.view(60);
    let longest =
        view.servers.iter().flat_map(|s| &s.accusations).map(|a| a.source.to_string().len()).max();
    assert_eq!(longest, Some(200));
}
