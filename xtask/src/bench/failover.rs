//! How long a group is without a leader.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use cohort_trial::release::WebRelease;
use cohort_trial::{Fleet, watch};

use super::log::{now_ms, wait_for};
use super::{GROUP, PLATFORM, POLICY, Row, median, one_group};
use crate::build::Programs;

const SERVERS: usize = 5;
const TIMES: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(120);
const KILL_GOAL_S: f64 = 1.5;
const HANDOVER_GOAL_MS: f64 = 100.0;
/// How long a server's check has gone on when the leader is killed: the next step, which only the
/// group can allow, is due soon after, so that the wait for a leader is all that is measured.
const INTO_CHECK: Duration = Duration::from_millis(900);

pub(crate) fn measure(programs: &Programs, dir: PathBuf) -> Result<Vec<Row>> {
    eprintln!("starting {SERVERS} agents…");
    let mut fleet = one_group(programs, dir, SERVERS)?;
    fleet.publish(&WebRelease::new("1.0.0"), &[PLATFORM])?;
    fleet.apply(POLICY)?;
    fleet.until(GROUP, PATIENCE, |status| watch::runs(status, "1.0.0"))?;
    let mut handovers = Vec::new();
    for time in 1..=TIMES {
        let ms = hand_over(&fleet)?;
        eprintln!("  hand-over {time}: {ms:.1} ms");
        handovers.push(ms);
    }
    let mut kills = Vec::new();
    for time in 1..=TIMES {
        let seconds = kill(&mut fleet, &format!("1.{time}.0"))? / 1000.0;
        eprintln!("  kill {time}: {seconds:.2} s");
        kills.push(seconds);
    }
    fleet.stop()?;
    Ok(vec![
        Row::lower("failover.kill_s", median(&mut kills)?, "s", KILL_GOAL_S),
        Row::lower("failover.handover_ms", median(&mut handovers)?, "ms", HANDOVER_GOAL_MS),
    ])
}

/// From the moment at which the old leader takes nothing more, until the new one has committed in
/// its term and takes what comes: the whole time in which nobody can decide anything.
fn hand_over(fleet: &Fleet) -> Result<f64> {
    let before = now_ms();
    fleet.run(&["group", "transfer-leader", GROUP])?;
    let patience = Duration::from_secs(10);
    let (_, begun) = wait_for(fleet, before, patience, "leadership is given away", |_, line| {
        line.says("leadership is given away")
    })?;
    let (_, over) = wait_for(fleet, begun.at_ms, patience, "a new leader", |_, line| {
        line.says("leads the group")
    })?;
    Ok(over.at_ms - begun.at_ms)
}

/// From `kill −9` of the leader, mid-rollout, until a server takes the next step, which needed the
/// group's word. In milliseconds.
fn kill(fleet: &mut Fleet, version: &str) -> Result<f64> {
    let before = now_ms();
    fleet.publish(&WebRelease::new(version), &[PLATFORM])?;
    let leader = fleet.leader(GROUP)?.context("a group at rest has a leader")?;
    // The first server's check; the leader's own comes last.
    let (server, check) = wait_for(fleet, before, PATIENCE, "a check that begins", |_, line| {
        line.says("step begins") && line.field("step") == Some("check")
    })?;
    let since_ms = now_ms() - check.at_ms;
    std::thread::sleep(INTO_CHECK.saturating_sub(Duration::from_secs_f64(since_ms / 1000.0)));
    let killed = now_ms();
    fleet.kill_agent(leader.as_str());
    let (_, next) = wait_for(fleet, killed, PATIENCE, "the next step", |name, line| {
        name == server && line.says("step begins") && line.field("step") == Some("warm-up")
    })?;
    fleet.start_agent(leader.as_str())?;
    fleet.until(GROUP, PATIENCE, |status| watch::runs(status, version))?;
    Ok(next.at_ms - killed)
}
