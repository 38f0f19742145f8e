use cohort_core::ids::ServerId;
use cohort_core::machine::{DiskSpace, Machine};

use super::{KNOWN_MS, Machines};

const NOON_MS: u64 = 1_800_000_000_000;
const DAY_MS: u64 = 86_400_000;

fn server(n: u64) -> ServerId {
    ServerId::new(format!("s{n}")).unwrap()
}

fn clock(unix_ms: u64) -> Machine {
    Machine { unix_ms, disk: DiskSpace::Enough, vouched: true, stopped: false }
}

fn ahead_ms(machines: &Machines, now_ms: u64, n: u64) -> Option<i64> {
    machines.faults(now_ms).get(&server(n)).and_then(|faults| faults.clock_ahead_ms)
}

#[test]
fn a_clock_that_cannot_be_is_wrong_and_harmless() {
    let mut machines = Machines::default();
    for (n, unix_ms) in [(1, NOON_MS), (2, NOON_MS), (3, 1 << 63), (4, u64::MAX)] {
        machines.said(1_000, &server(n), 0, clock(unix_ms));
    }
    assert_eq!(ahead_ms(&machines, 1_000, 1), Some(0));
    assert!(ahead_ms(&machines, 1_000, 3).is_some_and(|ahead_ms| ahead_ms < 0));
}

#[test]
fn the_clock_that_differs_from_most_others_is_wrong() {
    let mut machines = Machines::default();
    machines.said(1_000, &server(1), 0, clock(NOON_MS));
    // With two, nobody knows which one it is.
    machines.said(3_000, &server(2), 0, clock(NOON_MS + DAY_MS + 2_000));
    assert_eq!((ahead_ms(&machines, 3_000, 1), ahead_ms(&machines, 3_000, 2)), (None, None));
    machines.said(4_000, &server(3), 0, clock(NOON_MS + 3_100));
    assert_eq!(ahead_ms(&machines, 4_000, 1), Some(0));
    assert_eq!(ahead_ms(&machines, 4_000, 2).map(|ms| ms / 1_000), Some(86_399));
    machines.said(5_000, &server(2), 0, clock(NOON_MS - DAY_MS));
    assert_eq!(ahead_ms(&machines, 5_000, 2).map(|ms| ms / 1_000), Some(-86_404));
    machines.said(6_000, &server(2), 0, clock(NOON_MS + 5_000));
    assert_eq!(ahead_ms(&machines, 6_000, 2), Some(0), "it is right again");
}

#[test]
fn a_server_hears_of_its_clock_what_the_leader_knows() {
    let (mut leader, mut member) = (Machines::default(), Machines::default());
    for (n, unix_ms) in [(1, NOON_MS), (2, NOON_MS), (3, NOON_MS + DAY_MS)] {
        leader.said(1_000, &server(n), 0, clock(unix_ms));
    }
    // It heard that server only.
    member.said(1_000, &server(3), 0, clock(NOON_MS + DAY_MS));
    let day = DAY_MS.cast_signed();
    assert_eq!(leader.clock_ahead_ms(1_000, &server(3), true), Some(day));
    assert_eq!(member.clock_ahead_ms(1_000, &server(3), false), None, "it cannot tell");
    member.judged(2_000, [(server(1), 0), (server(3), day)].into());
    assert_eq!(member.clock_ahead_ms(2_000, &server(3), false), Some(day));
    assert_eq!(member.clock_ahead_ms(2_000, &server(1), false), None, "not heard here");
    assert_eq!(member.clock_ahead_ms(2_000, &server(3), true), None, "it leads now");
    member.judged(3_000, [(server(3), 0)].into());
    assert_eq!(member.clock_ahead_ms(3_000, &server(3), false), Some(0));
    assert_eq!(member.clock_ahead_ms(3_001 + KNOWN_MS, &server(3), false), None, "too long ago");
    member.retain(|_| false);
    assert_eq!(member.clock_ahead_ms(3_000, &server(3), false), None);
}

#[test]
fn what_was_said_long_ago_counts_no_more_and_news_is_not_overtaken() {
    let mut machines = Machines::default();
    let full =
        Machine { unix_ms: NOON_MS, disk: DiskSpace::Exhausted, vouched: true, stopped: false };
    machines.said(5_000, &server(1), 0, full);
    machines.said(6_000, &server(1), 2_000, clock(NOON_MS));
    assert_eq!(machines.of(&server(1)), Some(full));
    assert_eq!(machines.faults(6_000)[&server(1)].disk, DiskSpace::Exhausted);
    assert!(machines.faults(5_001 + KNOWN_MS).is_empty());
    machines.retain(|server| server.as_str() != "s1");
    assert_eq!(machines.of(&server(1)), None);
}
