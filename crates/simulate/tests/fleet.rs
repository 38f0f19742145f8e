//! Fleets under faults that are drawn from seeds.
//!
//! Replay one seed: `COHORT_SEED=17 cargo test -p cohort-simulate --test fleet -- --nocapture`.
//! Run more of them: `COHORT_SEEDS=1000`; with `--release` and `--nocapture`, to see how many steps
//! a second they make.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use cohort_simulate::fleet::chaos::{
    Chaos, LOST_ENTRY, Mutation, OTHER_ENTRY, OTHER_STATE, Run, STALE_READ,
};

/// 40 seeds: some 15 s on one core.
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
    let seen = [all.reads, all.transfers, all.logs_lost, all.gone, all.restored];
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}

#[test]
fn a_seed_gives_the_same_run_every_time() {
    assert_eq!(Chaos::new(5, false).play(), Chaos::new(5, false).play());
}

#[test]
fn members_that_sleep_do_the_same_as_members_that_step_at_every_tick() {
    for seed in 0..8 {
        let (sleeping, stepping) = (Chaos::new(seed, false), Chaos::of_every_tick(seed));
        assert_eq!(sleeping.play(), stepping.play(), "seed {seed}");
    }
}

/// Seeds that look for a protection that is off, at most. Reads from a lease are rarely stale: up
/// to a hundred seeds look for them.
const SEEDS_MUTATED: u64 = 300;

/// Some seed finds that a protection is off, by the check that is there for it.
fn found(mutation: Mutation, check: &str) {
    let finds = |seed: &u64| {
        let chaos = Chaos::mutated(*seed, mutation);
        let played = catch_unwind(AssertUnwindSafe(|| chaos.play()));
        played.is_err_and(|panic| {
            panic.downcast_ref::<String>().is_some_and(|violation| violation.contains(check))
        })
    };
    match (0..SEEDS_MUTATED).find(finds) {
        Some(seed) => println!("seed {seed} finds {mutation:?}"),
        None => panic!("{SEEDS_MUTATED} seeds do not find {mutation:?}"),
    }
}

#[test]
fn disks_that_drop_entries_are_found() {
    found(Mutation::DropsEntry, LOST_ENTRY);
}

#[test]
fn stale_reads_are_found() {
    found(Mutation::StaleReads, STALE_READ);
}

#[test]
fn altered_entries_are_found() {
    found(Mutation::AltersEntry, OTHER_ENTRY);
}

#[test]
fn altered_snapshots_are_found() {
    found(Mutation::Diverges, OTHER_STATE);
}
