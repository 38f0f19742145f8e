//! A seed finds each protection that is switched off, by the check that is there for it.

use cohort_simulate::mutations::PROTECTIONS;

/// Stale reads are rarely missed: some 240 seeds look for them.
const SEEDS: u64 = 1_000;

/// Every second protection, from that one on: two tests take half of the time.
fn every_second_is_found(first: usize) {
    for protection in PROTECTIONS.iter().skip(first).step_by(2) {
        let found = (0..SEEDS).find(|seed| protection.found_by(*seed).is_some());
        println!("{}: seed {found:?}", protection.name);
        assert!(found.is_some(), "{SEEDS} seeds do not miss {}", protection.name);
    }
}

#[test]
fn protections_that_are_off_are_found_1() {
    every_second_is_found(0);
}

#[test]
fn protections_that_are_off_are_found_2() {
    every_second_is_found(1);
}
