//! Whether a flood of connections from one address keeps out anybody else.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cohort_core::Body;
use cohort_core::ids::{AppId, BootEpoch, GroupId, Incarnation, RequestId, ServerId};
use cohort_core::orders::Fence;
use cohort_core::report::{Outcome, Report};
use cohort_identity::{Identity, UnixTime};
use cohort_trial::flood::Flood;
use cohort_trial::{Fleet, Programs};
use cohort_wire::agent::{CommandRequest, SignedSubmission, Submission};

use super::{Better, GROUP, Row, median, one_group};

const SERVERS: usize = 5;
/// How often each thing is tried under the flood.
const TIMES: u32 = 100;
/// The flood's address; everything else is on 127.0.0.1.
const FROM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Connections a second to each port.
const PER_S: u32 = 300;
/// For the flood to fill what it can fill.
const FILLS: Duration = Duration::from_secs(10);
const LATENCY_RATIO_GOAL: f64 = 3.0;
/// Reports signed and verified.
const SIGNED: u32 = 1_000;
const REVOKED_S_GOAL: f64 = 10.0;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn measure(programs: &Programs, dir: PathBuf) -> Result<Vec<Row>> {
    let mut fleet = one_group(programs, dir, SERVERS)?;
    let leader = fleet.leader(GROUP)?.context("a group at rest has a leader")?;
    let agent = &fleet.agents()[leader.as_str()];
    let (signing_us, revoked_s) = (signing(&fleet, leader.as_str())?, revoked(&fleet)?);
    let before_ms = commits(&fleet, leader.as_str(), "before")?;
    let flood = Flood::start(FROM, &[agent.address, agent.probe, fleet.hub_address()], PER_S)?;
    // Nothing tells when its ports are as full as they get.
    std::thread::sleep(FILLS);
    let during_ms = commits(&fleet, leader.as_str(), "during")?;
    let probes = (0..TIMES).filter(|_| fleet.ready(leader.as_str()).is_ok_and(|(ready, _)| ready));
    let probes = probes.count();
    let kills = kills(&fleet)?;
    let made = flood.made();
    drop(flood);
    let refused = fleet.figure(leader.as_str(), "cohort_connections_refused_total")?;
    eprintln!("  {made} connections of the flood; the leader refused or ended {refused}");
    eprintln!("  a commit: {before_ms:.2} ms before, {during_ms:.2} ms during the flood");
    ensure!(refused > 0.0, "the flood did not reach any limit: nothing was measured");
    fleet.stop()?;
    let attacks = crate::tidy::attacks()?;
    let percent = |count: usize| Some(count as f64 * 100.0 / f64::from(TIMES));
    Ok(vec![
        Row::new("flood.kill_on_percent", percent(kills), "%", Some(100.0), Better::Higher),
        Row::new("flood.probe_percent", percent(probes), "%", Some(100.0), Better::Higher),
        Row::lower("flood.commit_latency_ratio", during_ms / before_ms, "", LATENCY_RATIO_GOAL),
        Row::lower("revoke.seconds", revoked_s, "s", REVOKED_S_GOAL),
        Row::new("sign.report_us", Some(signing_us), "µs", None, Better::Lower),
        Row::new("security.attacks_refused", Some(attacks as f64), "", None, Better::Higher),
    ])
}

/// What it costs to sign a report and to verify it, together, in microseconds.
fn signing(fleet: &Fleet, server: &str) -> Result<f64> {
    let identity = Identity::load(&fleet.agents()[server].dir.join("data/identity"))?;
    let group = GroupId::new(GROUP)?;
    let report = Report {
        server: ServerId::new(server)?,
        boot_epoch: BootEpoch(1),
        sequence: 1,
        app: AppId::new("web")?,
        fence: Fence::default(),
        attempt: 1,
        outcome: Outcome::Checked,
    };
    let begun = Instant::now();
    for _ in 0..SIGNED {
        let (report, incarnation) = (report.clone(), Incarnation(1));
        let submission = Submission::Report { life: 1, incarnation, report };
        let signed = SignedSubmission::sign(&identity, &group, submission)?;
        let verified = signed.verify(identity.roots(), &group, UnixTime::now());
        ensure!(verified.is_ok(), "an honest report verifies");
    }
    Ok(begun.elapsed().as_secs_f64() * 1e6 / f64::from(SIGNED))
}

/// How long until every agent refuses a revoked operator, in seconds.
fn revoked(fleet: &Fleet) -> Result<f64> {
    let token = fleet.run(&["token", "create", "--role", "operator", "--name", "eve"])?;
    let (file, context) = (fleet.dir().join("eve.token"), fleet.dir().join("eve"));
    std::fs::write(&file, token)?;
    let thief = |args: &[&str]| -> Result<bool> {
        let mut command = fleet.command(args);
        Ok(command.env("COHORT_CONTEXT", &context).output()?.status.success())
    };
    let file = file.to_str().context("a path in text")?;
    ensure!(thief(&["context", "join", file, "--name", "eve", "--role", "operator"])?, "eve joins");
    let is_in = |server: &str| {
        let address = fleet.agents()[server].address.to_string();
        thief(&["kill", "status", "--agent", &address, "--name", server])
    };
    let begun = Instant::now();
    fleet.run(&["person", "revoke", "eve"])?;
    for server in fleet.agents().keys() {
        while is_in(server)? {
            ensure!(begun.elapsed() < PATIENCE, "{server} does not refuse eve");
        }
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// How many `kill on` of the operator succeed. Each is a process with connections of its own.
fn kills(fleet: &Fleet) -> Result<usize> {
    let mut succeeded = 0;
    for time in 1..=TIMES {
        let reason = format!("flood {time}");
        let on = fleet.try_run(&["kill", "on", "--scope", GROUP, "--reason", &reason])?;
        if on.status.success() {
            succeeded += 1;
        } else {
            eprintln!("  kill on {time}: {}", String::from_utf8_lossy(&on.stderr));
        }
        fleet.try_run(&["kill", "off", "--scope", GROUP])?;
    }
    Ok(succeeded)
}

/// The median time of a command that the group commits, in milliseconds: one that changes nothing,
/// because no rollout can be resumed.
fn commits(fleet: &Fleet, leader: &str, part: &str) -> Result<f64> {
    let mut times = Vec::new();
    for time in 0..TIMES {
        let request = RequestId(format!("flood-{part}-{time}"));
        let body = Body::Resume { app: AppId::new("web")? };
        let begun = Instant::now();
        let command = CommandRequest { request, body };
        let answer = fleet.submit(leader, &GroupId::new(GROUP)?, command)?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        ensure!(answer.index > 0, "the group commits it");
    }
    median(&mut times)
}
