//! Overhead of a wave beyond the work of its servers.
//!
//! Ten servers, one at a time. Waves follow each other without a gap, so a wave lasts from its
//! assignment by the leader until the next one's, or the end of the rollout. Subtracted are the
//! service's stop and start (from the server's log) and the policy's `min_healthy_time`.
//! *Everything else is overhead*: decisions, orders and reports in flight, unpacking, the switch,
//! every durable write, and the time checks took beyond their minimum. (The release has no hooks,
//! and is on every server before the waves start, except for the first one's.)

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cohort_base::events;
use cohort_trial::logs::{Line, read};
use cohort_trial::release::WebRelease;
use cohort_trial::{Programs, watch};

use super::{GROUP, MIN_HEALTHY_MS, PLATFORM, RELEASE_BYTES, Row, median, one_group};

const SERVERS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(180);
const GOAL_MS: f64 = 150.0;
/// The steps of an activation.
const STEPS: [&str; 8] =
    ["prepare", "drain", "hand-over", "stop", "switch", "start", "check", "warm-up"];

pub(crate) fn measure(programs: &Programs, dir: PathBuf) -> Result<Vec<Row>> {
    let mut fleet = one_group(programs, dir, SERVERS)?;
    eprintln!("1.0.0 runs; now 1.1.0 in {SERVERS} waves…");
    fleet.publish(&WebRelease::new("1.1.0").ballast(RELEASE_BYTES), &[PLATFORM])?;
    fleet.until(GROUP, PATIENCE, |status| watch::runs(status, "1.1.0"))?;
    let leader = fleet.leader(GROUP)?.context("a group at rest has a leader")?;
    let lines = read(&fleet.log_file(leader.as_str()))?;
    let mut overheads = Vec::new();
    for wave in waves(&lines)? {
        let log = read(&fleet.log_file(&wave.server))?;
        let step = |name| step_ms(&log, name, &wave);
        let (stop, start) = (step("stop")?, step("start")?);
        let total = wave.end_ms - wave.begin_ms;
        let overhead = total - stop - start - MIN_HEALTHY_MS;
        let steps: f64 = STEPS.iter().map(|name| step(name)).sum::<Result<f64>>()?;
        let (first, last) = (
            at(&log, events::STEP_BEGIN, "prepare", &wave)?,
            at(&log, events::STEP_DONE, "warm-up", &wave)?,
        );
        eprintln!(
            "  {}: {total:.0} ms = stop {stop:.0} + start {start:.0} + healthy {MIN_HEALTHY_MS:.0} \
             + overhead {overhead:.0} (until the server begins {:.0}, prepare {:.0}, drain {:.0}, \
             switch {:.0}, check beyond healthy {:.0}, warm-up {:.0}, between steps {:.0}, until \
             the next wave {:.0})",
            wave.server,
            first - wave.begin_ms,
            step("prepare")?,
            step("drain")?,
            step("switch")?,
            step("check")? - MIN_HEALTHY_MS,
            step("warm-up")?,
            last - first - steps,
            wave.end_ms - last,
        );
        overheads.push(overhead);
    }
    fleet.stop()?;
    ensure!(overheads.len() == SERVERS, "{} waves were seen, not {SERVERS}", overheads.len());
    let row = Row::lower("rollout.wave_overhead_ms", median(&mut overheads)?, "ms", GOAL_MS);
    Ok(vec![row])
}

struct Wave {
    server: String,
    begin_ms: f64,
    end_ms: f64,
}

/// The waves of the last rollout, from the leader's log.
fn waves(lines: &[Line]) -> Result<Vec<Wave>> {
    let begun = |line: &Line| line.is(events::PHASE) && line.field("to") == Some("marked-old");
    let from = lines.iter().rposition(begun).context("the leader saw no rollout begin")?;
    let mut waves: Vec<Wave> = Vec::new();
    let mut open: Option<(f64, Option<String>)> = None;
    for line in &lines[from..] {
        if line.is(events::GRANTED)
            && let Some((_, server)) = &mut open
        {
            *server = line.field("server").map(str::to_owned);
        }
        let ends =
            line.is(events::PHASE) && matches!(line.field("to"), Some("wave-assigned" | "running"));
        if !ends {
            continue;
        }
        if let Some((begin_ms, server)) = open.take() {
            let server = server.context("a wave in which nothing was granted")?;
            waves.push(Wave { server, begin_ms, end_ms: line.at_ms });
        }
        if line.field("to") == Some("wave-assigned") {
            open = Some((line.at_ms, None));
        }
    }
    Ok(waves)
}

/// Duration of a step of the wave's server, from its own log.
fn step_ms(lines: &[Line], step: &str, wave: &Wave) -> Result<f64> {
    Ok(at(lines, events::STEP_DONE, step, wave)? - at(lines, events::STEP_BEGIN, step, wave)?)
}

/// Time at which the wave's server logged this event of a step.
fn at(lines: &[Line], event: &str, step: &str, wave: &Wave) -> Result<f64> {
    let said = |line: &&Line| {
        line.at_ms >= wave.begin_ms
            && line.at_ms <= wave.end_ms + MIN_HEALTHY_MS
            && line.is(event)
            && line.field("step") == Some(step)
    };
    let line = lines.iter().find(said);
    line.map(|line| line.at_ms)
        .with_context(|| format!("{}: no event `{event}` of step {step}", wave.server))
}

#[cfg(test)]
#[path = "rollout_test.rs"]
mod rollout_test;
