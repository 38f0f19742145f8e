//! Runs many seeds of the consensus simulation and prints what they amounted to.
//!
//! `cargo run -p cohort-simulate --example raft_trial -- FIRST..LAST STEPS [SECONDS]`

use std::time::{Duration, Instant};

use cohort_simulate::raft::{Outcome, Setup, run};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let range = arguments.next().unwrap_or_else(|| "0..100".to_owned());
    let (first, last) = range.split_once("..").expect("a range of seeds, FIRST..LAST");
    let (first, last): (u64, u64) =
        (first.parse().expect("FIRST is a number"), last.parse().expect("LAST is a number"));
    let number = |text: Option<String>, otherwise: u64| {
        text.map_or(otherwise, |text| text.parse().expect("a number"))
    };
    let steps = number(arguments.next(), 3000);
    let time = Duration::from_secs(number(arguments.next(), 3600));
    let begin = Instant::now();
    let (mut seeds, mut failures, mut sum) = (0u64, 0u64, Outcome::default());
    for seed in first..last {
        match run(Setup::new(seed, steps)) {
            Ok(outcome) => {
                sum.steps += outcome.steps;
                sum.last_term = sum.last_term.max(outcome.last_term);
                sum.applied += outcome.applied;
                sum.acknowledged += outcome.acknowledged;
                sum.crashes += outcome.crashes;
                sum.snapshots += outcome.snapshots;
                sum.configurations += outcome.configurations;
                sum.reads += outcome.reads;
                sum.messages += outcome.messages;
            }
            Err(violation) => {
                failures += 1;
                println!("{violation}");
            }
        }
        seeds += 1;
        if begin.elapsed() > time {
            break;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("seeds {seeds}, failures {failures}, {seconds:.1} s");
    println!("{:.0} steps/s; in all {sum:?}", sum.steps as f64 / seconds);
    if failures > 0 {
        std::process::exit(1);
    }
}
