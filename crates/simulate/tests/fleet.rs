//! Fleets under faults that are drawn from seeds; more of them: `cargo xtask simulate`.

use std::ops::Range;

use cohort_simulate::fleet::chaos::{Chaos, Run};

/// Plays these seeds; with `COHORT_SEEDS=1000`, so many from the first one.
fn everything_comes_right(seeds: Range<u64>) {
    let number = std::env::var("COHORT_SEEDS").ok().and_then(|text| text.parse::<u64>().ok());
    let end = number.map_or(seeds.end, |number| seeds.start + number);
    let mut all = Run::default();
    for seed in seeds.start..end {
        println!("seed {seed}; to replay it: cargo xtask simulate --kind fleet --replay {seed}");
        all.add(&Chaos::new(seed).play());
    }
    let seen = [all.reads, all.transfers, all.logs_lost, all.gone, all.restored];
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

#[test]
fn everything_comes_right_whatever_happens_1() {
    everything_comes_right(0..600);
}

#[test]
fn everything_comes_right_whatever_happens_2() {
    everything_comes_right(600..1_200);
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
