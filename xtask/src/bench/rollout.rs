//! What a wave costs beyond the work of its servers.
//!
//! Ten servers, one at a time. The waves follow each other without a gap, so a wave lasts from the
//! moment at which the leader assigned it until the next one is assigned, or the rollout is over.
//! Of that, the server's own log says how long the service's stop and start took, and
//! `min_healthy_time` is what the policy asks for. *Everything else is overhead*: the group's
//! decisions, orders and reports on their way, unpacking, the switch, every record that is made
//! durable, and how much longer the checks took than they had to. (The release has no hooks, and
//! is on every server before the waves begin, but for the first one's.)

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cohort_trial::release::WebRelease;
use cohort_trial::watch;

use super::log::{Line, path_of, read};
use super::{GROUP, MIN_HEALTHY_MS, PLATFORM, POLICY, RELEASE_BYTES, Row, median, one_group};
use crate::build::Programs;

const SERVERS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(180);
const GOAL_MS: f64 = 150.0;
/// What a server's log says of every step.
const BEGINS: &str = "step begins";
const DONE: &str = "step is done";
/// The steps of an activation.
const STEPS: [&str; 8] =
    ["prepare", "drain", "hand-over", "stop", "switch", "start", "check", "warm-up"];

pub(crate) fn measure(programs: &Programs, dir: PathBuf) -> Result<Vec<Row>> {
    eprintln!("starting {SERVERS} agents…");
    let mut fleet = one_group(programs, dir, SERVERS)?;
    fleet.publish(&WebRelease::new("1.0.0"), &[PLATFORM])?;
    fleet.apply(POLICY)?;
    fleet.until(GROUP, PATIENCE, |status| watch::runs(status, "1.0.0"))?;
    eprintln!("1.0.0 runs; now 1.1.0 in {SERVERS} waves…");
    fleet.publish(&WebRelease::new("1.1.0").ballast(RELEASE_BYTES), &[PLATFORM])?;
    fleet.until(GROUP, PATIENCE, |status| watch::runs(status, "1.1.0"))?;
    let leader = fleet.leader(GROUP)?.context("a group at rest has a leader")?;
    let lines = read(&path_of(&fleet, leader.as_str()))?;
    let mut overheads = Vec::new();
    for wave in waves(&lines)? {
        let log = read(&path_of(&fleet, &wave.server))?;
        let step = |name| step_ms(&log, name, &wave);
        let (stop, start) = (step("stop")?, step("start")?);
        let total = wave.end_ms - wave.begin_ms;
        let overhead = total - stop - start - MIN_HEALTHY_MS;
        let steps: f64 = STEPS.iter().map(|name| step(name)).sum::<Result<f64>>()?;
        let (first, last) =
            (at(&log, BEGINS, "prepare", &wave)?, at(&log, DONE, "warm-up", &wave)?);
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

/// The waves of the last rollout, as the leader's log has them.
fn waves(lines: &[Line]) -> Result<Vec<Wave>> {
    let begun = |line: &Line| line.says(" state ") && line.field("to") == Some("marked-old");
    let from = lines.iter().rposition(begun).context("the leader saw no rollout begin")?;
    let mut waves: Vec<Wave> = Vec::new();
    let mut open: Option<(f64, Option<String>)> = None;
    for line in &lines[from..] {
        if line.says(" granted ")
            && let Some((_, server)) = &mut open
        {
            *server = line.field("server").map(str::to_owned);
        }
        let ends =
            line.says(" state ") && matches!(line.field("to"), Some("wave-assigned" | "running"));
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

/// How long a step of the wave's server took, by its own log.
fn step_ms(lines: &[Line], step: &str, wave: &Wave) -> Result<f64> {
    Ok(at(lines, DONE, step, wave)? - at(lines, BEGINS, step, wave)?)
}

/// When the wave's server said this of a step.
fn at(lines: &[Line], message: &str, step: &str, wave: &Wave) -> Result<f64> {
    let said = |line: &&Line| {
        line.at_ms >= wave.begin_ms
            && line.at_ms <= wave.end_ms + MIN_HEALTHY_MS
            && line.says(message)
            && line.field("step") == Some(step)
    };
    let line = lines.iter().find(said);
    line.map(|line| line.at_ms)
        .with_context(|| format!("{}: no line `{message}` of {step}", wave.server))
}
