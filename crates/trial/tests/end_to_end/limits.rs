//! A zone's limit, written into the file while agents run, applies to a transfer in progress; and
//! servers stop fetching a withdrawn release.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use cohort_trial::Fleet;
use cohort_trial::release::WebRelease;
use cohort_trial::watch::runs;
use cohort_wire::agent::TransferStatus;

use crate::trial::{GROUP, ONE_BY_ONE, PATIENCE, PLATFORM, Trial, Wanted, policy, until};

/// Incompressible bytes in the release: more than the limit lets through during the test.
const BALLAST: usize = 48 << 20;
/// Bytes per second: a fraction of what the machine can transfer.
const LIMIT: f64 = 2e6;
const LINE: &str = "zone_download_limit = \"2MB/s\"";
/// Bytes that may run ahead: in the head's sockets, and in pieces read at once.
const AHEAD: f64 = 4e6;

const FROM_MIRRORS: &str = "cohort_bytes_received_total{from=\"mirror\"}";

#[test]
fn of_a_zone_hold_and_what_is_withdrawn_stops() -> Result<()> {
    let options = Wanted { servers: 3, mirrors: 1, ..Wanted::default() }.options("limits")?;
    let dir = options.dir.clone();
    let fleet = Fleet::lay_out(options)?;
    let trial = Trial::around(fleet, dir)?;
    trial.first_release(&policy(ONE_BY_ONE, ""), &WebRelease::new("1.0.0"))?;

    // Agents reread the file within a second; publishing a release of this size takes longer.
    for agent in trial.agents().values() {
        let file = agent.dir.join("agent.toml");
        // Insert before the labels table.
        fs::write(&file, format!("{LINE}\n{}", fs::read_to_string(&file)?))?;
    }
    trial.publish(&WebRelease::new("1.1.0").ballast(BALLAST), &[PLATFORM])?;
    until("bytes arrive", PATIENCE, || {
        moving(&trial, "1.1.0").is_ok_and(|transfer| transfer.mirror_bytes > 0)
    })?;
    let (begun, first) = (Instant::now(), from_mirrors(&trial)?);
    until("more bytes arrive", PATIENCE, || {
        from_mirrors(&trial).is_ok_and(|bytes| bytes > first + 4.0 * LIMIT)
    })?;
    let came = from_mirrors(&trial)? - first;
    let most = LIMIT * begun.elapsed().as_secs_f64() + AHEAD;
    ensure!(came <= most, "{came} bytes arrived, the limit allows {most}");

    // Withdrawn: the channel points to another release.
    trial.publish(&WebRelease::new("1.2.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.2.0"))?;
    let settled = from_mirrors(&trial)?;
    ensure!(
        settled < BALLAST as f64,
        "{settled} bytes: the withdrawn release was fetched completely"
    );
    ensure!(moving(&trial, "1.1.0").is_err(), "it is still in transit");
    trial.pass()
}

/// What the group's leader reports about a release in transit.
fn moving(trial: &Trial, version: &str) -> Result<TransferStatus> {
    let of_it = |transfer: &TransferStatus| {
        let named = transfer.version.as_ref().is_some_and(|known| known.as_str() == version);
        named && transfer.under_way
    };
    let transfers = trial.status(GROUP)?.transfers;
    transfers.into_iter().find(of_it).with_context(|| format!("{version} is not in transit"))
}

fn from_mirrors(trial: &Trial) -> Result<f64> {
    trial.servers().iter().map(|server| trial.figure(server, FROM_MIRRORS)).sum()
}
