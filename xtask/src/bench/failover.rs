//! Time during which a group has no leader.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use cohort_base::events;
use cohort_trial::logs::{Line, Logs};
use cohort_trial::release::WebRelease;
use cohort_trial::{Fleet, Programs, watch};

use super::{GROUP, PLATFORM, Row, median, one_group};

const SERVERS: usize = 5;
const TIMES: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(120);
const KILL_GOAL_S: f64 = 0.25;
const HANDOVER_GOAL_MS: f64 = 100.0;
/// Age of a server's check when the leader is killed: the next step, which only the group can
/// allow, is due soon after, so that only the wait for a leader is measured.
const INTO_CHECK: Duration = Duration::from_millis(900);

pub(crate) fn measure(programs: &Programs, dir: PathBuf) -> Result<Vec<Row>> {
    let mut fleet = one_group(programs, dir, SERVERS)?;
    let mut handovers = Vec::new();
    for time in 1..=TIMES {
        let ms = hand_over(&fleet)?;
        eprintln!("  transfer {time}: {ms:.1} ms");
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

/// From when the old leader stops accepting proposals until the new one accepts them: the time in
/// which the group cannot decide.
fn hand_over(fleet: &Fleet) -> Result<f64> {
    let mut logs = Logs::from_now(fleet);
    let patience = Duration::from_secs(10);
    fleet.run(&["group", "transfer-leader", GROUP])?;
    let mut begun = None;
    let mut over = None;
    while begun.is_none() || over.is_none() {
        // Logs are read server by server: the new leader's line may come first.
        let (_, line) = logs.wait_for("a leadership transfer", patience, |_, line| {
            line.is(events::LEADERSHIP_TRANSFER) || line.is(events::LEADER_READY)
        })?;
        let seen = if line.is(events::LEADER_READY) { &mut over } else { &mut begun };
        *seen = Some(line.at_ms);
    }
    Ok(over.unwrap_or_default() - begun.unwrap_or_default())
}

/// From `kill -9` of the leader, mid-rollout, until a server takes the next step, which only the
/// group can allow. In milliseconds.
fn kill(fleet: &mut Fleet, version: &str) -> Result<f64> {
    let mut logs = Logs::from_now(fleet);
    fleet.publish(&WebRelease::new(version), &[PLATFORM])?;
    let leader = fleet.leader(GROUP)?.context("a group at rest has a leader")?;
    let begins =
        |line: &Line, step: &str| line.is(events::STEP_BEGIN) && line.field("step") == Some(step);
    // The first server's check; the leader's own comes last.
    let (server, check) =
        logs.wait_for("the start of a check", PATIENCE, |_, line| begins(line, "check"))?;
    let since_ms = now_ms() - check.at_ms;
    std::thread::sleep(INTO_CHECK.saturating_sub(Duration::from_secs_f64(since_ms / 1000.0)));
    let killed = now_ms();
    fleet.kill_agent(leader.as_str());
    let (_, next) = logs.wait_for("the next step", PATIENCE, |name, line| {
        name == server && line.at_ms > killed && begins(line, "warm-up")
    })?;
    fleet.start_agent(leader.as_str())?;
    fleet.until(GROUP, PATIENCE, |status| watch::runs(status, version))?;
    Ok(next.at_ms - killed)
}

/// The current time, on the clock of the logs.
fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1000.0
}
