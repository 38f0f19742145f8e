//! Consensus under faults, from seeds; more of them: `cargo xtask simulate`.

use cohort_simulate::play::CONSENSUS_STEPS as STEPS;
use cohort_simulate::raft::{Lies, Setup, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number in the environment"))
}

/// `SEEDS=n` runs n seeds in each of the tests below instead of their own number.
fn hold(first: u64, count: u64, steps: u64) {
    for seed in first..first + number("SEEDS").unwrap_or(count) {
        if let Err(violation) = run(Setup::new(seed, steps)) {
            panic!("{violation}");
        }
    }
}

#[test]
fn seeds_hold_1() {
    hold(0, 400, STEPS);
}

#[test]
fn seeds_hold_2() {
    hold(1_000_000, 400, STEPS);
}

#[test]
fn seeds_hold_3() {
    hold(2_000_000, 400, STEPS);
}

#[test]
fn seeds_hold_with_every_timing_that_may_be_set() {
    for seed in 4_000_000..4_000_000 + number("SEEDS").unwrap_or(300) {
        if let Err(violation) = run(Setup { timings: true, ..Setup::new(seed, STEPS) }) {
            panic!("{violation}");
        }
    }
}

#[test]
fn long_runs_hold() {
    hold(3_000_000, 12, 100_000);
}

#[test]
fn a_seed_gives_the_same_run_every_time() {
    for seed in [5, 77, 1234] {
        let first = run(Setup::new(seed, STEPS)).expect("the seed holds");
        for _ in 0..3 {
            assert_eq!(run(Setup::new(seed, STEPS)).expect("the seed holds"), first);
        }
    }
}

#[test]
fn restored_disks_are_found_out() {
    let outcomes = (0..200).map(|seed| run(Setup::new(seed, STEPS)).expect("the seed holds"));
    assert!(outcomes.map(|outcome| outcome.went_back).sum::<u64>() > 0);
}

#[test]
fn what_a_member_wishes_for_breaks_no_rule_and_no_lie_makes_another_one_panic() {
    for seed in 5_000_000..5_000_000 + number("SEEDS").unwrap_or(200) {
        for lies in [Lies::Wishes, Lies::Everything] {
            if let Err(violation) = run(Setup { lies, ..Setup::new(seed, STEPS) }) {
                panic!("{violation}");
            }
        }
    }
}
