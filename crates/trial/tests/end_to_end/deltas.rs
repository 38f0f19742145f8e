//! A release with few changes needs few bytes: the servers build it from the running release.

use anyhow::{Result, ensure};
use cohort_trial::release::WebRelease;
use cohort_trial::watch::runs;

use crate::trial::{GROUP, ONE_BY_ONE, PATIENCE, PLATFORM, Trial, policy};

const FROM_MIRRORS: &str = "cohort_bytes_received_total{from=\"mirror\"}";
const FROM_PEERS: &str = "cohort_bytes_received_total{from=\"peer\"}";

#[test]
fn a_small_change_crosses_the_network_as_one() -> Result<()> {
    let trial = Trial::of("deltas", 3)?;
    trial.first_release(&policy(ONE_BY_ONE, ""), &WebRelease::new("1.0.0"))?;
    // The program, which is identical in the next release.
    let whole = figure(&trial, FROM_MIRRORS)?;
    let peers = figure(&trial, FROM_PEERS)?;
    ensure!(whole > 300_000.0, "the first release is fetched whole: {whole} bytes");

    trial.publish(&WebRelease::new("1.1.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0"))?;
    let mirrors = figure(&trial, FROM_MIRRORS)? - whole;
    let peers = figure(&trial, FROM_PEERS)? - peers;
    ensure!(mirrors * 10.0 < whole, "{mirrors} of {whole} bytes came from mirrors");
    ensure!(peers * 5.0 < whole, "{peers} of {whole} bytes went from server to server");
    trial.pass()
}

fn figure(trial: &Trial, name: &str) -> Result<f64> {
    trial.servers().iter().map(|server| trial.figure(server, name)).sum()
}
