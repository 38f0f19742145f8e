//! The limit of a zone, written into the file while agents run, holds while a release comes; and a
//! release that is withdrawn comes no further.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use cohort_trial::Fleet;
use cohort_trial::release::WebRelease;
use cohort_trial::watch::runs;
use cohort_wire::agent::TransferStatus;

use crate::trial::{GROUP, ONE_BY_ONE, PATIENCE, PLATFORM, Trial, Wanted, policy, until};

/// What does not compress in the release: more than comes at the limit while anybody waits.
const BALLAST: usize = 48 << 20;
/// Bytes per second: a fraction of what the machine does.
const LIMIT: f64 = 2e6;
const LINE: &str = "zone_download_limit = \"2MB/s\"";
/// What the sockets of the head hold, and pieces that were read at once.
const AHEAD: f64 = 4e6;

const FROM_MIRRORS: &str = "cohort_bytes_received_total{from=\"mirror\"}";

#[test]
fn of_a_zone_hold_and_what_is_withdrawn_stops() -> Result<()> {
    let options = Wanted { servers: 3, mirrors: 1, ..Wanted::default() }.options("limits")?;
    let dir = options.dir.clone();
    let fleet = Fleet::lay_out(options)?;
    let trial = Trial::around(fleet, dir)?;
    trial.first_release(&policy(ONE_BY_ONE, ""), &WebRelease::new("1.0.0"))?;

    // Read again within a second; to publish a release of this size takes longer.
    for agent in trial.agents().values() {
        let file = agent.dir.join("agent.toml");
        // Before the table of labels begins.
        fs::write(&file, format!("{LINE}\n{}", fs::read_to_string(&file)?))?;
    }
    trial.publish(&WebRelease::new("1.1.0").ballast(BALLAST), &[PLATFORM])?;
    until("bytes come", PATIENCE, || {
        moving(&trial, "1.1.0").is_ok_and(|transfer| transfer.mirror_bytes > 0)
    })?;
    let (begun, first) = (Instant::now(), from_mirrors(&trial)?);
    until("more bytes come", PATIENCE, || {
        from_mirrors(&trial).is_ok_and(|bytes| bytes > first + 4.0 * LIMIT)
    })?;
    let came = from_mirrors(&trial)? - first;
    let most = LIMIT * begun.elapsed().as_secs_f64() + AHEAD;
    ensure!(came <= most, "{came} bytes came where the limit allows {most}");

    // Withdrawn: the channel points to another release.
    trial.publish(&WebRelease::new("1.2.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.2.0"))?;
    let settled = from_mirrors(&trial)?;
    ensure!(settled < BALLAST as f64, "{settled} bytes: the withdrawn release came whole");
    ensure!(moving(&trial, "1.1.0").is_err(), "it is still on its way");
    trial.pass()
}

/// What the group's leader says of a release that is on its way.
fn moving(trial: &Trial, version: &str) -> Result<TransferStatus> {
    let of_it = |transfer: &TransferStatus| {
        let named = transfer.version.as_ref().is_some_and(|known| known.as_str() == version);
        named && transfer.under_way
    };
    let transfers = trial.status(GROUP)?.transfers;
    transfers.into_iter().find(of_it).with_context(|| format!("{version} is not on its way"))
}

fn from_mirrors(trial: &Trial) -> Result<f64> {
    trial.servers().iter().map(|server| trial.figure(server, FROM_MIRRORS)).sum()
}
