//! Prints how transfers go in simulated zones: time ÷ limit, copies through the downlink, depth.
//!
//! `cargo run -p cohort-distribute --example simulate_zone` prints a table; with `--help` the options
//! are shown by which one zone, or many groups behind one origin, are described.

mod options;
mod origin;
mod server;
mod setup;
mod storm;
mod zone;

use options::{Options, USAGE};
use origin::Origin;
use setup::{Lie, Setup};
use storm::storm;
use zone::run;

fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.is_empty() {
        table();
        return std::process::ExitCode::SUCCESS;
    }
    if words.iter().any(|word| word == "--help") {
        println!("{USAGE}");
        return std::process::ExitCode::SUCCESS;
    }
    match Options::parse(&words) {
        Ok(options) if options.groups > 1 => show_storm(&options),
        Ok(options) => {
            head();
            show("as asked", &options.setup);
        }
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            return std::process::ExitCode::from(2);
        }
    }
    std::process::ExitCode::SUCCESS
}

fn head() {
    println!(
        "{:>38}  ratio    all_ms  others_ms  wan     depth  reports/s  crossed  rebuilt_ms",
        "zone"
    );
}

fn table() {
    head();
    for servers in [10, 20, 100, 1_000] {
        for (downlink, link) in [(50, 250), (100, 500), (100, 100), (50, 1_000)] {
            let setup = Setup::new(servers, 64, downlink, link);
            show(&format!("{servers} servers, {downlink}/{link} Mbit/s"), &setup);
        }
    }
    let setup = Setup::new(10, 64, 50, 250);
    show("a head dies", &Setup { head_dies: Some(3_000), ..setup.clone() });
    show("two in the chain die", &Setup { die: [(4, 2_000), (5, 4_000)].into(), ..setup.clone() });
    show("a slow one in the middle", &Setup { links: [(4, 3_125_000)].into(), ..setup.clone() });
    show("another leader", &Setup { no_leader: Some((3_000, 1_000)), ..setup.clone() });
    show("no leader for long", &Setup { no_leader: Some((3_000, 600_000)), ..setup.clone() });
    show("four racks", &Setup { rack: Some(10), ..Setup::new(40, 64, 50, 250) });
    for (name, lie) in Lie::ALL {
        show(&format!("one that {name}"), &Setup { lies: [(1, lie)].into(), ..setup.clone() });
    }
    let setup = Setup { no_leader: Some((5_000, 1_000)), ..Setup::new(10, 16, 50, 250) };
    show_storm(&Options { setup, groups: 100, origin_mbit: 1_000, places: 64 });
}

fn show(name: &str, setup: &Setup) {
    let outcome = run(setup);
    println!(
        "{name:>38}  {:.3}  {:>8}  {:>9}  {:.4}  {:>5}  {:>9}  {:>7.2}  {:>10}",
        outcome.ratio,
        outcome.all_ms,
        outcome.others_ms,
        outcome.wan,
        outcome.depth,
        outcome.reports_per_s,
        outcome.crossed,
        outcome.rebuilt_ms
    );
}

fn show_storm(options: &Options) {
    let origin = Origin::new(options.origin_mbit * 125_000, options.places);
    let outcome = storm(options.groups, &options.setup, origin);
    println!(
        "{} groups, an origin of {} Mbit/s and {} places: all after {} ms, wan {:.4}, a new leader \
         has told everybody after {} ms, {} requests refused; requests per second:",
        options.groups,
        options.origin_mbit,
        options.places,
        outcome.all_ms,
        outcome.wan,
        outcome.rebuilt_ms,
        outcome.refused
    );
    println!("{:?}, at most {}", outcome.asked, outcome.most(0, usize::MAX));
}
