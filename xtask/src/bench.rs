//! Benchmarks: real processes of a release build, measured from outside.
//!
//! Each prints a table, or with `-o json` one object per row. A missed goal is a result; only a
//! failed measurement is an error.

mod distribute;
mod failover;
mod flood;
mod publish;
mod rollout;
mod see;
mod truth;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand, ValueEnum};
use cohort_trial::release::WebRelease;
use cohort_trial::{Fleet, FleetOptions, Programs, watch};
use serde::Serialize;

use crate::build::{built, programs};

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
    /// Output format
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Output,
    /// Measure the existing build
    #[arg(long, global = true)]
    no_build: bool,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// Overhead of a wave beyond the work of its servers
    Rollout,
    /// Time without a leader, after a kill and a transfer
    Failover,
    /// Whether a flood of connections from one address keeps out anybody else
    Flood,
    /// Publishing a large directory and its next version: time, memory, and the delta; unpacking it
    Publish(publish::PublishArgs),
    /// How long people wait for a line of a service, and for the status of 500 groups
    See,
    /// Cost of deciding and simulating; entries at rest; time until silence is told and healed
    Truth,
    /// Time until every server of a zone has an artifact, and bytes through the downlink
    Distribute(distribute::DistributeArgs),
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Better {
    Lower,
    Higher,
}

/// Name, unit, goal, and which direction is better.
type Goal = (&'static str, &'static str, Option<f64>, Better);

/// One measured figure and its goal.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    what: &'static str,
    /// `None` if the measurement failed.
    measured: Option<f64>,
    unit: &'static str,
    /// `None` for figures without a goal.
    goal: Option<f64>,
    better: Better,
    /// Also true for figures without a goal.
    met: bool,
}

impl Row {
    /// A figure that is better when it is lower.
    pub(crate) fn lower(what: &'static str, measured: f64, unit: &'static str, goal: f64) -> Row {
        Row::new(what, Some(measured), unit, Some(goal), Better::Lower)
    }

    /// A row; `measured` is `None` if the measurement failed.
    pub(crate) fn new(
        what: &'static str,
        measured: Option<f64>,
        unit: &'static str,
        goal: Option<f64>,
        better: Better,
    ) -> Row {
        let measured = measured.map(|measured| (measured * 1000.0).round() / 1000.0);
        let met = match (measured, goal, better) {
            (None, _, _) => false,
            (Some(_), None, _) => true,
            (Some(measured), Some(goal), Better::Lower) => measured <= goal,
            (Some(measured), Some(goal), Better::Higher) => measured >= goal,
        };
        Row { what, measured, unit, goal, better, met }
    }
}

type Measure<'a> = Box<dyn Fn(&Programs, PathBuf) -> Result<Vec<Row>> + 'a>;

/// Measures and prints. Fails if a measurement failed, not if a goal is missed.
pub(crate) fn run(args: &BenchArgs) -> Result<bool> {
    let measure: Measure<'_> = match &args.what {
        What::Rollout => Box::new(rollout::measure),
        What::Failover => Box::new(failover::measure),
        What::Flood => Box::new(flood::measure),
        What::Publish(of) => Box::new(|programs, dir| publish::measure(of, programs, &dir)),
        What::See => Box::new(see::measure),
        What::Truth => Box::new(|programs, dir| Ok(truth::measure(programs, &dir))),
        What::Distribute(of) => return distribute::run(of, args),
    };
    let programs = args.programs()?;
    let dir = std::env::temp_dir().join(format!("cohort-bench-{}", std::process::id()));
    let logs = || format!("logs are below {}", dir.display());
    let rows = measure(&programs, dir.clone()).with_context(logs)?;
    print(&rows, args.output)?;
    let measured = rows.iter().all(|row| row.measured.is_some());
    if measured {
        std::fs::remove_dir_all(&dir)?;
    } else {
        eprintln!("{}", logs());
    }
    Ok(measured)
}

impl BenchArgs {
    fn programs(&self) -> Result<Programs> {
        if self.no_build || distribute::is_inside() { built(true) } else { programs(true) }
    }
}

fn print(rows: &[Row], output: Output) -> Result<()> {
    if matches!(output, Output::Json) {
        for row in rows {
            println!("{}", serde_json::to_string(row)?);
        }
        return Ok(());
    }
    println!("{:<26} {:>10} {:<5} {:>10}  met", "what", "measured", "unit", "goal");
    for Row { what, measured, unit, goal, better, met } in rows {
        let measured = measured.map_or("-".to_owned(), |measured| measured.to_string());
        let sign = match better {
            Better::Lower => '≤',
            Better::Higher => '≥',
        };
        let (goal, met) = match (goal, met) {
            (None, true) => ("-".to_owned(), "reported"),
            (None, false) => ("-".to_owned(), "no"),
            (Some(goal), true) => (format!("{sign} {goal}"), "yes"),
            (Some(goal), false) => (format!("{sign} {goal}"), "no"),
        };
        println!("{what:<26} {measured:>10} {unit:<5} {goal:>10}  {met}");
    }
    Ok(())
}

/// Starts one group of `servers`, with one mirror, and waits until it runs 1.0.0.
fn one_group(programs: &Programs, dir: PathBuf, servers: usize) -> Result<Fleet> {
    one_group_with(programs, dir, servers, "")
}

/// The same; `agent_toml` is added to every agent's configuration.
fn one_group_with(
    programs: &Programs,
    dir: PathBuf,
    servers: usize,
    agent_toml: &str,
) -> Result<Fleet> {
    eprintln!("starting {servers} agents…");
    let agent_toml = agent_toml.to_owned();
    let options = options(programs, dir, servers);
    let fleet = Fleet::start(FleetOptions { mirrors: 1, agent_toml, ..options })?;
    fleet.until_complete(Duration::from_secs(60))?;
    fleet.publish(&WebRelease::new("1.0.0"), &[PLATFORM])?;
    fleet.apply(POLICY)?;
    fleet.until(GROUP, Duration::from_secs(120), |status| watch::runs(status, "1.0.0"))?;
    Ok(fleet)
}

/// One group of `servers`, which read the hub's repository.
fn options(programs: &Programs, dir: PathBuf, servers: usize) -> FleetOptions {
    FleetOptions {
        dir,
        programs: programs.clone(),
        groups: vec![(PLATFORM.to_owned(), ZONE.to_owned(), servers)],
        mirrors: 0,
        agent_toml: String::new(),
    }
}

const PLATFORM: &str = "intel";
const ZONE: &str = "zone-a";
const GROUP: &str = "intel.zone-a";

/// Ballast of a release: the size of a small service.
const RELEASE_BYTES: usize = 1_000_000;

/// One server per wave, checks that pass immediately, no waits except `min_healthy_time`.
const POLICY: &str = r#"
app = "web"
channel = "stable"

[update]
max_parallel = 1
min_healthy_time = "1s"
healthy_deadline = "20s"
progress_deadline = "60s"
max_unavailable = 1
surroundings_allowed = "10%"
confirm_within = "30s"
unreachable_after = "20s"

[[check]]
type = "http"
path = "/healthz"
expect_status = 200
expect_body = "ok"
interval = "200ms"
timeout = "1s"
"#;

/// `min_healthy_time` of [`POLICY`], in milliseconds.
const MIN_HEALTHY_MS: f64 = 1000.0;

/// The median; an error for no values.
fn median(values: &mut [f64]) -> Result<f64> {
    ensure!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    Ok(if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    })
}

#[cfg(test)]
#[path = "bench_test.rs"]
mod bench_test;
