//! Prints how transfers go in simulated zones: time ÷ limit, copies through the downlink, depth.
//!
//! `cargo run -p cohort-distribute --example simulate_zone`

mod zone;

use zone::{Setup, run};

fn main() {
    println!("{:>38}  ratio    all_ms  wan     depth  reports/s", "zone");
    let sizes = [10, 20, 100, 1_000];
    for servers in sizes {
        for (downlink, link) in [(50, 250), (100, 500), (100, 100), (50, 1_000)] {
            let setup = Setup::new(servers, 64, downlink, link);
            show(&format!("{servers} servers, {downlink}/{link} Mbit/s"), &setup);
        }
    }
    let setup = Setup::new(10, 64, 50, 250);
    show("a head dies", &Setup { head_dies: Some(3_000), ..setup.clone() });
    show("two in the chain die", &Setup { die: [(4, 2_000), (5, 4_000)].into(), ..setup.clone() });
    show("a slow one in the middle", &Setup { links: [(4, 3_125_000)].into(), ..setup.clone() });
    show("another leader", &Setup { new_leader: Some(3_000), ..setup.clone() });
    show("four racks", &Setup { rack: Some(10), ..Setup::new(40, 64, 50, 250) });
}

fn show(name: &str, setup: &Setup) {
    let outcome = run(setup);
    println!(
        "{name:>38}  {:.3}  {:>8}  {:.4}  {:>5}  {:>9}  crossed {:.2} others_ms {}",
        outcome.ratio,
        outcome.all_ms,
        outcome.wan,
        outcome.depth,
        outcome.reports_per_s,
        outcome.crossed,
        outcome.others_ms
    );
}
