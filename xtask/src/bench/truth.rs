//! Whether what is decided and shown keeps up: the cost of a plan, an entry and a simulated step;
//! what a group at rest writes; how long until a silent server is reported and replaced.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cohort_trial::release::WebRelease;
use cohort_trial::{Fleet, Programs, watch};

use super::Better::{Higher, Lower};
use super::{GROUP, Goal, PLATFORM, POLICY, Row, one_group, one_group_with};
use crate::build::example;

const PATIENCE: Duration = Duration::from_secs(180);
/// How long entries of a group at rest are counted.
const REST: Duration = Duration::from_secs(60);
/// Until the registry's records of the last rollout are written.
const SETTLES: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);
/// `cohort status` exits with this code while something is not as it should be.
const EXIT_NOT_WELL: i32 = 3;
/// How long computing the figures of one part may take: twice the highest goal, and other work on
/// the machine.
const COMPUTES_MAX: Duration = Duration::from_secs(300);

/// Rows that are measured together.
struct Part {
    rows: &'static [Goal],
    measure: Measure,
}

enum Measure {
    /// Without processes, by the simulator's example of that name.
    Computed,
    /// With a fleet in this directory.
    Fleet(fn(&Programs, PathBuf) -> Result<Vec<f64>>),
}

const PARTS: &[Part] = &[
    Part {
        rows: &[
            ("plan.1000x5_ms", "ms", Some(10.0), Lower),
            ("apply.1000x5_ms", "ms", Some(1.0), Lower),
        ],
        measure: Measure::Computed,
    },
    Part {
        rows: &[("simulate.steps_per_s", "1/s", Some(50_000.0), Higher)],
        measure: Measure::Computed,
    },
    Part { rows: &[("simulate.1000_s", "s", Some(120.0), Lower)], measure: Measure::Computed },
    Part {
        rows: &[
            ("idle.entries_per_minute", "1/min", Some(1.0), Lower),
            ("idle.owing_entries_per_minute", "1/min", Some(6.0), Lower),
        ],
        measure: Measure::Fleet(idle),
    },
    Part {
        rows: &[("voter.replaced_s", "s", Some(15.0), Lower)],
        measure: Measure::Fleet(replaced),
    },
    Part { rows: &[("silence.told_s", "s", Some(35.0), Lower)], measure: Measure::Fleet(told) },
];

/// Measures all rows; a failing part is reported, and the others continue.
pub(crate) fn measure(programs: &Programs, dir: &Path) -> Vec<Row> {
    // Built as `cargo xtask simulate --release` builds the simulator.
    let figures = example("cohort-simulate", "figures", "simulate");
    let mut rows = Vec::new();
    for Part { rows: goals, measure } in PARTS {
        let first = goals[0].0;
        let measured = match measure {
            Measure::Fleet(measure) => measure(programs, dir.join(first)),
            Measure::Computed => match &figures {
                Ok(program) => computed(program, goals),
                Err(error) => Err(anyhow::anyhow!("{error:#}")),
            },
        };
        let values = measured.unwrap_or_else(|error| {
            eprintln!("error: {first}: {error:#}");
            Vec::new()
        });
        let mut values = values.into_iter();
        rows.extend(
            goals.iter().map(|(what, unit, goal, better)| {
                Row::new(what, values.next(), unit, *goal, *better)
            }),
        );
    }
    rows
}

/// The figures of these rows.
fn computed(program: &Path, goals: &[Goal]) -> Result<Vec<f64>> {
    let names: Vec<&str> = goals.iter().map(|(what, ..)| *what).collect();
    eprintln!("computing {}…", names.join(", "));
    // The standard library cannot wait for a program for so long and no longer.
    let mut command = std::process::Command::new("timeout");
    command.arg(COMPUTES_MAX.as_secs().to_string()).arg(program).args(&names);
    let output = command.stderr(Stdio::inherit()).output().context("start `timeout`")?;
    ensure!(output.status.code() != Some(124), "not computed after {COMPUTES_MAX:?}");
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let figure = |what: &&str| {
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(what)?.trim().parse().ok());
        value.with_context(|| format!("no figure {what} in `{text}`"))
    };
    names.iter().map(figure).collect()
}

/// Entries that a group of ten writes in a minute at rest, and with one server that owes.
fn idle(programs: &Programs, dir: PathBuf) -> Result<Vec<f64>> {
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
    Ok(vec![rests, owes])
}

fn entries_per_minute(fleet: &Fleet) -> Result<f64> {
    std::thread::sleep(SETTLES);
    let (before, begun) = (fleet.status(GROUP)?.commit, Instant::now());
    std::thread::sleep(REST);
    let written = fleet.status(GROUP)?.commit - before;
    Ok(written as f64 * 60.0 / begun.elapsed().as_secs_f64())
}

/// From the power cut of a voter that never comes back until the group has five others.
fn replaced(programs: &Programs, dir: PathBuf) -> Result<Vec<f64>> {
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
    Ok(vec![seconds])
}

/// From the power cut of a server at rest until `cohort status` exits with 3 and `cohort why` names
/// the server.
fn told(programs: &Programs, dir: PathBuf) -> Result<Vec<f64>> {
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
    Ok(vec![seconds])
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
