//! `cargo xtask simulate`: plays seeds, replays one, or switches protections off.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use cohort_simulate::fleet::chaos::Trace;
use cohort_simulate::mutations::PROTECTIONS;
use cohort_simulate::play::{Count, Kind, play};

/// Play fleets and their consensus from seeds, under faults
#[derive(Debug, Parser)]
#[command(name = "cargo xtask simulate", bin_name = "cargo xtask simulate")]
struct Args {
    /// The only simulation to play [default: fleet and consensus, seed by seed]
    #[arg(long, value_enum)]
    kind: Option<Simulation>,
    /// Number of seeds [default: 100, or as many as fit into --minutes]
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Play this seed only
    #[arg(long, conflicts_with_all = ["seeds", "first", "minutes"])]
    seed: Option<u64>,
    /// Start no more seeds after this many minutes
    #[arg(long)]
    minutes: Option<u64>,
    /// Play this seed and print what happens
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seed", "seeds", "first", "minutes"])]
    replay: Option<u64>,
    /// With --replay: print this group only, such as intel.zone-a
    #[arg(long, requires = "replay")]
    group: Option<String>,
    /// Switch protections off one at a time; each must be found within --seeds [default: 2000]
    #[arg(long, conflicts_with_all = ["seed", "replay", "kind", "minutes"])]
    mutations: bool,
    /// With --mutations: only protections whose name contains this
    #[arg(long, requires = "mutations")]
    only: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Simulation {
    /// Groups of servers with their members, hub, mirror and operators
    Fleet,
    /// The consensus of one group
    Consensus,
    /// The same, of members with different election timeouts and heartbeats
    Timings,
}

impl Args {
    fn kinds(&self) -> &'static [Kind] {
        match self.kind {
            Some(Simulation::Fleet) => &[Kind::Fleet],
            Some(Simulation::Consensus) => &[Kind::Consensus],
            Some(Simulation::Timings) => &[Kind::Timings],
            None => &[Kind::Fleet, Kind::Consensus],
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.replay.is_none() {
        // A violation is printed with its seed; the place of the check is in the replay.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let passed = if args.mutations {
        mutations(args.first, args.seeds.unwrap_or(2000), args.only.as_deref())
    } else if let Some(seed) = args.replay {
        let trace = args.group.clone().map_or(Trace::Fleet, Trace::Group);
        seeds(args.kinds(), seed, 1, None, &trace)
    } else if let Some(seed) = args.seed {
        seeds(args.kinds(), seed, 1, None, &Trace::Off)
    } else {
        let limit = args.minutes.map(|minutes| Duration::from_secs(minutes * 60));
        let count = args.seeds.unwrap_or(if limit.is_some() { u64::MAX } else { 100 });
        seeds(args.kinds(), args.first, count, limit, &Trace::Off)
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plays seeds; true if none found a violation.
fn seeds(kinds: &[Kind], first: u64, count: u64, limit: Option<Duration>, trace: &Trace) -> bool {
    let (begun, mut all, mut violations) = (Instant::now(), Count::default(), 0u64);
    for seed in first..first.saturating_add(count) {
        if limit.is_some_and(|limit| begun.elapsed() >= limit) {
            println!("seeds {first} to {}", seed - 1);
            break;
        }
        for kind in kinds {
            match play(*kind, seed, trace) {
                Ok(count) => all.add(count),
                Err(what) => {
                    violations += 1;
                    let name = match kind {
                        Kind::Fleet => "fleet",
                        Kind::Consensus => "consensus",
                        Kind::Timings => "timings",
                    };
                    println!("seed {seed}, {name}: {what}");
                    println!("  replay: cargo xtask simulate --kind {name} --replay {seed}");
                }
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{seconds:.1} s: {:.0} steps/s", all.steps as f64 / seconds);
    println!("{} steps, {} faults, {violations} violations", all.steps, all.faults);
    violations == 0
}

/// Switches protections off one at a time; true if each was found.
fn mutations(first: u64, count: u64, only: Option<&str>) -> bool {
    let mut missed = 0u64;
    let chosen = PROTECTIONS.iter().filter(|one| only.is_none_or(|only| one.name.contains(only)));
    for protection in chosen {
        let mut tried = first..first.saturating_add(count);
        let found = tried.find_map(|seed| Some((seed, protection.found_by(seed)?)));
        match found {
            Some((seed, what)) => {
                let line = what.lines().last().unwrap_or_default();
                let what: String = line.chars().take(100).collect();
                println!("{:<40} {:>5} seeds  {what}", protection.name, seed - first + 1);
            }
            None => {
                missed += 1;
                println!("{:<40} not found within {count} seeds", protection.name);
            }
        }
    }
    println!("{missed} protections not found");
    missed == 0
}
