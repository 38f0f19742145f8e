//! Servers that are slow, that die, or that serve wrong bytes.

use std::fs;
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::zone::{Transfer, UNIT_BYTES, Zone};
use crate::bench::{GROUP, median};

/// A killed server is restarted after this.
const AWAY: Duration = Duration::from_secs(1);

/// Timeout for the group to be complete again.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// How often servers are polled.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The median time of transfers until all servers but some had it, in seconds.
fn usual_s(base: &[Transfer], but: &[&str]) -> Result<f64> {
    median(&mut base.iter().map(|transfer| transfer.end_s(but)).collect::<Vec<_>>())
}

/// One server with a tenth of the NIC's rate.
pub(super) fn slow(
    zone: &mut Zone,
    base: &[Transfer],
    runs: usize,
    mib: usize,
) -> Result<Vec<f64>> {
    let leader = leader(zone)?;
    // Neither the leader nor the first by name, which is usually the head.
    let slow = zone.servers().into_iter().skip(5).find(|name| *name != leader);
    let slow = slow.context("no server that may be slow")?;
    let links = zone.links;
    let mbit = links.nic_mbit / 10;
    zone.network.limit(&slow, mbit, mbit)?;
    let (mut others, mut own) = (Vec::new(), Vec::new());
    let usual = usual_s(base, &[&slow])?;
    for _ in 0..runs {
        let transfer = zone.transfer(&format!("{slow} has {mbit} Mbit/s"), mib)?;
        let alone_s = transfer.limit_s * f64::from(links.downlink_mbit.min(links.nic_mbit))
            / f64::from(mbit.min(links.downlink_mbit));
        let end = transfer.ends[&slow];
        eprintln!(
            "    {slow}: {end:.2} s of {alone_s:.2}; the others {:.2} s, usually {usual:.2}",
            transfer.end_s(&[&slow])
        );
        others.push((transfer.end_s(&[&slow]) / usual - 1.0) * 100.0);
        own.push(end / alone_s);
    }
    zone.network.limit(&slow, links.nic_mbit, links.nic_mbit)?;
    Ok(vec![median(&mut others)?, median(&mut own)?])
}

/// `kill -9` of the server that talks to the mirror; it is restarted after a second.
pub(super) fn kill_head(
    zone: &mut Zone,
    base: &[Transfer],
    runs: usize,
    mib: usize,
) -> Result<Vec<f64>> {
    // The head is usually the first by name; the leader should be another server.
    let third_leads = |zone: &Zone| {
        let to = zone.servers().into_iter().nth(2).context("three servers")?;
        if leader(zone)? != to {
            zone.fleet.run(&["group", "transfer-leader", GROUP, "--to", &to])?;
        }
        Ok(())
    };
    kill(zone, base, runs, mib, third_leads, |zone| {
        let killed = head(zone)?;
        zone.fleet.kill_agent(&killed);
        sleep(AWAY);
        zone.fleet.start_agent(&killed)?;
        Ok(killed)
    })
}

/// `kill -9` of the leader; it stays down until the transfer has ended.
pub(super) fn kill_leader(
    zone: &mut Zone,
    base: &[Transfer],
    runs: usize,
    mib: usize,
) -> Result<Vec<f64>> {
    kill(
        zone,
        base,
        runs,
        mib,
        |_| Ok(()),
        |zone| {
            let killed = leader(zone)?;
            let was_head = zone.network.asks_mirror(&killed)?;
            zone.fleet.kill_agent(&killed);
            eprintln!("    {killed} was {}the head", if was_head { "" } else { "not " });
            Ok(killed)
        },
    )
}

/// Delay of the other servers, and WAN copies, when `strike` kills a server a third into the
/// transfer. `before` prepares each run. A server that `strike` does not restart is not waited for.
fn kill(
    zone: &mut Zone,
    base: &[Transfer],
    runs: usize,
    mib: usize,
    before: fn(&Zone) -> Result<()>,
    strike: fn(&mut Zone) -> Result<String>,
) -> Result<Vec<f64>> {
    let (mut delays, mut wans) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        before(zone)?;
        let mut killed = String::new();
        let transfer = zone.transfer_with("a server dies", mib, |zone| {
            sleep(Duration::from_secs_f64(zone.links.limit_s((mib as u64) << 20) / 3.0));
            killed = strike(zone)?;
            let lost = zone.fleet.agent_pid(&killed).is_none();
            Ok(lost.then(|| killed.clone()).into_iter().collect())
        })?;
        let usual = usual_s(base, &[&killed])?;
        let end = transfer.end_s(&[&killed]);
        eprintln!("    {killed} died; the others {end:.2} s, usually {usual:.2}");
        delays.push(end - usual);
        wans.push(transfer.wan);
        if zone.fleet.agent_pid(&killed).is_none() {
            zone.fleet.start_agent(&killed)?;
        }
        settled(zone)?;
    }
    Ok(vec![median(&mut delays)?, median(&mut wans)?])
}

/// One server's disk lies: it holds the artifact, complete by name, length and hashes, but every
/// unit is wrong. It starts just after the others, and offers them everything.
pub(super) fn corrupt(zone: &mut Zone, mib: usize) -> Result<f64> {
    let leader = leader(zone)?;
    let bad = zone.servers().into_iter().skip(1).find(|name| *name != leader);
    let bad = bad.context("no server whose disk may lie")?;
    let ready = zone.publish(mib << 20)?;
    let before = refused(zone, &bad)?;
    zone.fleet.stop_agent(&bad);
    let mut bytes = fs::read(zone.original(&ready.root))?;
    for unit in bytes.chunks_mut(UNIT_BYTES) {
        unit[0] ^= 1;
    }
    let held = zone.artifacts(&bad).join(&ready.root);
    fs::write(&held, bytes)?;
    let hashes = format!("{}.units", ready.root);
    fs::copy(zone.original(&hashes), zone.artifacts(&bad).join(&hashes))?;
    let lost = bad.clone();
    // Not earlier: an agent removes artifacts that were not ordered when it starts.
    let transfer = zone.send(&ready, |zone| {
        zone.fleet.start_agent(&lost)?;
        Ok(vec![lost])
    })?;
    transfer.tell(&format!("the disk of {bad} lies"));
    let refused = refused(zone, &bad)? - before;
    let why = zone.fleet.try_run(&["why", GROUP]).map(|output| output.stdout).unwrap_or_default();
    let why = String::from_utf8_lossy(&why);
    let named = why.lines().find(|line| line.contains(&bad) && line.contains("wrong"));
    eprintln!("    {refused} units were refused, {} forwarded", transfer.wrong_units);
    eprintln!("    `cohort why`: {}", named.map_or("does not name it", str::trim));
    ensure!(refused >= 1.0, "no wrong unit was offered, so nothing was proven");
    // Repair its disk, so that later rows are not affected.
    zone.fleet.stop_agent(&bad);
    fs::remove_file(&held)?;
    zone.fleet.start_agent(&bad)?;
    settled(zone)?;
    Ok(transfer.wrong_units as f64)
}

fn leader(zone: &Zone) -> Result<String> {
    let leader = zone.fleet.leader(GROUP)?.context("a group at rest has a leader")?;
    Ok(leader.as_str().to_owned())
}

/// A server that talks to the mirror; not the leader, if there is another.
fn head(zone: &Zone) -> Result<String> {
    let leader = leader(zone)?;
    let begun = Instant::now();
    loop {
        let mut found = None;
        for server in zone.servers() {
            if zone.network.asks_mirror(&server)? && (server != leader || found.is_none()) {
                found = Some(server);
            }
        }
        if let Some(found) = found {
            return Ok(found);
        }
        ensure!(begun.elapsed() < AWAY, "no server talks to the mirror");
        sleep(LOOK_EVERY);
    }
}

/// Waits until every agent responds, and every server has responded recently.
fn settled(zone: &Zone) -> Result<()> {
    let begun = Instant::now();
    for agent in zone.fleet.agents().values() {
        while TcpStream::connect_timeout(&agent.probe, Duration::from_secs(1)).is_err() {
            ensure!(begun.elapsed() < SETTLE_MAX, "{} does not come back", agent.server);
            sleep(LOOK_EVERY);
        }
    }
    zone.fleet.until_complete(SETTLE_MAX)?;
    let fresh = |age: Option<u64>| age.is_some_and(|age| age < 3_000);
    zone.fleet
        .until(GROUP, SETTLE_MAX, |status| {
            status.linearizable
                && status.servers.iter().all(|(id, server)| {
                    status.leader.as_ref() == Some(id) || fresh(server.contact_age_ms)
                })
        })
        .map(drop)
}

/// Total units refused by all servers except `but`, from their metrics.
fn refused(zone: &Zone, but: &str) -> Result<f64> {
    let others = zone.servers().into_iter().filter(|server| server != but);
    others.map(|server| zone.fleet.figure(&server, "cohort_units_refused_total")).sum()
}
