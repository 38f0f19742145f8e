//! How long people wait for what they look at: a line of a service, and the status of many groups.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cohort_trial::{Fleet, Process, Programs};

use super::{GROUP, Row, median, one_group};
use crate::build::example;

const SERVERS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(120);
/// [`PATIENCE`] in seconds, for the command line.
const PATIENCE_S: &str = "120";
/// Lines that a service writes.
const LINES: u32 = 50;
/// Between two of them, and how much longer each pause is than the one before: an agent looks at a
/// log every 50 ms, and each line comes at another moment of them.
const PAUSE: Duration = Duration::from_millis(150);
const LATER: Duration = Duration::from_millis(1);
const FOLLOW_GOAL_MS: f64 = 200.0;
/// Groups of the fleet, one of them real.
const GROUPS: usize = 500;
/// How often `cohort status` is measured.
const TIMES: u32 = 10;
/// Until the registry's records of the last rollout are written.
const SETTLES: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);
const STATUS_GOAL_MS: f64 = 300.0;

pub(crate) fn measure(programs: &Programs, dir: PathBuf) -> Result<Vec<Row>> {
    let copies = example("cohort-hub", "copies", "release")?;
    let mut fleet = one_group(programs, dir, SERVERS)?;
    let follow_ms = follow(&fleet)?;
    let status_ms = status(&mut fleet, &copies)?;
    fleet.stop()?;
    Ok(vec![
        Row::lower("logs.follow_ms", follow_ms, "ms", FOLLOW_GOAL_MS),
        Row::lower("status.500_groups_ms", status_ms, "ms", STATUS_GOAL_MS),
    ])
}

/// The longest time from when a service is asked to write a line until `cohort logs web-1 --follow`
/// has printed it, in milliseconds.
fn follow(fleet: &Fleet) -> Result<f64> {
    let server = fleet.agents().keys().next().context("a group has servers")?;
    let mut command = fleet.command(&["logs", server, "--follow"]);
    let mut logs = command.stdout(Stdio::piped()).spawn().context("following a log")?;
    let printed = logs.stdout.take().context("its output is a pipe");
    let waits = printed.and_then(|printed| waits(fleet, server, printed));
    logs.kill()?;
    logs.wait()?;
    let mut waits = waits?;
    let typical = median(&mut waits)?;
    let longest = waits.into_iter().fold(0.0, f64::max);
    eprintln!("  a line is followed after {typical:.1} ms (median), {longest:.1} ms (longest)");
    Ok(longest)
}

/// How long each line takes to be printed, in milliseconds.
fn waits(fleet: &Fleet, server: &str, printed: ChildStdout) -> Result<Vec<f64>> {
    let (tell, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(printed).lines().map_while(Result::ok);
        for line in lines {
            if tell.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    let printed_at = |event: &str| -> Result<Instant> {
        loop {
            let told = lines.recv_timeout(PATIENCE);
            let (at, line) = told.with_context(|| format!("no line with {event} is printed"))?;
            if line.contains(event) {
                return Ok(at);
            }
        }
    };
    // An old line: from now on, the command follows.
    printed_at("event=start")?;
    let mut waits = Vec::new();
    for nth in 0..LINES {
        std::thread::sleep(PAUSE + LATER * nth);
        let begun = Instant::now();
        let (written, _) = fleet.page(server, "/say")?;
        ensure!(written, "the service of {server} writes no line");
        waits.push((printed_at("event=asked")? - begun).as_secs_f64() * 1000.0);
    }
    Ok(waits)
}

/// The median time of `cohort status` in a fleet of [`GROUPS`], in milliseconds: the real group,
/// and copies of it, which the program `copies` makes while the hub is stopped.
fn status(fleet: &mut Fleet, copies: &Path) -> Result<f64> {
    std::thread::sleep(SETTLES);
    fleet.run(&["status", "--wait", PATIENCE_S])?;
    let original = fleet.dir().join("status.json");
    fs::write(&original, serde_json::to_vec(&fleet.status(GROUP)?)?)?;
    fleet.stop_hub();
    eprintln!("copying the group {} times…", GROUPS - 1);
    let _copies = start_copies(fleet, copies, &original)?;
    fleet.start_hub()?;
    // The agents find the hub again; and the copies have answered once.
    fleet.run(&["status", "--wait", PATIENCE_S])?;
    let shown: serde_json::Value = serde_json::from_str(&fleet.run(&["status", "-o", "json"])?)?;
    let groups = shown["groups"].as_array().map_or(0, Vec::len);
    ensure!(groups == GROUPS, "the status is of {groups} groups, not {GROUPS}");
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let begun = Instant::now();
        fleet.run(&["status"])?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    let typical = median(&mut times)?;
    let longest = times.into_iter().fold(0.0, f64::max);
    eprintln!("  the status takes {typical:.0} ms (median), {longest:.0} ms (longest)");
    Ok(typical)
}

/// Starts the copies, and waits until they are in the registry and answer.
fn start_copies(fleet: &Fleet, program: &Path, original: &Path) -> Result<Process> {
    let log = fleet.log_file("copies");
    let mut command = Command::new(program);
    command.arg(fleet.context_dir()).arg(original).arg((GROUPS - 1).to_string());
    let mut copies = Process::start("copies", &mut command, &log)?;
    let begun = Instant::now();
    loop {
        let printed = fs::read_to_string(&log)?;
        if printed.contains("ready") {
            return Ok(copies);
        }
        ensure!(copies.runs(), "the copies ended: {printed}");
        ensure!(begun.elapsed() < PATIENCE, "no copies after {PATIENCE:?}: {printed}");
        std::thread::sleep(POLL);
    }
}
