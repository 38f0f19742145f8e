//! Fleets under faults that are drawn from seeds; more of them: `cargo xtask simulate`.

use cohort_simulate::fleet::chaos::{Chaos, Run};

/// 40 seeds: some 15 s on one core. Another number: `COHORT_SEEDS=1000`.
const SEEDS: u64 = 40;

#[test]
fn everything_comes_right_whatever_happens() {
    let number = std::env::var("COHORT_SEEDS").ok().and_then(|text| text.parse().ok());
    let mut all = Run::default();
    for seed in 0..number.unwrap_or(SEEDS) {
        println!("seed {seed}; to replay it: cargo xtask simulate --kind fleet --replay {seed}");
        all.add(&Chaos::new(seed).play());
    }
    let seen = [all.reads, all.transfers, all.logs_lost, all.gone, all.restored];
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
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
