//! Whether what is decided and shown keeps up: the cost of a plan, an entry and a simulated step;
//! what a group at rest writes; how long until a silent server is reported and replaced.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cohort_trial::release::WebRelease;
use cohort_trial::{Fleet, Programs, watch};

use super::{Better, GROUP, PLATFORM, POLICY, Row, one_group, one_group_with};
use crate::build::cargo;

const PATIENCE: Duration = Duration::from_secs(180);
/// How long entries of a group at rest are counted.
const REST: Duration = Duration::from_secs(60);
/// Until the registry's records of the last rollout are written.
const SETTLES: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);
/// `cohort status` exits with this code while something is not as it should be.
const EXIT_NOT_WELL: i32 = 3;

pub(crate) fn measure(programs: &Programs, mut dir: PathBuf) -> Result<Vec<Row>> {
    let mut rows = computed()?;
    rows.extend(idle(programs, dir.join("idle"))?);
    rows.push(replaced(programs, dir.join("voter"))?);
    dir.push("silence");
    rows.push(told(programs, dir)?);
    Ok(rows)
}

/// The figures that need no processes, from an example of the simulator.
fn computed() -> Result<Vec<Row>> {
    eprintln!("plans, entries and simulated steps (builds the simulator first)…");
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--package", "cohort-simulate"]);
    let output = command.args(["--example", "figures"]).output().context("start cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the simulator's figures: {}\n{errors}", output.status);
    let row = |what: &'static str, unit, goal, better| {
        let line = text.lines().find_map(|line| line.strip_prefix(what)?.trim().parse().ok());
        Row::new(what, line, unit, Some(goal), better)
    };
    Ok(vec![
        row("plan.1000x5_ms", "ms", 10.0, Better::Lower),
        row("apply.1000x5_ms", "ms", 1.0, Better::Lower),
        row("simulate.steps_per_s", "1/s", 50_000.0, Better::Higher),
        row("simulate.1000_s", "s", 120.0, Better::Lower),
    ])
}

/// Entries that a group of ten writes in a minute at rest, and with one server that owes.
fn idle(programs: &Programs, dir: PathBuf) -> Result<Vec<Row>> {
    let mut fleet = one_group(programs, dir, 10)?;
    let rests = entries_per_minute(&fleet)?;
    let owing = fleet.agents().keys().next_back().context("ten agents")?.clone();
    let hook = format!("#!/bin/sh\n[ \"$COHORT_SERVER\" != {owing} ]\n");
    fleet.apply(&POLICY.replace("[update]", "[update]\nfailures_allowed = 1"))?;
    let release = WebRelease::new("1.1.0").hook("before-install", &hook);
    fleet.publish(&release, &[PLATFORM])?;
    fleet.until(GROUP, PATIENCE, |status| {
        watch::app(status).is_some_and(|app| {
            let debts = app.servers.values().filter(|server| server.debt.is_some()).count();
            app.last_good.as_ref().is_some_and(|good| good.as_str() == "1.1.0") && debts == 1
        })
    })?;
    let owes = entries_per_minute(&fleet)?;
    fleet.stop()?;
    Ok(vec![
        Row::lower("idle.entries_per_minute", rests, "1/min", 1.0),
        Row::lower("idle.owing_entries_per_minute", owes, "1/min", 6.0),
    ])
}

fn entries_per_minute(fleet: &Fleet) -> Result<f64> {
    std::thread::sleep(SETTLES);
    let (before, begun) = (fleet.status(GROUP)?.commit, Instant::now());
    std::thread::sleep(REST);
    let written = fleet.status(GROUP)?.commit - before;
    Ok(written as f64 * 60.0 / begun.elapsed().as_secs_f64())
}

/// From the power cut of a voter that never comes back until the group has five others.
fn replaced(programs: &Programs, dir: PathBuf) -> Result<Row> {
    let mut fleet = one_group_with(programs, dir, 6, "replace_after = \"10s\"\n")?;
    let status = fleet.until(GROUP, PATIENCE, |status| status.voters.len() == 5)?;
    let mut voters = status.voters.iter().map(|voter| &voter.server);
    let lost = voters.find(|server| Some(*server) != status.leader.as_ref());
    let lost = lost.context("four voters follow")?.clone();
    let begun = power_off(&mut fleet, lost.as_str());
    fleet.until(GROUP, PATIENCE, |status| {
        status.voters.len() == 5 && status.voters.iter().all(|voter| voter.server != lost)
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    fleet.stop()?;
    Ok(Row::lower("voter.replaced_s", seconds, "s", 15.0))
}

/// From the power cut of a server at rest until `cohort status` exits with 3 and `cohort why` names
/// the server.
fn told(programs: &Programs, dir: PathBuf) -> Result<Row> {
    let mut fleet = one_group(programs, dir, 5)?;
    let leader = fleet.leader(GROUP)?.context("a group at rest has a leader")?;
    let lost = fleet.agents().keys().find(|name| *name != leader.as_str());
    let lost = lost.context("five agents")?.clone();
    let begun = power_off(&mut fleet, &lost);
    while !is_told(&fleet, &lost)? {
        ensure!(begun.elapsed() < PATIENCE, "{lost} is not reported after {PATIENCE:?}");
        std::thread::sleep(POLL);
    }
    let seconds = begun.elapsed().as_secs_f64();
    fleet.stop()?;
    Ok(Row::lower("silence.told_s", seconds, "s", 35.0))
}

fn is_told(fleet: &Fleet, server: &str) -> Result<bool> {
    if fleet.try_run(&["status"])?.status.code() != Some(EXIT_NOT_WELL) {
        return Ok(false);
    }
    let why = fleet.try_run(&["why", GROUP])?;
    Ok(String::from_utf8_lossy(&why.stdout).contains(server))
}

fn power_off(fleet: &mut Fleet, server: &str) -> Instant {
    eprintln!("{server} loses power…");
    let begun = Instant::now();
    fleet.power_off(server);
    begun
}
