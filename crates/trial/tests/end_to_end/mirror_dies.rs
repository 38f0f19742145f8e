//! A mirror dies in the middle of a file: the next mirror continues at the same unit.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cohort_trial::Fleet;
use cohort_trial::release::WebRelease;
use cohort_trial::watch::runs;
use cohort_wire::agent::TransferStatus;

use crate::trial::{GROUP, ONE_BY_ONE, PATIENCE, PLATFORM, Trial, Wanted, policy, until};

/// Incompressible bytes in the release.
const BALLAST: usize = 24 << 20;
/// The network's rate to the first mirror, per connection: the file takes seconds.
const BYTES_PER_SECOND: u64 = 4 << 20;
/// The mirror dies after this many bytes of the file.
const DIES_AT: u64 = 6 << 20;

const FROM_MIRRORS: &str = "cohort_bytes_received_total{from=\"mirror\"}";

#[test]
fn in_the_middle_of_a_file() -> Result<()> {
    // The agents know the first mirror by the address of a slow proxy.
    let line = TcpListener::bind("127.0.0.1:0")?;
    let slow = line.local_addr()?;
    let options = Wanted { servers: 3, mirrors: 2, ..Wanted::default() }.options("mirror")?;
    let dir = options.dir.clone();
    let mut fleet = Fleet::lay_out(options)?;
    let (first, second) = (fleet.mirror_address(0), fleet.mirror_address(1));
    fleet.add_agent_toml(&format!("mirrors = [\"http://{slow}/\", \"http://{second}/\"]"));
    let passed = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&passed);
    std::thread::spawn(move || slow_line(&line, first, &counted));

    let mut trial = Trial::around(fleet, dir)?;
    trial.first_release(&policy(ONE_BY_ONE, ""), &WebRelease::new("1.0.0"))?;
    let before = from_mirrors(&trial)?;
    let passed_before = passed.load(Ordering::Relaxed);
    ensure!(passed_before > 0, "the first mirror got no request");

    trial.publish(&WebRelease::new("1.1.0").ballast(BALLAST), &[PLATFORM])?;
    until("part of the file has arrived", PATIENCE, || {
        passed.load(Ordering::Relaxed) - passed_before >= DIES_AT
    })?;
    let moving = the_transfer(&trial)?;
    ensure!(moving.under_way && moving.mirror_bytes > 0, "not in transit: {moving:?}");
    ensure!(moving.length_bytes > BALLAST as u64 && moving.servers == 3, "{moving:?}");
    trial.kill_mirror(0);
    let at_death = from_mirrors(&trial)? - before;
    ensure!(at_death < BALLAST as f64, "the whole file had already arrived: {at_death} bytes");
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0"))?;

    let fetched = from_mirrors(&trial)? - before;
    let once = BALLAST as f64;
    // The service itself, unit hashes, and bytes in flight when the mirror died.
    ensure!(fetched >= once, "only {fetched} bytes came from mirrors");
    ensure!(fetched <= once + 6_000_000.0, "{fetched} bytes for a file of {once}");
    trial.pass()
}

/// What the group's leader reports about the release in transit.
fn the_transfer(trial: &Trial) -> Result<TransferStatus> {
    let status = trial.status(GROUP)?;
    let of_it = |transfer: &TransferStatus| {
        transfer.version.as_ref().is_some_and(|version| version.as_str() == "1.1.0")
    };
    status.transfers.into_iter().find(of_it).context("the group reports no transfer")
}

fn from_mirrors(trial: &Trial) -> Result<f64> {
    trial.servers().iter().map(|server| trial.figure(server, FROM_MIRRORS)).sum()
}

/// Proxies every connection to `to`, slowly, and counts the bytes that come back.
fn slow_line(line: &TcpListener, to: SocketAddr, passed: &Arc<AtomicU64>) {
    for client in line.incoming().flatten() {
        let passed = Arc::clone(passed);
        std::thread::spawn(move || {
            // A dead mirror refuses: the client sees its connection close.
            let Ok(mirror) = TcpStream::connect(to) else { return };
            let (Ok(mut up), Ok(mut up_to)) = (client.try_clone(), mirror.try_clone()) else {
                return;
            };
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut up, &mut up_to);
                let _ = up_to.shutdown(std::net::Shutdown::Write);
            });
            let _ = pass_slowly(mirror, &client, &passed);
            let _ = client.shutdown(std::net::Shutdown::Both);
        });
    }
}

fn pass_slowly(mut from: TcpStream, mut to: &TcpStream, passed: &AtomicU64) -> std::io::Result<()> {
    let mut buffer = vec![0; 32 << 10];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count])?;
        passed.fetch_add(count as u64, Ordering::Relaxed);
        // This sets the rate; it does not wait for anything.
        std::thread::sleep(Duration::from_secs(1) * count as u32 / BYTES_PER_SECOND as u32);
    }
}
