//! Prints how transfers go in simulated zones: time ÷ limit, copies through the downlink, depth.
//!
//! `cargo run -p cohort-transfer --example simulate_zone`; the zones of `docs/benchmarks.md`. For
//! another zone, change [`Setup`] in `table`.

#![allow(clippy::disallowed_macros, reason = "it prints a table; the crate does no IO")]

#[path = "../tests/zone/origin.rs"]
mod origin;
#[path = "../tests/zone/server.rs"]
mod server;
#[path = "../tests/zone/setup.rs"]
mod setup;
#[path = "../tests/zone/storm.rs"]
mod storm;
#[path = "../tests/zone/zone.rs"]
mod zone;

use origin::Origin;
use setup::{Lie, Setup};
use storm::storm;
use zone::run;

fn main() {
    table();
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
    show_storm(100, &setup, Origin::new(125_000_000, 64));
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

fn show_storm(groups: usize, setup: &Setup, origin: Origin) {
    let outcome = storm(groups, setup, origin);
    println!(
        "{groups} groups behind one origin: all after {} ms, wan {:.4}, a new leader has told \
         everybody after {} ms, {} requests refused; requests per second:",
        outcome.all_ms, outcome.wan, outcome.rebuilt_ms, outcome.refused
    );
    println!("{:?}, at most {}", outcome.asked, outcome.most(0, usize::MAX));
}
