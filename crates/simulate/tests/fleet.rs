//! Fleets under faults that are drawn from seeds.
//!
//! Replay one seed: `COHORT_SEED=17 cargo test -p cohort-simulate --test fleet -- --nocapture`.
//! Run more of them: `COHORT_SEEDS=1000`; with `--release` and `--nocapture`, to see how many steps
//! a second they make.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use cohort_simulate::fleet::chaos::{Chaos, Run};

/// 40 seeds: some 30 s on one core.
const SEEDS: u64 = 40;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn everything_comes_right_whatever_happens() {
    if let Some(seed) = number("COHORT_SEED") {
        let _ = Chaos::new(seed, true).play();
        return;
    }
    let (begin, mut all) = (Instant::now(), Run::default());
    let mut failed = Vec::new();
    for seed in 0..number("COHORT_SEEDS").unwrap_or(SEEDS) {
        match catch_unwind(AssertUnwindSafe(|| Chaos::new(seed, false).play())) {
            Ok(run) => all.add(&run),
            Err(_) => failed.push(seed),
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("{} steps in {seconds:.1} s: {:.0} steps/s", all.steps, all.steps as f64 / seconds);
    if let Some(seed) = failed.first() {
        panic!(
            "seeds {failed:?} failed; replay the first one by\n  COHORT_SEED={seed} cargo test -p \
             cohort-simulate --test fleet -- --nocapture",
        );
    }
    let seen = [all.reads, all.transfers, all.logs_lost, all.gone];
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

#[test]
fn a_seed_gives_the_same_run_every_time() {
    assert_eq!(Chaos::new(5, false).play(), Chaos::new(5, false).play());
}
