//! Power loss in every step of a rollout, with the kill switch thrown at the same moment.

use cohort_simulate::fleet::chaos::Chaos;

/// A rollout through three servers, in milliseconds.
const ROLLOUT_MS: usize = 20_000;

#[test]
fn a_server_that_loses_power_under_the_kill_switch_serves_again() {
    for at_ms in (0..ROLLOUT_MS).step_by(100) {
        println!("{at_ms} ms");
        Chaos::survives_power_loss(at_ms as u64);
    }
}
