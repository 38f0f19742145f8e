//! Consensus under faults, from seeds; and the same with a rule switched off, to see that the
//! simulation would notice.

use cohort_consensus::Weaken;
use cohort_simulate::raft::{NOT_A_VOTER, NOT_CONVERGED, STALE_READ, Setup, run};

/// Events per seed: long enough for some elections, snapshots and membership changes.
const STEPS: u64 = 3000;

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

/// Replays one seed with a line for every event: `SEED=… [STEPS=…] cargo test -p cohort-simulate
/// --test raft replay -- --nocapture`.
#[test]
fn replay() {
    let seed = number("SEED").unwrap_or(0);
    let steps = number("STEPS").unwrap_or(STEPS);
    let (trace, timings) = (number("SEED").is_some(), number("TIMINGS").is_some());
    match run(Setup { trace, timings, ..Setup::new(seed, steps) }) {
        Ok(outcome) => println!("seed {seed} holds: {outcome:?}"),
        Err(violation) => panic!("{violation}"),
    }
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

/// The number of the first seed that notices, which must be below `seeds`.
fn noticed(seeds: u64, change: impl Fn(&mut Setup)) -> String {
    for seed in 0..seeds {
        let mut setup = Setup::new(seed, STEPS);
        change(&mut setup);
        if let Err(violation) = run(setup) {
            println!("noticed by seed {seed}: {}", violation.what);
            return violation.what;
        }
    }
    panic!("{seeds} seeds did not notice");
}

#[test]
fn disks_that_lie_about_syncs_are_noticed_within_20_seeds() {
    noticed(20, |setup| setup.lying_disks = true);
}

#[test]
fn restored_disks_are_found_out() {
    let outcomes = (0..200).map(|seed| run(Setup::new(seed, STEPS)).expect("the seed holds"));
    assert!(outcomes.map(|outcome| outcome.went_back).sum::<u64>() > 0);
}

#[test]
fn restored_disks_that_nobody_asks_about_are_noticed_within_100_seeds() {
    noticed(100, |setup| setup.weaken = Weaken { no_proof: true, ..Weaken::default() });
}

#[test]
fn a_leader_that_does_not_step_down_is_noticed_within_100_seeds() {
    let what = noticed(100, |setup| {
        setup.weaken = Weaken { no_step_down: true, ..Weaken::default() };
    });
    assert!(what.contains(NOT_A_VOTER), "{what}");
}

#[test]
fn snapshots_without_a_report_are_noticed_within_100_seeds() {
    let what = noticed(100, |setup| {
        setup.weaken = Weaken { no_snapshot_report: true, ..Weaken::default() };
    });
    assert!(what.contains(NOT_CONVERGED), "{what}");
}

#[test]
fn reads_from_a_lease_are_noticed_within_300_seeds() {
    let what = noticed(300, |setup| {
        setup.weaken = Weaken { lease_reads: true, ..Weaken::default() };
    });
    assert!(what.contains(STALE_READ), "{what}");
}
