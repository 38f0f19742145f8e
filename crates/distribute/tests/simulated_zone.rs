//! Bounds that a transfer keeps in simulated zones of 10 to 1,000 servers.
//!
//! Ratios are without the headers of packets, which cost 4.6 % on a real wire.

#[path = "../examples/simulate_zone/zone.rs"]
mod zone;

use zone::{Outcome, Setup, run};

fn bounded(setup: &Setup, ratio: f64, wan: f64) -> Outcome {
    let outcome = run(setup);
    assert!(outcome.ratio <= ratio && outcome.wan <= wan, "{outcome:?}, {setup:?}");
    outcome
}

#[test]
fn small_groups_take_what_the_downlink_takes() {
    for servers in [1, 2, 10, 20] {
        bounded(&Setup::new(servers, 64, 50, 250), 1.03, 1.0);
    }
    bounded(&Setup::new(10, 64, 100, 500), 1.05, 1.0);
    bounded(&Setup::new(10, 64, 100, 100), 1.06, 1.0);
}

#[test]
fn a_thousand_servers_too() {
    let outcome = bounded(&Setup::new(1_000, 64, 50, 1_000), 1.35, 1.0);
    assert!(outcome.reports_per_s < 2_000 && outcome.depth < 1_000, "{outcome:?}");
}

#[test]
fn whoever_dies_the_others_go_on() {
    let setup = Setup::new(10, 64, 50, 250);
    let undisturbed = run(&setup).others_ms;
    let cases = [
        Setup { head_dies: Some(3_000), ..setup.clone() },
        Setup { die: [(4, 2_000), (5, 4_000)].into(), ..setup.clone() },
        Setup { new_leader: Some(3_000), ..setup.clone() },
    ];
    for case in cases {
        let outcome = bounded(&case, 1.2, 1.02);
        assert!(outcome.others_ms <= undisturbed + 1_000, "{outcome:?}, {case:?}");
    }
}

#[test]
fn a_slow_server_slows_nobody_else() {
    let setup = Setup::new(10, 64, 50, 250);
    let undisturbed = run(&setup).others_ms;
    let outcome = run(&Setup { links: [(4, 3_125_000)].into(), ..setup });
    assert!(outcome.others_ms <= undisturbed * 102 / 100, "{outcome:?}");
    // Its own limit: 64 MiB at 25 Mbit/s.
    assert!(outcome.all_ms <= 21_475 * 108 / 100, "{outcome:?}");
}

#[test]
fn the_links_of_racks_carry_it_once() {
    let outcome = run(&Setup { rack: Some(10), ..Setup::new(40, 64, 50, 250) });
    assert!(outcome.crossed <= 3.3, "{outcome:?}");
    assert!(outcome.wan <= 1.0, "{outcome:?}");
}
