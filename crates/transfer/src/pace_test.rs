//! When a server reports, and when it waits.

use std::time::Duration;

use cohort_core::ids::Digest;

use super::{NextReport, Pace};
use crate::guidance::Guidance;
use crate::tracker::{Told, TransferAnswer, TransferReport};
use crate::unit_set::UnitRun;
use crate::{Moment, UNIT_BYTES};

const UNITS: u32 = 100;

fn ms(ms: u64) -> Moment {
    Duration::from_millis(ms)
}

fn digest(letter: &str) -> Digest {
    letter.repeat(64).parse().unwrap()
}

fn run(count: u32) -> Vec<UnitRun> {
    vec![UnitRun { first: 0, count }]
}

fn report(held: u32) -> TransferReport {
    TransferReport {
        have: run(held),
        ..TransferReport::new(digest("a"), u64::from(UNITS) * UNIT_BYTES)
    }
}

fn answer(again_ms: u64, lease: u32) -> TransferAnswer {
    let guidance = Guidance { lease: run(lease), ..Guidance::default() };
    TransferAnswer { again_ms, guidance: vec![(digest("a"), guidance)], downlink_rate: None }
}

/// A pace whose report was answered at 0 ms.
fn reported(first: &TransferReport, answer: &TransferAnswer) -> Pace {
    let mut pace = Pace::default();
    assert_eq!(pace.next(ms(0), std::slice::from_ref(first), vec![]), NextReport::Now);
    assert!(pace.answered(ms(0), answer).is_empty());
    pace
}

fn check() -> NextReport {
    NextReport::Wait { pause: ms(25), idle: false }
}

#[test]
fn without_transfers_only_an_order_wakes_it() {
    let wait = NextReport::Wait { pause: Duration::MAX, idle: true };
    assert_eq!(Pace::default().next(ms(1_000), &[], vec![]), wait);
}

#[test]
fn it_reports_when_the_leader_asked_for_it() {
    let mut pace = reported(&report(1), &answer(200, 0));
    assert_eq!(pace.next(ms(199), &[report(2)], vec![]), check());
    assert_eq!(pace.next(ms(200), &[report(2)], vec![]), NextReport::Now);
}

#[test]
fn news_come_early_and_not_too_often() {
    let mut pace = reported(&report(1), &answer(4_000, 0));
    let silent = TransferReport { silent: vec!["s1".parse().unwrap()], ..report(1) };
    assert_eq!(pace.next(ms(49), std::slice::from_ref(&silent), vec![]), check());
    assert_eq!(pace.next(ms(50), std::slice::from_ref(&silent), vec![]), NextReport::Now);
    assert_eq!(pace.next(ms(120), &[silent], vec![]), check());
    assert_eq!(pace.next(ms(140), &[report(UNITS)], vec![]), NextReport::Now);
}

#[test]
fn a_lease_is_topped_up_when_less_than_half_is_left() {
    let mut pace = reported(&report(0), &answer(4_000, 40));
    let leased = |held| {
        let told = Some(Told { feeds: vec![], lease: run(40) });
        TransferReport { told, ..report(held) }
    };
    assert_eq!(pace.next(ms(60), &[leased(20)], vec![]), check());
    assert_eq!(pace.next(ms(60), &[leased(21)], vec![]), NextReport::Now);
}

#[test]
fn what_is_whole_waits_until_it_is_due() {
    let mut pace = reported(&report(UNITS), &answer(4_000, 0));
    let wait = NextReport::Wait { pause: ms(3_900), idle: true };
    assert_eq!(pace.next(ms(100), &[report(UNITS)], vec![]), wait);
}

#[test]
fn a_finished_fetch_is_told_until_a_leader_answers() {
    let mut pace = reported(&report(1), &answer(4_000, 0));
    let ended = || vec![digest("b")];
    assert_eq!(pace.next(ms(100), &[report(1)], ended()), NextReport::Now);
    pace.unanswered(ms(100));
    assert_eq!(pace.next(ms(349), &[report(1)], ended()), check());
    assert_eq!(pace.next(ms(350), &[report(1)], ended()), NextReport::Now);
    // Even a leader that asks for no pause is not asked immediately.
    assert_eq!(pace.answered(ms(350), &answer(0, 0)), ended());
    assert_eq!(pace.next(ms(399), &[report(1)], vec![]), check());
    assert_eq!(pace.next(ms(400), &[report(1)], vec![]), NextReport::Now);
}
