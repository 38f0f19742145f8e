//! Fleets under faults that are drawn from seeds.
//!
//! Replay one seed: `COHORT_SEED=17 cargo test -p cohort-simulate --test fleet -- --nocapture`.
//! Run more of them: `COHORT_SEEDS=1000`; with `--release` and `--nocapture`, to see how many steps
//! a second they make.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use cohort_simulate::fleet::chaos::Chaos;

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
    let (begin, mut steps) = (Instant::now(), 0);
    let mut failed = Vec::new();
    for seed in 0..number("COHORT_SEEDS").unwrap_or(SEEDS) {
        match catch_unwind(AssertUnwindSafe(|| Chaos::new(seed, false).play())) {
            Ok(run) => steps += run.steps,
            Err(_) => failed.push(seed),
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("{steps} steps in {seconds:.1} s: {:.0} steps/s", steps as f64 / seconds);
    if let Some(seed) = failed.first() {
        panic!(
            "{} seeds failed; replay the first one by\n  COHORT_SEED={seed} cargo test -p \
             cohort-simulate --test fleet -- --nocapture",
            failed.len()
        );
    }
}
