//! Fleets under faults that are drawn from seeds; more of them: `cargo xtask simulate`.

use cohort_simulate::fleet::chaos::{Chaos, Run};

/// In each of two tests: together five minutes on one core. Another number: `COHORT_SEEDS=1000`.
const SEEDS: u64 = 600;

fn everything_comes_right(first: u64) {
    let number = std::env::var("COHORT_SEEDS").ok().and_then(|text| text.parse().ok());
    let mut all = Run::default();
    for seed in first..first + number.unwrap_or(SEEDS) {
        println!("seed {seed}; to replay it: cargo xtask simulate --kind fleet --replay {seed}");
        all.add(&Chaos::new(seed).play());
    }
    let seen = [all.reads, all.transfers, all.logs_lost, all.gone, all.restored];
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

#[test]
fn everything_comes_right_whatever_happens_1() {
    everything_comes_right(0);
}

#[test]
fn everything_comes_right_whatever_happens_2() {
    everything_comes_right(SEEDS);
}

#[test]
fn a_seed_gives_the_same_run_every_time() {
    assert_eq!(Chaos::new(5).play(), Chaos::new(5).play());
}

#[test]
fn members_that_sleep_do_the_same_as_members_that_step_at_every_tick() {
    for seed in 0..8 {
        let (sleeping, stepping) = (Chaos::new(seed), Chaos::of_every_tick(seed));
        assert_eq!(sleeping.play(), stepping.play(), "seed {seed}");
    }
}
